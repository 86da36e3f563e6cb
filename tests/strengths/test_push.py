"""How strong a raw vector is, in words; and a strength that is found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import pyemo
from engines import open_engine, random_vector

from pyemo import ControlVector, Engine, Model, Steering
from pyemo.errors import InputError
from pyemo.strengths import auto
from pyemo.strengths.push import in_words, prompt_norms, push
from pyemo.vectors.metadata import VectorMetadata


def test_the_largest_push_is_that_of_the_block_where_most_has_come_together() -> None:
    vector = ControlVector({1: [3.0, 0.0], 2: [0.0, 4.0]})
    assert push(Steering({vector: 2.0}), [1.0, 10.0, 20.0]) == pytest.approx(0.6)
    assert push(Steering({vector: 2.0}), [1.0, 10.0, 1000.0]) == pytest.approx(0.6)
    assert push(Steering({vector: 2.0}), [1.0, 100.0, 20.0]) == pytest.approx(0.5)
    assert push(Steering({vector: 2.0}, layers=range(1, 2)), [1.0, 100.0, 1.0]) == 0.06


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.003, "0.3% of the residual norm: nothing will be seen"),
        (0.05, "5% of the residual norm: as strong as moods usually are"),
        (0.5, "50% of the residual norm: the text may loop or break"),
        (4.0, "400% of the residual norm: this will not be text"),
    ],
)
def test_a_push_is_said_in_words(share: float, words: str) -> None:
    assert in_words(share) == words


def test_norms_of_a_prompt_are_those_of_its_hidden_states(tiny_model_path: Path) -> None:
    with open_engine(Model.load(tiny_model_path)) as engine:
        tokens = engine.model.tokenize("some words of a prompt", add_special=True)
        rows = engine.read(tokens, pooling="all")
        expected = np.median(np.linalg.norm(rows[1:], axis=2), axis=0)
        np.testing.assert_allclose(prompt_norms(engine, tokens), expected, rtol=1e-6)


@pytest.fixture
def raw(tiny_model_path: Path, tmp_path: Path) -> Path:
    vector = random_vector(
        Model.load(tiny_model_path),
        layers=[1, 2, 3],
        seed=3,
        metadata=VectorMetadata(architecture="llama"),
    )
    vector.save(tmp_path / "raw.gguf")
    return tmp_path / "raw.gguf"


@pytest.mark.parametrize(
    ("strength", "words"),
    [(0.0001, "nothing will be seen"), (30, "this will not be text")],
)
def test_run_says_of_a_raw_vector_what_will_be_seen(
    strength: float, words: str, raw: Path, tiny_model_path: Path
) -> None:
    """A vector that acts nowhere, or too much, is told before the first token."""
    result = pyemo("run", "-m", tiny_model_path, "-n", 2, "--cvec", f"{raw}={strength}", "a b c")
    assert result.exit_code == 0, result.stderr
    assert words in result.stderr


def test_auto_finds_a_strength_and_says_its_price(raw: Path, tiny_model_path: Path) -> None:
    arguments = ("-m", tiny_model_path, "-n", 2, "--cvec", raw, "--strength", "auto", "--json")
    result = pyemo("run", *arguments, "a b c")
    assert result.exit_code == 0, result.stderr
    assert "was found: it costs the model's own replies" in result.stderr
    steering = json.loads(result.stdout)["steering"]
    assert steering["terms"][0]["strength"] > 0
    assert 0.01 <= steering["push"] <= 2.0


def test_the_strongest_within_the_price_is_taken(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The price of a strength is made to be the strength itself."""
    model = Model.load(tiny_model_path)
    vector = random_vector(model, layers=[1])

    def level(_engine: Engine, _pairs: object, steering: Steering) -> float:
        return -sum(term.strength for term in steering.terms)

    monkeypatch.setattr(auto, "_level", level)
    with open_engine(model) as engine:
        found = auto.auto_strength(engine, vector, 0.01)
        assert found.strength <= auto.MOST_COST < found.strength * 2**0.5 * 1.01
        assert found.gain is None
        with pytest.raises(InputError, match=r"over 0\.35"):
            auto.auto_strength(engine, vector, 1.0)


def test_a_voice_decides_between_usable_strengths(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model.load(tiny_model_path)
    vector = random_vector(model, layers=[1], metadata=VectorMetadata(emotion="angry"))
    monkeypatch.setattr(auto, "_level", lambda *_: 0.0)
    with open_engine(model, n_ctx=1024) as engine:
        found = auto.auto_strength(engine, vector, 0.01)
    assert found.gain is not None


def test_auto_is_for_add_and_for_run(raw: Path, tiny_model_path: Path) -> None:
    wrong = ("--cvec", raw, "--strength", "auto", "--operator", "clamp", "a")
    assert "for the operator add" in pyemo("run", "-m", tiny_model_path, *wrong).stderr
    chat = pyemo("chat", "-m", tiny_model_path, "--cvec", raw, "--strength", "auto", stdin="a\n")
    assert "is for pyemo run" in chat.stderr
