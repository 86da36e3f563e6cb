"""One writer at a time, between processes, for a file that is read, changed and written again.

A lock is an empty file in pyemo's cache, so that none is left beside a user's file. It holds
between processes of one machine that share the cache.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pyemo.errors import InputError
from pyemo.files.local import cache_dir

_log = logging.getLogger(__name__)

_POLL_S = 0.01


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of a file, which need not be there; wait for who holds it.

    A process that ends gives its locks back, however it ends. Without a cache that can be written
    there is no lock, and the log says so. Not to be nested for one file.
    """
    from filelock import FileLock  # not needed to run a model

    digest = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()
    try:
        folder = cache_dir() / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{digest[:32]}.lock")
        lock.acquire(poll_interval=_POLL_S)
    except (OSError, InputError) as error:
        _log.warning("%s is written without a lock: %s", path, error)
        yield
        return
    try:
        yield
    finally:
        lock.release()
