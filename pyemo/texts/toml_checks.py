"""What is refused in a TOML table that a user wrote. Owns the checks; knows no file's meaning.

``where`` begins each message: the file, and the table in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyemo.errors import InputError

_LONGEST_SHOWN = 60


def check_keys(
    where: str, table: dict[str, Any], required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> None:
    """Refuse a table that lacks a key, or has one that means nothing there.

    Raises:
        InputError: names the key and those that are known.
    """
    known = (*required, *optional)
    for key in required:
        if key not in table:
            raise InputError(f"{where} has no {key!r}; add it (known keys: {', '.join(known)})")
    for key in table:
        if key not in known:
            raise InputError(
                f"{where} has an unknown key {key[:_LONGEST_SHOWN]!r}; rename or remove it "
                f"(known keys: {', '.join(known)})"
            )


def strings(where: str, table: dict[str, Any], key: str) -> tuple[str, ...]:
    """Return the strings under ``key`` without surrounding blanks; () where there is no such key.

    Raises:
        InputError: not a list, or an entry that is not a string or is blank.
    """
    if key not in table:
        return ()
    values = table[key]
    if not isinstance(values, list):
        raise InputError(
            f"{where}: {key} is of type {type(values).__name__}, not a list of strings; "
            f'write {key} = ["...", "..."]'
        )
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str):
            raise InputError(
                f"{where}: {key} number {number} is of type {type(value).__name__}, not a string; "
                "put it in quotes"
            )
        if not value.strip():
            raise InputError(f"{where}: {key} number {number} is empty; write a text or remove it")
    return tuple(value.strip() for value in values)


def check_distinct(where: str, texts: Iterable[str]) -> None:
    """Refuse a text that stands there twice, whatever its case and blanks.

    Raises:
        InputError: quotes the beginning of the text.
    """
    seen: set[str] = set()
    for text in texts:
        plain = " ".join(text.casefold().split())
        if plain in seen:
            raise InputError(
                f"{where} has the same text twice: {text[:_LONGEST_SHOWN]!r}; "
                "change or remove one of them"
            )
        seen.add(plain)
