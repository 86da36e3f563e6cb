"""How much a text repeats itself, and in which scripts it is: measures that need no model.

Each is a pure function with its formula and source. What they say of a text's regime is in
``regimes``.
"""

from __future__ import annotations

import functools
import re
import unicodedata
import zlib
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
# Letters of scripts that are written without spaces: each stands for a word.
_UNSPACED = frozenset({"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"})

_WIDTHS = {"HALFWIDTH", "FULLWIDTH"}  # the script is the second word of such a name
_SAME_SCRIPT = {"KATAKANA-HIRAGANA": "KATAKANA", "IDEOGRAPHIC": "CJK"}


class Loop(NamedTuple):
    """The longest stretch that repeats with one period; all 0 if nothing repeats.

    Attributes:
        begin: index of its first item.
        length: items it covers, all cycles together, the last one perhaps cut off.
        period: items of one cycle.
    """

    begin: int
    length: int
    period: int

    @property
    def n_cycles(self) -> float:
        """How many times the cycle comes, the last one perhaps in part."""
        return self.length / self.period if self.period else 0.0


def distinct_ngrams(items: Sequence[Hashable], n: int) -> float:
    """Return the number of different n-grams over the number of n-grams, 0 to 1.

    1 - this is seq-rep-n of Welleck et al. 2019 (arXiv 1908.04319); distinct-n of Li et al. 2016
    (arXiv 1510.03055) up to its denominator. It falls with length, so compare equal lengths.
    Fewer than n items repeat nothing: 1.
    """
    grams = list(zip(*(items[i:] for i in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0


def most_repeated_ngram(items: Sequence[Hashable], n: int) -> int:
    """Return how often the most frequent n-gram comes; 0 for fewer than n items."""
    counts: dict[tuple[Hashable, ...], int] = {}
    for gram in zip(*(items[i:] for i in range(n)), strict=False):
        counts[gram] = counts.get(gram, 0) + 1
    return max(counts.values(), default=0)


def longest_loop(tokens: Sequence[int] | npt.NDArray[np.integer], min_cycles: float = 2) -> Loop:
    """Return the longest stretch that repeats with one period, at least ``min_cycles`` times.

    For each period p the longest run of i with tokens[i] == tokens[i - p]; a run of r items is a
    stretch of r + p. Of equal lengths the shortest period is taken. Holtzman et al. 2019
    (arXiv 1904.09751) call a text repetitive whose end is such a loop of 3 cycles.

    Args:
        tokens: (n_tokens,) ids; a string's characters or words serve as well once numbered.
        min_cycles: 1 < min_cycles.
    """
    ids = np.asarray(tokens)
    best = Loop(0, 0, 0)
    for period in range(1, int(len(ids) / min_cycles) + 1):
        same = ids[period:] == ids[:-period]
        # runs of True, from the places where it changes
        edges = np.flatnonzero(np.diff(np.concatenate(([False], same, [False])).astype(np.int8)))
        if not len(edges):
            continue
        begins, runs = edges[::2], edges[1::2] - edges[::2]
        at = int(runs.argmax())
        length = int(runs[at]) + period
        if length >= min_cycles * period and length > best.length:
            best = Loop(int(begins[at]), length, period)
    return best


def compression_ratio(text: str) -> float:
    """Return UTF-8 bytes over their zlib-compressed bytes (level 9); 0 for an empty text.

    Whisper (Radford et al. 2022, arXiv 2212.04356, section 4.5) calls a transcript repetitive above
    2.4. It rises with length, and a short text's is below 1: compare equal lengths.
    """
    data = text.encode("utf-8", "replace")
    return len(data) / len(zlib.compress(data, 9)) if data else 0.0


def words(text: str) -> list[str]:
    """Return the case-folded words; in scripts without spaces each letter is one."""
    found: list[str] = []
    for word in _WORD.findall(text.casefold()):
        if word.isascii() or not any(script(letter) in _UNSPACED for letter in word):
            found.append(word)
        else:
            found.extend(word)
    return found


@functools.lru_cache(maxsize=4096)
def script(letter: str) -> str:
    """Return the script of a letter, such as LATIN, CYRILLIC or CJK; "" for anything else."""
    if not letter.isalpha():
        return ""
    word = script_word(letter)
    return "LATIN" if word == "MODIFIER" else word


def script_word(character: str) -> str:
    """Return the word of a character's Unicode name that is the script's, where it is a letter.

    The first word (Unicode Standard, 4.8), but for letters in other widths and such as two ways of
    writing share; "" for a character without a name.
    """
    words = unicodedata.name(character, "").split(" ")
    word = words[1] if words[0] in _WIDTHS and len(words) > 1 else words[0]
    return _SAME_SCRIPT.get(word, word)


def new_script_share(text: str, *known: str) -> float:
    """Return the share of the text's letters in scripts that ``known`` has no letter of, 0 to 1.

    0 for a text without letters, and where ``known`` has no letter to compare with.
    """
    expected = {script(letter) for letter in set("".join(known))} - {""}
    scripts = [name for name in map(script, text) if name]
    if not scripts or not expected:
        return 0.0
    return sum(name not in expected for name in scripts) / len(scripts)
