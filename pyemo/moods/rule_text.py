"""What is typed for a rule: ``anger>0.1 and not (joy>0.1 or joy@14<-0.2)``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn

from pyemo.engine.rules import Condition, Rule
from pyemo.errors import InputError
from pyemo.vectors.control_vector import ControlVector
from pyemo.vectors.gguf_header import shown

RULE_FORM = "NAME_OR_FILE[@LAYER] > or < NUMBER[:SOFTNESS], joined by and, or, not and brackets"
"""What may be typed for a rule, in words."""

_WORD = re.compile(r"\s*([()<>&|!]|[^\s()<>&|!]+)")
_SIGNS = {"&": "and", "|": "or", "!": "not"}
_MOST_BRACKETS = 50
_MOST_CONDITIONS = 50
_Load = Callable[[str], ControlVector]


def parse_rule(text: str, load: _Load) -> Rule:
    """Return the rule that a text writes.

    ``not`` binds closest, then ``and``, then ``or``; ``!``, ``&`` and ``|`` are the same words. A
    name without a number is a fitted condition. Names hold no blanks and none of ``()<>&|!``.

    Args:
        load: returns the vector of a name or a file.
    Raises:
        InputError: no rule, with what is missing.
        VectorError: what ``load`` raises, or a vector that needs a threshold.
    """
    return _Parser(text, load).rule()


class _Parser:
    def __init__(self, text: str, load: _Load) -> None:
        self._text = text
        self._load = load
        self._words: list[str] = [_SIGNS.get(word, word) for word in _WORD.findall(text)]
        self._depth = 0
        self._n_conditions = 0

    def rule(self) -> Rule:
        found = self._either()
        if self._words:
            self._refuse(f"{self._words[0]!r} stands where it should end")
        return found

    def _either(self) -> Rule:
        found = self._all()
        while self._takes("or"):
            found = found | self._all()
        return found

    def _all(self) -> Rule:
        found = self._one()
        while self._takes("and"):
            found = found & self._one()
        return found

    def _one(self) -> Rule:
        turned = False
        while self._takes("not"):
            turned = not turned
        if self._takes("("):
            self._depth += 1
            if self._depth > _MOST_BRACKETS:
                self._refuse(f"more than {_MOST_BRACKETS} brackets are open")
            found = self._either()
            if not self._takes(")"):
                self._refuse("a bracket is not closed")
            self._depth -= 1
        else:
            found = self._condition()
        return ~found if turned else found

    def _condition(self) -> Rule:
        name = self._next("a vector")
        self._n_conditions += 1
        if self._n_conditions > _MOST_CONDITIONS:
            self._refuse(f"it has more than {_MOST_CONDITIONS} conditions")
        if name in ("and", "or", "not", ")", "<", ">"):
            self._refuse(f"{name!r} stands where a vector should")
        source, at, layer_text = name.rpartition("@")
        layer: int | None = None
        if not at or not layer_text.isascii() or not layer_text.isdigit():
            source = name
        else:
            layer = int(layer_text[:9])
        sides = [sign for sign in ("<", ">") if self._takes(sign)]
        if not sides:
            return Condition(self._load(source), layer=layer)
        threshold, _, softness = self._next("a number").partition(":")
        return Condition(
            self._load(source),
            self._number(threshold),
            sides[0] == ">",
            layer,
            self._number(softness or "0"),
        )

    def _number(self, text: str) -> float:
        try:
            return float(text)
        except ValueError:
            self._refuse(f"{text!r} is not a number")

    def _takes(self, word: str) -> bool:
        if self._words and self._words[0] == word:
            del self._words[0]
            return True
        return False

    def _next(self, what: str) -> str:
        if not self._words:
            self._refuse(f"{what} is missing at its end")
        return self._words.pop(0)

    def _refuse(self, why: str) -> NoReturn:
        raise InputError(f"the rule {shown(self._text)} cannot be read: {why}; write {RULE_FORM}")
