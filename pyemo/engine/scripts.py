"""Scripts: which writing systems there are, for samplers that keep a text in its own.

Owns what counts as one script and which scripts belong to one way of writing. What a token's bytes
are, and which token is drawn, is native (csrc/scripts.cpp).
"""

from __future__ import annotations

import functools
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from difflib import get_close_matches
from typing import NamedTuple

from pyemo import _core
from pyemo.errors import InputError
from pyemo.measures.repetition import script_word

SHARED = "SHARED"
"""What every text may have: emoji, digits, punctuation, and letters that are signs, such as µ."""

_FEWEST_LETTERS = 16  # first words of names that fewer letters have are no scripts: MICRO, OHM
_SIGNS = {"MATHEMATICAL", "DOUBLE-STRUCK", "SCRIPT", "MODIFIER", "VEDIC", ""}
_BRINGS = {
    "HIRAGANA": ("KATAKANA", "CJK"),
    "KATAKANA": ("HIRAGANA", "CJK"),
    "BOPOMOFO": ("CJK",),
}
"""A text in one of these is written in the others too."""

_END = 0x3FFFF  # planes 4 and up hold variation selectors and private use only
_WHOLE = (range(0x3400, 0x4DC0), range(0x4E00, 0xA000), range(0xAC00, 0xD7A4), range(0x20000, _END))
"""Blocks of one script each (CJK, Hangul syllables); the first character speaks for all."""


class ScriptTable(NamedTuple):
    """All scripts of this Python's Unicode.

    Attributes:
        names: the first is :data:`SHARED`, the others are as Unicode's names of letters begin.
        ranges: (first code point, one past the last, index of the script, whether they are letters
            or marks on letters), ascending; unassigned code points are in none.
    """

    names: tuple[str, ...]
    ranges: list[tuple[int, int, int, bool]]

    def index_of(self, name: str) -> int:
        """Return the index of a script by its name.

        Raises:
            InputError: there is none of that name.
        """
        wanted = name.strip().upper() if isinstance(name, str) else repr(name)
        wanted = "CJK" if wanted == "HAN" else wanted
        if wanted in self.names:
            return self.names.index(wanted)
        near = get_close_matches(wanted, self.names, n=1)
        hint = f"; did you mean {near[0].lower()}?" if near else ""
        raise InputError(
            f"there is no script {name!r}{hint}; names are as Unicode's, such as latin, cyrillic "
            "or cjk"
        )


@functools.cache
def script_table() -> ScriptTable:
    """Return the table; takes a tenth of a second once."""
    counts: Counter[str] = Counter()
    found: list[tuple[int, int, str, bool]] = []
    for begin, end in _pieces():
        letter = chr(begin)
        category = unicodedata.category(letter)
        if category in {"Cn", "Cs", "Co"}:
            continue
        word = script_word(letter)
        if category.startswith("L"):
            counts[word] += end - begin
        found.append((begin, end, word, category[0] in "LM"))
    words = {word for word, n in counts.items() if n >= _FEWEST_LETTERS} - _SIGNS
    names = (SHARED, *sorted(words))
    index = {name: i for i, name in enumerate(names)}
    ranges: list[tuple[int, int, int, bool]] = []
    for begin, end, word, is_letter in found:
        one = (index.get(word, 0), is_letter and word in index)
        if ranges and ranges[-1][1] == begin and ranges[-1][2:] == one:
            begin = ranges.pop()[0]
        ranges.append((begin, end, *one))
    return ScriptTable(names, ranges)


def native_scripts(model: _core.Model) -> _core.Scripts:
    """Return what a sampler of this vocabulary asks; takes as long as the table, once a model."""
    table = script_table()
    brings = [[table.index_of(other) for other in _BRINGS.get(name, ())] for name in table.names]
    return _core.Scripts(model, table.ranges, brings)


def scripts_in(text: str) -> tuple[str, ...]:
    """Return the names of the scripts that a text has letters of, sorted."""
    table = script_table()
    begins = [begin for begin, _, _, _ in table.ranges]
    found = set()
    for letter in set(text):
        at = bisect_right(begins, ord(letter)) - 1
        _, end, index, is_letter = table.ranges[at]
        if is_letter and ord(letter) < end:
            found.add(table.names[index])
    return tuple(sorted(found))


def script_numbers(names: Iterable[str]) -> list[int]:
    """Return the scripts' indices.

    Raises:
        InputError: there is no such script.
    """
    return [script_table().index_of(name) for name in names]


def _pieces() -> Iterable[tuple[int, int]]:
    """Yield (first, one past the last) of all code points, whole blocks as one."""
    begin = 0
    for block in _WHOLE:
        yield from ((i, i + 1) for i in range(begin, block.start))
        yield block.start, block.stop
        begin = block.stop
