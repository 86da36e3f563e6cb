"""The tool that runs what takes minutes says what it does, how far it is, and why it failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import progress
import pytest

TOOL = Path(progress.__file__)


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("  [56/180] /usr/bin/c++ -O3 x.cpp", "compiling: 56 of 180 steps"),
        ("Collecting torch==2.13.0 (from x)", "looking for torch"),
        ("  Downloading http://a.b/torch-2.whl (200 MB)", "downloading torch-2.whl (200 MB)"),
        ("  Building wheel for llama_cpp_python (pyproject.toml)", "building llama_cpp_python"),
        ("Installing collected packages: a, b", "installing a, b"),
        ("-- Detecting CXX compile features", None),
        ("[notice] a new release", None),
    ],
)
def test_lines_of_pip_and_ninja_are_understood(line: str, step: str | None) -> None:
    assert progress.step_of(line) == step


def test_step_is_one_short_line() -> None:
    step = progress.step_of("Installing collected packages: " + ", ".join("abcdefgh" * 20))
    assert step is not None
    assert len(step) == 80


def test_long_command_says_where_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    script = "import time; print('[3/9] c++', flush=True); time.sleep(0.6); print('noise')"
    assert progress.run("compiling it", [sys.executable, "-c", script], interval_s=0.2) == 0
    said = capfd.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "compiling it"
    assert any(line.endswith("  compiling: 3 of 9 steps") for line in lines)
    assert lines[-1].endswith("  done")
    assert "noise" not in said.out + said.err


def test_command_that_fails_shows_its_end_and_keeps_its_code() -> None:
    script = "print(*range(100), sep='\\n'); raise SystemExit(3)"
    ended = subprocess.run(
        [sys.executable, TOOL, "compiling it", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 3
    lines = ended.stderr.splitlines()
    assert lines[:-1] == [str(i) for i in range(100 - progress.N_LAST_LINES, 100)]
    assert lines[-1].startswith("compiling it: failed after")
