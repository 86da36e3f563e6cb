"""Folders for the time of some work, and those that killed processes left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pyemo.files.scratch import scratch_folder

WORKER = """
import sys
from pyemo.files.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "file").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def start() -> tuple[subprocess.Popen[str], Path]:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    return worker, Path(worker.stdout.readline().strip())


def test_a_killed_processs_folder_goes_and_a_live_ones_stays() -> None:
    (killed, dead), (working, live) = start(), start()
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert dead.is_dir()
    with scratch_folder() as folder:
        assert not dead.exists()
        assert list(live.iterdir())
        assert list(folder.iterdir()) == []
    assert not folder.exists()
    working.communicate()
    assert not live.exists()
