"""What the guard's watch sees: repetitions by definition, failures as the readers did."""

from __future__ import annotations

import random

import numpy as np
import pytest
from fit.labels import lines
from fit.watch import LENGTHS, fit, groups, looks

from pyemo.guard import watch
from pyemo.guard.watch import EXACT_WEIGHTS, REPEATED_TOKENS, WEIGHTS, repeats, trouble


def test_a_loop_is_seen_once_its_tokens_stand_twice() -> None:
    cycle = [1, 2, 3, 4, 5]
    text = list(range(100, 130)) + cycle * 5
    first = next(n for n in range(len(text) + 1) if repeats(text[:n]))
    assert first == 30 + len(cycle) + REPEATED_TOKENS


def test_a_text_without_repetition_is_none() -> None:
    assert not repeats(list(range(300)))
    assert trouble(list(range(300)), [2.0] * watch.LONGEST) is None


def test_few_tokens_that_come_again_and_again_are_a_repetition() -> None:
    draw = random.Random(0)
    tokens = [draw.choice((1, 2, 3)) for _ in range(16)]
    assert trouble(tokens, [0.5] * 16) == "repetition"


def test_high_entropy_is_an_explosion() -> None:
    tokens = list(range(16))
    assert trouble(tokens, [8.0] * 16) == "explosion"


def test_tokens_that_the_unsteered_model_would_not_write_are_an_explosion_in_exact_mode() -> None:
    tokens, entropies = list(range(48)), [2.0] * 48
    assert trouble(tokens, entropies, [1.0] * 48) is None
    assert trouble(tokens, entropies, [9.0] * 48) == "explosion"


def test_a_reply_that_was_in_trouble_before_is_watched_more_closely() -> None:
    tokens = list(range(16))

    def lowest(again: bool) -> float:
        entropies = (float(x) for x in np.linspace(1.0, 8.0, 701))
        return next(x for x in entropies if trouble(tokens, [x] * 16, again=again))

    assert lowest(again=True) < lowest(again=False)


def test_fewer_tokens_than_the_shortest_window_are_no_trouble() -> None:
    assert trouble([1] * 15, [0.0] * 15) is None


@pytest.mark.parametrize("exact", [False, True])
def test_the_weights_are_those_that_the_labelled_texts_give(exact: bool) -> None:
    weights = EXACT_WEIGHTS if exact else WEIGHTS
    assert tuple(weights) == LENGTHS
    for length, pair in weights.items():
        for mine, fitted in zip(pair, fit(length, exact=exact), strict=True):
            np.testing.assert_allclose(mine, fitted, atol=0.011)


@pytest.mark.parametrize(("exact", "share"), [(False, 0.9), (True, 0.95)])
def test_failing_texts_of_held_out_emotions_are_seen(exact: bool, share: float) -> None:
    failing = [
        record
        for name, records in groups().items()
        if name.startswith("48 tokens") and not name.endswith(" coherent")
        for record in records
    ]
    found = [any(look is not None for look in looks(record, exact=exact)) for record in failing]
    assert len(found) >= 90
    assert np.mean(found) >= share


def test_most_coherent_texts_of_held_out_emotions_are_left_alone() -> None:
    records = groups()["48 tokens, held-out emotions: coherent"]
    for exact in (False, True):
        acts = [any(look is not None for look in looks(record, exact=exact)) for record in records]
        assert np.mean(acts) <= 0.35
    assert len(lines("texts.jsonl")) == 878
