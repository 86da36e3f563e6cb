"""Schedules: how a strength changes over the reply's tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from pyemo.errors import InputError, all_calls_named

Schedule: TypeAlias = Callable[[int], float]
"""Factor on the strength that decides the reply's token t = 0, 1, ...; the prompt has t = 0."""


@all_calls_named
@dataclass(frozen=True)
class Ramp:
    """A schedule that rises linearly from 1/n at the reply's first token to 1 at its n-th."""

    n_tokens: int

    def __post_init__(self) -> None:
        _require_tokens("ramp", self.n_tokens)

    def __call__(self, t: int) -> float:
        return min(1.0, (t + 1) / self.n_tokens)


@all_calls_named
@dataclass(frozen=True)
class HalfLife:
    """A schedule that halves the strength every n tokens: 2 ** (-t / n)."""

    n_tokens: float

    def __post_init__(self) -> None:
        _require_tokens("half-life", self.n_tokens)

    def __call__(self, t: int) -> float:
        return float(2.0 ** (-t / self.n_tokens))


SCHEDULE_TYPES: dict[str, tuple[Callable[[Any], Schedule], Callable[[str], float]]] = {
    "ramp": (Ramp, int),
    "half-life": (HalfLife, float),
}
"""What each of ``choices.SCHEDULES`` makes, and of what number."""


def _require_tokens(name: str, n_tokens: float) -> None:
    if not math.isfinite(n_tokens) or n_tokens < 1:
        raise InputError(f"{name} of {n_tokens} tokens; it must be at least 1")
