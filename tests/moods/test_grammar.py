"""What is typed for schedules and layers is understood, or refused by name."""

from __future__ import annotations

import pytest

from pyemo import HalfLife, Ramp
from pyemo.choices import CONSTANT, SCHEDULES
from pyemo.engine.schedules import SCHEDULE_TYPES
from pyemo.errors import InputError
from pyemo.moods.grammar import parse_layers, parse_schedule


def test_every_schedule_that_may_be_typed_is_made() -> None:
    assert tuple(SCHEDULE_TYPES) == SCHEDULES


@pytest.mark.parametrize(
    ("text", "schedule"),
    [(CONSTANT, None), ("ramp:10", Ramp(10)), ("half-life:2.5", HalfLife(2.5))],
)
def test_a_schedule_is_what_was_typed(text: str, schedule: object) -> None:
    assert parse_schedule(text) == schedule


@pytest.mark.parametrize(
    "text", ["ramp", "ramp:0", "ramp:x", "ramp:2.5", "half-life:nan", "step:3"]
)
def test_a_word_that_is_no_schedule_is_refused_by_name(text: str) -> None:
    with pytest.raises(InputError):
        parse_schedule(text)


@pytest.mark.parametrize("text", ["0:99999999999999999999", "99999999999999999999", "1048576:"])
def test_layers_past_any_model_are_refused_by_name(text: str) -> None:
    with pytest.raises(InputError, match="not a range"):
        parse_layers(text)
