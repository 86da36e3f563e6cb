"""A fork of a process that had loaded a model is told so at once; a spawned one works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

# A child that hangs is ended by its alarm: status 14.
FORKING = """
import os, signal, sys
from pyemo import Engine, Model
from pyemo.errors import ForkedError
path = sys.argv[1]
engine = Engine(path, n_ctx=64, n_seq_max=2, n_threads=2)
sequence = engine.sequence([5, 6, 7])
sequence.step()
reply = sequence.generate(max_tokens=4)
next(reply)
{before}
for use in sys.argv[2:]:
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        try:
            exec(use)
        except ForkedError:
            os._exit(0)
        os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert status == 0, (use, status)
"""
HELD = """
import threading
held, done = threading.Event(), threading.Event()
def hold():
    with engine.turns:
        held.set(); done.wait(5)
threading.Thread(target=hold, daemon=True).start(); held.wait()
"""
SPAWNING = """
import multiprocessing, sys
from pyemo import Engine

def write(path):
    with Engine(path, n_ctx=64, n_threads=2) as engine:
        return [token.id for token in engine.generate([5, 6, 7], max_tokens=4)]

if __name__ == "__main__":
    here = write(sys.argv[1])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(write, (sys.argv[1],)).get(60) == here
"""


USES = (
    "next(reply)",
    "sequence.step()",
    "sequence.n_tokens",
    "sequence.append([5])",
    "sequence.fork()",
    "engine.sequence([5])",
    "engine.score('a b')",
    "engine.n_threads = 1",
    "engine.model.tokenize('a')",
    "Engine(engine.model, n_ctx=64, n_threads=2)",
    "Engine(path, n_ctx=64, n_threads=2)",
    "Model.load(path)",
    "sequence.close(); engine.close(); Model.load(path)",
)


def run(code: str, folder: Path, model: Path, *uses: str) -> None:
    script = folder / "program.py"
    script.write_text(code, encoding="utf-8")
    # Since 3.12 Python itself warns where a process with threads forks.
    quiet = ("-W", "ignore:This process:DeprecationWarning")
    command = [sys.executable, *quiet, script, model, *uses]
    done = subprocess.run(command, capture_output=True, timeout=100)
    assert (done.returncode, done.stderr.decode()) == (0, "")


def test_fork_of_a_process_with_a_model_is_refused(tiny_model_path: Path, tmp_path: Path) -> None:
    run(FORKING.format(before=""), tmp_path, tiny_model_path, *USES)


def test_fork_while_another_thread_holds_the_engine_is_refused(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    run(FORKING.format(before=HELD), tmp_path, tiny_model_path, "sequence.append([5])")


def test_spawned_process_writes_what_its_parent_does(tiny_model_path: Path, tmp_path: Path) -> None:
    run(SPAWNING, tmp_path, tiny_model_path)
