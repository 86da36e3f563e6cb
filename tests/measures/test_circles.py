"""The repetition stop acts on what goes in circles, and on no text that readers call coherent."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from fit.labels import READERS, labels, lines, majority
from hypothesis import given
from hypothesis import strategies as st

from pyemo.measures.circles import (
    CYCLE_TOKENS,
    CYCLES,
    LONGEST_PERIOD,
    LOOK_BACK,
    POOR_KINDS,
    POOR_TOKENS,
    STRIDE,
    circles_from,
)
from pyemo.measures.regimes import TextRegime


def first_look(tokens: Sequence[int]) -> int | None:
    """Return at which token a running reply would have been stopped."""
    looks = range(STRIDE, len(tokens) + 1, STRIDE)
    return next((n for n in looks if circles_from(tokens[:n]) is not None), None)


@given(
    head=st.lists(st.integers(0, 9), max_size=20),
    period=st.integers(1, LONGEST_PERIOD),
    n_more=st.integers(0, 40),
)
def test_cycles_that_come_often_enough_are_circles_behind_the_first(
    head: list[int], period: int, n_more: int
) -> None:
    cycle = [100 + i for i in range(period)]
    n_loop = max(CYCLE_TOKENS, CYCLES * period) + min(n_more, STRIDE)
    tokens = head + (cycle * (n_loop // period + 1))[:n_loop]
    assert circles_from(tokens) == len(head) + period
    shorter = max(CYCLE_TOKENS, CYCLES * period) - 1
    assert period == 1 or circles_from(head + (cycle * 70)[:shorter]) is None


def test_few_kinds_of_tokens_without_an_order_are_circles() -> None:
    notes = [(i * i + i // 3) % 7 % POOR_KINDS for i in range(POOR_TOKENS)]
    head = list(range(100, 130))
    assert circles_from(head + notes) == len(head) + POOR_KINDS
    assert circles_from(head + notes[:-1]) is None


@given(st.lists(st.integers(0, 3), max_size=2 * LOOK_BACK))
def test_what_was_long_ago_does_not_count(tokens: list[int]) -> None:
    begin = max(0, len(tokens) - LOOK_BACK)
    found = circles_from(tokens[begin:]) if tokens else None
    assert (circles_from(tokens) if tokens else None) == (None if found is None else begin + found)


@pytest.mark.parametrize(
    "text",
    [
        [1],
        list(range(300)),
        [*range(10), *[7] * (CYCLE_TOKENS - 1)],  # a rule of dashes
        [i for row in range(12) for i in (500, row, 501, 40 + row % 3, 502)],  # a table
        [*range(60), *range(60), *range(60)],  # a chorus, sung three times
    ],
)
def test_repetition_with_an_end_or_a_change_is_no_circle(text: list[int]) -> None:
    assert first_look(text) is None


def test_labelled_texts_are_stopped_if_they_collapse_and_never_if_they_are_coherent() -> None:
    by_reader = [labels(reader) for reader in READERS]
    stopped = dict.fromkeys(TextRegime, 0)
    asked = dict.fromkeys(TextRegime, 0)
    for record in lines("texts.jsonl"):
        gold = majority([reader[record["id"]] for reader in by_reader])
        is_long = record["length"] > 48  # in the others a loop hardly has the room
        if gold is TextRegime.COHERENT or is_long:
            asked[gold] += 1
            stopped[gold] += first_look(record["tokens"]) is not None
    assert asked == {
        TextRegime.COHERENT: 287,
        TextRegime.REPETITIVE_COLLAPSE: 63,
        TextRegime.EXPLOSIVE: 17,
    }
    assert stopped[TextRegime.COHERENT] == 0
    assert stopped[TextRegime.REPETITIVE_COLLAPSE] >= 53
