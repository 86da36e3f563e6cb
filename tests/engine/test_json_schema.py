"""JSON schemas as grammars: what is drawn meets them, and what cannot be held to is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from engines import open_engine
from tiny_models import TinyModel

from pyemo import Engine, Grammar, Model, SamplerParams
from pyemo.engine import json_numbers
from pyemo.engine.json_schema import to_gbnf
from pyemo.errors import InputError

SHORT = {"type": "string", "maxLength": 5}
SCHEMAS: dict[str, Any] = {
    "object": {"type": "object", "properties": {"a": SHORT, "b": {"type": "boolean"}}},
    "required": {
        "type": "object",
        "properties": {"a": SHORT, "b": {"type": "null"}, "c": {"type": "boolean"}},
        "required": ["c", "a"],
    },
    "other members": {
        "properties": {"name": {"type": "null"}, "names": {"type": "boolean"}},
        "additionalProperties": {"type": "integer", "minimum": 3, "maximum": 5},
        "required": ["names", "later"],
    },
    "closed": {"type": "object", "properties": {"a": SHORT}, "additionalProperties": False},
    "array": {"type": "array", "items": SHORT, "minItems": 1, "maxItems": 3},
    "places": {"type": "array", "prefixItems": [SHORT, {"type": "null"}], "items": False},
    "places and more": {"prefixItems": [SHORT], "items": {"type": "null"}, "minItems": 3},
    "any items": {"type": "array", "maxItems": 2, "items": {"enum": [1, "two", None]}},
    "enum": {"enum": ['say "it"', "back\\slash", "line\nbreak", "é", 1.5, None, {"a": [1]}]},
    "enum of a type": {"type": "string", "enum": ["a", 1, None]},
    "const": {"const": {"q": '"', "n": [1, True]}},
    "lengths": {"type": "string", "minLength": 2, "maxLength": 4},
    "formats": {
        "type": "array",
        "prefixItems": [
            {"type": "string", "format": name} for name in ("date", "time", "date-time", "uuid")
        ],
        "items": False,
    },
    "integer": {"type": "integer", "exclusiveMinimum": -12, "maximum": 1234},
    "number": {"type": "number", "minimum": -3, "exclusiveMaximum": 21},
    "several types": {"type": ["integer", "null", "string"], "maxLength": 2, "minimum": 7},
    "anyOf": {"anyOf": [{"type": "null"}, {"properties": {"a": SHORT}, "required": ["a"]}]},
    "anyOf with more": {
        "type": "object",
        "properties": {"a": SHORT},
        "anyOf": [{"required": ["a"]}, {"properties": {"b": {"type": "null"}}}],
    },
    "allOf": {
        "$defs": {"base": {"type": "object", "properties": {"a": SHORT}, "required": ["a"]}},
        "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": {"type": "null"}}}],
    },
    "refs": {
        "$defs": {
            "string": {"type": "object", "properties": {"next": {"$ref": "#/$defs/a~1b"}}},
            "a/b": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/string"}]},
        },
        "$ref": "#/$defs/string",
    },
    "itself": {"type": "array", "items": {"$ref": "#"}, "maxItems": 1},
    "above zero": {"type": "integer", "exclusiveMinimum": 0, "maximum": 30},
    "below zero": {"type": "number", "exclusiveMaximum": 0, "minimum": -2},
    "both bounds": {"type": "integer", "minimum": 0, "maximum": 1, "exclusiveMaximum": 1},
    "whole numbers": {"type": "integer", "multipleOf": 1, "minimum": 5, "maximum": 7},
    "const of a type": {"type": "integer", "const": 3},
    "enum and other types' bounds": {"enum": ["a", 7], "minItems": 1, "required": ["b"]},
    "a day": {"type": "string", "format": "date", "minLength": 10, "maxLength": 10},
    "nothing left over": {"type": "object", "unevaluatedProperties": False},
    "no items left over": {"prefixItems": [SHORT], "unevaluatedItems": False},
    "closed by another": {
        "allOf": [
            {"properties": {"a": {"type": "null"}}, "additionalProperties": False},
            {"properties": {"a": {"type": "null"}, "b": {"type": "null"}}},
        ]
    },
    "closed around choices": {
        "properties": {"a": {"type": "null"}},
        "additionalProperties": False,
        "anyOf": [{"properties": {"b": {"type": "null"}}}, {"required": ["a"]}],
    },
    "closed at last": {
        "allOf": [{"properties": {"a": {"type": "null"}}}, {"properties": {"b": SHORT}}],
        "unevaluatedProperties": False,
    },
    "others than names to escape": {
        "properties": {'q"x': {"type": "null"}, "n\nl": {"type": "null"}, "\\": {"type": "null"}},
        "additionalProperties": {"type": "boolean"},
        "required": ['q"x', "n\nl"],
    },
    "names to escape": {"properties": {'a"b': {"type": "null"}, "c\\": SHORT}, "required": ['a"b']},
}


@pytest.fixture(scope="module")
def engine(tiny: Callable[[str], TinyModel]) -> Iterator[Engine]:
    with open_engine(Model.load(tiny("llama").path)) as engine:
        yield engine


def drawn(engine: Engine, schema: Any, seed: int) -> str | None:
    """Return a text that a model of random weights draws; None where it came to no end."""
    params = SamplerParams(
        temperature=5, top_k=0, top_p=1, min_p=0, seed=seed, grammar=Grammar.of_json_schema(schema)
    )
    reply = engine.generate([5], max_tokens=250, sampler=params)
    text = "".join(token.text for token in reply)
    return text if reply.stop_reason == "end" else None


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_what_is_drawn_under_a_schema_meets_it(engine: Engine, schema: Any) -> None:
    texts = [drawn(engine, schema, seed) for seed in range(4)]
    found = [json.loads(text) for text in texts if text is not None]
    assert found
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    for value in found:
        validator.validate(value)


def test_any_object_may_come_where_json_is_asked_for(engine: Engine) -> None:
    params = SamplerParams(grammar=Grammar.of_json())
    tokens = engine.model.tokenize('{"a": [1, {"é\\n": -0.5e-3}], "": null}', add_special=False)
    grammar = params.grammar
    assert grammar is not None
    ends = grammar.allowed(engine.model, tokens)
    assert {i for i in range(engine.model.n_vocab) if ends[i]} == {
        i for i in range(engine.model.n_vocab) if engine.model.is_end(i)
    }
    for text in ('{"a": 01}', '{"a\n": 1}', '{"a": "\\x"}', "[1]", '{"a": .5}', "{'a': 1}"):
        with pytest.raises(InputError, match="not what its grammar allows"):
            grammar.allowed(engine.model, engine.model.tokenize(text, add_special=False))


REFUSED: list[tuple[Any, str]] = [
    ({"type": "string", "pattern": "^a+$"}, "pattern is a keyword that a grammar cannot hold to"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems is a keyword"),
    ({"properties": {"a": {"multipleOf": 3, "type": "integer"}}}, "at /properties/a: multipleOf"),
    ({"patternProperties": {"^a": {}}}, "patternProperties is a keyword"),
    ({"not": {"type": "null"}}, "not is a keyword"),
    ({"$ref": "https://example.com/schema"}, "only places in the same schema"),
    ({"$ref": "#/$defs/none"}, "points to nothing"),
    ({"type": "text"}, "type = 'text' is unknown"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "no number lies between"),
    ({"type": "number", "minimum": 0.5}, "take a whole number"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, "maxLength = 2 is below minLength = 3"),
    ({"type": "string", "minLength": -1}, "minLength = -1; it must be 0 or more"),
    ({"type": "integer", "minimum": 10**400}, "no number lies between"),
    ({"type": "integer", "minimum": float("inf")}, "minimum = inf is not a number"),
    ({"type": "number", "multipleOf": 1}, "multipleOf is a keyword"),
    ({"type": "array", "contains": False}, "contains is a keyword"),
    ({"type": "string", "format": "date", "maxLength": 9}, "a date has 10 to 10 characters"),
    ({"type": "string", "format": ["date"]}, "format must be a name"),
    ({"enum": []}, "enum has no value"),
    ({"enum": ["abc"], "maxLength": 2}, "maxLength beside enum or const is not understood"),
    ({"const": 7, "exclusiveMaximum": 7}, "exclusiveMaximum beside enum or const"),
    ({"type": "string", "const": 7}, "enum has no value of the schema's type"),
    ({"enum": [1], "const": 2}, "each give the values"),
    ({"enum": {"a": 1}}, "enum must be a list of values"),
    ({"allOf": [{"const": 1}, {"const": True}]}, "const is given in two ways"),
    ({"allOf": [{"required": ["a"]}, {"required": 5}]}, "required must be a list of names: 5"),
    ({"allOf": [{"properties": 3}, {"properties": {}}]}, "properties must be an object"),
    ({"allOf": [{"prefixItems": [{}]}, {"items": False}]}, "prefixItems is given in two ways"),
    (
        {"allOf": [{"required": ["a"]}, {"properties": {}, "unevaluatedProperties": False}]},
        "unevaluatedProperties is a keyword",
    ),
    (
        {"additionalProperties": False, "allOf": [{"properties": {"b": {}}, "required": ["b"]}]},
        "at /properties/b is false",
    ),
    ({"properties": {5: True}}, "properties must be an object of schemas by name"),
    ({"anyOf": [True], "$ref": "#/anyOf/" + "0" * 5000}, "points to nothing"),
    ({"allOf": [{"type": "string"}, {"type": "null"}]}, "type is given in two ways"),
    ({"allOf": [{"properties": {"a": {}}}, {"properties": {"a": SHORT}}]}, "given in two ways"),
    ({"properties": 3}, "properties must be an object"),
    ({"required": "a"}, "required must be a list of names"),
    ({"properties": {"a": 3}}, "at /properties/a is no schema: 3"),
    (False, "which no JSON text meets"),
    ({"$ref": "#"}, "never comes to an end"),
    ({"anyOf": [{"$ref": "#"}], "type": "null"}, "leads to itself|nests more than"),
    ({"type": "string", "maxLength": 10**9}, "written out"),
    (float("nan"), "no schema"),
]


@pytest.mark.parametrize(("schema", "why"), REFUSED, ids=range(len(REFUSED)))
def test_what_a_grammar_cannot_hold_to_is_refused_by_name(schema: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        Grammar.of_json_schema(schema)


def test_a_schema_that_nests_without_end_is_refused() -> None:
    schema: Any = {"type": "null"}
    for _ in range(70):
        schema = {"type": "array", "items": schema}
    with pytest.raises(InputError, match="nests more than 64 deep"):
        Grammar.of_json_schema(schema)


@pytest.mark.parametrize("keyword", ["items", "const", "enum", "type", "additionalProperties"])
def test_values_that_nest_without_end_are_refused(keyword: str) -> None:
    value: Any = []
    for _ in range(10_000):
        value = [value]
    with pytest.raises(InputError, match="objects and lists nest more than 200 deep"):
        Grammar.of_json_schema({keyword: value})


def test_a_schema_that_doubles_with_every_ref_is_refused() -> None:
    parts = {
        f"p{i}": {"anyOf": [{"$ref": f"#/$defs/p{i + 1}", "maxLength": n} for n in (1, 2)]}
        for i in range(60)
    }
    with pytest.raises(InputError, match=r"more than 10000 parts|given in two ways"):
        Grammar.of_json_schema({"$defs": {**parts, "p60": {"enum": [1]}}, "$ref": "#/$defs/p0"})


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a" * 50_000: True}, "additionalProperties": True},
        {
            "$defs": {"e": {"enum": ["x" * 20_000]}},
            "anyOf": [{"$ref": "#/$defs/e", "type": "string"}] * 9000,
        },
        {
            "$defs": {"e": {"enum": [*range(10_000), "x"]}},
            "anyOf": [{"$ref": "#/$defs/e", "type": "string"}] * 9000,
        },
    ],
    ids=["long name", "long value", "many values"],
)
def test_a_schema_that_would_take_gigabytes_or_minutes_is_refused(schema: Any) -> None:
    """Each is read in milliseconds; written out, it is thousands of times as long."""
    with pytest.raises(InputError, match=r"too large|are the most"):
        Grammar.of_json_schema(schema)


def test_many_schemas_that_meet_at_once_are_put_together_in_one_go() -> None:
    """As a list of all that came before would be copied for each, it took the square of them."""
    parts = [{"required": [f"p{i}"]} for i in range(20_000)]
    with pytest.raises(InputError, match="more than 10000 parts"):
        Grammar.of_json_schema({"allOf": parts})


def test_notes_and_unknown_keywords_bind_nobody() -> None:
    noted = {
        "title": "T",
        "description": "d",
        "default": 3,
        "examples": [],
        "x-own": {},
        "format": "y",
    }
    assert to_gbnf({"type": "string", **noted}) == to_gbnf({"type": "string"})


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 9), (7, 7), (0, 1234), (-105, 87), (-30, -12), (98, 1003), (None, 12), (995, None)],
)
def test_whole_numbers_between_bounds_are_all_of_them_and_no_others(
    low: int | None, high: int | None
) -> None:
    bounds = [None if value is None else (value, False) for value in (low, high)]
    pattern = as_pattern(json_numbers.between(*bounds, is_whole=True))
    least, most = (-1300 if low is None else low), (1300 if high is None else high)
    for number in range(-1300, 1301):
        assert bool(pattern.fullmatch(str(number))) == (least <= number <= most), number
    assert not pattern.fullmatch("-0")
    assert not pattern.fullmatch("007")


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ((0, True), None),
        ((0, False), (1, True)),
        ((-2, True), (3, False)),
        ((-9, False), (-4, True)),
    ],
)
def test_numbers_between_bounds_are_all_of_them_and_no_others(
    low: json_numbers.Bound, high: json_numbers.Bound
) -> None:
    pattern = as_pattern(json_numbers.between(low, high, is_whole=False))
    for hundredths in range(-1200, 1201):
        value = hundredths / 100
        is_above = low is None or value > low[0] or (value == low[0] and not low[1])
        is_below = high is None or value < high[0] or (value == high[0] and not high[1])
        assert bool(pattern.fullmatch(f"{value:g}")) == (is_above and is_below), value


def as_pattern(part: str) -> re.Pattern[str]:
    """Return a part of a grammar, of texts, sets and repetitions only, as a regular expression."""
    words = re.findall(r'"[^"]*"|[^" ]+', part)
    return re.compile("".join(re.escape(w[1:-1]) if w[0] == '"' else w for w in words))


def test_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"type": "null"}), encoding="utf-8-sig")
    (tmp_path / "g.gbnf").write_text('root ::= "é"', encoding="utf-8")
    assert Grammar.load_json_schema(tmp_path / "s.json") == Grammar.of_json_schema({"type": "null"})
    assert Grammar.load(tmp_path / "g.gbnf") == Grammar('root ::= "é"')
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "latin.gbnf").write_bytes(b'root ::= "\xe9"')
    for load, name, why in (
        (Grammar.load_json_schema, "bad.json", "is not JSON"),
        (Grammar.load_json_schema, "list.json", "must be an object"),
        (Grammar.load, "latin.gbnf", "not UTF-8 at byte 10"),
        (Grammar.load, "none.gbnf", "cannot be read"),
    ):
        with pytest.raises(InputError, match=why):
            load(tmp_path / name)
