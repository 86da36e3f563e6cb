"""Mixed work from many threads on one engine: every result is right, and nothing is left over."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from engines import not_under_address_sanitizer

PROGRAM = Path(__file__).parents[2] / "bench" / "soak.py"


@not_under_address_sanitizer("it keeps what was freed, and memory grows")
@pytest.mark.parametrize("seconds", [4, pytest.param(600, marks=pytest.mark.quality)])
def test_mixed_work_gives_right_results_and_leaves_nothing(seconds: int, tmp_path: Path) -> None:
    told = tmp_path / "soak.json"
    command = [sys.executable, PROGRAM, "--seconds", str(seconds), "--output", told]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(told.read_text())
    kinds = {"plain", "guarded", "cancelled", "impossible", "chat", "score", "fork"}
    assert kinds <= report["done"].keys()
    assert report["wrong"] == []
