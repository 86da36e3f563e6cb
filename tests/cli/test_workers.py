"""``--workers``: the bytes of one process, and a run that was stopped goes on."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from commands import pyemo
from engines import needs_torch

from pyemo import judges
from pyemo.jobs import runner
from pyemo.jobs.runner import Job, Runner, T
from pyemo.strengths import calibration, calibration_job
from pyemo.vectors.control_vector import ControlVector
from pyemo.vectors.metadata import Calibration

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


class Pickled:
    """Runs jobs here, each sent and its result sent back as to another process, last one first."""

    def __init__(self, most: int) -> None:
        self.most = most

    def run(self, jobs: Sequence[Job[T]]) -> Iterator[tuple[int, T]]:
        for n, index in enumerate(reversed(range(len(jobs)))):
            if n == self.most:
                raise KeyboardInterrupt
            job = pickle.loads(pickle.dumps(jobs[index]))
            yield index, pickle.loads(pickle.dumps(job.compute()))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@needs_torch
def test_voices_trained_as_jobs_are_those_of_one_process_and_go_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "quick.toml"
    recipe.write_text(QUICK, encoding="utf-8")
    words = ("extract", "anger", "joy", "-r", recipe, "-m", model)
    alone = pyemo(*words, "-o", tmp_path / "alone", "--threads", 1)
    assert alone.exit_code == 0, alone.stderr
    n = {"workers": 0}

    def opened(scheduler: str | None, n_workers: int) -> AbstractContextManager[Runner]:
        assert (scheduler, n_workers) == (None, 2)
        n["workers"] += 1
        return nullcontext(Pickled(n["workers"]))

    monkeypatch.setattr(runner, "runner", opened)
    asked = (*words, "-o", tmp_path / "jobs", "--workers", 2)
    assert pyemo(*asked).exit_code == 130
    assert list(contents(tmp_path / "jobs")) == ["happy.gguf"]
    again = pyemo(*asked, "--json")
    assert again.exit_code == 0, again.stderr
    found = json.loads(again.stdout)
    assert [(one["emotion"], one["kept"]) for one in found["vectors"]] == [
        ("angry", False),
        ("happy", True),
    ]
    assert found["source_model"] == model.stem
    assert contents(tmp_path / "jobs") == contents(tmp_path / "alone")


class LengthJudge:
    """Scores a text by its length."""

    name = "length"

    def scores(self, texts: Sequence[str], emotions: Sequence[str]) -> np.ndarray:
        scores = [float(len(text) % 3) for text in texts]
        return np.array([[score] * len(emotions) for score in scores]).reshape(-1, len(emotions))


@pytest.fixture
def length_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (judges, calibration_job):
        monkeypatch.setattr(module, "load_judge", lambda *_: LengthJudge())


def test_calibrations_as_jobs_are_those_of_one_process(
    model: Path,
    vectors: Path,
    tmp_path: Path,
    length_judge: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in ("warm", "cold"):
        shutil.copy(vectors / f"{name}.gguf", source)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the happy story\na sad dog\n", encoding="utf-8")
    words = ("calibrate", source, "-m", model, "--lengths", "6,8", "--prompts", prompts, "--json")
    alone = pyemo(*words, "-o", tmp_path / "alone", "--threads", 1)
    assert alone.exit_code == 0, alone.stderr
    monkeypatch.setattr(runner, "runner", lambda *_: nullcontext(Pickled(2)))
    jobs = pyemo(*words, "-o", tmp_path / "jobs", "--workers", 2)
    assert jobs.exit_code == 0, jobs.stderr
    assert jobs.stdout.replace(f"{tmp_path}/jobs", f"{tmp_path}/alone") == alone.stdout
    assert all(one["trials"] for one in json.loads(jobs.stdout))
    assert contents(tmp_path / "jobs") == contents(tmp_path / "alone")


def test_a_vector_that_is_calibrated_so_already_is_not_calibrated_again(
    model: Path,
    vectors: Path,
    tmp_path: Path,
    length_judge: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def found(self: calibration._Search, how: object, start: int) -> calibration.CalibrationResult:
        asked.append(self._vector.name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        evidence = json.dumps({**how, "strengths": []})  # type: ignore[dict-item]
        mine = self._trials.engine.model
        value = Calibration(mine.file_sha256, mine.name, "greedy", 6, (0.1, 0.3), 0.1, evidence)
        return calibration.CalibrationResult(self._vector.name, (value,), "", ())

    monkeypatch.setattr(calibration._Search, "run", found)
    for name in ("warm", "cold"):
        shutil.copy(vectors / f"{name}.gguf", tmp_path)
    words = ("calibrate", tmp_path, "-m", model, "--threads", 1)
    assert pyemo(*words, "--lengths", "6").exit_code == 130
    again = pyemo(*words, "--lengths", "6", "--json")
    assert again.exit_code == 0, again.stderr
    assert asked == ["cold", "warm", "warm"]
    assert [one["kept"] for one in json.loads(again.stdout)] == [True, False]
    assert "cold.gguf: kept, it is calibrated so already" in " ".join(again.stderr.split())
    assert ControlVector.load(tmp_path / "warm.gguf").metadata.calibrations
    assert pyemo(*words, "--lengths", "6,8").exit_code == 0  # another calibration is made
    assert asked[3:] == ["cold", "warm"]


def test_workers_are_refused_where_one_process_reads_everything(
    model: Path, tmp_path: Path
) -> None:
    result = pyemo("extract", "--all", "-r", "reading", "-m", model, "-o", tmp_path, "--workers", 2)
    assert result.exit_code == 2
    assert "reads all emotions' texts in one process" in " ".join(result.stderr.split())
