"""Bootstrap intervals cover what they should, and say no where there is nothing to draw."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pyemo.errors import InputError
from pyemo.measures.bootstrap import bootstrap_interval


def test_interval_of_a_mean_is_near_that_of_students_t() -> None:
    rows = np.random.default_rng(0).normal(3, 2, 60)
    found = bootstrap_interval(rows)
    half = stats.t.ppf(0.975, 59) * rows.std(ddof=1) / np.sqrt(60)
    assert found.value == rows.mean()
    assert (found.low, found.high) == pytest.approx(
        (rows.mean() - half, rows.mean() + half), abs=0.1
    )


def test_whole_rows_are_drawn() -> None:
    rows = np.repeat(np.random.default_rng(1).normal(size=(30, 1)), 2, axis=1)
    assert bootstrap_interval(rows, lambda r: float((r[:, 0] - r[:, 1]).sum())) == (0, 0, 0)


def test_same_seed_gives_the_same_interval() -> None:
    rows = np.arange(9.0)
    assert bootstrap_interval(rows, seed=4) == bootstrap_interval(rows, seed=4)
    assert bootstrap_interval(rows, seed=4) != bootstrap_interval(rows, seed=5)


@pytest.mark.parametrize("rows", [[], [1.0, float("nan")], [float("inf")], 3.0])
def test_rows_without_an_interval_are_refused(rows: object) -> None:
    with pytest.raises(InputError, match=r"no rows|not finite"):
        bootstrap_interval(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", [{"confidence": 1.0}, {"confidence": 0.0}, {"n_resamples": 0}])
def test_settings_outside_their_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(InputError, match="confidence"):
        bootstrap_interval([1.0, 2.0], **setting)  # type: ignore[arg-type]
