"""A JSON schema becomes a grammar of the JSON texts that it describes, in GBNF.

Owns which keywords are understood, and refuses those that the grammar could not hold to: a reply
that breaks its schema in silence is worse than none. Written here and not taken from
llama-cpp-python, whose converter lets control characters into strings, breaks on quotes in an enum,
and passes bounds of numbers over. Knows nothing of models.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from pyemo.engine import json_numbers
from pyemo.engine.json_keywords import (
    MEANT,
    OF_TYPE,
    REFUSED,
    Schema,
    kinds,
    meeting,
    merged,
    place,
    refusal,
    require_held,
    require_nothing_left_over,
    require_shallow,
    require_shapes,
    shown,
)
from pyemo.errors import InputError

_HEX = "[0-9a-fA-F]"
_RULES = {
    "ws": r'| " " | "\n" [ \t]{0,20}',
    # no lone surrogates, which are no characters
    "char": r'[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" ('
    rf"[0-9a-cA-CefEF] {_HEX}{{3}} | [dD] [0-7] {_HEX}{{2}}))",
    "string": r'"\"" char* "\""',
    "integer": json_numbers.INTEGER,
    "number": json_numbers.NUMBER,
    "boolean": '"true" | "false"',
    "null": '"null"',
    "member": 'string ":" ws value',
    "object": '"{" ws (member ("," ws member)*)? ws "}"',
    "array": '"[" ws (value ("," ws value)*)? ws "]"',
    "value": "object | array | string | number | boolean | null",
}
_YEAR = '([1-9] [0-9]{3} | "0" ([1-9] [0-9]{2} | "0" ([1-9] [0-9] | "0" [1-9])))'  # from 0001
_DAY = f'{_YEAR} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])'
_TIME = (
    '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? '
    '("Z" | [+-] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])'
)
_FORMATS = {
    "date": (_DAY, 10, 10),  # no day that some month has not
    "time": (_TIME, 9, 21),
    "date-time": (f'{_DAY} "T" {_TIME}', 20, 32),
    "uuid": (' "-" '.join(f"{_HEX}{{{n}}}" for n in (8, 4, 4, 4, 12)), 36, 36),
}
"""Formats that are held to, with their least and most characters; others are notes."""

_SPECIAL = re.compile(r'["\\\[\]\-\x00-\x1F\x7F]')
_PLAIN = re.compile(r'[^"\\\x7F\x00-\x1F]*')
"""What of a name needs no escapes."""

MOST_DEPTH = 64
"""Schemas within each other, at most."""

MOST_PARTS = 10_000
"""Schemas in all, at most; one that is put together with others counts each time."""

MOST_WORK = 8_000_000
"""Characters that are written and ten times the values that are looked at, at most."""


def parsed(text: str, name: str) -> Schema:
    """Return the schema that a text is.

    Raises:
        InputError: no JSON, or neither an object nor true.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON: {error}") from None
    if not isinstance(found, Mapping | bool):
        raise InputError(f"{name} is JSON, but no schema: it must be an object")
    return found


def to_gbnf(schema: Schema) -> str:
    """Return a grammar of the JSON texts that ``schema`` describes; their root rule is ``root``.

    Properties come in the schema's order. Where ``additionalProperties`` is not given, an object
    with properties has no others. ``oneOf`` is read as ``anyOf``.

    Raises:
        InputError: no schema, or what the grammar cannot hold to, by keyword and place.
    """
    return _Converter(schema).text()


class _Converter:
    """Makes the rules of one schema."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}  # of what refs point to
        self._n = 0
        self._n_parts = 0
        self._n_work = 0

    def text(self) -> str:
        require_shallow(self._schema)
        root = self._part(self._schema, "", 0)
        lines = [f"root ::= {root}", *(f"{name} ::= {rule}" for name, rule in self._rules.items())]
        todo, known = [" ".join(lines)], dict[str, str]()
        while todo:  # the common rules that are used
            words = set(re.findall("[a-z]+", todo.pop()))
            for name in sorted(words & _RULES.keys() - known.keys()):
                known[name] = _RULES[name]
                todo.append(_RULES[name])
        return "\n".join([*lines, *(f"{name} ::= {rule}" for name, rule in known.items())]) + "\n"

    def _spend(self, n: int) -> None:
        self._n_work += n
        if self._n_work > MOST_WORK:
            raise InputError(
                "written out, the schema is too large; give long lists of names and values once"
            )

    def _rule(self, body: str) -> str:
        self._spend(len(body))
        self._n += 1
        name = f"part-{self._n}"
        self._rules[name] = body
        return name

    def _part(self, schema: Any, where: str, depth: int) -> str:
        """Return a part of a rule that stands for the JSON texts of a schema."""
        found = self._written(schema, where[:200], depth)
        self._spend(len(found))
        return found

    def _written(self, schema: Any, where: str, depth: int) -> str:
        self._n_parts += 1
        if self._n_parts > MOST_PARTS:
            raise InputError(f"written out, the schema has more than {MOST_PARTS} parts")
        if depth > MOST_DEPTH:
            raise InputError(f"the schema nests more than {MOST_DEPTH} deep at {where}")
        if schema is True:
            return "value"
        if schema is False:
            raise InputError(f"{place(where)} is false, which no JSON text meets")
        if not isinstance(schema, Mapping):
            raise InputError(f"{place(where)} is no schema: {shown(schema)}")
        require_shapes(schema, where)
        for name in REFUSED["any"]:
            if name in schema:
                raise refusal(name, where)
        if "$ref" in schema:
            return self._ref(schema, where, depth)
        for name in ("allOf", "anyOf", "oneOf"):
            if name in schema:
                return self._combined(name, schema, where, depth)
        if "const" in schema or "enum" in schema:
            return self._values(schema, where)
        parts = [self._of_type(kind, schema, where, depth) for kind in kinds(schema, where)]
        return parts[0] if len(parts) == 1 else f"({' | '.join(parts)})"

    def _ref(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        target, pointer = self._target(schema["$ref"], where)
        if MEANT & rest.keys():
            return self._part(self._merged([target, rest], [target], where), where, depth + 1)
        if pointer not in self._names:
            self._n += 1
            name = self._names[pointer] = f"part-{self._n}"
            self._rules[name] = self._part(target, pointer, depth + 1)
        return self._names[pointer]

    def _merged(self, schemas: Sequence[Any], inner: Sequence[Any], where: str) -> Any:
        """Return one schema for all of these; ``inner`` are those that others are put to."""
        n_parts = 0
        for schema in schemas:
            if isinstance(schema, Mapping):
                require_shapes(schema, where)
                names = ("properties", "required", "allOf")
                n_more = len(schema) + sum(len(schema.get(name, ())) for name in names)
                n_parts += n_more
                self._spend(10 * (n_parts if "additionalProperties" in schema else n_more))
        for schema in inner:
            require_nothing_left_over(schema, where)
        return merged(schemas, where)

    def _target(self, ref: Any, where: str) -> tuple[Any, str]:
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise InputError(
                f"{place(where)}: $ref = {shown(ref)} is not understood; only places in the same "
                "schema are, such as #/$defs/name"
            )
        found: Any = self._schema
        for part in ref.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and key in found:
                found = found[key]
            elif isinstance(found, list) and re.fullmatch("[0-9]{1,9}", key):
                if int(key) >= len(found):
                    raise InputError(f"{place(where)}: $ref = {shown(ref)} points to nothing")
                found = found[int(key)]
            else:
                raise InputError(f"{place(where)}: $ref = {shown(ref)} points to nothing")
        return found, ref

    def _combined(self, name: str, schema: Mapping[str, Any], where: str, depth: int) -> str:
        parts = schema[name]
        rest = {key: value for key, value in schema.items() if key != name}
        rest = rest if MEANT & rest.keys() else {}
        if name == "allOf":
            parts = [self._resolved(part, where) for part in parts]
            whole = self._merged([rest, *parts], parts if rest or parts[1:] else [], where)
            return self._part(whole, where, depth + 1)
        found = []
        for i, part in enumerate(parts):
            if part is False:
                continue
            if rest:
                part = self._resolved(part, where)
                part = self._merged([rest, part], [part], where)
            found.append(self._part(part, f"{where}/{name}/{i}", depth + 1))
        if not found:
            raise InputError(f"{place(where)}: {name} has nothing that a JSON text could meet")
        return f"({' | '.join(found)})"

    def _resolved(self, schema: Any, where: str) -> Any:
        n_steps = 0
        while isinstance(schema, Mapping) and "$ref" in schema:
            n_steps += 1
            if n_steps > MOST_DEPTH:
                raise InputError(f"{place(where)}: $ref leads to itself")
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            schema, _ = self._target(schema["$ref"], where)
            if MEANT & rest.keys():
                schema = self._merged([schema, rest], [schema], where)
        return schema

    def _values(self, schema: Mapping[str, Any], where: str) -> str:
        if "const" in schema and "enum" in schema:
            raise InputError(f"{place(where)}: const and enum each give the values; give one")
        values = [schema["const"]] if "const" in schema else schema["enum"]
        self._spend(10 * len(values))
        return f"({' | '.join(map(_literal, meeting(values, schema, where)))})"

    def _of_type(self, kind: str, schema: Mapping[str, Any], where: str, depth: int) -> str:
        require_held(kind, schema, where)
        if kind == "object":
            return self._object(schema, where, depth)
        if kind == "array":
            return self._array(schema, where, depth)
        if kind == "string":
            return _string(schema, where)
        is_number = kind in ("number", "integer")
        if is_number and any(schema.get(name) is not None for name in OF_TYPE["number"]):
            return self._rule(_number(kind, schema, where))
        return kind

    def _object(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        properties, others = schema.get("properties", {}), schema.get("additionalProperties")
        required = frozenset(schema.get("required", []))
        self._spend(10 * (len(properties) + len(required)))
        is_open = schema.get("unevaluatedProperties") is not False
        if others is None:
            others = not properties and is_open
        if not properties and not required and others is True:
            return "object"
        members = dict(properties)
        unnamed = others if "additionalProperties" in schema else is_open
        for name in schema.get("required", []):
            members.setdefault(name, unnamed)
        rows = [
            (
                f'{_literal(name)} ":" ws '
                + self._part(part, f"{where}/properties/{name}", depth + 1),
                name in required,
            )
            for name, part in members.items()
            if part is not False or name in required
        ]
        more = None
        if others is not False:
            value = self._part(others, f"{where}/additionalProperties", depth + 1)
            more = f'{self._name_but(list(members))} ":" ws {value}'
        return self._rule(f'"{{" ws {self._members(rows, more)} ws "}}"')

    def _members(self, rows: Sequence[tuple[str, bool]], more: str | None) -> str:
        """Return members in order, commas between; those that are not required may be left out.

        Each has two rules: one for the rest of the object behind a member, one where none came.
        """
        comma = '"," ws '
        first = after = '""'
        if more is not None:
            pair = self._rule(more)
            after = self._rule(f"({comma}{pair})*")
            first = self._rule(f"({pair} {after})?")
        for pair, is_required in reversed(rows):
            pair = self._rule(pair)
            new_first, new_after = f"{pair} {after}", f"{comma}{pair} {after}"
            if not is_required:
                new_first, new_after = f"{new_first} | {first}", f"{new_after} | {after}"
            first, after = self._rule(new_first), self._rule(new_after)
        return first

    def _name_but(self, names: Sequence[str]) -> str:
        """Return a rule for a member's name that is none of these.

        A name may leave them at any character, and goes on as it likes then. Until there it has no
        escapes, by which it could come to the same; so it never comes to a name that needs one.
        """
        self._spend(10 * sum(map(len, names)))
        root: dict[str, Any] = {}  # character -> what may follow; "" where a name ends
        for name in names:
            node = root
            plain = _PLAIN.match(name)
            for char in plain.group() if plain else "":
                node = node.setdefault(char, {})
            if plain and plain.end() == len(name):
                node[""] = None
        nodes, n_seen = [root], 0
        while n_seen < len(nodes):
            nodes += [inner for char, inner in nodes[n_seen].items() if char]
            n_seen += 1
        rules: dict[int, str] = {}
        for node in reversed(nodes):
            chars = sorted(char for char in node if char)
            ways = [f"{_quoted(char)} {rules[id(node[char])]}" for char in chars]
            ways.append(f'{_set_but(chars)} char* "\\""')
            if "" not in node:
                ways.append('"\\""')
            rules[id(node)] = self._rule(" | ".join(ways))
        return f'"\\"" {rules[id(root)]}'

    def _array(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        items, first = schema.get("items", True), schema.get("prefixItems", [])
        if isinstance(items, list):  # as older drafts had it
            items, first = schema.get("additionalItems", True), items
        if "items" not in schema and schema.get("unevaluatedItems") is False:
            items = False
        least = _count(schema, "minItems", where) or 0
        most = _count(schema, "maxItems", where)
        if most is not None and most < least:
            raise InputError(f"{place(where)}: maxItems = {most} is below minItems = {least}")
        places = [
            self._rule(self._part(part, f"{where}/prefixItems/{i}", depth + 1))
            for i, part in enumerate(first[:most])
        ]
        least = max(least, len(places)) if "prefixItems" in schema or first else least
        rest = None if most is None else most - len(places)
        item = "" if items is False or rest == 0 else self._part(items, f"{where}/items", depth + 1)
        body = ' "," ws '.join(places)
        if item:
            item = self._rule(item)
            n_more = max(0, least - len(places))
            comma = f'("," ws {item})'
            if places:
                body += f" {comma}{_times(n_more, rest)}"
            else:
                fewer = None if rest is None else rest - 1
                body = f"{item} {comma}{_times(max(0, n_more - 1), fewer)}"
                body = body if n_more else f"({body})?"
        elif least > len(places):
            raise InputError(f"{place(where)}: minItems = {least} is more than it may have")
        return self._rule(f'"[" ws {body} ws "]"')


def _string(schema: Mapping[str, Any], where: str) -> str:
    least = _count(schema, "minLength", where) or 0
    most = _count(schema, "maxLength", where)
    if most is not None and most < least:
        raise InputError(f"{place(where)}: maxLength = {most} is below minLength = {least}")
    if schema.get("format") in _FORMATS:
        form, n_least, n_most = _FORMATS[schema["format"]]
        if least > n_least or (most is not None and most < n_most):
            raise InputError(
                f"{place(where)}: a {schema['format']} has {n_least} to {n_most} characters; leave "
                "minLength and maxLength out"
            )
        return rf'"\"" {form} "\""'
    if not least and most is None:
        return "string"
    return rf'"\"" char{_times(least, most)} "\""'


def _number(kind: str, schema: Mapping[str, Any], where: str) -> str:
    bounds = []
    for name, open_name, sign in (
        ("minimum", "exclusiveMinimum", 1),
        ("maximum", "exclusiveMaximum", -1),
    ):
        given = schema.get(name)
        beyond = schema.get(open_name)
        if beyond is True:  # as draft 4 had it
            given, beyond = None, given
        for value in (given, beyond):
            is_whole = isinstance(value, int) and value is not True
            is_finite = is_whole or (isinstance(value, float) and math.isfinite(value))
            if value is not None and not is_finite:
                raise InputError(f"{place(where)}: {name} = {shown(value)} is not a number")
        closed = None if given is None or given is False else (given, False)
        opened = None if beyond is None or beyond is False else (beyond, True)
        both = [bound for bound in (closed, opened) if bound is not None]
        bounds.append(max(both, key=lambda bound: (sign * bound[0], bound[1]), default=None))
    try:
        return json_numbers.between(*bounds, is_whole=kind == "integer")
    except InputError as error:
        raise InputError(f"{place(where)}: {error}") from None


def _count(schema: Mapping[str, Any], name: str, where: str) -> int | None:
    value = schema.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise InputError(f"{place(where)}: {name} = {shown(value)}; it must be 0 or more")
    return value


def _times(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"


def _literal(value: Any) -> str:
    """Return the JSON text of a value, as a text of a grammar."""
    try:
        return _quoted(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError):
        raise InputError(f"{shown(value)} has no JSON text") from None


def _quoted(text: str) -> str:
    return f'"{_SPECIAL.sub(lambda found: _escaped(found.group()), text)}"'


def _escaped(char: str) -> str:
    """Return a character of :data:`_SPECIAL` as GBNF has it."""
    return f"\\x{ord(char):02X}" if ord(char) < 0x20 or ord(char) == 0x7F else "\\" + char


def _set_but(chars: Iterable[str]) -> str:
    """Return the characters of a string, without escapes, that are none of these."""
    return r'[^"\\\x7F\x00-\x1F' + _quoted("".join(sorted(chars)))[1:-1] + "]"
