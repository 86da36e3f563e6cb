"""Regimes follow their definitions; how well the thresholds fit real texts is in tests/quality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from fit.rules import proxy_rule, proxy_rule_strength, ratio_rule

from pyemo.errors import InputError
from pyemo.measures.regimes import (
    Regime,
    TextMeasures,
    TextRegime,
    classify_strength,
    classify_text,
    measure_text,
)
from pyemo.measures.text import WINDOW, window_begins

N_TOKENS = [48, 256]
COLLAPSED, EXPLODED = TextRegime.REPETITIVE_COLLAPSE, TextRegime.EXPLOSIVE


def prose(n: int, seed: int = 0) -> TextMeasures:
    """Tokens that hardly repeat, as surprising as a model's own text."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 5000, n)
    text = " ".join(f"w{token}" for token in tokens)
    return measure_text(tokens.tolist(), text, -rng.gamma(1, 1.2, n))


def loop(n: int, period: int = 5) -> TextMeasures:
    """A loop, hardly surprising."""
    tokens = [100 + i % period for i in range(n)]
    return measure_text(tokens, " ".join(f"w{token}" for token in tokens), np.full(n, -0.3))


def babble(n: int, seed: int = 0) -> TextMeasures:
    """Tokens that hardly repeat, each a surprise."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 5000, n)
    text = " ".join(f"w{token}" for token in tokens)
    return measure_text(tokens.tolist(), text, -rng.gamma(8, 1.0, n))


# --- measures ---


@pytest.mark.parametrize("n", [1, 2, 47, 48, 49, 63, 64, 65, 255, 256, 257])
def test_windows_cover_every_token_and_none_is_longer(n: int) -> None:
    covered = set()
    for begin in window_begins(n):
        covered |= set(range(begin, min(n, begin + WINDOW)))
        assert n <= WINDOW or begin + WINDOW <= n
    assert covered == set(range(n))


def test_collapse_of_the_end_shows_in_the_worst_window() -> None:
    tokens = [*range(200), *[7, 8] * 28]
    found = measure_text(tokens, "text", np.full(256, -1.0))
    assert found.distinct_tokens == 2 / (WINDOW - 2)
    assert found.loop_share == 1.0


def test_surprise_is_the_mean_of_whole_half_and_worst_window() -> None:
    logprobs = np.concatenate([np.full(128, -1.0), np.full(128, -3.0)])
    found = measure_text(list(range(256)), "text", logprobs, entropies=np.full(256, 0.5))
    assert (found.surprise, found.late_surprise, found.worst_surprise) == (2.0, 3.0, 3.0)
    assert found.entropy == 0.5


def test_scripts_of_prompt_and_twin_are_not_new() -> None:
    def share(*known: str) -> float:
        return measure_text([1, 2], "ok 找摸", [-1, -1], known=known).new_scripts

    assert share("Hello") == 0.5
    assert share("Hello", "你好") == 0.0


@pytest.mark.parametrize(
    ("tokens", "logprobs", "words"),
    [
        ([], [], "0 tokens"),
        ([1], [-1.0], "1 tokens"),
        ([1, 2, 3], [-1.0, -1.0], "one each"),
        ([1, 2], [-1.0, math.nan], "not finite"),
        ([1, 2], [-1.0, -math.inf], "not finite"),
    ],
)
def test_text_that_cannot_be_measured_is_refused(
    tokens: list[int], logprobs: list[float], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        measure_text(tokens, "text", logprobs)


# --- texts ---


@pytest.mark.parametrize("n", N_TOKENS)
def test_clear_cases_are_told_apart(n: int) -> None:
    assert classify_text(prose(n)) is TextRegime.COHERENT
    assert classify_text(loop(n)) is COLLAPSED
    assert classify_text(babble(n)) is EXPLODED


@pytest.mark.parametrize("n", N_TOKENS)
def test_ratio_rule_takes_a_predictable_text_for_a_loop(n: int) -> None:
    twin = prose(n)
    calm = replace(prose(n, seed=1), surprise=twin.surprise - 1)
    assert ratio_rule(calm, twin) is COLLAPSED
    assert ratio_rule(twin, twin) is TextRegime.COHERENT
    assert ratio_rule(babble(n), twin) is EXPLODED
    assert ratio_rule(replace(twin, surprise=1e6), twin) is EXPLODED


def test_proxy_rule_is_three_equal_trigrams_or_fewer_than_three_words() -> None:
    def by_proxy(text: str) -> TextRegime:
        return proxy_rule(measure_text([1, 2], text, [-1, -1]))

    assert by_proxy("a b c x a b c y a b c") is COLLAPSED
    assert by_proxy("a b c x a b c") is TextRegime.COHERENT
    assert by_proxy("two words") is EXPLODED
    assert by_proxy("three words here") is TextRegime.COHERENT


def test_proxy_rule_of_a_strength_takes_the_shares_of_the_follow_up() -> None:
    stuck, fine, empty = loop(48), prose(48), measure_text([1, 2], "", [-1, -1])
    assert proxy_rule_strength([stuck] * 6 + [fine] * 4) is Regime.REPETITIVE_COLLAPSE
    assert proxy_rule_strength([stuck] * 5 + [fine] * 5) is Regime.SURGICAL
    assert proxy_rule_strength([empty] * 4 + [fine] * 6) is Regime.EXPLOSIVE
    assert proxy_rule_strength([empty] * 3 + [fine] * 7) is Regime.SURGICAL
    with pytest.raises(InputError, match="no texts"):
        proxy_rule_strength([])


# --- strengths ---

Texts = Sequence[TextMeasures | None]
TWINS: Texts = [prose(48, seed=i) for i in range(20)]
FINE: Texts = [prose(48, seed=50 + i) for i in range(20)]
MOVED = {"effect": np.full(20, 0.3), "random_effect": np.linspace(-0.1, 0.1, 20)}
UNMOVED = {"effect": np.linspace(-0.2, 0.2, 20), "random_effect": np.linspace(-0.2, 0.2, 20)}


def test_strength_that_moves_coherent_texts_is_surgical() -> None:
    report = classify_strength(FINE, TWINS, **MOVED)
    assert report.regime is Regime.SURGICAL
    assert (report.coherent_share, report.failure, report.n_texts) == (1.0, None, 20)
    assert report.effect is not None
    assert report.effect.value == pytest.approx(0.3)
    assert report.shares == {TextRegime.COHERENT: 1.0, COLLAPSED: 0.0, EXPLODED: 0.0}


def test_strength_that_moves_no_more_than_a_random_direction_is_inert() -> None:
    report = classify_strength(FINE, TWINS, **UNMOVED)
    assert report.regime is Regime.INERT
    assert report.is_coherent


def test_strength_without_a_judge_is_never_inert() -> None:
    report = classify_strength(FINE, TWINS)
    assert report.regime is Regime.SURGICAL
    assert report.effect is None


def test_effect_is_taken_over_the_mean_of_random_directions() -> None:
    several = np.stack([np.full(20, 0.0), np.full(20, 0.4)])
    report = classify_strength(FINE, TWINS, effect=np.full(20, 0.3), random_effect=several)
    assert report.effect == pytest.approx((0.1, 0.1, 0.1))


@pytest.mark.parametrize(
    ("n_failing", "regime"), [(2, Regime.SURGICAL), (3, Regime.REPETITIVE_COLLAPSE)]
)
def test_nine_texts_of_ten_have_to_be_as_coherent_as_their_twins(
    n_failing: int, regime: Regime
) -> None:
    texts = [*[loop(48)] * n_failing, *FINE[n_failing:]]
    assert classify_strength(texts, TWINS, **MOVED).regime is regime


@pytest.mark.parametrize(
    ("n_texts", "n_failing", "regime"),
    [
        (8, 1, Regime.SURGICAL),  # 7 of 8 may well be nine of ten
        (2, 1, Regime.SURGICAL),
        (8, 2, Regime.REPETITIVE_COLLAPSE),
        (1, 1, Regime.REPETITIVE_COLLAPSE),
        (16, 1, Regime.SURGICAL),
        (16, 2, Regime.REPETITIVE_COLLAPSE),
    ],
)
def test_one_failing_text_of_a_few_is_no_collapse(
    n_texts: int, n_failing: int, regime: Regime
) -> None:
    texts = [*[loop(48)] * n_failing, *FINE[n_failing:n_texts]]
    report = classify_strength(texts, TWINS[:n_texts])
    assert (report.regime, report.n_coherent) == (regime, n_texts - n_failing)
    assert report.is_coherent is (regime is Regime.SURGICAL)
    assert report.failure is Regime.REPETITIVE_COLLAPSE  # is named all the same


def test_failing_like_the_twin_is_as_coherent_as_the_twin() -> None:
    stuck = [loop(48)] * 20
    assert classify_strength(stuck, stuck, **MOVED).regime is Regime.SURGICAL
    assert classify_strength([babble(48)] * 20, stuck, **MOVED).regime is Regime.EXPLOSIVE


@pytest.mark.parametrize(
    ("n_stuck", "regime"),
    [(11, Regime.REPETITIVE_COLLAPSE), (10, Regime.EXPLOSIVE), (0, Regime.EXPLOSIVE)],
)
def test_majority_of_the_failing_texts_names_the_failure(n_stuck: int, regime: Regime) -> None:
    texts = [*[loop(48)] * n_stuck, *[babble(48)] * (20 - n_stuck)]
    report = classify_strength(texts, TWINS, **MOVED)
    assert report.regime is report.failure is regime


def test_inert_strength_still_names_its_failure() -> None:
    report = classify_strength([loop(48)] * 20, TWINS, **UNMOVED)
    assert report.regime is Regime.INERT
    assert report.failure is Regime.REPETITIVE_COLLAPSE
    assert not report.is_coherent


def test_text_too_short_to_measure_counts_as_explosive_unless_the_twin_is_too() -> None:
    assert classify_strength([None] * 20, TWINS).regime is Regime.EXPLOSIVE
    both = classify_strength([None] * 20, [None] * 20)
    assert both.regime is Regime.SURGICAL
    assert math.isnan(both.ratio.value)


def test_ratio_of_a_strength_is_the_geometric_mean_over_texts() -> None:
    twins = [replace(prose(48), surprise=1.0), replace(prose(48), surprise=2.0)]
    texts = [replace(prose(48), surprise=2.0), replace(prose(48), surprise=4.0)]
    assert classify_strength(texts, twins).ratio.value == pytest.approx(math.e**1.5)


@pytest.mark.parametrize(
    ("texts", "twins", "effects", "words"),
    [
        ([], [], {}, "one or more"),
        (FINE, TWINS[:3], {}, "paired"),
        (FINE, TWINS, {"effect": np.ones(20)}, "together"),
        (FINE, TWINS, {"effect": np.ones(3), "random_effect": np.ones(20)}, "shape"),
        (FINE, TWINS, {"effect": np.ones(20), "random_effect": np.ones((2, 3))}, "shape"),
        (FINE, TWINS, {"effect": np.full(20, math.nan), "random_effect": np.ones(20)}, "finite"),
    ],
)
def test_strength_that_cannot_be_classified_is_refused(
    texts: Texts, twins: Texts, effects: dict[str, np.ndarray], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        classify_strength(texts, twins, **effects)
