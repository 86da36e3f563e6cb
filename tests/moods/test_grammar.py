"""What is typed for schedules and layers is understood, or refused by name."""

from __future__ import annotations

import pytest

from pyemo import HalfLife, Ramp
from pyemo.choices import CONSTANT, SCHEDULES
from pyemo.engine.schedules import SCHEDULE_TYPES
from pyemo.errors import InputError
from pyemo.moods.grammar import VectorSpec, parse_layers, parse_schedule, parse_vector_spec


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


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("anger", VectorSpec("anger", None, None)),
        ("anger=1@raise", VectorSpec("anger", 1.0, None, "raise")),
        ("anger=1@cap@8:20", VectorSpec("anger", 1.0, range(8, 20), "cap")),
        ("anger=1@8:20@cap", VectorSpec("anger", 1.0, range(8, 20), "cap")),
        ("calm@when:anger@3>0.1", VectorSpec("calm", None, None, None, "anger@3>0.1")),
        (
            "calm=0.02@add@3:@when: a>0 and b",
            VectorSpec("calm", 0.02, range(3, 1 << 20), "add", "a>0 and b"),
        ),
        (
            "calm@5@when-prompt:a or b@when:c>0",
            VectorSpec("calm", None, range(5, 6), None, "c>0", "a or b"),
        ),
        ("./a@b/c.gguf@raise", VectorSpec("./a@b/c.gguf", None, None, "raise")),
    ],
)
def test_a_vector_is_what_was_typed(text: str, spec: VectorSpec) -> None:
    assert parse_vector_spec(text) == spec


@pytest.mark.parametrize(
    "text", ["calm@when:", "calm@when: ", "calm@when:a@when:b>0", "calm@when-prompt:"]
)
def test_a_rule_that_is_missing_or_names_another_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="never of other rules"):
        parse_vector_spec(text)


def test_a_decimal_comma_is_told_to_be_a_point() -> None:
    with pytest.raises(InputError, match=r"'-0,05' .* not a number; write a point: anger=-0\.05"):
        parse_vector_spec("anger=-0,05@8:20")


@pytest.mark.parametrize("text", ["calm@raises", "calm@add@raise"])
def test_a_suffix_that_is_neither_operator_nor_layers_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a range"):
        parse_vector_spec(text)
