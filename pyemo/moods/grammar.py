"""What is typed for a vector, a schedule and layers: ``anger=0.02@8:20``, ``ramp:10``, ``8:20``."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass

from pyemo.choices import CONSTANT, OPERATORS, SCHEDULE_FORMS, Operator
from pyemo.engine.schedules import SCHEDULE_TYPES, Schedule
from pyemo.engine.terms import MOST_LAYERS, check_layers
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


_DECIMAL = re.compile(r"[-+]?\d*\.\d+")
"""A strength that stands alone, as in ``anger 0.02``; no vector is called so."""

_COMMA = re.compile(r"[-+]?\d+,\d+")
"""A number as much of the world writes it."""

_RULES = {"@when:": "when", "@when-prompt:": "when_prompt"}


@dataclass(frozen=True)
class VectorSpec:
    """One ``NAME_OR_FILE[=STRENGTH][@OPERATOR][@LAYERS][@when:RULE][@when-prompt:RULE]``.

    Attributes:
        when: the text of the rule on each row; empty where there is none.
        when_prompt: likewise on the prompt.
    """

    source: str
    strength: float | None
    layers: range | None
    operator: Operator | None = None
    when: str = ""
    when_prompt: str = ""


@names_bad_calls
def parse_vector_spec(text: str, *, may_be_file: bool = True) -> VectorSpec:
    """Return what ``anger``, ``anger=0.02@8:20``, ``./my.gguf@14`` or ``calm@when:anger>0.1`` say.

    A file that exists under the whole text wins; layers are ``A:B`` (half-open), ``:B``, ``A:`` or
    one layer. Rules come last.

    Args:
        may_be_file: look whether there is such a file; off where strangers write the text.
    Raises:
        InputError: no name, a strength that is not a number, layers that are not a range, a rule
            that is empty or given twice.
    """
    if may_be_file and os.path.isfile(text):
        return VectorSpec(text, None, None)
    head, rules = _rules(text)
    rest, layers, operator = _suffixes(head)
    source, equals, strength_text = rest.rpartition("=")
    if not equals:
        source, strength_text = rest, ""
    if not source or _DECIMAL.fullmatch(source):
        raise InputError(
            f"{text!r} names no vector; write NAME_OR_FILE[=STRENGTH][@LAYERS], such as anger=0.02"
        )
    strength = None
    if strength_text or equals:
        try:
            strength = float(strength_text)
        except ValueError:
            remedy = f"write {source}=0.02"
            if _COMMA.fullmatch(strength_text):
                remedy = f"write a point: {source}={strength_text.replace(',', '.')}"
            raise InputError(
                f"strength {strength_text!r} in {text!r} is not a number; {remedy}"
            ) from None
    return VectorSpec(source, strength, layers, operator, **rules)


def _rules(text: str) -> tuple[str, dict[str, str]]:
    """Return the text before its rules, and the rules by their attributes."""
    head, *parts = re.split(f"({'|'.join(_RULES)})", text)
    rules: dict[str, str] = {}
    for mark, rule in zip(parts[::2], parts[1::2], strict=True):
        if not rule.strip() or _RULES[mark] in rules:
            raise InputError(
                f"{text!r} needs one rule after {mark}, made of vectors and never of other rules, "
                f"such as {mark}anger>0.1 and not joy>0.1"
            )
        rules[_RULES[mark]] = rule.strip()
    return head, rules


def _suffixes(text: str) -> tuple[str, range | None, Operator | None]:
    """Return the text without its ``@LAYERS`` and ``@OPERATOR``, and what they say."""
    layers: range | None = None
    operator: Operator | None = None
    while True:
        rest, at, suffix = text.rpartition("@")
        if not at or os.sep in suffix:
            return text, layers, operator
        if suffix in OPERATORS and operator is None:
            operator = suffix
        elif layers is None:
            layers = parse_layers(suffix) if suffix else None
        else:
            return text, layers, operator
        text = rest


def split_vectors(text: str, *, may_be_file: bool = True) -> list[str]:
    """Return the texts of the vectors that a mood is written with: ``anger=0.02 + calm``.

    They stand apart by commas, blanks or ``+``; where one has a rule, which has blanks of its own,
    by commas or ``+`` alone.

    Args:
        may_be_file: a file that exists under the whole text is one vector, and as a file's name may
            hold a plus, one that joins has blanks around it. Off, blanks around ``=``, ``@``,
            ``:`` and ``+`` are free, and what a command line has before a vector is passed over.
    """
    if may_be_file and os.path.isfile(text):
        return [text]
    text, plus, passed = text.strip(), r"\s+\+\s+", [""]
    if not may_be_file:
        text = re.sub(r"\s*([=@:])\s*", r"\1", text)
        plus, passed = r"\s*\+\s*(?=[^\W\d])", ["", "+", "--cvec", "-c"]
    between = rf"\s*,\s*|{plus}"
    if "@when" not in text:
        between += r"|\s+"
    return [word for word in re.split(between, text) if word not in passed]


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
