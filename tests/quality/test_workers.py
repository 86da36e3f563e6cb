"""What two workers make, killed once and started again, has the bytes of one process.

python -m pytest -m quality tests/quality/test_workers.py
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import pyemo, start
from engines import needs_torch
from tiny_models import TinyModel

pytestmark = pytest.mark.quality

QUICK = """
name = "quick"
source = "replies"
[training]
steps = 1
evaluate_every = 1
batch = 2
plain_batch = 0
contrast_batch = 0
"""
PATIENCE_S = 900


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.gguf")}


@needs_torch
def test_voices_of_two_workers_killed_once_are_those_of_one_process(
    tiny: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    pytest.importorskip("distributed", reason="needs the extra `study`")
    recipe = tmp_path / "quick.toml"
    recipe.write_text(QUICK, encoding="utf-8")
    words = ("extract", "anger", "joy", "calm", "-r", recipe, "-m", tiny("llama").path)
    alone = pyemo(*words, "-o", tmp_path / "alone", "--threads", 1)
    assert alone.exit_code == 0, alone.stderr
    target = tmp_path / "together"
    target.mkdir()
    with start(*words, "-o", target, "--workers", 2, start_new_session=True) as run:
        deadline = time.monotonic() + PATIENCE_S
        while not contents(target) and run.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
    finished = contents(target)
    assert finished
    with start(*words, "-o", target, "--workers", 2, "--json") as again:
        said, why = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, why.decode()
    kept = {line["emotion"] for line in json.loads(said)["vectors"] if line["kept"]}
    assert {f"{name}.gguf" for name in kept} >= set(finished)
    assert contents(target) == contents(tmp_path / "alone")


def test_calibrations_of_two_workers_are_those_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="needs the extra `study`")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Tell me about your neighbour.\nWhat is for dinner?\n", encoding="utf-8")
    words = ("calibrate", "angry", "calm", "--lengths", "16", "--prompts", prompts, "--json")
    alone = pyemo(*words, "-o", tmp_path / "alone", "--threads", 1)
    assert alone.exit_code == 0, alone.stderr
    with start(*words, "-o", tmp_path / "together", "--workers", 2) as run:
        said, why = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, why.decode()
    assert said.decode().replace("/together", "/alone") == alone.stdout
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")
