"""Text files that a user names: read whole, but never a device, a pipe, or more than they can be.

Owns the reading and what is said when it fails; what is in a file is the caller's.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pyemo.errors import InputError

MOST_BYTES = 64 << 20
"""Of a file of texts, limits or predictions; such files have some kilobytes."""


def read_input(path: str | os.PathLike[str], kind: str, remedy: str) -> bytes:
    """Return the bytes of a file that the user named.

    Args:
        kind: what it is to be, such as ``"the prompts"``; begins the message.
        remedy: what to do, ends the message.
    Raises:
        InputError: not there, not a regular file, too large, or the system refuses.
    """
    try:
        status = os.stat(Path(path).expanduser())
        if not stat.S_ISREG(status.st_mode):
            is_folder = stat.S_ISDIR(status.st_mode)
            why = "it is a folder" if is_folder else "it is a device or pipe, not a file"
        elif status.st_size > MOST_BYTES:
            why = f"it has {status.st_size >> 20} MB, and {MOST_BYTES >> 20} MB is the most"
        else:
            return Path(path).expanduser().read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # a zero byte; ~ of no known user
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{kind} {os.fspath(path)!r} cannot be read: {why}; {remedy}") from error
    raise InputError(f"{kind} {os.fspath(path)!r} cannot be read: {why}; {remedy}")


def read_text(path: str | os.PathLike[str], kind: str, remedy: str) -> str:
    """Return the text of a UTF-8 file that the user named, without a byte order mark.

    Raises:
        InputError: see :func:`read_input`; not UTF-8.
    """
    data = read_input(path, kind, remedy)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{kind} {os.fspath(path)!r} cannot be read: {error}; {remedy}") from error
