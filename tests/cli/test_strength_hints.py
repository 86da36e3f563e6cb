"""What `run` says of strengths and mixes beyond their calibrated windows."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from commands import pyemo

from pyemo import ControlVector, Model
from pyemo.cli import main
from pyemo.cli.chat_job import HELP as CHAT_HELP
from pyemo.moods.builder import MoodBuilder, window_remark
from pyemo.moods.options import MoodOptions
from pyemo.vectors.metadata import Calibration

CALIBRATION = Calibration("ab" * 32, "m", "greedy", 48, (0.2, 0.4), 0.3)


@pytest.mark.parametrize(
    ("strength", "words"),
    [
        (0.5, "is above its window 0.2 to 0.4 on this model file; the text may loop"),
        (0.1, "is below its window 0.2 to 0.4 on this model file; the text may not move"),
        (-0.3, "turns the vector round"),
    ],
)
def test_a_strength_outside_its_window_is_said(strength: float, words: str) -> None:
    assert words in window_remark("angry", strength, CALIBRATION)


@pytest.mark.parametrize("strength", [0.0, 0.2, 0.3, 0.4])
def test_nothing_is_said_within_the_window_or_when_off(strength: float) -> None:
    assert window_remark("angry", strength, CALIBRATION) == ""
    assert window_remark("angry", 9.0, None) == ""


def notes(model: Path, *vectors: str, **changed: str) -> list[str]:
    """Return what a mood of these vectors says."""
    options = {"operator": "add", "schedule": "constant", "scope": "both", "layers": None}
    builder = MoodBuilder(
        MoodOptions(vectors, None, allow_other_weights=False, **(options | changed)),  # type: ignore[arg-type]
        n_tokens=48,
    )
    terms = builder.terms(Model.load(model), builder.specs)
    return [line for term in terms for line in term.notes]


def test_a_window_of_one_strength_is_said_as_one(
    model: Path, vectors: Path, tmp_path: Path
) -> None:
    vector = ControlVector.load(vectors / "calibrated.gguf")
    (calibration,) = vector.metadata.calibrations
    narrow = replace(calibration, window=(0.3, 0.3))
    vector.with_metadata(replace(vector.metadata, calibrations=(narrow,))).save(tmp_path / "a.gguf")
    (said,) = notes(model, str(tmp_path / "a.gguf"))
    assert said.endswith("on texts of 64 tokens it works at 0.3")


def test_the_doses_of_a_mix_are_added_and_compared(model: Path, vectors: Path) -> None:
    one = f"{vectors}/calibrated.gguf"
    (said,) = notes(model, f"{one}=0.3", f"{one}=-0.25")[-1:]
    assert "the mix is at 1.38" in said
    assert "calibrated 0.75 + calibrated 0.62" in said
    assert not any("the mix" in line for line in notes(model, f"{one}=0.2", f"{one}=0.2"))
    # one alone, or one beside a vector without a window, is a matter of its own window
    assert not any("the mix" in line for line in notes(model, f"{one}=0.5"))
    assert not any(
        "the mix" in line for line in notes(model, f"{one}=0.5", f"{vectors}/warm.gguf=1")
    )


@pytest.mark.parametrize(
    "changed", [{"scope": "reply"}, {"layers": "1:2"}, {"operator": "add_keep_norm"}]
)
def test_a_window_says_nothing_of_other_ways_to_steer(
    model: Path, vectors: Path, changed: dict[str, str]
) -> None:
    assert notes(model, f"{vectors}/calibrated.gguf=9", **changed) == []


def test_run_prints_it_on_stderr(model: Path, vectors: Path) -> None:
    arguments = ["run", "-n", "2", "-m", str(model), "-c", f"{vectors}/calibrated.gguf=0.6", "the"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0
    assert "strength 0.6 is above its window" in result.stderr


@pytest.fixture
def trained(vectors: Path, tmp_path: Path) -> Path:
    """A vector that says the strength it was trained at, 0.25."""
    warm = ControlVector.load(vectors / "warm.gguf")
    path = tmp_path / "trained.gguf"
    warm.with_metadata(replace(warm.metadata, strength=0.25)).save(path)
    return path


def test_run_takes_the_strength_a_vector_was_trained_at(model: Path, trained: Path) -> None:
    (term,) = run_json("-m", model, "-c", trained)["steering"]["terms"]
    assert (term["strength"], term["strength_source"]) == (0.25, "trained")
    (given,) = run_json("-m", model, "-c", f"{trained}=0.1")["steering"]["terms"]
    assert (given["strength"], given["strength_source"]) == (0.1, "given")
    assert notes(model, str(trained)) == ["trained: strength 0.25, which its training recommends"]


@pytest.mark.parametrize(
    ("strength", "words"),
    [
        ("=1", "trained: strength 1 is 4 times the 0.25 it recommends; the text may break"),
        ("=-0.1", "trained: strength -0.1 turns the vector round, which it was not trained for"),
    ],
)
def test_a_strength_far_from_the_trained_one_is_said(
    model: Path, trained: Path, strength: str, words: str
) -> None:
    assert notes(model, f"{trained}{strength}") == [words]


@pytest.mark.parametrize("strength", ["=0", "=0.1", "=0.3", "=0.375", "=1@1:2"])
def test_nothing_is_said_of_other_strengths_of_a_trained_vector(
    model: Path, trained: Path, strength: str
) -> None:
    assert notes(model, f"{trained}{strength}") == []


def test_run_says_where_a_trained_strength_may_not_hold(
    model: Path, trained: Path, tmp_path: Path
) -> None:
    vector = ControlVector.load(trained)
    other = replace(vector.metadata, source_sha256="0" * 64)
    vector.with_metadata(other).save(tmp_path / "other.gguf")
    said = notes(model, str(tmp_path / "other.gguf"))
    wanted = "recommends; it is not calibrated on this model file"
    assert any(line.endswith(wanted) for line in said)


def test_a_calibration_goes_before_the_strength_of_training(
    model: Path, vectors: Path, tmp_path: Path
) -> None:
    both = ControlVector.load(vectors / "calibrated.gguf")
    both.with_metadata(replace(both.metadata, strength=0.25)).save(tmp_path / "both.gguf")
    (term,) = run_json("-m", model, "-c", tmp_path / "both.gguf")["steering"]["terms"]
    assert (term["strength"], term["strength_source"]) == (0.3, "calibration")
    long = ("run", "-m", model, "--threads", 1, "-n", 65, "the story", "-c")
    looping = "longer ones may loop (--guard)"
    assert looping not in pyemo(*long, tmp_path / "both.gguf").stderr  # it has learned to end
    assert looping in pyemo(*long, vectors / "calibrated.gguf").stderr


def test_the_strength_of_training_is_for_all_layers(model: Path, trained: Path) -> None:
    (said,) = notes(model, f"{trained}@1:2")
    assert "strength 0.02, the default; the one it recommends is for all layers" in said


def test_a_vector_without_a_known_strength_says_what_to_do(model: Path, vectors: Path) -> None:
    warm = vectors / "warm.gguf"
    (said,) = [line for line in notes(model, str(warm)) if "strength" in line]
    assert "strength 0.02, the default; no strength is known to work on this model file" in said
    assert f"pyemo sweep -m {model.stem} --cvec {warm}" in said
    assert "--strength auto" in said


def test_inspect_says_the_strength_of_training(trained: Path) -> None:
    shown = pyemo("inspect", trained).stdout
    assert "strength     0.25, which its training recommends" in shown
    assert re.search(r"dose .* 0\.25: [0-9.]+% \(trained\)", shown)
    assert json.loads(pyemo("inspect", trained, "--json").stdout)["strength"] == 0.25


def run_json(*arguments: object) -> dict[str, Any]:
    result = pyemo("run", "-n", 2, "--threads", 1, "--json", *arguments, "the")
    assert result.exit_code == 0, result.stderr
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def test_a_vector_given_twice_is_said_with_the_sum(
    model: Path, vectors: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes((vectors / "warm.gguf").read_bytes())
    warm = f"{vectors}/warm.gguf"
    said = "warm is given twice, so its strengths add to 0.05"
    assert said in notes(model, f"{warm}=0.02", f"{warm}=0.03")
    assert said in notes(model, f"{warm}=0.02", f"{vectors}/cold.gguf=0.1", f"{copy}=0.03")
    thrice = notes(model, *[f"{warm}=0.1"] * 3)
    assert "warm is given 3 times, so its strengths add to 0.3" in thrice


def test_nothing_is_said_of_one_vector_in_two_ways(model: Path, vectors: Path) -> None:
    warm = f"{vectors}/warm.gguf"
    assert not any("given" in line for line in notes(model, f"{warm}=0.02", f"{warm}=0.02@2"))
    assert not any("given" in line for line in notes(model, f"{warm}=0.02", f"{warm}=1@clamp"))
    cold = f"{vectors}/cold.gguf"
    assert not any("given" in line for line in notes(model, f"{warm}=0.02", f"{cold}=0.02"))


def test_chats_help_says_what_a_gauges_dose_is() -> None:
    said = pyemo("chat", "--help").stdout
    for line in ("the dose is what the steering puts in", "0.05 up, fills its bar"):
        assert line in said
        assert line in CHAT_HELP
