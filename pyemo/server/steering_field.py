"""The ``steering`` of a request, in its spellings, becomes terms by name.

Owns the grammar and its synonyms, and which of several places wins. Knows nothing of vectors: a
name is a name here.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pyemo.choices import CONSTANT, OPERATORS, SCHEDULE_FORMS, SCOPE_FORMS, Operator, Scope
from pyemo.engine.scopes import check_scope
from pyemo.errors import InputError
from pyemo.moods.grammar import (
    parse_layers,
    parse_schedule,
    parse_vector_spec,
    split_vectors,
)
from pyemo.server.refusals import Refusal, names_in

FIELDS = ("steering", "steer", "cvec")
"""Names of the field in a body; one of them at a time."""

HEADER = "X-Pyemo-Steering"

NEAR_MISSES = ("control_vector", "control_vectors", "steering_vector", "steering_vectors", "mood")
"""What people write for ``steering``; to ignore it would be to answer unsteered."""

_SYNONYMS = {"source": "name", "vector": "name", "scale": "strength"}
_KEYS = ("name", "strength", "layers", "operator", "scope", "schedule", "when", "when_prompt")
_LISTS = ("terms", "vectors")
_MOST_TERMS = 64
_LONGEST = 4096


@dataclass(frozen=True)
class TermSpec:
    """One vector of a mood, as it was asked for.

    Attributes:
        name: of a vector of the server.
        strength: None for what the vector recommends.
        layers: half-open; None for all.
        schedule: a form of :func:`pyemo.moods.grammar.parse_schedule`.
        when: the text of a rule on each row (:mod:`pyemo.moods.rule_text`); empty for none.
        when_prompt: likewise on the prompt.
    """

    name: str
    strength: float | None = None
    layers: range | None = None
    operator: Operator = "add"
    scope: Scope = "both"
    schedule: str = CONSTANT
    when: str = ""
    when_prompt: str = ""


class Wanted(NamedTuple):
    """The mood that a request asks for.

    Attributes:
        terms: empty for unsteered.
        guard: whether to guard the reply; None where nothing is said.
        source: where it was said: "body", "header", "metadata", "model" or "default".
    """

    terms: tuple[TermSpec, ...] = ()
    guard: bool | None = None
    source: str = "default"


def wanted(body: Mapping[str, Any], header: str | None, suffix: str | None) -> Wanted | None:
    """Return the mood that a request asks for; None where it says nothing.

    The body's field comes first, then the header, then ``metadata.steering``, then what stands
    behind the model's name. They are not merged. Null counts as not given.

    Raises:
        Refusal: two fields at once, or a mood that cannot be read.
    """
    given = [name for name in FIELDS if body.get(name) is not None]
    if len(given) > 1:
        raise Refusal(
            f"{' and '.join(given)} are names of one field; send {given[0]} alone", param=given[1]
        )
    if given:
        return parsed(body[given[0]], given[0])._replace(source="body")
    if header is not None:
        return parsed(header, HEADER)._replace(source="header")
    metadata = body.get("metadata")
    said = metadata.get("steering") if isinstance(metadata, Mapping) else None
    if said is not None:
        return parsed(said, "metadata.steering")._replace(source="metadata")
    if suffix is not None:
        return parsed(suffix, "model")._replace(source="model")
    return None


def parsed(value: Any, param: str) -> Wanted:
    """Return the mood in any of its spellings.

    Args:
        value: a text such as ``anger=0.02@8:20 + calm=-0.01``, or JSON in a text; an object from
            names to strengths; an object with ``terms``; a list of terms.
        param: the field it stands in, for messages.
    Raises:
        Refusal: what it is instead, and the spellings.
    """
    try:
        return _parsed(value, param)
    except InputError as error:
        raise Refusal(str(error), code="invalid_steering", param=param) from None


def near_miss(name: str) -> bool:
    """Whether an unknown field's name looks as if ``steering`` was meant."""
    word = name.casefold()
    return word in NEAR_MISSES or bool(difflib.get_close_matches(word, FIELDS, n=1, cutoff=0.8))


def spelled(terms: Sequence[TermSpec]) -> str:
    """Return the text that names these terms; scopes and schedules are not in it."""
    parts = []
    for term in terms:
        strength = "" if term.strength is None else f"={term.strength:.12g}"
        operator = "" if term.operator == "add" else f"@{term.operator}"
        layers = "" if term.layers is None else f"@{term.layers.start}:{term.layers.stop}"
        when = f"@when:{term.when}" if term.when else ""
        when += f"@when-prompt:{term.when_prompt}" if term.when_prompt else ""
        parts.append(f"{term.name}{strength}{operator}{layers}{when}")
    return " + ".join(parts)


def _parsed(value: Any, param: str) -> Wanted:
    if isinstance(value, str):
        return _of_text(value, param)
    if isinstance(value, Mapping):
        return _of_object(value)
    if isinstance(value, Sequence):
        return Wanted(_of_list(value))
    raise InputError(
        f"{param} = {value!r} is no mood; write 'anger=0.02', {{'anger': 0.02}}, or "
        "{'terms': [{'name': 'anger', 'strength': 0.02}]}"
    )


def _of_text(text: str, param: str) -> Wanted:
    if len(text) > _LONGEST:
        raise InputError(f"{param} has {len(text)} characters; {_LONGEST} are the most")
    if text.lstrip()[:1] in ("{", "["):
        try:
            return _parsed(json.loads(text), param)
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{param} begins like JSON and is none: {error}") from None
    return Wanted(_terms_of_text(text))


def _terms_of_text(text: str) -> tuple[TermSpec, ...]:
    return _checked([_of_word(word) for word in split_vectors(text, may_be_file=False)])


def _of_word(word: str) -> TermSpec:
    spec = parse_vector_spec(word, may_be_file=False)
    strength = _strength(spec.source, spec.strength)
    return TermSpec(
        spec.source,
        strength,
        spec.layers,
        spec.operator or "add",
        when=spec.when,
        when_prompt=spec.when_prompt,
    )


def _of_object(value: Mapping[str, Any]) -> Wanted:
    lists = [name for name in _LISTS if name in value]
    if not lists and "guard" not in value:
        return Wanted(
            _checked([TermSpec(name, _strength(name, item)) for name, item in value.items()])
        )
    rest = {key: item for key, item in value.items() if key not in (*lists, "guard")}
    if len(lists) > 1 or rest:
        found = names_in(map(repr, value))
        raise InputError(f"a mood with terms has the keys terms and guard, and here are {found}")
    guard = value.get("guard")
    if guard is not None and not isinstance(guard, bool):
        raise InputError(f"guard = {guard!r}; it is true or false")
    terms = value.get(lists[0]) if lists else None
    if not isinstance(terms, Sequence) or isinstance(terms, str):
        raise InputError(f"terms = {terms!r}; they are a list of objects with a name each")
    return Wanted(_of_list(terms), guard)


def _of_list(items: Sequence[Any]) -> tuple[TermSpec, ...]:
    terms: list[TermSpec] = []
    for item in items[: _MOST_TERMS + 1]:
        if isinstance(item, str):
            terms += _terms_of_text(item)
        else:
            terms.append(_of_item(item))
    return _checked(terms)


def _of_item(item: Any) -> TermSpec:
    if not isinstance(item, Mapping):
        raise InputError(f"the term {item!r} is no object; write {{'name': 'anger'}}")
    found: dict[str, Any] = {}
    for key, value in item.items():
        word = _SYNONYMS.get(key, key)
        if word not in _KEYS:
            raise InputError(f"a term has no key {key!r}; its keys are {names_in(_KEYS)}")
        if word in found:
            raise InputError(f"a term says its {word} twice")
        if value is not None:
            found[word] = value
    name = found.get("name")
    if not isinstance(name, str) or not name:
        raise InputError(f"the term {dict(item)!r} has no name; write {{'name': 'anger'}}")
    operator = found.get("operator", "add")
    if not isinstance(operator, str) or operator not in OPERATORS:
        raise InputError(f"operator {operator!r} is unknown; use one of {names_in(OPERATORS)}")
    scope = found.get("scope", "both")
    if not isinstance(scope, str):
        raise InputError(f"scope = {scope!r}; use {SCOPE_FORMS}")
    check_scope(scope)
    schedule = found.get("schedule", CONSTANT)
    if not isinstance(schedule, str):
        raise InputError(f"schedule = {schedule!r}; use {SCHEDULE_FORMS}")
    parse_schedule(schedule)
    rules = [found.get(key, "") for key in ("when", "when_prompt")]
    for rule in rules:
        if not isinstance(rule, str):
            raise InputError(f"when = {rule!r}; it is a rule such as 'anger>0.1 and not joy>0.1'")
    strength = _strength(name, found.get("strength"))
    return TermSpec(name, strength, _layers(found), operator, scope, schedule, *rules)


def _layers(found: Mapping[str, Any]) -> range | None:
    layers = found.get("layers")
    if layers is None:
        return None
    if isinstance(layers, int) and not isinstance(layers, bool):
        return parse_layers(str(layers))
    if isinstance(layers, Sequence) and not isinstance(layers, str):
        if len(layers) == 2 and all(type(layer) is int for layer in layers):
            return parse_layers(f"{layers[0]}:{layers[1]}")
    elif isinstance(layers, str):
        return parse_layers(layers)
    raise InputError(f"layers = {layers!r}; write '8:20' or [8, 20] for 8 to 19, or one layer")


def _strength(name: str, strength: Any) -> float | None:
    if strength is None:
        return None
    is_number = isinstance(strength, int | float) and not isinstance(strength, bool)
    if not is_number:
        raise InputError(f"the strength of {name!r} is {strength!r}; it must be a number")
    try:
        number = float(strength)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"the strength of {name!r} is {number}; it must be a finite number")
    return number


def _checked(terms: Sequence[TermSpec]) -> tuple[TermSpec, ...]:
    if len(terms) > _MOST_TERMS:
        raise InputError(f"a mood of more than {_MOST_TERMS} terms; leave some out")
    return tuple(terms)
