"""What is typed for a vector, a schedule and layers: ``anger=0.02@8:20``, ``ramp:10``, ``8:20``."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from pyemo.choices import CONSTANT, SCHEDULE_FORMS
from pyemo.engine.schedules import SCHEDULE_TYPES, Schedule
from pyemo.engine.steering import MOST_LAYERS, check_layers
from pyemo.errors import InputError, names_bad_calls


@names_bad_calls
def parse_schedule(text: str) -> Schedule | None:
    """Return the schedule that ``ramp:N`` or ``half-life:N`` names; None for ``constant``.

    Raises:
        InputError: another word, or N is not a number of at least 1.
    """
    kind, _, count = text.partition(":")
    if text == CONSTANT:
        return None
    if kind in SCHEDULE_TYPES:
        schedule, number = SCHEDULE_TYPES[kind]
        with contextlib.suppress(ValueError):
            return schedule(number(count))
    raise InputError(f"schedule {text!r} is unknown; use {SCHEDULE_FORMS} with N >= 1 tokens")


@dataclass(frozen=True)
class VectorSpec:
    """One ``NAME_OR_FILE[=STRENGTH][@LAYERS]`` of the command line."""

    source: str
    strength: float | None
    layers: range | None


@names_bad_calls
def parse_vector_spec(text: str, *, may_be_file: bool = True) -> VectorSpec:
    """Return what ``anger``, ``anger=0.02``, ``anger=0.02@8:20`` or ``./my.gguf@14`` say.

    A file that exists under the whole text wins; layers are ``A:B`` (half-open), ``:B``, ``A:`` or
    one layer.

    Args:
        may_be_file: look whether there is such a file; off where strangers write the text.
    Raises:
        InputError: no name, a strength that is not a number, layers that are not a range.
    """
    if may_be_file and os.path.isfile(text):
        return VectorSpec(text, None, None)
    rest, at, layers_text = text.rpartition("@")
    if not at or os.sep in layers_text:
        rest, layers_text = text, ""
    source, equals, strength_text = rest.rpartition("=")
    if not equals:
        source, strength_text = rest, ""
    if not source:
        raise InputError(f"{text!r} names no vector; write NAME_OR_FILE[=STRENGTH][@LAYERS]")
    strength = None
    if strength_text or equals:
        try:
            strength = float(strength_text)
        except ValueError:
            raise InputError(
                f"strength {strength_text!r} in {text!r} is not a number; write {source}=0.02"
            ) from None
    return VectorSpec(source, strength, parse_layers(layers_text) if at and layers_text else None)


@names_bad_calls
def parse_layers(text: str) -> range:
    """Return the half-open range that ``8:20``, ``8:``, ``:20`` or ``14`` names.

    Raises:
        InputError: anything else.
    """
    begin, colon, end = text.partition(":")
    try:
        first = int(begin) if begin else 0
        stop = (int(end) if end else MOST_LAYERS) if colon else first + 1
        return check_layers(range(first, stop))
    except ValueError:
        raise InputError(
            f"layers {text!r} are not a range; write 8:20 (8 to 19), 8:, :20 or 14"
        ) from None
