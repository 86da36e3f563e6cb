"""Run a command that takes minutes and prints too much: say what it does, and how far it is.

    python tools/progress.py "installing llama.cpp" COMMAND...

Prints the title, a line every ten seconds with the last step seen in the command's output, and the
time it took. If the command fails, its last lines are printed and its exit code is returned.
Knows the output of pip, CMake and ninja. Needs nothing but Python's own library.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence

INTERVAL_S = 10.0
"""Seconds from one line to the next."""
N_LAST_LINES = 40
"""Lines of the output that are shown of a command that failed."""

# What a line of output means; the groups of the pattern are put into the words.
STEPS = [
    (re.compile(r"^\s*\[(\d+)/(\d+)\] "), "compiling: {} of {} steps"),
    (re.compile(r"^\s*Collecting ([\w.-]+)"), "looking for {}"),
    (re.compile(r"^\s*Downloading (\S+) (\(.*?\))"), "downloading {} {}"),
    (re.compile(r"^\s*Building wheel for (\S+)"), "building {}"),
    (re.compile(r"^\s*Installing collected packages: (.*)"), "installing {}"),
]


def step_of(line: str) -> str | None:
    """Return what a line of output says of the progress; None if it says nothing."""
    for pattern, words in STEPS:
        found = pattern.match(line)
        if found:
            parts = [part.rsplit("/", 1)[-1] for part in found.groups()]
            said = words.format(*parts)
            return said if len(said) <= 80 else said[:77] + "..."
    return None


def clock(seconds: float) -> str:
    """Return minutes and seconds, such as 2:07."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


class Progress:
    """What is known of a running command.

    Attributes:
        step: the last step seen, in words.
        last_lines: the end of its output.
    """

    def __init__(self) -> None:
        self.step = "starting"
        self.last_lines: deque[str] = deque(maxlen=N_LAST_LINES)

    def read(self, lines: Iterable[str]) -> None:
        """Take in the command's output until it ends."""
        for line in lines:
            self.last_lines.append(line)
            self.step = step_of(line) or self.step


def run(title: str, command: Sequence[str], interval_s: float = INTERVAL_S) -> int:
    """Run the command and return its exit code.

    Args:
        title: what is done, without a full stop.
        interval_s: seconds between two lines.
    """
    print(title, flush=True)
    began = time.monotonic()
    progress = Progress()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=progress.read, args=(process.stdout,), daemon=True)
        reader.start()
        try:
            while True:
                reader.join(interval_s)
                if not reader.is_alive():
                    break
                print(f"  {clock(time.monotonic() - began)}  {progress.step}", flush=True)
            code = process.wait()
        except BaseException:
            process.terminate()
            raise
    if code:
        print("".join(progress.last_lines), end="", file=sys.stderr)
        print(f"{title}: failed after {clock(time.monotonic() - began)}", file=sys.stderr)
    elif time.monotonic() - began >= interval_s:
        print(f"  {clock(time.monotonic() - began)}  done", flush=True)
    return code


if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv[1], sys.argv[2:]))
    except KeyboardInterrupt:
        sys.exit(130)
