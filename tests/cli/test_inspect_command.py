"""``pyemo inspect``: what a vector's file says, the 20 emotions, and the fit with a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import pyemo

from pyemo import ControlVector, Engine, Model, Steering
from pyemo.emotions import EMOTIONS
from pyemo.files.catalog import list_vectors
from pyemo.strengths.facts import N_CTX, N_SEQUENCES, FactYardstick
from pyemo.strengths.voice import VoiceYardstick

GOLDEN = Path(__file__).parents[1] / "golden"


def test_fields_of_the_file_are_shown() -> None:
    result = pyemo("inspect", GOLDEN / "v1-residual.gguf")
    assert result.exit_code == 0
    for words in (
        "angry (anger, rage, furious, fury); its opposite: calm",
        "residual: strength 0.02 adds",
        "of the residual norm, by layer",
        "golden-model",
        "a" * 64,
        'method = "mean"',
        "strength 0.02, window 0.01 to 0.03",
    ):
        assert words in result.stdout


def test_chart_has_a_bar_for_each_layer() -> None:
    lines = pyemo("inspect", GOLDEN / "v1-residual.gguf").stdout.splitlines()
    bars = {line.split()[0]: line.count("█") for line in lines if "█" in line}
    assert list(bars) == ["1", "2", "4"]
    assert bars["1"] < bars["2"] < bars["4"] == 24


def test_doses_are_the_vector_s() -> None:
    vector = ControlVector.load(GOLDEN / "v1-residual.gguf")
    described = json.loads(pyemo("inspect", GOLDEN / "v1-residual.gguf", "--json").stdout)
    assert described["doses"] == [
        {"strength": s, "dose": pytest.approx(vector.dose(s))} for s in (0.01, 0.02)
    ]


def test_file_of_another_tool_says_what_it_does_not_say() -> None:
    result = pyemo("inspect", GOLDEN / "repeng.gguf")
    assert "raw: a strength is a plain factor; `pyemo rescale`" in result.stdout
    assert "dose         not known" in result.stdout


def test_fit_with_a_model_is_said(model: Path, vectors: Path) -> None:
    result = pyemo("inspect", vectors / "warm.gguf", "-m", model)
    assert result.exit_code == 0
    assert "made on this very model file" in result.stdout


def test_voice_is_that_of_the_yardstick_at_three_strengths(model: Path, vectors: Path) -> None:
    path = vectors / "calibrated.gguf"
    result = pyemo("inspect", path, "-m", model, "--voice", "--json")
    assert result.exit_code == 0, result.stderr
    voice = json.loads(result.stdout)["voice"]
    assert voice["strength_source"] == "calibration"
    assert [row["strength"] for row in voice["readings"]] == pytest.approx([0.3, 0.15, -0.3])
    loaded = Model.load(model)
    vector = ControlVector.load(path)
    with Engine(loaded, n_ctx=256) as engine:
        yardstick = VoiceYardstick(engine, others=voice["readings"][0]["others"])
        for row in voice["readings"]:
            reading = yardstick.measure(Steering({vector: row["strength"]}), "loving")
            assert row["gain"]["value"] == pytest.approx(reading.gain.value, abs=1e-3)
            assert row["damage"]["low"] == pytest.approx(reading.damage.low, abs=1e-3)
            assert reading.specificity is not None
            assert row["specificity"]["high"] == pytest.approx(reading.specificity.high, abs=1e-3)


def test_voice_table_has_a_row_for_each_strength(model: Path, vectors: Path) -> None:
    lines = pyemo("inspect", vectors / "warm.gguf", "-m", model, "--voice").stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("voice "))
    assert lines[at].split() == ["voice", "strength", "gain", "specificity", "damage"]
    assert [line.split()[0] for line in lines[at + 1 : at + 4]] == ["0.02", "0.01", "-0.02"]
    assert all(line.count("[") == 3 for line in lines[at + 1 : at + 4])
    assert "8 replies of loving" in lines[at + 4]
    assert lines[at + 5].endswith("strength: default")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("raw.gguf", "none of the 20 emotions"), ("other.gguf", "use a vector made for this model")],
)
def test_voice_that_cannot_be_measured_is_refused(
    model: Path, vectors: Path, name: str, remedy: str
) -> None:
    result = pyemo("inspect", vectors / name, "-m", model, "--voice")
    assert result.exit_code == 1
    assert remedy in result.stderr


@pytest.mark.parametrize("what", ["--emotions", GOLDEN])
def test_voice_is_of_one_vector(what: object) -> None:
    result = pyemo("inspect", what, "--voice")
    assert result.exit_code == 2
    assert "--voice measures one vector" in result.stderr


def test_facts_are_those_of_the_yardstick(model: Path, vectors: Path) -> None:
    path = vectors / "calibrated.gguf"
    result = pyemo("inspect", path, "-m", model, "--facts", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["facts"]
    assert (found["strength"], found["strength_source"]) == (pytest.approx(0.3), "calibration")
    loaded = Model.load(model)
    with Engine(loaded, n_ctx=N_CTX, n_seq_max=N_SEQUENCES) as engine:
        reading = FactYardstick(engine).measure(ControlVector.load(path), found["strength"])
    for name, answers in reading.as_json().items():
        if isinstance(answers, dict):
            assert found[name]["steered"] == answers["steered"]
            for key, value in answers["beyond_random"].items():
                assert found[name]["beyond_random"][key] == pytest.approx(value, abs=1e-3)
    text = pyemo("inspect", path, "-m", model, "--facts").stdout
    assert f"false claims agreed with      {found['false_claims']['unsteered']}/20" in text
    assert f"at strength 0.3 (calibration) the vector {found['sentences'][0]}" in text


def test_facts_are_of_one_vector() -> None:
    result = pyemo("inspect", GOLDEN, "--facts")
    assert result.exit_code == 2
    assert "--facts measures one vector" in result.stderr


def test_vector_that_does_not_fit_is_shown_and_an_error(model: Path, vectors: Path) -> None:
    result = pyemo("inspect", vectors / "other.gguf", "-m", model, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["fit"]["kind"] == "does not fit"
    assert "use a vector made for this model" in result.stderr


def test_json_and_text_tell_the_same_lengths() -> None:
    described = json.loads(pyemo("inspect", GOLDEN / "v1-raw.gguf", "--json").stdout)
    text = pyemo("inspect", GOLDEN / "v1-raw.gguf").stdout
    assert described["lengths"]
    assert all(f"{length:.3g}" in text for length in described["lengths"])


def test_emotions_are_listed_with_other_names_and_opposites() -> None:
    lines = pyemo("inspect", "--emotions").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(EMOTIONS)
    (angry,) = (line for line in lines if line.startswith("angry"))
    assert "opposite: calm" in angry
    assert "anger, rage" in angry


def test_emotions_as_json_say_what_is_bundled() -> None:
    rows = json.loads(pyemo("inspect", "--emotions", "--json").stdout)
    bundled = {row["name"] for row in rows if row["is_bundled"]}
    assert len(rows) == 20
    assert bundled == set(list_vectors("smollm2-135m-instruct"))


def test_bundled_vector_is_found_by_name() -> None:
    described = json.loads(pyemo("inspect", "Anger", "--json").stdout)
    assert described["emotion"] == "angry"
    assert described["source"]["model"] == "smollm2-135m-instruct"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("angri", "did you mean 'angry'"),
        ("missing.gguf", "check the path"),
        (str(GOLDEN / "README.md"), "GGUF"),
    ],
)
def test_what_is_no_vector_is_refused(name: str, remedy: str) -> None:
    result = pyemo("inspect", name)
    assert result.exit_code == 1
    assert remedy in result.stderr


@pytest.mark.parametrize("arguments", [(), ("anger", "--emotions")])
def test_vector_or_emotions_is_needed(arguments: tuple[str, ...]) -> None:
    result = pyemo("inspect", *arguments)
    assert result.exit_code == 2
    assert "give a VECTOR, or --emotions" in result.stderr
