"""How many rows of prompts a decode carries, from what the last decodes took."""

from __future__ import annotations

import pytest

from pyemo.engine.pace import FIRST, LEAST, LEAST_S, LONGEST, MOST, Pace

ROW_S = 0.01


def taught(n_writing: int, row_s: float, *, n_rows: int = 20) -> Pace:
    """Return a pace that has seen decodes whose every row takes this long."""
    pace = Pace()
    for _ in range(9):
        pace.note(n_writing, 0, n_writing * row_s)
        pace.note(n_writing, n_rows, (n_writing + n_rows) * row_s)
    return pace


def test_while_nothing_is_known_a_decode_has_a_fixed_number_of_rows() -> None:
    assert Pace().n_rows(4) == FIRST - 4


def test_a_decode_takes_so_many_times_one_without_prompts() -> None:
    n_rows = taught(15, ROW_S).n_rows(15)
    assert (15 + n_rows) * ROW_S == pytest.approx(15 * ROW_S * LONGEST, abs=ROW_S)


def test_dearer_rows_are_fewer() -> None:
    pace = taught(15, ROW_S)
    for _ in range(5):
        pace.note(15, 20, 15 * ROW_S + 20 * ROW_S * 1.5)
    assert pace.n_rows(15) == pytest.approx(15 * (LONGEST - 1) / 1.5, abs=1)


def test_one_slow_decode_changes_nothing() -> None:
    pace = taught(15, ROW_S)
    before = pace.n_rows(15)
    pace.note(15, 20, 60.0)
    pace.note(15, 0, 60.0)
    assert pace.n_rows(15) == before


def test_a_decode_may_take_a_tenth_of_a_second_however_short_it_is_without_prompts() -> None:
    n_rows = taught(1, 0.004).n_rows(1)
    assert (1 + n_rows) * 0.004 == pytest.approx(LEAST_S, abs=0.004)


def test_rows_that_cost_nothing_are_as_many_as_may_be() -> None:
    assert taught(4, 0.0).n_rows(4) == MOST - 4


@pytest.mark.parametrize("n_writing", [1, 60, 200])
def test_prompts_have_a_few_rows_in_any_case(n_writing: int) -> None:
    assert taught(n_writing, 1.0).n_rows(n_writing) == LEAST


@pytest.mark.parametrize("n_writing", [1, 8, 15, 30])
def test_a_number_of_replies_that_was_not_seen_is_reckoned_from_one_that_was(
    n_writing: int,
) -> None:
    assert taught(15, ROW_S).alone_s(n_writing) == pytest.approx(n_writing * ROW_S)
