"""Language directions: what they are the mean of, and vectors without them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pyemo import ControlVector, Engine, Steering
from pyemo.choices import LANGUAGES
from pyemo.errors import InputError
from pyemo.extract.languages import language_vector, without
from pyemo.extract.neutral import FIRST_POSITION
from pyemo.measures.repetition import script
from pyemo.texts.sources import parallel_texts


@pytest.fixture
def engine(new_engine: Callable[..., Engine]) -> Engine:
    return new_engine(n_ctx=512, n_batch=512)


def test_texts_say_the_same_in_every_language() -> None:
    lengths = {name: len(parallel_texts(name)) for name in LANGUAGES}
    assert len(set(lengths.values())) == 1
    letters = {name: "".join(parallel_texts(name)) for name in LANGUAGES}
    scripts = {name: {script(c) for c in text} - {""} for name, text in letters.items()}
    assert scripts.pop("zh") == {"CJK"}
    assert set(map(frozenset, scripts.values())) == {frozenset({"LATIN"})}


def test_direction_is_the_difference_of_means(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"en": ["the story of a happy day"] * 2, "zh": ["a gloomy story"] * 3}
    texts = {name: [" and ".join([text] * 9) for text in own] for name, own in texts.items()}
    monkeypatch.setattr("pyemo.extract.languages.LANGUAGES", tuple(texts))
    monkeypatch.setattr("pyemo.extract.languages.parallel_texts", texts.__getitem__)
    vector = language_vector(engine, "zh")
    means = {
        name: engine.read(own[0], pooling="all")[FIRST_POSITION:].astype(np.float64).mean(axis=0)
        for name, own in texts.items()
    }
    for layer in vector.layers:
        towards = means["zh"][layer] - means["en"][layer]
        row = vector.directions[layer].astype(np.float64)
        unit = row / np.linalg.norm(row)
        assert unit @ towards == pytest.approx(np.linalg.norm(towards), rel=1e-4)
        gap = vector.own_projections[layer] - vector.neutral_projections[layer]
        assert gap == pytest.approx(np.linalg.norm(towards), rel=1e-3)
        assert np.linalg.norm(row) == pytest.approx(vector.metadata.residual_norms[layer], rel=1e-5)
    Steering({vector: 0.0}, operator="cap")  # all that cap needs is there


def test_language_without_texts_is_refused(engine: Engine) -> None:
    with pytest.raises(InputError, match="no texts in the language 'tlh'"):
        language_vector(engine, "tlh")


def test_what_is_taken_out_is_gone_and_the_rest_stays() -> None:
    vector = ControlVector({1: [3.0, 4.0], 2: [1.0, 0.0]}, name="angry")
    other = ControlVector({1: [2.0, 0.0]}, name="zh")
    cleaned, cosines = without(vector, other)
    np.testing.assert_allclose(cleaned.directions[1], [0.0, 4.0])
    np.testing.assert_array_equal(cleaned.directions[2], vector.directions[2])
    assert cosines == {1: pytest.approx(0.6)}


@pytest.mark.parametrize(
    ("layer", "words"), [(1, "the same direction at layer 1"), (3, "no layer in common")]
)
def test_vectors_that_leave_nothing_are_refused(layer: int, words: str) -> None:
    vector = ControlVector({1: [3.0, 4.0]}, name="angry")
    with pytest.raises(InputError, match=words):
        without(vector, ControlVector({layer: [6.0, 8.0]}, name="zh"))


@pytest.mark.parametrize("which", ["own", "other"])
def test_a_layer_of_zeros_takes_nothing_out(which: str) -> None:
    row, zeros = np.array([1.0, 1.0], np.float32), np.zeros(2, np.float32)
    away = np.array([1.0, 0.0], np.float32)
    vector = ControlVector({1: zeros if which == "own" else row, 2: row})
    other = ControlVector({1: away if which == "own" else zeros, 2: away})
    left, cosines = without(vector, other)
    assert set(cosines) == {2}
    assert np.array_equal(left.directions[1], vector.directions[1])
    with pytest.raises(InputError, match="both are more than 0"):
        without(ControlVector({1: vector.directions[1]}), ControlVector({1: other.directions[1]}))
