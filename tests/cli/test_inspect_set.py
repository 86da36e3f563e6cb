"""``pyemo inspect FOLDER`` tells a set's quality from its files, and from its model where it is."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import pyemo
from engines import needs_plots

from pyemo.emotions import EMOTIONS

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def folder(whole_set: tuple[Path, dict[str, Any]]) -> Path:
    return whole_set[0]


def test_with_its_model_a_set_is_measured_and_compared_with_the_files(
    folder: Path, model: Path
) -> None:
    result = pyemo("inspect", folder, "--model", model, "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert (said["n_vectors"], said["not_measured"]) == (20, None)
    assert said["agreement_with_files"] == pytest.approx(1, abs=1e-3)
    assert said["held_out"]["n_texts"] == 140
    assert said["layers"] == [0, 1, 2]
    assert len(said["split_half"]) == 3


def test_the_files_alone_tell_the_separation_of_each_layer(folder: Path) -> None:
    result = pyemo("inspect", folder, "--files-only")
    assert result.exit_code == 0, result.stderr
    assert "relative to the mean over emotions" in result.stdout
    assert "re-centred on the set's mean" in result.stdout
    assert "happy/sad" in result.stdout
    assert "accuracy" not in result.stdout
    assert "not measured" in result.stderr


def test_where_the_model_is_not_known_by_name_it_says_so(folder: Path) -> None:
    result = pyemo("inspect", folder)
    assert result.exit_code == 0, result.stderr
    assert "give it with --model" in result.stderr


@needs_plots
def test_pictures_are_written_as_png(folder: Path, tmp_path: Path) -> None:
    result = pyemo("inspect", folder, "--files-only", "--plot", tmp_path / "new", "--json")
    assert result.exit_code == 0, result.stderr
    paths = [Path(path) for path in json.loads(result.stdout)["pictures"]]
    assert [path.name for path in paths] == ["cosines-1.png", "cosines-2.png", "layers.png"]
    assert all(path.read_bytes().startswith(PNG) for path in paths)


def test_without_matplotlib_the_extra_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = pyemo("inspect", folder, "--files-only", "--plot", tmp_path)
    assert result.exit_code == 1
    assert "pip install 'pyemo[plot]'" in result.stderr


@needs_plots
def test_pictures_that_cannot_be_written_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = pyemo("inspect", folder, "--plot", tmp_path / "file" / "pictures")
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr


def test_one_vector_is_no_set(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "angry.gguf", tmp_path)
    result = pyemo("inspect", tmp_path)
    assert result.exit_code == 1
    assert "holds 1 control vectors" in result.stderr


def test_two_vectors_of_one_emotion_are_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        shutil.copy(folder / "angry.gguf", tmp_path / f"{name}.gguf")
    result = pyemo("inspect", tmp_path)
    assert result.exit_code == 1
    assert "two vectors of 'angry'" in result.stderr


def test_a_damaged_file_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    for name in EMOTIONS:
        shutil.copy(folder / f"{name}.gguf", tmp_path)
    damaged = tmp_path / "sad.gguf"
    damaged.write_bytes(damaged.read_bytes()[:100])
    result = pyemo("inspect", tmp_path, "--files-only")
    assert result.exit_code == 1
    assert "sad.gguf" in result.stderr


def test_another_model_than_the_sets_is_refused(folder: Path, base_model: Path) -> None:
    result = pyemo("inspect", folder, "--model", base_model)
    assert result.exit_code == 1
    assert "Error" in result.stderr
