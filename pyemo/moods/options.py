"""What to steer with, as somebody typed it. Light: a command's help reads it."""

from __future__ import annotations

from dataclasses import dataclass

from pyemo.choices import CONSTANT, Operator, Scope

AUTO = "auto"
"""Asks for a strength to be found."""


@dataclass(frozen=True)
class MoodOptions:
    """What to steer with, as it was typed; :mod:`pyemo.moods.builder` makes a mood of it."""

    vectors: tuple[str, ...] = ()
    strength: float | None = None
    operator: Operator = "add"
    schedule: str = CONSTANT
    scope: Scope = "both"
    layers: str | None = None
    allow_other_weights: bool = False
    auto: bool = False
