"""What may be written where: an output never replaces what it is not, and is whole or not there.

Owns the check of a target, the temporary file beside it and the removal of those that dead
processes left. What a file of its own kind is, the caller says.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from pyemo.errors import InputError

Refusal: TypeAlias = Callable[[Path], str | None]
"""Says why a regular file that is there must stay, None where it may be replaced."""

_LONGEST_NAME = 200  # of a target's name in that of its temporary file
_OWN = re.compile(r"\.(.+)\.\d+-[0-9a-f]{8}\.tmp")
_HEAD_BYTES = 4096


def checked_target(path: str | os.PathLike[str], kind: str, refusal: Refusal | None = None) -> Path:
    """Return the file that writing to ``path`` makes or replaces; a link stands for its target.

    Call it before the work and again before the write. Writes nothing. An empty file may always be
    replaced.

    Args:
        path: what the user named.
        kind: what is to be written, such as ``"a control vector"``, for messages.
        refusal: None where any regular file may be replaced.
    Raises:
        InputError: a folder, a device, a pipe, a file to be kept, a folder that is missing or
            cannot be written to.
    """
    try:
        target = Path(os.path.realpath(path))
        status = os.stat(target) if os.path.lexists(target) else None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{os.fspath(path)!r} cannot be written: {why}; name another") from error
    if status is not None:
        _check_there(target, status, kind, refusal)
    if not target.parent.is_dir():
        raise InputError(f"no folder {str(target.parent)!r} to write {kind} to; make it first")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InputError(f"the folder {str(target.parent)!r} cannot be written to; name another")
    return target


def unless_it_begins(pattern: bytes, why: str) -> Refusal:
    """Return a refusal of files whose first 4096 bytes do not match a regular expression.

    Args:
        why: of the refusal, such as ``"is not a PNG picture"``.
    """
    compiled = re.compile(pattern, re.DOTALL)

    def refusal(target: Path) -> str | None:
        try:
            with target.open("rb") as file:
                head = file.read(_HEAD_BYTES)
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"
        return None if compiled.match(head) else why

    return refusal


@contextmanager
def written_beside(path: str | os.PathLike[str], kind: str = "a file") -> Iterator[Path]:
    """Yield the path of an empty file to fill, which takes the place of ``path`` at the end.

    It is on disk then. On an error it vanishes, and what was there stays. The new file has the old
    one's mode. What ended processes left there of the same target is removed first.

    Raises:
        InputError: see :func:`checked_target`.
        OSError: the disk refuses.
    """
    target = checked_target(path, kind)
    remove_abandoned(target.parent, target.name)
    temporary, descriptor = _locked_beside(target)
    try:
        yield temporary
        if target.exists():
            os.fchmod(descriptor, stat.S_IMODE(target.stat().st_mode))
        os.fsync(descriptor)
        os.replace(temporary, target)
    finally:
        if os.path.lexists(temporary):  # the body failed
            temporary.unlink()
        os.close(descriptor)


def write_whole(
    path: str | os.PathLike[str], data: bytes, kind: str, refusal: Refusal | None = None
) -> None:
    """Write a file that is there whole or as it was before.

    Raises:
        InputError: see :func:`checked_target`, or the disk refuses.
    """
    target = checked_target(path, kind, refusal)
    try:
        with written_beside(target, kind) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise InputError(
            f"{kind} cannot be written to {os.fspath(path)!r}: {error.strerror or error}; free "
            "some space, or name another file"
        ) from error


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Remove temporary files whose writers have ended: of one target, or all in a folder.

    A writer holds a lock on its file, which the system takes back when the process ends.
    """
    wanted = None if name is None else name[:_LONGEST_NAME]
    with suppress(OSError):  # a folder that cannot be listed keeps its litter
        for entry in os.listdir(folder):
            match = _OWN.fullmatch(entry)
            if match is not None and wanted in (None, match[1]):
                _remove_unlocked(folder / entry)


def _locked_beside(target: Path) -> tuple[Path, int]:
    """Make an empty file beside ``target``; return its path and the descriptor of its lock."""
    while True:
        # Its own name for each writer: two processes may make the same file at once.
        name = f".{target.name[:_LONGEST_NAME]}.{os.getpid()}-{os.urandom(4).hex()}.tmp"
        temporary = target.with_name(name)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with suppress(OSError):  # a file system without locks: nobody removes it either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Before it was locked, another process may have taken it for abandoned.
        if os.path.lexists(temporary):
            return temporary, descriptor
        os.close(descriptor)


def _remove_unlocked(temporary: Path) -> None:
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # gone by now, or another user's
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temporary.unlink(missing_ok=True)
    except OSError:  # its writer works on it
        return
    finally:
        os.close(descriptor)


def _check_there(target: Path, status: os.stat_result, kind: str, refusal: Refusal | None) -> None:
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        raise InputError(f"{str(target)!r} is a folder; name a file in it")
    if not stat.S_ISREG(mode):
        raise InputError(f"{str(target)!r} is a device, pipe or socket, not a file; name a file")
    if not mode & 0o222 or not os.access(target, os.W_OK):
        raise InputError(f"{str(target)!r} is read-only; name another file")
    why = refusal(target) if refusal is not None and status.st_size > 0 else None
    if why is not None:
        raise InputError(f"{str(target)!r} {why}; {kind} does not replace it: name another file")
