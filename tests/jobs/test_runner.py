"""Where jobs run: the store is asked first, results are the same everywhere, a dead worker costs
its job and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from tiny_models import TinyModel

from pyemo.engine.model_file import ModelFile, load_model
from pyemo.errors import InputError, SchedulerError
from pyemo.extract.recipe import Recipe
from pyemo.files.local import file_sha256
from pyemo.jobs.runner import Here, Job, T, run_stored, runner
from pyemo.jobs.store import Store
from pyemo.study.cells import Cell, class_cell, replies_cell
from pyemo.texts.sources import emotion_source

NAMES = ("happy", "sad", "calm", "angry")


@pytest.fixture
def model(tiny: Callable[[str], TinyModel]) -> ModelFile:
    path = tiny("llama").path
    return ModelFile(str(path), file_sha256(path), n_threads=1)


def cells_of(model: ModelFile, n: int = 8) -> list[Cell]:
    recipe = Recipe.load("paper-comprehension")
    reading = [class_cell(model, recipe, emotion_source(name), []) for name in NAMES]
    writing = [
        replies_cell(model, [f"tell {i}", "say it"], label=str(i), max_tokens=40)
        for i in range(n - len(reading))
    ]
    return reading + writing


class Counting:
    """Runs jobs here and counts them."""

    def __init__(self) -> None:
        self.n = 0

    def run(self, jobs: Sequence[Job[T]]) -> Iterator[tuple[int, T]]:
        for found in Here().run(jobs):
            self.n += 1
            yield found


def quiet(_done: int, _total: int, _label: str) -> None:
    pass


def test_what_is_in_the_store_is_not_computed(tmp_path: Path, model: ModelFile) -> None:
    cells, store = cells_of(model, 5), Store(tmp_path)
    run_stored(cells[:3], store, Here(), quiet)
    counting = Counting()
    run_stored(cells, store, counting, quiet)
    assert counting.n == 2


def test_a_cell_that_is_asked_for_twice_is_computed_once(tmp_path: Path, model: ModelFile) -> None:
    counting = Counting()
    cell = cells_of(model, 5)[0]
    first, second = run_stored([cell, cell], Store(tmp_path), counting, quiet)
    assert counting.n == 1
    np.testing.assert_array_equal(first.arrays["train"], second.arrays["train"])


def test_a_result_does_not_depend_on_what_was_computed_before(model: ModelFile) -> None:
    *before, cell = cells_of(model, 6)
    (alone,) = (result for _, result in Here().run([cell]))
    *_, last = (result for _, result in Here().run([*before, cell]))
    assert alone.values == last.values
    np.testing.assert_array_equal(alone.arrays["masses"], last.arrays["masses"])


def test_a_file_that_differs_on_this_machine_is_refused(model: ModelFile) -> None:
    with pytest.raises(InputError, match="another file on this machine"):
        load_model(model.name, "0" * 64)


def test_keys_know_the_thread_count(model: ModelFile) -> None:
    cell = cells_of(model, 5)[0]
    other = Cell(cell.kind, cell.spec, ModelFile(model.name, model.sha256, n_threads=2))
    assert cell.key != other.key


def test_no_scheduler_is_said_with_the_command_that_starts_one() -> None:
    pytest.importorskip("distributed", reason="needs the extra `study`")
    with (
        pytest.raises(SchedulerError, match="dask scheduler"),
        runner("tcp://127.0.0.1:9"),
    ):
        pass


def test_workers_and_a_scheduler_at_once_are_refused() -> None:
    with pytest.raises(InputError, match="--workers"), runner("tcp://127.0.0.1:9", 2):
        pass


@pytest.mark.parametrize("before", [None, "yes"])
def test_workers_leave_the_environment_as_it_was(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    pytest.importorskip("distributed", reason="needs the extra `study`")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    if before is not None:
        monkeypatch.setenv("PYTHONSAFEPATH", before)
    was = dict(os.environ)
    with runner(n_workers=2):
        assert os.environ["PYTHONSAFEPATH"]  # for a worker that is started again
    assert dict(os.environ) == was


def test_two_workers_of_a_scheduler_give_the_same_results_though_one_is_killed(
    tmp_path: Path, model: ModelFile
) -> None:
    pytest.importorskip("distributed", reason="needs the extra `study`")
    cells = cells_of(model, 16)
    expected = run_stored(cells, Store(tmp_path / "here"), Here(), quiet)
    with scheduler(tmp_path, n_workers=2) as (address, workers), runner(address) as run:
        killed = False

        def kill_one(done: int, _total: int, _label: str) -> None:
            nonlocal killed
            if done >= 2 and not killed:
                killed = True
                os.kill(workers[0].pid, signal.SIGKILL)

        found = run_stored(cells, Store(tmp_path / "dask"), run, kill_one)
    assert killed
    assert workers[0].wait() == -signal.SIGKILL
    for a, b in zip(expected, found, strict=True):
        assert a.values == b.values
        for name in a.arrays:
            np.testing.assert_array_equal(a.arrays[name], b.arrays[name])


def test_a_scheduler_that_is_lost_is_an_error_that_keeps_what_was_computed(
    tmp_path: Path, model: ModelFile
) -> None:
    pytest.importorskip("distributed", reason="needs the extra `study`")
    cells, store = cells_of(model, 16), Store(tmp_path / "store")
    with scheduler(tmp_path, n_workers=1) as (address, processes):

        def kill_it(done: int, _total: int, _label: str) -> None:
            if done == 2:
                os.kill(processes[-1].pid, signal.SIGKILL)

        def study() -> None:
            with runner(address) as run:
                run_stored(cells, store, run, kill_it)

        with pytest.raises(SchedulerError, match="what is finished is kept"):
            study()
    assert sum(store.get(cell.key) is not None for cell in cells) >= 2


@contextmanager
def scheduler(
    folder: Path, *, n_workers: int
) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Start a scheduler and workers as processes of their own; yields (address, workers + it)."""
    where = folder / "scheduler.json"
    log = (folder / "dask.log").open("wb")
    shared = ["--scheduler-file", str(where), "--no-dashboard"]
    with ExitStack() as stack:

        def start(*arguments: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "dask", *arguments]
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
            stack.callback(stop, process)
            return process

        main = start("scheduler", "--port", "0", "--host", "127.0.0.1", *shared)
        deadline = time.monotonic() + 60
        while not where.exists() or not where.read_text().strip():
            assert time.monotonic() < deadline, "the scheduler did not start"
            assert main.poll() is None, (folder / "dask.log").read_text()
            time.sleep(0.1)
        workers = [
            start("worker", *shared, "--nthreads", "1", "--no-nanny") for _ in range(n_workers)
        ]
        yield json.loads(where.read_text())["address"], [*workers, main]
    log.close()


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
