"""Commands that are killed at random moments: nothing finished is lost, nothing is half-written.

Each job runs once undisturbed, then again and again in one folder, each time ended by SIGKILL or
SIGTERM at a random moment, and then once to its end. Every file under its final name is whole at
all times, what was finished stays as it was, the last run gives the bytes of the undisturbed one,
and leaves neither a temporary file nor a process. 40 kills each: python -m pytest -m quality -s
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from pyemo.vectors import file as vector_file

RECIPE = """
name = "mine"
source = "stories"
n_stories = 2
max_tokens = 16
"""
# `pyemo` with a judge that needs no model.
WITH_JUDGE = """
import sys
import numpy as np
from pyemo import judges
from pyemo.cli import main

class LengthJudge:
    name = "length"

    def scores(self, texts, emotions):
        scores = [float(len(text) % 3) for text in texts]
        return np.array([[score] * len(emotions) for score in scores]).reshape(-1, len(emotions))

judges.load_judge = lambda name="minilm", engine=None: LengthJudge()
main(sys.argv[1:])
"""


@dataclass(frozen=True)
class Job:
    """A command in a folder of its own.

    Attributes:
        arguments: of ``pyemo``, from the folder and the model.
        is_whole: whether a file in the folder is one that may be there.
    """

    arguments: Callable[[Path, Path], list[object]]
    is_whole: Callable[[Path], bool]


def is_vector(path: Path) -> bool:
    return bool(vector_file.read(path).directions)


def is_story_store(path: Path) -> bool:
    """Whether all lines but one that was cut off are JSON."""
    return all(json.loads(line) for line in path.read_bytes().split(b"\n")[:-1])


def is_result(path: Path) -> bool:
    if path.suffix == ".npz":
        import numpy as np

        with np.load(path, allow_pickle=False) as members:
            return bool([members[name] for name in members.files])
    return path.read_text().rstrip().endswith("</html>") or path.suffix == ".csv"


JOBS = {
    "extract": Job(
        lambda folder, model: [
            "extract", "happy", "sad", "-m", model, "-r", folder / "recipe.toml", "-o",
            folder / "out", "--stories", folder / "kept", "--fallback", "--threads", 1,
        ],
        lambda path: is_vector(path) if path.suffix == ".gguf" else is_story_store(path),
    ),
    "calibrate": Job(
        lambda folder, model: [
            "calibrate", folder / "warm.gguf", folder / "cold.gguf", "-o", folder / "out", "-m",
            model, "--prompts", folder / "prompts.txt", "--lengths", "6,8", "--threads", 1,
        ],
        is_vector,
    ),
    "requantize": Job(
        lambda folder, model: [
            "models", "requantize", model, "Q8_0", "-o", folder / "out" / "it.gguf", "--no-cost",
        ],
        lambda path: path.read_bytes().startswith(b"GGUF"),
    ),
    "study": Job(
        lambda folder, model: [
            "study", "-m", model, "--emotions", "happy,sad", "--steered", "none", "--stories", 3,
            "-n", 16, "--workers", 1, "--store", folder / "kept", "-o", folder / "out",
        ],
        is_result,
    ),
}  # fmt: skip


def make_folder(folder: Path, vectors: Path) -> Path:
    for name in ("out", "cache", "tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "prompts.txt").write_text("the happy story\na sad dog\n")
    for name in ("warm.gguf", "cold.gguf"):
        shutil.copy(vectors / name, folder)
    return folder


def start(job: Job, folder: Path, model: Path) -> subprocess.Popen[str]:
    environment = {"PYEMO_CACHE": str(folder / "cache"), "TMPDIR": str(folder / "tmp")}
    return subprocess.Popen(
        [sys.executable, "-c", WITH_JUDGE, *map(str, job.arguments(folder, model))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def finish(job: Job, folder: Path, model: Path) -> float:
    """Run to the end; return the seconds."""
    began = time.monotonic()
    run = start(job, folder, model)
    _, said = run.communicate()
    assert run.returncode == 0, said
    return time.monotonic() - began


def files(folder: Path, *names: str) -> dict[str, bytes]:
    """Return the files of folders by path; hidden ones are left out."""
    paths = [path for name in names for path in (folder / name).rglob("*") if path.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if p.name[0] != "."}


def litter(folder: Path) -> list[str]:
    hidden = [path for path in folder.rglob(".*") if path.suffix == ".tmp"]
    return [str(path) for path in (*hidden, *(folder / "tmp").iterdir())]


def processes_of(folder: Path) -> list[str]:
    """Return the command lines that name a folder, of processes that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:  # it has ended
            continue
        if os.fsencode(folder) in line:
            found.append(line.replace(b"\0", b" ").decode())
    return found


def wait_for_the_end_of(folder: Path) -> None:
    """Wait for children of a killed run: one that was just starting sees that it is alone."""
    began = time.monotonic()
    while left := processes_of(folder):
        assert time.monotonic() - began < 30, left
        time.sleep(0.05)


def comparable(found: Mapping[str, bytes]) -> dict[str, bytes]:
    """Leave out the study's page, which says when it was made and how long it took."""
    return {name: data for name, data in found.items() if not name.endswith(".html")}


@pytest.mark.parametrize(
    ("name", "n_kills"),
    [
        ("calibrate", 3),
        ("requantize", 3),  # extract and study take a minute
        *(pytest.param(name, 40, marks=pytest.mark.quality) for name in JOBS),
    ],
)
def test_kills_at_random_moments_lose_nothing_and_leave_nothing(
    name: str, n_kills: int, model: Path, vectors: Path, tmp_path: Path
) -> None:
    if name == "study" and find_spec("matplotlib") is None:
        pytest.skip("needs the extra `study`")
    job, draw = JOBS[name], random.Random(f"{name} {n_kills}")
    whole = make_folder(tmp_path / "whole", vectors)
    broken = make_folder(tmp_path / "broken", vectors)
    seconds = finish(job, whole, model)
    n_killed, n_litter, counts = 0, 0, set()
    for i in range(n_kills):
        before = files(broken, "kept")
        began = time.monotonic()
        run = start(job, broken, model)
        try:
            run.wait(timeout=draw.uniform(0.2, 1.0) * seconds)
            seconds = min(seconds, time.monotonic() - began)  # the first run may have been slow
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL if i % 2 else signal.SIGTERM)
            n_killed += 1
        run.communicate()
        wait_for_the_end_of(broken)
        after = files(broken, "kept", "out")
        assert all(job.is_whole(broken / path) for path in after)
        # Only a line of a store that was cut off may go.
        kept = {path: data[: data.rfind(b"\n") + 1] if path.endswith("jsonl") else data
                for path, data in before.items()}  # fmt: skip
        assert all(after[path].startswith(data) for path, data in kept.items())
        n_litter += bool(litter(broken))
        counts.add(
            sum(data.count(b"\n") if p.endswith("jsonl") else 1 for p, data in after.items())
        )
    finish(job, broken, model)
    print(
        f"\n{name}: {n_killed} of {n_kills} killed within {seconds:.1f} s, {n_litter} of them left "
        f"a temporary file; {len(counts)} different states; litter at the end {litter(broken)}"
    )
    assert litter(broken) == []
    assert comparable(files(broken, "kept", "out")) == comparable(files(whole, "kept", "out"))
    if n_kills > 3:
        assert n_killed > n_kills // 2
