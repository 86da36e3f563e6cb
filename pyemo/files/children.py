"""How pyemo starts itself as a child: no code from the current folder runs."""

from __future__ import annotations

import signal
import sys

# `python -m` and `-c` put the current folder first on the path; -I would hide user packages too.
_START = (
    "import sys; sys.path[:] = [folder for folder in sys.path if folder]; "
    "import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
)


def python_module(name: str) -> list[str]:
    """Return the command that runs a module of pyemo; its arguments go behind it.

    Example:
        >>> python_module("pyemo")[1]
        '-c'
    """
    return [sys.executable, "-c", _START.format(name=name)]


def exit_text(code: int) -> str:
    """Return how a child ended, from its exit code.

    Example:
        >>> exit_text(-9)
        'it was ended by SIGKILL, which the system sends where memory runs out'
    """
    if code >= 0:
        return f"it ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    why = ", which the system sends where memory runs out" if name == "SIGKILL" else ""
    return f"it was ended by {name}{why}"
