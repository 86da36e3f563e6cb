"""In which scripts a model's tokens are, and how much probability each script has."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from pyemo.engine.model import Model
from pyemo.measures.repetition import script

COMMON = "common"
EMOJI = "emoji"
OTHER = "other"
SCRIPTS = (
    COMMON,
    "LATIN",
    "CYRILLIC",
    "GREEK",
    "ARABIC",
    "HEBREW",
    "DEVANAGARI",
    "CJK",
    "HIRAGANA",
    "KATAKANA",
    "HANGUL",
    "THAI",
    EMOJI,
    OTHER,
)
"""``common`` is digits, signs, blanks and control tokens; ``other`` any further script."""

_INDEX = {name: i for i, name in enumerate(SCRIPTS)}
_FIRST_EMOJI = 0x1F000

# A token may be a piece of a character. Its first byte (UTF-8, RFC 3629) still tells the script,
# but for bytes that many share.
_LEADS = (
    (range(0xC2, 0xCA), "LATIN"),
    (range(0xCD, 0xD0), "GREEK"),
    (range(0xD0, 0xD4), "CYRILLIC"),
    (range(0xD7, 0xD8), "HEBREW"),
    (range(0xD8, 0xDC), "ARABIC"),
    (range(0xE4, 0xEA), "CJK"),
    (range(0xEA, 0xEE), "HANGUL"),
    (range(0xF0, 0xF1), EMOJI),
)


def script_of(piece: bytes) -> str:
    """Return the script of a token's bytes: that of its first letter, or ``common``.

    Example:
        >>> script_of(b" hello"), script_of("\\u627e\\u4e86".encode()), script_of(b"12")
        ('LATIN', 'CJK', 'common')
    """
    for letter in piece.decode("utf-8", "ignore"):
        if ord(letter) >= _FIRST_EMOJI and not letter.isalpha():
            return EMOJI
        if name := script(letter):
            return name if name in _INDEX else OTHER
    for byte in piece:
        for leads, name in _LEADS:
            if byte in leads and not _is_text(piece):
                return name
    return COMMON


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def scripts_of(text: str) -> frozenset[str]:
    """Return the scripts a text uses, ``common`` always among them."""
    return frozenset({COMMON, *(script_of(letter.encode("utf-8", "replace")) for letter in text)})


@functools.lru_cache(maxsize=2)
def script_table(model: Model) -> npt.NDArray[np.uint8]:
    """Return each token's index into :data:`SCRIPTS`, uint8 (n_vocab,)."""
    pieces = (model.piece(token) for token in range(model.n_vocab))
    return np.fromiter((_INDEX[script_of(piece)] for piece in pieces), np.uint8, model.n_vocab)


def script_masses(
    logits: npt.NDArray[np.float32], table: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float64]:
    """Return the probability of each script, float64 (n_scripts,), summing to 1."""
    shifted = np.exp(logits - logits.max(), dtype=np.float64)
    sums: npt.NDArray[Any] = np.bincount(table, weights=shifted, minlength=len(SCRIPTS))
    return np.asarray(sums / sums.sum(), np.float64)
