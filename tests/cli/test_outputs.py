"""Every option that names an output refuses, before any work, what is not of its own kind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import pyemo
from engines import needs_plots

from pyemo.check import run as check_run
from pyemo.engine.engine import Engine

ARGUMENTS: dict[str, Callable[[Path, Path], list[object]]] = {
    "calibrate": lambda vectors, it: ["calibrate", vectors / "warm.gguf", "-o", it],
    "extract": lambda _vectors, it: ["extract", "anger", "-o", it],
    "rescale": lambda vectors, it: ["rescale", vectors / "raw.gguf", "-o", it],
    "check --record": lambda _vectors, it: ["check", "--judge", "none", "--record", it],
    "check --junit": lambda _vectors, it: ["check", "--judge", "none", "--junit", it],
    "requantize": lambda _vectors, it: ["models", "requantize", "MODEL", "Q4_0", "-o", it],
    "sweep --plot": lambda vectors, it: [
        "sweep", "-c", vectors / "warm.gguf", "--judge", "none", "--plot", it
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_args: object, **_options: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(Engine, "__init__", work)
    monkeypatch.setattr(check_run.check_process, "run_twice", work)


def place(kind: str, path: Path, model: Path) -> None:
    if kind == "a model":
        shutil.copy(model, path)
    elif kind == "notes":
        path.write_text("my notes")
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a link to a device":
        path.symlink_to(os.devnull)
    elif kind == "a read-only file":
        path.write_bytes(b"")
        path.chmod(0o400)


@pytest.mark.parametrize(
    "kind", ["a model", "notes", "a pipe", "a link to a device", "a read-only file"]
)
@pytest.mark.parametrize("command", ARGUMENTS)
def test_an_output_replaces_only_its_own_kind(
    command: str, kind: str, vectors: Path, model: Path, tmp_path: Path
) -> None:
    if command == "sweep --plot" and find_spec("matplotlib") is None:
        pytest.skip("needs the extra `plot`")
    path = tmp_path / ("other.gguf" if command != "check --junit" else "other.xml")
    place(kind, path, model)
    if command == "requantize" and kind == "a model":
        shutil.copy(vectors / "warm.gguf", path)  # the model itself in a format is its own kind
    before = (os.stat(path).st_ino, os.stat(path).st_size, path.is_symlink())
    arguments = ARGUMENTS[command](vectors, path)
    named = [model if argument == "MODEL" else argument for argument in arguments]
    result = pyemo(*named, *(() if command == "requantize" else ("-m", model)))
    assert result.exit_code == 1, result.output
    assert "name " in result.stderr
    assert (os.stat(path).st_ino, os.stat(path).st_size, path.is_symlink()) == before


@needs_plots
def test_pictures_of_a_set_replace_only_pictures(vectors: Path, tmp_path: Path) -> None:
    (tmp_path / "layers.png").write_text("my notes")
    result = pyemo("inspect", vectors, "--plot", tmp_path)
    assert result.exit_code == 1
    assert "is not a PNG picture" in result.stderr
    assert (tmp_path / "layers.png").read_text() == "my notes"


@pytest.mark.skipif(find_spec("distributed") is None, reason="needs the extra `study`")
@pytest.mark.parametrize("name", ["report.html", "geometry.csv"])
def test_a_report_replaces_only_a_report(name: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text("my notes")
    result = pyemo("study", "-m", model, "-o", tmp_path, "--store", tmp_path / "store")
    assert result.exit_code == 1
    assert "another folder" in result.stderr or "another file" in result.stderr
    assert (tmp_path / name).read_text() == "my notes"
