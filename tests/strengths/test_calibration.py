"""The search for a window, on scripted trials: where text breaks and where it moves is known."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pyemo import ControlVector, SamplerParams
from pyemo.engine.sampling import GREEDY
from pyemo.measures.bootstrap import Interval
from pyemo.measures.regimes import Regime, StrengthReport, TextRegime
from pyemo.strengths.calibration import (
    MAX_STRIDE,
    OWN_STEP,
    STEPS_PER_DOUBLING,
    CalibrationResult,
    _Search,
    sampler_words,
    strength_at,
)
from pyemo.strengths.trials import Trial
from pyemo.vectors.metadata import VectorMetadata

STEP = 2 ** (1 / STEPS_PER_DOUBLING)


class ScriptedTrials:
    """Text breaks above ``breaks`` (by length), moves above ``moves``, and most at ``peak``."""

    share_beyond = 0.5
    still: frozenset[float] | set[float] = frozenset()
    """Strengths at which the text does not move, although weaker ones move it."""
    breaks_short_only: float | None = None
    """A strength whose text breaks, but not in full."""
    in_full_only: frozenset[tuple[float, int]] | set[tuple[float, int]] = frozenset()
    """Strengths and lengths at which only a trial in full shows that the text breaks."""

    def __init__(self, breaks: dict[int, float], moves: float, peak: float = 1.0) -> None:
        self.breaks, self.moves, self.peak = breaks, moves, peak
        self.asked: list[tuple[float, Any]] = []
        model = SimpleNamespace(file_sha256="ab" * 32, name="scripted")
        self.engine = SimpleNamespace(model=model)

    def run(
        self, pairs: Any, *, max_tokens: int | None = None, lengths: Any = None
    ) -> list[list[Trial]]:
        ((_, strength),) = pairs
        self.asked.append((strength, max_tokens or "full"))
        is_full = lengths is not None
        return [[self._trial(strength, n, is_full) for n in lengths or [max_tokens]]]

    def _trial(self, strength: float, n_tokens: int, is_full: bool) -> Trial:
        is_coherent = strength <= self.breaks[n_tokens]
        is_coherent |= is_full and strength == self.breaks_short_only
        is_coherent &= not (is_full and (strength, n_tokens) in self.in_full_only)
        is_moving = strength >= self.moves and strength not in self.still
        regime = Regime.SURGICAL if is_coherent else Regime.EXPLOSIVE
        share = 1.0 if is_coherent else self.share_beyond
        over = Interval(0.1, 0.05, 0.2) if is_moving else Interval(0.0, -0.1, 0.1)
        report = StrengthReport(
            regime=regime if is_moving else Regime.INERT,
            failure=None if is_coherent else Regime.EXPLOSIVE,
            coherent_share=share,
            shares={TextRegime.COHERENT: share},
            ratio=Interval(2.0, 1.5, 2.5),
            effect=over,
            n_texts=8,
        )
        effect = 1.0 - abs(strength - self.peak)
        return Trial("happy", strength, n_tokens, report, effect, 0.0, 0.9, None, ())


def vector(dose: float = 6.4) -> ControlVector:
    """A vector whose dose at strength 1 is known."""
    metadata = VectorMetadata(unit="residual", residual_norms=(1.0, 1.0), emotion="happy")
    return ControlVector({1: [dose, 0.0]}, name="happy", metadata=metadata)


def search(trials: ScriptedTrials, start: int = 1, own: float | None = None) -> CalibrationResult:
    lengths = tuple(trials.breaks)
    searching = _Search(trials, trials, lengths, vector(), own, None)  # type: ignore[arg-type]
    return searching.run({"samplers": ["greedy"]}, OWN_STEP if own else start)


@pytest.mark.parametrize("low", [0.003, 0.006, 0.009])
@pytest.mark.parametrize("high", [0.012, 0.02, 0.05, 0.1])
def test_the_window_is_found_to_within_a_step(low: float, high: float) -> None:
    trials = ScriptedTrials({48: high}, low)
    found = search(trials).calibrations[0]
    assert found.window[0] / STEP <= low * 1.01
    assert low <= found.window[0]
    assert found.window[1] <= high <= found.window[1] * STEP * 1.01
    assert len(trials.asked) <= 17  # the whole ladder has more than 40 rungs


def test_a_strength_is_tried_once() -> None:
    trials = ScriptedTrials({48: 0.03, 256: 0.02}, 0.004)
    search(trials)
    assert len(set(trials.asked)) == len(trials.asked)


def test_each_length_has_a_window_of_its_own() -> None:
    result = search(ScriptedTrials({48: 0.03, 128: 0.03, 256: 0.02}, 0.004))
    assert [one.n_tokens for one in result.calibrations] == [48, 128, 256]
    short, middle, long = (one.window for one in result.calibrations)
    assert short == middle
    assert short[0] == long[0]
    assert long[1] <= 0.02 <= long[1] * STEP * 1.01
    assert long[1] < short[1] <= 0.03
    assert result.reason == ""


def test_a_length_without_a_window_does_not_cost_the_others_theirs() -> None:
    trials = ScriptedTrials({48: 0.03, 128: 0.02, 256: 0.0}, 0.004)
    result = search(trials)
    assert [one.n_tokens for one in result.calibrations] == [48, 128]
    assert result.reason == "no strength is surgical for 256 tokens"
    rows = json.loads(result.calibrations[1].evidence)["strengths"]
    assert {row["n_tokens"] for row in rows} == {48, 128}


def test_what_is_recommended_has_most_emotion() -> None:
    rising = search(ScriptedTrials({48: 0.03, 256: 0.03}, 0.004)).calibrations[-1]
    assert rising.strength == rising.window[1] <= 0.03
    peaked = search(ScriptedTrials({48: 0.04, 256: 0.04}, 0.004, peak=0.008)).calibrations[-1]
    assert peaked.window[0] <= peaked.strength < peaked.window[1]


def test_the_strength_of_a_training_is_kept_where_it_is_surgical() -> None:
    trials = ScriptedTrials({48: 0.04}, 0.004, peak=0.04)
    found = search(trials, own=0.02123).calibrations[0]
    assert found.strength == 0.02123
    assert found.window == (0.00531, 0.03)  # steps of the square root of 2 from that strength
    assert (0.02123, "full") in trials.asked


def test_the_strength_of_a_training_is_tried_in_full_where_one_short_text_fails() -> None:
    trials = ScriptedTrials({48: 0.02}, 0.004)
    trials.breaks_short_only = 0.02123
    trials.share_beyond = 7 / 8
    found = search(trials, own=0.02123).calibrations[0]
    assert found.strength == found.window[1] == 0.02123


def test_the_strength_of_a_training_that_breaks_the_text_is_not_kept() -> None:
    found = search(ScriptedTrials({48: 0.02}, 0.004), own=0.02123).calibrations[0]
    assert found.strength == found.window[1] == 0.015


def test_the_upper_end_was_tried_in_full() -> None:
    trials = ScriptedTrials({48: 0.03, 256: 0.03}, 0.004)
    found = search(trials).calibrations[0]
    assert [strength for strength, n in trials.asked if n == "full"] == [found.window[1]]
    assert found.window[1] == max(s for s, n in trials.asked if n == 48 and s <= 0.03)


def test_a_strength_at_which_one_short_text_fails_is_not_tried_in_full() -> None:
    trials = ScriptedTrials({48: strength_at(2)}, 0.004)
    trials.share_beyond = 7 / 8
    search(trials, start=2)
    strongest = max(strength for strength, n in trials.asked if n == 48)
    assert strongest == strength_at(2 + MAX_STRIDE)
    assert max(strength for strength, n in trials.asked if n == "full") < strongest


def test_one_failing_text_is_not_held_against_a_strength_before_it_is_confirmed() -> None:
    trials = ScriptedTrials({48: 0.012}, 0.004)
    trials.share_beyond = 7 / 8
    found = search(trials).calibrations[0]
    assert max(strength for strength, _ in trials.asked) > 0.05  # the search went on
    assert found.window[1] <= 0.012  # and every strength beyond was refused in full


def test_a_window_of_one_strength_is_a_window() -> None:
    at = strength_at(3)
    found = search(ScriptedTrials({48: at}, at), start=3).calibrations[0]
    assert found.window == (at, at)
    assert found.strength == at


@pytest.mark.parametrize(
    ("breaks", "moves", "reason"),
    [
        ({48: 0.0}, 0.0, "even the weakest"),
        ({48: 0.02}, 0.03, "move more than under random directions"),
    ],
)
def test_a_window_that_does_not_exist_is_said(
    breaks: dict[int, float], moves: float, reason: str
) -> None:
    result = search(ScriptedTrials(breaks, moves))
    assert result.calibrations == ()
    assert reason in result.reason
    assert result.trials


def test_a_window_that_more_texts_refute_does_not_exist() -> None:
    trials = ScriptedTrials({48: 0.0, 256: 0.0}, 0.01)
    trials.share_beyond = 7 / 8  # one failing text of eight is let through until it is confirmed
    result = search(trials)
    assert result.calibrations == ()
    assert "or more of them, are not" in result.reason


def test_a_weaker_strength_is_confirmed_where_the_strongest_that_move_are_refuted() -> None:
    trials = ScriptedTrials({48: strength_at(3)}, strength_at(-2))
    trials.still = {strength_at(1), strength_at(2)}
    trials.in_full_only = {(strength_at(3), 48)}
    (found,) = search(trials).calibrations
    assert found.window == (strength_at(0), strength_at(0))
    assert found.strength == strength_at(0)


def test_the_search_ends_where_nothing_breaks_or_everything_moves() -> None:
    harmless = ScriptedTrials({48: 1e9}, 0.0)
    found = search(harmless).calibrations[0]
    assert found.window[0] < found.window[1]
    assert len(harmless.asked) <= 15
    assert found.window[1] == strength_at(1 + MAX_STRIDE)


@pytest.mark.parametrize("start", [-6, -2, 0, 1, 2, 5, 8])
def test_a_wrong_guess_costs_trials_and_no_more(start: int) -> None:
    trials = ScriptedTrials({48: strength_at(1)}, strength_at(-3))
    found = search(trials, start).calibrations[0]
    assert found.window == (strength_at(-3), strength_at(1))
    assert len(trials.asked) <= 9 + 2 * abs(start - 1) ** 0.5


def test_what_is_recommended_was_confirmed_at_its_length() -> None:
    trials = ScriptedTrials({48: 0.04, 256: 0.04}, 0.004, peak=0.008)
    trials.in_full_only = {(0.00707, 256), (0.01, 256)}  # more texts refute what eight do not
    short, long = search(trials).calibrations
    assert short.strength in (0.00707, 0.01)
    assert long.strength not in (0.00707, 0.01)
    in_full = {strength for strength, n in trials.asked if n == "full"}
    assert {short.strength, long.strength} <= in_full


def test_evidence_has_every_trial_in_order() -> None:
    trials = ScriptedTrials({48: 0.03, 256: 0.02}, 0.004)
    evidence = json.loads(search(trials).calibrations[-1].evidence)
    rows = [(row["strength"], row["n_tokens"]) for row in evidence["strengths"]]
    assert rows == sorted(rows)
    in_full = [s for s, n in trials.asked if n == "full"]
    short = [s for s, n in trials.asked if n == 48]
    assert sorted(rows) == sorted(
        [(s, n) for s in in_full for n in (48, 256)] + [(s, 48) for s in short]
    )
    assert evidence["samplers"] == ["greedy"]


def test_rungs_are_three_digits_and_double() -> None:
    assert strength_at(0) == 0.01
    assert strength_at(STEPS_PER_DOUBLING) == 0.02
    rungs = [strength_at(step) for step in range(-20, 30)]
    assert rungs == sorted(set(rungs))
    assert np.allclose(np.diff(np.log2(rungs)), 1 / STEPS_PER_DOUBLING, atol=0.01)


def test_samplers_in_words() -> None:
    assert sampler_words(GREEDY) == "greedy"
    assert sampler_words(SamplerParams()) == "temperature=0.8 top_k=40 top_p=0.95 min_p=0.05"
    assert sampler_words(replace(GREEDY, dry_multiplier=0.8)) == "greedy dry_multiplier=0.8"
