"""Numbers between bounds, as a part of a grammar: digit by digit, in GBNF."""

from __future__ import annotations

import math
from typing import TypeAlias

from pyemo.errors import InputError

Bound: TypeAlias = "tuple[float, bool] | None"
"""A number, and whether it is itself excluded."""

MOST_DIGITS = 16
_FRACTION = f'"." [0-9]{{1,{MOST_DIGITS - 1}}}'
_MORE_THAN_NONE = f'"." "0"{{0,{MOST_DIGITS - 2}}} [1-9] [0-9]{{0,{MOST_DIGITS - 2}}}'

INTEGER = f'"0" | "-"? [1-9] [0-9]{{0,{MOST_DIGITS - 1}}}'
NUMBER = (
    f'"-"? ("0" | [1-9] [0-9]{{0,{MOST_DIGITS - 1}}}) ({_FRACTION})? ([eE] [-+]? [0-9] [0-9]?)?'
)


def between(low: Bound, high: Bound, *, is_whole: bool) -> str:
    """Return the numbers from ``low`` to ``high``, without exponents, 16 digits at most.

    Raises:
        InputError: there is none, or bounds of numbers with a fraction that have one themselves.
    """
    most = 10**MOST_DIGITS - 1
    if is_whole:
        first = -most if low is None else _first_from(*low)
        last = most if high is None else -_first_from(-high[0], high[1])
        ways = _whole(max(first, -most), min(last, most))
    else:
        for bound in (low, high):
            if bound is not None and int(bound[0]) != bound[0]:
                raise InputError(
                    f"{bound[0]} as a bound of a number is not understood; take a whole number"
                )
        bottom = (-most, False) if low is None or low[0] < -most else (int(low[0]), low[1])
        top = (most, False) if high is None or high[0] > most else (int(high[0]), high[1])
        ways = _real(bottom, top)
    if not ways:
        raise InputError("no number lies between the bounds")
    return " | ".join(ways)


def _first_from(value: float, is_open: bool) -> int:
    """Return the least whole number from ``value`` on."""
    return math.floor(value) + 1 if is_open else math.ceil(value)


def _whole(low: int, high: int) -> list[str]:
    """Return the whole numbers from ``low`` to ``high``."""
    ways = []
    if low < 0:
        ways += [f'"-" {way}' for way in _digits(max(1, -high), -low)]
    return ways + _digits(max(0, low), high)


def _digits(low: int, high: int) -> list[str]:
    """Return the whole numbers from ``low`` to ``high``, neither below 0."""
    ways = []
    for n in range(len(str(low)), len(str(high)) + 1 if low <= high else 0):
        first = max(low, 10 ** (n - 1) if n > 1 else 0)
        ways.append(_alike(str(first), str(min(high, 10**n - 1))))
    return ways


def _alike(low: str, high: str) -> str:
    """Return the digits from ``low`` to ``high``, which are as many."""
    rest = len(low) - 1
    any_rest = f" [0-9]{{{rest}}}" if rest else ""
    if set(low[1:]) <= {"0"} and set(high[1:]) <= {"9"}:
        return f"[{low[0]}-{high[0]}]{any_rest}"
    if low[0] == high[0]:
        return f'"{low[0]}" ({_alike(low[1:], high[1:])})'
    ways = [f'"{low[0]}" ({_alike(low[1:], "9" * rest)})']
    if int(high[0]) - int(low[0]) > 1:
        ways.append(f"[{int(low[0]) + 1}-{int(high[0]) - 1}]{any_rest}")
    ways.append(f'"{high[0]}" ({_alike("0" * rest, high[1:])})')
    return f"({' | '.join(ways)})"


def _real(low: tuple[int, bool], high: tuple[int, bool]) -> list[str]:
    """Return the numbers from ``low`` to ``high``."""
    ways = []
    if low[0] < 0:
        near = (0, True) if high[0] >= 0 else (-high[0], high[1])
        ways += [f'"-" {way}' for way in _above_zero(near, (-low[0], low[1]))]
    if high[0] >= 0:
        ways += _above_zero(low if low[0] >= 0 else (0, False), high)
    return ways


def _above_zero(low: tuple[int, bool], high: tuple[int, bool]) -> list[str]:
    """Return the numbers from ``low`` to ``high``, neither below 0."""
    (first, skips_first), (last, skips_last) = low, high
    ways: list[str] = []
    if first > last or (first == last and (skips_first or skips_last)):
        return ways
    if not skips_first:
        ways.append(f'"{first}"')
    if first == last:
        return ways
    ways.append(f'"{first}" {_MORE_THAN_NONE}')
    ways += [f"{way} ({_FRACTION})?" for way in _digits(first + 1, last - 1)]
    if not skips_last:
        ways.append(f'"{last}"')
    return ways
