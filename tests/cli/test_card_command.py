"""``pyemo card``: a folder of vectors says what it is, and to whom."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from commands import pyemo

from pyemo import ControlVector

README = "README.md"


@pytest.fixture
def folder(vectors: Path, tmp_path: Path) -> Path:
    place = tmp_path / "moods"
    place.mkdir()
    for name in ("calibrated", "cold"):
        shutil.copy(vectors / f"{name}.gguf", place / f"{name}.gguf")
    return place


def test_a_card_says_model_layers_unit_strengths_licence_and_check(folder: Path) -> None:
    stated = (
        "--base-model",
        "org/tiny",
        "--licence",
        "apache-2.0",
        "--texts-licence",
        "own scenes",
    )
    result = pyemo("card", folder, *stated)
    assert result.exit_code == 0, result.stderr
    text = (folder / README).read_text(encoding="utf-8")
    meta = ControlVector.load(folder / "calibrated.gguf").metadata
    for words in (
        "license: 'apache-2.0'",
        "base_model:\n  - 'org/tiny'",
        "| `calibrated.gguf` | loving | 1 to 3 (3) | residual |",
        f"| weights fingerprint | {meta.weights_fingerprint} |",
        "| 0.3 | 0.2 to 0.4 | 64 | greedy |",
        "| texts they were made from | own scenes |",
        "pyemo check -m MODEL.gguf --cvec calibrated.gguf",
        "--control-vector-scaled calibrated.gguf:0.3",
    ):
        assert words in text


def test_what_nobody_says_is_not_known(folder: Path) -> None:
    pyemo("card", folder)
    text = (folder / README).read_text(encoding="utf-8")
    assert "| licence of the vectors | not known |" in text
    assert "base_model:" not in text


def test_the_same_folder_gives_the_same_card(folder: Path) -> None:
    pyemo("card", folder)
    first = (folder / README).read_bytes()
    assert pyemo("card", folder).exit_code == 0
    assert (folder / README).read_bytes() == first


def test_a_readme_of_another_hand_stays_unless_forced(folder: Path) -> None:
    (folder / README).write_text("mine")
    assert "--force" in pyemo("card", folder).stderr
    assert (folder / README).read_text() == "mine"
    assert pyemo("card", folder, "--force").exit_code == 0


def test_vectors_of_two_models_are_refused(folder: Path, vectors: Path) -> None:
    shutil.copy(vectors / "other.gguf", folder / "other.gguf")
    result = pyemo("card", folder)
    assert result.exit_code == 1
    assert "vectors of 2 models" in result.stderr
    assert not (folder / README).exists()


def test_files_that_are_left_aside_are_said(folder: Path) -> None:
    (folder / "model.gguf").write_bytes(b"GGUF")
    (folder / "deep").mkdir()
    shutil.copy(folder / "cold.gguf", folder / "deep" / "cold.gguf")
    said = json.loads(pyemo("card", folder, "--json").stdout)
    assert said["vectors"] == ["calibrated.gguf", "cold.gguf"]
    assert any("model.gguf" in note for note in said["notes"])
    assert any("saklas skips them: deep" in note for note in said["notes"])


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_no_folder_and_no_vectors_are_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = pyemo("card", tmp_path / name)
    assert result.exit_code == 1
    assert "no folder" in result.stderr or "needs vectors" in result.stderr


def test_markup_in_a_files_fields_is_taken_as_text(folder: Path) -> None:
    vector = ControlVector.load(folder / "cold.gguf")
    hostile = replace(vector.metadata, source_model="<img src=x>|[a](b)", emotion="| `x`")
    vector.with_metadata(hostile).save(folder / "cold.gguf")
    pyemo("card", folder)
    text = (folder / README).read_text(encoding="utf-8")
    assert "<img" not in text
    assert "](b)" not in text


def test_card_of_a_trained_voice_asks_whose_it_is(folder: Path) -> None:
    pyemo("card", folder)
    assert "Whose voice" not in (folder / README).read_text(encoding="utf-8")
    vector = ControlVector.load(folder / "cold.gguf")
    recipe = 'name = "trained"\nsource = "replies"\n'
    told = replace(vector.metadata, emotion="", recipe=recipe)
    vector.with_metadata(told).save(folder / "cold.gguf", force=True)
    pyemo("card", folder)
    text = (folder / README).read_text(encoding="utf-8")
    assert "## Whose voice" in text
    assert "that somebody wrote: `cold.gguf`." in text


def test_card_says_the_strength_that_training_recommends(folder: Path) -> None:
    vector = ControlVector.load(folder / "cold.gguf")
    vector.with_metadata(replace(vector.metadata, strength=0.25)).save(
        folder / "cold.gguf", force=True
    )
    (folder / "calibrated.gguf").unlink()
    pyemo("card", folder)
    text = (folder / README).read_text(encoding="utf-8")
    assert "| `cold.gguf` | any, by its training | 0.25 | not measured | | |" in text
    assert "--cvec cold.gguf=0.25" in text
    assert "None was measured" not in text
