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
from typing import Any, TypeAlias
from urllib.parse import unquote

from pyemo.engine import json_numbers
from pyemo.errors import InputError

Schema: TypeAlias = "Mapping[str, Any] | bool"

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
_DAY = '[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])'
_TIME = (
    '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? '
    '("Z" | [+-] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])'
)
_FORMATS = {
    "date": _DAY,  # no day that some month has not
    "time": _TIME,
    "date-time": f'{_DAY} "T" {_TIME}',
    "uuid": ' "-" '.join(f"{_HEX}{{{n}}}" for n in (8, 4, 4, 4, 12)),
}
"""Formats that are held to; others are notes, as JSON Schema has it."""

_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_OF_TYPE = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
_REFUSED = {
    "object": (
        "patternProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "unevaluatedProperties",
    ),
    "array": ("uniqueItems", "contains", "unevaluatedItems"),
    "string": ("pattern",),
    "number": ("multipleOf",),
    "any": ("not", "if", "then", "else", "$dynamicRef", "$recursiveRef"),
}
_BINDING = {name for table in (_OF_TYPE, _REFUSED) for names in table.values() for name in names}
_MEANT = _BINDING | {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"}
"""Keywords that say what is valid; all others are notes."""

MOST_DEPTH = 64
"""Schemas within each other, at most."""

MOST_PARTS = 10_000
"""Schemas in all, at most; one that is put together with others counts each time."""


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

    def text(self) -> str:
        root = self._part(self._schema, "", 0)
        lines = [f"root ::= {root}", *(f"{name} ::= {rule}" for name, rule in self._rules.items())]
        todo, known = [" ".join(lines)], dict[str, str]()
        while todo:  # the common rules that are used
            words = set(re.findall("[a-z]+", todo.pop()))
            for name in sorted(words & _RULES.keys() - known.keys()):
                known[name] = _RULES[name]
                todo.append(_RULES[name])
        return "\n".join([*lines, *(f"{name} ::= {rule}" for name, rule in known.items())]) + "\n"

    def _rule(self, body: str) -> str:
        self._n += 1
        name = f"part-{self._n}"
        self._rules[name] = body
        return name

    def _part(self, schema: Any, where: str, depth: int) -> str:
        """Return a part of a rule that stands for the JSON texts of a schema."""
        self._n_parts += 1
        if self._n_parts > MOST_PARTS:
            raise InputError(f"written out, the schema has more than {MOST_PARTS} parts")
        if depth > MOST_DEPTH:
            raise InputError(f"the schema nests more than {MOST_DEPTH} deep at {where[:200]}")
        if schema is True:
            return "value"
        if schema is False:
            raise InputError(f"{_place(where)} is false, which no JSON text meets")
        if not isinstance(schema, Mapping):
            raise InputError(f"{_place(where)} is no schema: {_shown(schema)}")
        for name in _REFUSED["any"]:
            if name in schema:
                raise _refusal(name, where)
        if "$ref" in schema:
            return self._ref(schema, where, depth)
        for name in ("allOf", "anyOf", "oneOf"):
            if name in schema:
                return self._combined(name, schema, where, depth)
        if "const" in schema:
            return _literal(schema["const"])
        if "enum" in schema:
            return self._enum(schema, where)
        kinds = _kinds(schema, where)
        parts = [self._of_type(kind, schema, where, depth) for kind in kinds]
        return parts[0] if len(parts) == 1 else f"({' | '.join(parts)})"

    def _ref(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        target, pointer = self._target(schema["$ref"], where)
        if _MEANT & rest.keys():
            return self._part(_merged([target, rest], where), where, depth + 1)
        if pointer not in self._names:
            self._n += 1
            name = self._names[pointer] = f"part-{self._n}"
            self._rules[name] = self._part(target, pointer, depth + 1)
        return self._names[pointer]

    def _target(self, ref: Any, where: str) -> tuple[Any, str]:
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise InputError(
                f"{_place(where)}: $ref = {_shown(ref)} is not understood; only places in the same "
                "schema are, such as #/$defs/name"
            )
        found: Any = self._schema
        for part in ref.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            else:
                raise InputError(f"{_place(where)}: $ref = {_shown(ref)} points to nothing")
        return found, ref

    def _combined(self, name: str, schema: Mapping[str, Any], where: str, depth: int) -> str:
        parts = schema[name]
        if not isinstance(parts, list) or not parts:
            raise InputError(f"{_place(where)}: {name} must be a list of schemas")
        rest = {key: value for key, value in schema.items() if key != name}
        rest = rest if _MEANT & rest.keys() else {}
        if name == "allOf":
            parts = [self._resolved(part, where) for part in parts]
            return self._part(_merged([rest, *parts], where), where, depth + 1)
        found = []
        for i, part in enumerate(parts):
            if part is False:
                continue
            whole = _merged([rest, self._resolved(part, where)], where) if rest else part
            found.append(self._part(whole, f"{where}/{name}/{i}", depth + 1))
        if not found:
            raise InputError(f"{_place(where)}: {name} has nothing that a JSON text could meet")
        return f"({' | '.join(found)})"

    def _resolved(self, schema: Any, where: str) -> Any:
        n_steps = 0
        while isinstance(schema, Mapping) and "$ref" in schema:
            n_steps += 1
            if n_steps > MOST_DEPTH:
                raise InputError(f"{_place(where)}: $ref leads to itself")
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            schema, _ = self._target(schema["$ref"], where)
            if _MEANT & rest.keys():
                schema = _merged([schema, rest], where)
        return schema

    def _enum(self, schema: Mapping[str, Any], where: str) -> str:
        values = schema["enum"]
        if not isinstance(values, list):
            raise InputError(f"{_place(where)}: enum must be a list of values")
        kinds = _kinds(schema, where) if "type" in schema else _TYPES
        fitting = [value for value in values if any(_is_of(value, kind) for kind in kinds)]
        if not fitting:
            raise InputError(f"{_place(where)}: enum has no value of the schema's type")
        return f"({' | '.join(map(_literal, fitting))})"

    def _of_type(self, kind: str, schema: Mapping[str, Any], where: str, depth: int) -> str:
        family = "number" if kind == "integer" else kind
        for name in _REFUSED.get(family, ()):
            value = schema.get(name)
            if name in schema and value is not False and (name, value) != ("multipleOf", 1):
                raise _refusal(name, where)
        if kind == "object":
            return self._object(schema, where, depth)
        if kind == "array":
            return self._array(schema, where, depth)
        if kind == "string":
            return _string(schema, where)
        if family == "number" and any(schema.get(name) is not None for name in _OF_TYPE[family]):
            return self._rule(_number(kind, schema, where))
        return kind

    def _object(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        properties, others = schema.get("properties", {}), schema.get("additionalProperties")
        required = schema.get("required", [])
        if not isinstance(properties, Mapping):
            raise InputError(f"{_place(where)}: properties must be an object")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise InputError(f"{_place(where)}: required must be a list of names")
        others = not properties if others is None else others
        if not properties and not required and others is True:
            return "object"
        members = dict(properties)
        for name in required:
            members.setdefault(name, True if schema.get("additionalProperties") is None else others)
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

        A name may leave them at any character, and goes on as it likes then; until there it has no
        escapes, by which it could come to the same.
        """
        texts = [json.dumps(name, ensure_ascii=False)[1:-1] for name in names]
        nodes: dict[str, set[str]] = {"": set()}
        for text in texts:
            for i, char in enumerate(text):
                nodes.setdefault(text[:i], set()).add(char)
                nodes.setdefault(text[: i + 1], set())
        rules: dict[str, str] = {}
        for prefix in sorted(nodes, key=len, reverse=True):
            others = _set_but(nodes[prefix])
            ways = [f"{_quoted(char)} {rules[prefix + char]}" for char in sorted(nodes[prefix])]
            ways.append(f'{others} char* "\\""')
            if prefix not in texts:
                ways.append('"\\""')
            rules[prefix] = self._rule(" | ".join(ways))
        return f'"\\"" {rules[""]}'

    def _array(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        items, first = schema.get("items", True), schema.get("prefixItems", [])
        if isinstance(items, list):  # as older drafts had it
            items, first = schema.get("additionalItems", True), items
        least = _count(schema, "minItems", where) or 0
        most = _count(schema, "maxItems", where)
        if not isinstance(first, list):
            raise InputError(f"{_place(where)}: prefixItems must be a list of schemas")
        if most is not None and most < least:
            raise InputError(f"{_place(where)}: maxItems = {most} is below minItems = {least}")
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
            raise InputError(f"{_place(where)}: minItems = {least} is more than it may have")
        return self._rule(f'"[" ws {body} ws "]"')


def _kinds(schema: Mapping[str, Any], where: str) -> Sequence[str]:
    """Return the types that a schema allows."""
    given = schema.get("type")
    if given is None:
        for kind, names in _OF_TYPE.items():
            if any(name in schema for name in names):
                return (kind,)
        for names in _REFUSED.values():
            for name in names:
                if name in schema:
                    raise _refusal(name, where)
        return _TYPES[:4] + _TYPES[5:]
    kinds = [given] if isinstance(given, str) else given
    if not isinstance(kinds, list) or not kinds:
        raise InputError(f"{_place(where)}: type = {_shown(given)}; it must be a name or several")
    if wrong := [kind for kind in kinds if kind not in _TYPES]:
        raise InputError(
            f"{_place(where)}: type = {_shown(wrong[0])} is unknown; there are {', '.join(_TYPES)}"
        )
    return kinds


def _merged(schemas: Iterable[Any], where: str) -> Any:
    """Return one schema for what meets all of these, as far as one says it."""
    out: dict[str, Any] = {}
    for schema in schemas:
        if schema is True:
            continue
        if not isinstance(schema, Mapping):
            raise InputError(f"{_place(where)}: allOf has {_shown(schema)}, which is no schema")
        for key, value in schema.items():
            if key not in _MEANT or key not in out:
                out[key] = value
            elif key == "required":
                out[key] = [*out[key], *value]
            elif key == "properties" and isinstance(value, Mapping):
                for name, part in value.items():
                    if out[key].get(name, part) != part:
                        raise InputError(
                            f"{_place(where)}: the property {name!r} is described in two ways, "
                            "which a grammar cannot put together; describe it once"
                        )
                out[key] = {**out[key], **value}
            elif key == "allOf":
                out[key] = [*out[key], *value]
            elif out[key] != value:
                raise InputError(
                    f"{_place(where)}: {key} is given in two ways, {_shown(out[key])} and "
                    f"{_shown(value)}, which a grammar cannot put together; give it once"
                )
    return out


def _string(schema: Mapping[str, Any], where: str) -> str:
    least = _count(schema, "minLength", where) or 0
    most = _count(schema, "maxLength", where)
    if most is not None and most < least:
        raise InputError(f"{_place(where)}: maxLength = {most} is below minLength = {least}")
    form = _FORMATS.get(schema.get("format", ""))
    if form is not None:
        return rf'"\"" {form} "\""'
    if not least and most is None:
        return "string"
    return rf'"\"" char{_times(least, most)} "\""'


def _number(kind: str, schema: Mapping[str, Any], where: str) -> str:
    bounds = []
    for name, open_name, pick in (
        ("minimum", "exclusiveMinimum", max),
        ("maximum", "exclusiveMaximum", min),
    ):
        given = schema.get(name)
        beyond = schema.get(open_name)
        if beyond is True:  # as draft 4 had it
            given, beyond = None, given
        for value in (given, beyond):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value not in (None, False) and not (is_number and math.isfinite(value)):
                raise InputError(f"{_place(where)}: {name} = {_shown(value)} is not a number")
        closed = None if given is None else (given, False)
        opened = None if beyond in (None, False) else (beyond, True)
        both = [bound for bound in (closed, opened) if bound is not None]
        bounds.append(pick(both, default=None))
    try:
        return json_numbers.between(*bounds, is_whole=kind == "integer")
    except InputError as error:
        raise InputError(f"{_place(where)}: {error}") from None


def _count(schema: Mapping[str, Any], name: str, where: str) -> int | None:
    value = schema.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise InputError(f"{_place(where)}: {name} = {_shown(value)}; it must be 0 or more")
    return value


def _times(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"


def _is_of(value: Any, kind: str) -> bool:
    if kind in ("number", "integer"):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and (kind == "number" or float(value).is_integer())
    kinds = {"object": Mapping, "array": list, "string": str, "boolean": bool, "null": type(None)}
    return isinstance(value, kinds[kind])


def _literal(value: Any) -> str:
    """Return the JSON text of a value, as a text of a grammar."""
    try:
        return _quoted(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError):
        raise InputError(f"{_shown(value)} has no JSON text") from None


def _quoted(text: str) -> str:
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in '"\\[]-':
        return "\\" + char
    return f"\\x{ord(char):02X}" if ord(char) < 0x20 or ord(char) == 0x7F else char


def _set_but(chars: Iterable[str]) -> str:
    """Return the characters of a string, without escapes, that are none of these."""
    return r'[^"\\\x7F\x00-\x1F' + "".join(_escaped(char) for char in sorted(chars)) + "]"


def _place(where: str) -> str:
    return f"the schema at {where[:200]}" if where else "the schema"


def _refusal(name: str, where: str) -> InputError:
    return InputError(
        f"{_place(where)}: {name} is a keyword that a grammar cannot hold to here; leave it out, "
        "and check the reply"
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
