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
    ({"enum": []}, "enum has no value"),
    ({"allOf": [{"type": "string"}, {"type": "null"}]}, "type is given in two ways"),
    ({"allOf": [{"properties": {"a": {}}}, {"properties": {"a": SHORT}}]}, "described in two ways"),
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
    for _ in range(1000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(InputError, match="nests more than 64 deep"):
        Grammar.of_json_schema(schema)


def test_a_schema_that_doubles_with_every_ref_is_refused() -> None:
    parts = {
        f"p{i}": {"anyOf": [{"$ref": f"#/$defs/p{i + 1}", "maxLength": n} for n in (1, 2)]}
        for i in range(60)
    }
    with pytest.raises(InputError, match=r"more than 10000 parts|given in two ways"):
        Grammar.of_json_schema({"$defs": {**parts, "p60": {"enum": ["a"]}}, "$ref": "#/$defs/p0"})


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
