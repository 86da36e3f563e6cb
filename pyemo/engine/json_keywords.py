"""The keywords of JSON schemas: their shapes, which of them bind, and schemas put together.

Owns what is understood and the sentences that refuse the rest. Knows nothing of grammars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from pyemo.errors import InputError

Schema: TypeAlias = "Mapping[str, Any] | bool"

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
OF_TYPE = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
REFUSED = {
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
_BINDING = {name for table in (OF_TYPE, REFUSED) for names in table.values() for name in names}
MEANT = _BINDING | {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"}
"""Keywords that say what is valid; all others are notes."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "uniqueItems": (False,),
    "minProperties": (0,),
    "unevaluatedProperties": (True, False),  # the converter closes what it writes
    "unevaluatedItems": (True, False),
}
"""Values of refused keywords that bind nothing, or that are held to."""

MOST_NESTING = 200
"""Objects and lists within each other, at most."""


def _is_schemas(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_properties(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _is_types(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and len(value) > 0)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_SHAPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_is_types, "a name or several"),
    "enum": (_is_list, "a list of values"),
    "allOf": (_is_schemas, "a list of schemas"),
    "anyOf": (_is_schemas, "a list of schemas"),
    "oneOf": (_is_schemas, "a list of schemas"),
    "prefixItems": (_is_list, "a list of schemas"),
    "properties": (_is_properties, "an object of schemas by name"),
    "required": (_is_names, "a list of names"),
    "format": (_is_text, "a name"),
}


def require_shapes(schema: Mapping[str, Any], where: str) -> None:
    """Raise InputError where a keyword's value is none that it may have."""
    for name, (is_right, words) in _SHAPES.items():
        if name in schema and not is_right(schema[name]):
            raise InputError(f"{place(where)}: {name} must be {words}: {shown(schema[name])}")


def require_shallow(schema: Any) -> None:
    """Raise InputError where objects and lists nest deeper than Python's own functions follow."""
    level = [[schema]]
    for _ in range(MOST_NESTING):
        inner: dict[int, Any] = {}
        for value in level:
            parts = value.values() if isinstance(value, Mapping) else value
            inner.update((id(part), part) for part in parts if isinstance(part, Mapping | list))
        level = list(inner.values())
        if not level:
            return
    raise InputError(f"the schema's objects and lists nest more than {MOST_NESTING} deep")


def kinds(schema: Mapping[str, Any], where: str) -> Sequence[str]:
    """Return the types that a schema allows."""
    given = schema.get("type")
    if given is None:
        for kind, names in OF_TYPE.items():
            if any(name in schema for name in names):
                return (kind,)
        for names in REFUSED.values():
            for name in names:
                if name in schema:
                    raise refusal(name, where)
        return TYPES[:4] + TYPES[5:]
    kinds = [given] if isinstance(given, str) else given
    if not isinstance(kinds, list) or not kinds:
        raise InputError(f"{place(where)}: type = {shown(given)}; it must be a name or several")
    if wrong := [kind for kind in kinds if kind not in TYPES]:
        raise InputError(
            f"{place(where)}: type = {shown(wrong[0])} is unknown; there are {', '.join(TYPES)}"
        )
    return kinds


def merged(schemas: Iterable[Any], where: str) -> Any:
    """Return one schema for what meets all of these, as far as one says it.

    A property that another schema's ``additionalProperties`` forbids is described as false.
    """
    out: dict[str, Any] = {}
    for schema in schemas:
        if schema is True:
            continue
        if not isinstance(schema, Mapping):
            raise InputError(f"{place(where)}: allOf has {shown(schema)}, which is no schema")
        require_shapes(schema, where)
        _merge_properties(out, schema, where)
        _require_same_items(out, schema, where)
        for key, value in schema.items():
            if key == "properties":
                continue
            if key not in MEANT or key not in out:
                out[key] = list(value) if key in ("required", "allOf") else value
            elif key in ("required", "allOf"):
                out[key].extend(value)
            elif key == "additionalProperties":
                out[key] = _both(out[key], value, key, where)
            elif not _is_same(out[key], value):
                raise _two_ways(key, out[key], value, where)
    return out


def _merge_properties(out: dict[str, Any], schema: Mapping[str, Any], where: str) -> None:
    """Put a schema's properties to those of ``out``, under the rest of both."""
    if "properties" not in out and "properties" not in schema:
        return
    found, theirs = out.setdefault("properties", {}), schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    if others is not True:
        for name in found.keys() - theirs.keys():
            found[name] = _both(found[name], others, f"the property {name!r}", where)
    unnamed = out.get("additionalProperties", True)
    for name, part in theirs.items():
        found[name] = _both(found.get(name, unnamed), part, f"the property {name!r}", where)


def _require_same_items(out: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> None:
    """Raise InputError where each says what the items are: ``items`` counts from its own places."""
    names = ("prefixItems", "items", "additionalItems")
    ours = [out.get(name) for name in names]
    theirs = [schema.get(name) for name in names]
    if any(name in out for name in names) and any(name in schema for name in names):
        for name, one, other in zip(names, ours, theirs, strict=True):
            if not _is_same(one, other):
                raise _two_ways(name, one, other, where)


def _both(one: Any, other: Any, name: str, where: str) -> Any:
    """Return the schema of what meets both, where one of them is true or false or they agree."""
    if one is False or other is False:
        return False
    if one is True or other is True or one is other:
        return one if other is True else other
    if not _is_same(one, other):
        raise _two_ways(name, one, other, where)
    return one


def _is_same(one: Any, other: Any) -> bool:
    return one is other or (one == other and repr(one) == repr(other))  # 1 is no true


def _two_ways(name: str, one: Any, other: Any, where: str) -> InputError:
    return InputError(
        f"{place(where)}: {name[:100]} is given in two ways, {shown(one)} and {shown(other)}, "
        "which a grammar cannot put together; give it once"
    )


def require_nothing_left_over(schema: Any, where: str) -> None:
    """Raise InputError where a schema that others are put to forbids what it does not name."""
    for name in ("unevaluatedProperties", "unevaluatedItems"):
        if isinstance(schema, Mapping) and schema.get(name) is False:
            raise refusal(name, where)


def require_held(kind: str, schema: Mapping[str, Any], where: str) -> None:
    """Raise InputError where a keyword binds values of this type that a grammar cannot hold to."""
    for name in REFUSED.get("number" if kind == "integer" else kind, ()):
        if name not in schema:
            continue
        value = schema[name]
        is_whole = name == "multipleOf" and kind == "integer" and value == 1
        if not is_whole and not any(value is one for one in _NEUTRAL.get(name, ())):
            raise refusal(name, where)


def meeting(values: Sequence[Any], schema: Mapping[str, Any], where: str) -> list[Any]:
    """Return those of an enum's values that are of the schema's types.

    Raises:
        InputError: none is; or a keyword binds one of them in another way.
    """
    allowed = kinds(schema, where) if "type" in schema else TYPES
    fitting = [value for value in values if any(_is_of(value, kind) for kind in allowed)]
    if not fitting:
        raise InputError(f"{place(where)}: enum has no value of the schema's type")
    for kind in TYPES:
        names = [*OF_TYPE.get(kind, ()), *REFUSED.get(kind, ())]
        given = [name for name in names if name in schema and name != "format"]
        if given and any(_is_of(value, kind) for value in fitting):
            raise InputError(
                f"{place(where)}: {given[0]} beside enum or const is not understood; leave it out, "
                "and leave values out that break it"
            )
    return fitting


def _is_of(value: Any, kind: str) -> bool:
    if kind in ("number", "integer"):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and (kind == "number" or isinstance(value, int) or value.is_integer())
    kinds = {"object": Mapping, "array": list, "string": str, "boolean": bool, "null": type(None)}
    return isinstance(value, kinds[kind])


def place(where: str) -> str:
    return f"the schema at {where[:200]}" if where else "the schema"


def refusal(name: str, where: str) -> InputError:
    return InputError(
        f"{place(where)}: {name} is a keyword that a grammar cannot hold to here; leave it out, "
        "and check the reply"
    )


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
