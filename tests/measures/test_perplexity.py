"""Perplexity and its ratio are the formulas they say, on numbers made up by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pyemo import Score
from pyemo.errors import InputError
from pyemo.measures.perplexity import perplexity_ratio


def score(*logprobs: float, chunk: int = 32, kv_type: str = "f16") -> Score:
    return Score(np.array(logprobs, np.float32), chunk=chunk, kv_type=kv_type)


def test_perplexity_is_exp_of_the_mean_surprise() -> None:
    assert score(math.log(0.5), math.log(0.125)).perplexity == pytest.approx(4.0)


def test_stderr_is_the_delta_method() -> None:
    # mean -2, sample standard deviation 1, n 3: e^2 * 1 / sqrt(3)
    assert score(-1, -2, -3).stderr == pytest.approx(math.e**2 / math.sqrt(3), rel=1e-6)


def test_stderr_covers_the_spread_of_texts_drawn_alike() -> None:
    rng = np.random.default_rng(0)
    drawn = [score(*rng.normal(-2, 0.5, 200)) for _ in range(500)]
    spread = np.std([s.perplexity for s in drawn], ddof=1)
    assert np.mean([s.stderr for s in drawn]) == pytest.approx(spread, rel=0.1)


def test_perplexity_without_tokens_is_nan_and_of_the_impossible_inf() -> None:
    assert math.isnan(score().perplexity)
    assert math.isnan(score(-1.0).stderr)
    assert score(-800.0, -900.0).perplexity == math.inf


def test_ratio_is_the_geometric_mean_over_prompts() -> None:
    steered, unsteered = [score(-2.0, -2.0), score(-3.0)], [score(-1.0), score(-1.0, -1.0)]
    # e^1 and e^2: the geometric mean is e^1.5
    assert perplexity_ratio(steered, unsteered).value == pytest.approx(math.e**1.5)


def test_ratio_of_texts_to_themselves_is_one_without_width() -> None:
    same = [score(-1.0, -2.0), score(-0.5)]
    assert perplexity_ratio(same, same) == (1.0, 1.0, 1.0)


def test_ratio_turned_round_is_the_reciprocal_interval_included() -> None:
    rng = np.random.default_rng(1)
    a = [score(*rng.normal(-2, 1, 20)) for _ in range(12)]
    b = [score(*rng.normal(-3, 1, 20)) for _ in range(12)]
    ratio, turned = perplexity_ratio(a, b), perplexity_ratio(b, a)
    assert (turned.value, turned.low, turned.high) == pytest.approx(
        (1 / ratio.value, 1 / ratio.high, 1 / ratio.low)
    )


def test_interval_covers_the_true_ratio_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for trial in range(200):
        logs = rng.normal(0.7, 0.5, 30)
        steered = [score(-2.0 - x) for x in logs]
        ratio = perplexity_ratio(steered, [score(-2.0)] * 30, seed=trial)
        hits += ratio.low <= math.exp(0.7) <= ratio.high
    assert 0.89 <= hits / 200 <= 0.99


@pytest.mark.parametrize(
    ("steered", "unsteered", "words"),
    [
        ([], [], "at least one"),
        ([score(-1.0)], [], "in pairs"),
        ([score()], [score(-1.0)], "steered text 0 has no token"),
        ([score(-1.0)], [score()], "unsteered text 0 has no token"),
        ([score(-1.0), score(math.nan)], [score(-1.0)] * 2, "steered text 1 .* not finite"),
        ([score(-math.inf)], [score(-1.0)], "not finite"),
        ([score(-1.0, kv_type="f32")], [score(-1.0)], "KV types"),
        ([score(-1.0, chunk=8)], [score(-1.0)], "chunks"),
    ],
)
def test_what_has_no_ratio_is_refused_by_name(
    steered: list[Score], unsteered: list[Score], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        perplexity_ratio(steered, unsteered)
