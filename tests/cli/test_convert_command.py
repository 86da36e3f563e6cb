"""``pyemo convert``: a vector of any tool becomes a file that pyemo and llama.cpp load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import pyemo
from engines import needs_torch

from pyemo import ControlVector

TOOLS = Path(__file__).parents[1] / "golden" / "tools"


@needs_torch
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("calm_response_avg_diff.pt", (1, 2, 3)),
        ("steering-vectors.pt", (2,)),
        ("saklas-pack", (1, 2)),
        ("easysteer.gguf", (1, 2, 3)),
        ("repeng.gguf", (1, 2, 3)),
    ],
)
def test_what_is_written_loads_for_the_model(
    name: str, layers: tuple[int, ...], model: Path, tmp_path: Path
) -> None:
    target = tmp_path / "made.gguf"
    result = pyemo("convert", TOOLS / name, "-m", model, "-o", target)
    assert result.exit_code == 0, result.stderr
    assert ControlVector.load(target).layers == layers


def test_block_0_is_left_out_and_said(tmp_path: Path) -> None:
    result = pyemo("convert", TOOLS / "easysteer.gguf", "-o", tmp_path / "made.gguf")
    assert "block 0 was left out" in result.stderr


def test_block_0_alone_is_refused(tmp_path: Path) -> None:
    arguments = ("--layers", "0:1", "-o", tmp_path / "made.gguf")
    result = pyemo("convert", TOOLS / "easysteer.gguf", *arguments)
    assert result.exit_code == 1
    assert "block 0 alone" in result.stderr


@needs_torch
def test_a_vector_for_no_named_architecture_is_asked_for_it(tmp_path: Path) -> None:
    target = tmp_path / "made.gguf"
    result = pyemo("convert", TOOLS / "steering-vectors.pt", "-o", target)
    assert result.exit_code == 1
    assert "--hint" in result.stderr
    assert not target.exists()


def test_json_says_what_was_taken_as_what(tmp_path: Path) -> None:
    target = tmp_path / "made.gguf"
    said = json.loads(pyemo("convert", TOOLS / "easysteer.gguf", "-o", target, "--json").stdout)
    assert said["tool"] == "EasySteer"
    assert said["layers"] == [1, 2, 3]
    assert any("direction.0" in note for note in said["notes"])


def test_what_is_no_vector_is_never_replaced(tmp_path: Path) -> None:
    target = tmp_path / "notes.txt"
    target.write_text("mine")
    result = pyemo("convert", TOOLS / "repeng.gguf", "-o", target, "--force")
    assert result.exit_code == 1
    assert target.read_text() == "mine"


def test_inspect_says_whose_a_file_is(model: Path) -> None:
    result = pyemo("inspect", TOOLS / "easysteer.gguf", "-m", model)
    assert result.exit_code == 0, result.stderr
    assert "written by   EasySteer" in result.stdout
    assert "direction.0 is taken as block 0" in result.stdout
    assert "its model hint 'unknown' is no architecture's name" in result.stdout


def test_inspect_shows_a_pack() -> None:
    result = pyemo("inspect", TOOLS / "saklas-pack", "--json")
    assert json.loads(result.stdout)["source"]["model"] == "example/tiny-llama"


def test_run_steers_with_direction_0(model: Path) -> None:
    arguments = ("run", "-m", model, "-n", 4, "--temperature", 0, "--json", "a")
    steered = pyemo(*arguments, "--cvec", f"{TOOLS / 'easysteer.gguf'}=8@0:1")
    assert json.loads(steered.stdout)["text"] != json.loads(pyemo(*arguments).stdout)["text"]
