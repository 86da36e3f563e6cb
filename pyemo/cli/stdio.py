"""Standard streams that are closed, full, or read by nobody: what other tools do with them.

Owns which number and object each stream has. Exit codes are the group's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import TextIO

_STREAMS = (("stdin", os.O_WRONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_WRONLY))
"""Where a stream is closed: its name, and how /dev/null is opened in its place.

What would be read or printed is an error then, as with a closed file; messages are lost.
"""

_OF_STREAMS = {errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.ENXIO}


def prepare() -> None:
    """Fill the places of closed streams, before a file that is opened takes their numbers."""
    for number, (name, flags) in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(number, mode, errors="replace", closefd=False))
    # What a terminal or pipe cannot encode is shown as "?" instead of ending the command.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def is_of_a_stream(error: OSError) -> bool:
    """Whether an error came from a standard stream: a file that fails is named by its error."""
    return error.filename is None and error.errno in _OF_STREAMS


def silence(stream: TextIO) -> None:
    """Let what is still to be printed vanish: Python flushes once more at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
