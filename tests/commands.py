"""The command ``pyemo``, inside this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from click.testing import CliRunner, Result

from pyemo.cli import main


def pyemo(*arguments: object, stdin: str | bytes | None = None) -> Result:
    """Run the command in this process; return its exit code, stdout and stderr."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def start(
    *arguments: object, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    """Start the command in a process of its own, with pipes on stdout and stderr."""
    return subprocess.Popen(
        [sys.executable, "-m", "pyemo", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**(os.environ if env is None else env), "PYTHONUNBUFFERED": "1"},
        **options,
    )
