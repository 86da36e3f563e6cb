"""What may be written where: an output never replaces what it is not.

Owns the check of a target, the temporary file beside it and the removal of those that dead
processes left. What a file of its own kind is, the caller says.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyemo.errors import InputError

_LONGEST_NAME = 200  # of a target's name in that of its temporary file
_OWN = re.compile(r"\.(\d+)-[0-9a-f]{8}\.tmp")


def checked_target(
    path: str | os.PathLike[str], kind: str, refusal: Callable[[Path], str | None] | None = None
) -> Path:
    """Return the file that writing to ``path`` makes or replaces; a link stands for its target.

    Call it before the work and again before the write. Writes nothing.

    Args:
        path: what the user named.
        kind: what is to be written, such as ``"a control vector"``, for messages.
        refusal: says why a regular file that is there must stay, None where it may be replaced.
    Raises:
        InputError: a folder, a device, a pipe, a file to be kept, a folder that is missing or
            cannot be written to.
    """
    try:
        target = Path(os.path.realpath(path))
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        mode = None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{os.fspath(path)!r} cannot be written: {why}; name another") from error
    if mode is None and os.path.islink(target):
        raise InputError(f"{os.fspath(path)!r} is a link that leads nowhere; name another file")
    if mode is not None:
        _check_there(target, mode, kind, refusal)
    if not target.parent.is_dir():
        raise InputError(f"no folder {str(target.parent)!r} to write {kind} to; make it first")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InputError(f"the folder {str(target.parent)!r} cannot be written to; name another")
    return target


@contextmanager
def written_beside(target: Path) -> Iterator[Path]:
    """Yield the path of a file to make, which takes the place of ``target`` at the end.

    On an error it vanishes, and ``target`` stays as it was. The new file has the old one's mode.
    What processes of this machine that have ended left there of ``target`` is removed first.
    """
    remove_abandoned(target)
    # Its own name for each writer: two processes may make the same file at once.
    name = f".{target.name[:_LONGEST_NAME]}.{os.getpid()}-{os.urandom(4).hex()}.tmp"
    temporary = target.with_name(name)
    try:
        yield temporary
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
    finally:
        if os.path.lexists(temporary):  # the body failed
            temporary.unlink()


def remove_abandoned(target: Path) -> None:
    """Remove the temporary files of ``target`` whose processes have ended."""
    prefix = f".{target.name[:_LONGEST_NAME]}"
    with suppress(OSError):  # a folder that cannot be listed keeps its litter
        for entry in os.listdir(target.parent):
            match = _OWN.fullmatch(entry.removeprefix(prefix))
            if entry.startswith(prefix) and match and not _is_running(int(match[1])):
                target.with_name(entry).unlink(missing_ok=True)


def _check_there(
    target: Path, mode: int, kind: str, refusal: Callable[[Path], str | None] | None
) -> None:
    if stat.S_ISDIR(mode):
        raise InputError(f"{str(target)!r} is a folder; name a file in it")
    if not stat.S_ISREG(mode):
        raise InputError(f"{str(target)!r} is a device, pipe or socket, not a file; name a file")
    if not mode & 0o222 or not os.access(target, os.W_OK):
        raise InputError(f"{str(target)!r} is read-only; name another file")
    why = refusal(target) if refusal is not None else None
    if why is not None:
        raise InputError(f"{str(target)!r} {why}; {kind} does not replace it: name another file")


def _is_running(pid: int) -> bool:
    if sys.platform == "win32":  # there is no signal 0 to ask with, os.kill would end it
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
