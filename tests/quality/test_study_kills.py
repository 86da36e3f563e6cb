"""A study on the default model that is killed ten times gives the files of one that was not.

    python -m pytest -m quality -s tests/quality/test_study_kills.py

Each run is a process of its own with two workers, ended by SIGKILL with all it started at a random
moment; what is on disk then is all that the next one has.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.quality

N_KILLS = 10
PLAN = ("--emotions", "happy,sad,angry,calm", "--steered", "none", "--stories", "3")


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            sys.executable, "-m", "pyemo", "study", *PLAN,
            "--store", str(folder / "store"), "-o", str(folder / "report"),
        ],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "report").glob("*.csv")}


def test_ten_kills_at_random_moments_change_no_byte(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    unbroken = start(whole)
    _, said = unbroken.communicate()
    assert unbroken.returncode == 0, said.decode()
    draw, n_stored, n_killed = random.Random(4), [], 0
    while n_killed < N_KILLS:
        run = start(broken)
        try:
            run.wait(timeout=draw.uniform(6, 26))
        except subprocess.TimeoutExpired:
            n_killed += 1
        assert run.poll() in (None, 0)
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        n_stored.append(sum(path.is_file() for path in (broken / "store").rglob("*")))
        if run.returncode == 0:
            break
    print(f"\nkilled {n_killed} times; files in the store after each: {n_stored}")
    last = start(broken)
    _, said = last.communicate()
    assert last.returncode == 0, said.decode()
    assert n_killed == N_KILLS
    assert len(set(n_stored)) > 2  # they were killed at different points of the work
    assert tables(whole) == tables(broken)
    assert len(tables(whole)) == 9
