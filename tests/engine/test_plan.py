"""What a decode carries: every reply's row first, then prompts, of which none starves."""

from __future__ import annotations

from typing import Any, cast

import pytest

from pyemo.engine.plan import Plan, Running, plan, shares


def running(*pending: int) -> list[Running]:
    nothing = cast("Any", None)
    return [Running(nothing, nothing, nothing, n) for n in pending]


def planned(*running: Running) -> Plan:
    """Plan a decode of 64 rows, or 512 of prompts alone."""
    return plan(running, n_prompt_rows=lambda n_writing: 64 - n_writing, n_batch=512)


def rows(*pending: int) -> tuple[list[int], list[int]]:
    """Return the pending tokens of those that draw, and the rows of the others."""
    found = planned(*running(*pending))
    return [one.n_pending for one in found.draws], [n for _, n in found.fills]


def test_replies_come_first_and_a_prompt_has_what_is_left() -> None:
    assert rows(1, 1, 1, 300) == ([1, 1, 1], [61])


def test_a_prompt_that_fits_is_read_to_its_end_and_draws() -> None:
    assert rows(1, 30) == ([1, 30], [])


def test_prompts_alone_are_read_in_whole_batches() -> None:
    assert rows(700) == ([], [512])
    assert rows(500) == ([500], [])


def test_a_plan_says_how_many_write_and_how_many_rows_prompts_have() -> None:
    found = planned(*running(1, 1, 20, 300))
    assert (found.n_writing, found.n_prompt_rows) == (2, 62)


def test_a_paused_reply_has_no_row() -> None:
    two = running(1, 40)
    two[1].is_paused = True
    assert planned(*two).draws == (two[0],)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ([], []),
        ([1000], [64]),
        ([1000, 10], [54, 10]),
        ([1000, 1000], [32, 32]),
        ([1000, 1000, 10], [32, 22, 10]),
        ([10, 1000], [10, 54]),
        ([1000, 20, 20, 20], [32, 20, 12, 0]),
    ],
)
def test_the_first_prompt_has_half_and_the_shortest_have_the_rest(
    wanted: list[int], found: list[int]
) -> None:
    assert shares(wanted, 64) == found
