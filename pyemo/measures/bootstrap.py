"""Intervals by the percentile bootstrap.

Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13. Pure arithmetic; what a row
stands for (a prompt, a text, a pair) is the caller's choice and the unit that is drawn again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pyemo.errors import InputError

Statistic: TypeAlias = Callable[[npt.NDArray[Any]], float]

CONFIDENCE = 0.95
N_RESAMPLES = 2000


class Interval(NamedTuple):
    """A statistic with its interval; low <= high, and value is as a rule between them."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def bootstrap_interval(
    rows: npt.ArrayLike,
    statistic: Statistic | None = None,
    *,
    confidence: float = CONFIDENCE,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return a statistic of ``rows`` with its percentile interval over resampled rows.

    The same rows and seed give the same interval. One row gives an interval of no width, which says
    nothing of its certainty.

    Args:
        rows: (n, ...), n >= 1; whole rows are drawn, with replacement.
        statistic: of an array like ``rows``; None for the mean of (n,).
        confidence: 0 < confidence < 1.
        n_resamples: 1 or more.
    Raises:
        InputError: no rows, numbers that are not finite, or an argument outside its range.
    """
    data = np.asarray(rows)
    if data.ndim < 1 or len(data) < 1:
        raise InputError("no rows to take an interval of; pass at least one")
    if not np.isfinite(data).all():
        raise InputError(f"{int((~np.isfinite(data)).sum())} of {data.size} numbers are not finite")
    if not 0 < confidence < 1 or n_resamples < 1:
        raise InputError(
            f"confidence = {confidence!r}, n_resamples = {n_resamples!r}; they must lie in 0 to 1 "
            "and from 1 on"
        )
    draws = np.random.default_rng(seed).integers(len(data), size=(n_resamples, len(data)))
    if statistic is None:
        value = float(data.mean())
        resampled = data[draws].mean(axis=1)
    else:
        value = statistic(data)
        resampled = np.array([statistic(data[draw]) for draw in draws])
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))
