"""What was said stays text: no control token comes from a message's content.

A chat template writes control tokens, such as ``<|im_end|>``, around what was said, and hands both
over as one text. So contents are marked before they are rendered: a mark, a character that occurs
nowhere else, stands behind each character that may begin such a token. The template's own tokens
are still found in the rendered text, and what was said is not. Then the marks are taken out.

Owns which tokens are guarded, where marks go, and how a marked text becomes tokens. Knows nothing
of Jinja, and of messages only that they hold texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pyemo import _core
from pyemo.errors import InputError

_TAG = re.compile(r"</?[^\s<>'\"{}%]{1,40}>")
_PRIVATE = range(0xF0000, 0x10FFFE)  # two planes of characters that mean nothing
_SPACE = " \t\n\v\f\r"  # what a token that strips takes away, as C's isspace
_NAMES = ("role", "type")  # words of the interface, which templates compare


class MarkedText(NamedTuple):
    """A rendered text whose messages were marked, and the mark."""

    text: str
    mark: str


@dataclass(frozen=True)
class SpecialToken:
    """A token that is looked for in a text before the rest is split."""

    id: int
    text: str
    is_control: bool
    strips_left: bool
    strips_right: bool


class Contents:
    """Guards one model's prompts, written by one chat template.

    Guarded are the control tokens, and those of the vocabulary's added tokens that the template
    names, such as ``<think>``. The latter may come from the model's own messages only.

    Args:
        native: the model's vocabulary.
        template: the chat template's text.
    """

    def __init__(self, native: _core.Model, template: str) -> None:
        self._native = native
        tokens = [SpecialToken(*values) for values in native.special_tokens()]
        self._guarded = {
            token.id: token
            for token in tokens
            if len(token.text) > 1 and (token.is_control or token.text in template)
        }
        texts = [token.text for token in self._guarded.values()]
        self._first = "".join(sorted({text[0] for text in texts}))
        self._longest = max(map(len, texts), default=0)
        controls = {token.text for token in self._guarded.values() if token.is_control}
        self._own_tags = tuple(sorted(set(_TAG.findall(template)) - controls))
        self._private = {c for c in template if ord(c) in _PRIVATE}
        self._added = sorted(set(texts) - controls, key=len, reverse=True)

    def is_control(self, token: int) -> bool:
        """Whether it is a control token."""
        return token in self._guarded and self._guarded[token].is_control

    def is_guarded(self, token: int) -> bool:
        """Whether it is a control token, or an added one that the template names."""
        return token in self._guarded

    def mark_for(self, messages: Iterable[Mapping[str, Any]]) -> str:
        """Return a character that is in none of the messages.

        Raises:
            InputError: they hold every private character of Unicode.
        """
        used = set(self._private).union(*map(_characters, messages))
        free = next((c for c in map(chr, _PRIVATE) if c not in used), None)
        if free is None:
            raise InputError("the messages hold every private character of Unicode; leave one out")
        return free

    def marked(self, message: Mapping[str, Any], mark: str) -> dict[str, Any]:
        """Return the message with marks in all its texts but its role."""
        is_own = message.get("role") == "assistant"
        return {
            key: value if key in _NAMES else self._marked_value(value, mark, is_own)
            for key, value in message.items()
        }

    def marked_text(self, text: str, mark: str, *, is_own: bool) -> str:
        """Return ``text`` with marks; ``is_own`` leaves the template's own tags whole."""
        if not self._first:
            return text
        tags = "".join(f"(?!{re.escape(tag)})" for tag in self._own_tags) if is_own else ""
        # behind every first letter, so that words taken out of the text later make no token of it
        text = re.sub(f"{tags}([{re.escape(self._first)}])", rf"\1{mark}", text)
        said = text.lstrip()
        if said and self._may_complete(said.replace(mark, "")):
            return f"{text[: len(text) - len(said)]}{mark}{said}"
        return text

    def tokens(self, text: str, mark: str) -> list[int]:
        """Return the tokens of a rendered text, its marks taken out.

        Where nothing that was said looks like a guarded token, they are the plain tokenizer's.

        Raises:
            InputError: a guarded token cannot be written in other tokens of the vocabulary.
        """
        plain = text.replace(mark, "")
        tokens = self._tokenize(plain, parse_special=True)
        if plain == text:
            return tokens
        wanted = self._found(self._tokenize(text, parse_special=True))
        if self._found(tokens) == wanted:
            return tokens
        tokens = self._pieces(text, mark, [self._guarded[token] for token in wanted])
        if self._found(tokens) != wanted:
            raise InputError(
                "a message holds the text of a control token, and this vocabulary has no other "
                "way to write it; take it out"
            )
        return tokens

    # --- inside ---

    def _marked_value(self, value: Any, mark: str, is_own: bool) -> Any:
        if isinstance(value, str):
            return self.marked_text(value, mark, is_own=is_own)
        if isinstance(value, Mapping):
            return {
                key: item if key in _NAMES else self._marked_value(item, mark, is_own)
                for key, item in value.items()
            }
        if isinstance(value, Sequence):
            return [self._marked_value(item, mark, is_own) for item in value]
        return value

    def _may_complete(self, said: str) -> bool:
        """Whether a token's text that the template left open could go on with ``said``."""
        head = said[: self._longest]
        for token in self._guarded.values():
            rest = token.text[1:]
            if len(head) < len(rest) and head in rest:
                return True
            end = rest[-1]
            at = head.find(end)
            while 0 <= at < len(rest):
                if rest.endswith(head[: at + 1]):
                    return True
                at = head.find(end, at + 1)
        return False

    def _tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        return encoded(self._native, text, add_special=False, parse_special=parse_special)

    def _found(self, tokens: list[int]) -> list[int]:
        return [token for token in tokens if token in self._guarded]

    def _pieces(self, text: str, mark: str, written: list[SpecialToken]) -> list[int]:
        """Return the tokens of ``text``; of the guarded ones only ``written``, in this order."""
        tokens: list[int] = []
        strips = False
        for token in written:
            before, _, text = text.partition(token.text)
            before = before.lstrip(_SPACE) if strips else before
            tokens += self._said(before.rstrip(_SPACE) if token.strips_left else before, mark)
            tokens.append(token.id)
            strips = token.strips_right
        return tokens + self._said(text.lstrip(_SPACE) if strips else text, mark)

    def _said(self, text: str, mark: str) -> list[int]:
        """Return the tokens of a text without guarded tokens of the template's."""
        # An added token is found where special tokens are not parsed, too: it is split by hand.
        added = "|".join(f"{mark}?".join(map(re.escape, name)) for name in self._added)
        parts = re.split(f"({added})", text) if added else [text]
        tokens: list[int] = []
        for i, part in enumerate(parts):
            plain = part.replace(mark, "")
            if i % 2 == 0:
                tokens += self._tokenize(plain, parse_special=False) if plain else []
            elif self._native.adds_space_prefix:  # a word of its own would get a space in front
                tokens += map(self._native.byte_token, plain.encode())
            else:
                tokens += self._tokenize(plain[0], parse_special=False)
                tokens += self._tokenize(plain[1:], parse_special=False)
        return tokens


def encoded(native: _core.Model, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
    """Return the token ids of ``text``, whose lone surrogates stand for bytes.

    Raises:
        InputError: a lone surrogate that stands for no byte.
    """
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text has a lone surrogate at character {error.start}, which is no text "
            'and no byte; pass bytes, or decode them with errors="surrogateescape"'
        ) from None
    return native.tokenize(data, add_special=add_special, parse_special=parse_special)


def _characters(value: Any) -> set[str]:
    """The characters of all texts in ``value``."""
    if isinstance(value, str):
        return set(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    return set[str]().union(*map(_characters, value)) if isinstance(value, Sequence) else set()
