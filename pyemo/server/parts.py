"""A reply's tokens become its answer and its thoughts, in pieces that are never taken back."""

from __future__ import annotations

from pyemo.engine.thoughts import Tags
from pyemo.engine.tokens import Token


class Parts:
    """Tells the answer from the thoughts as they come; the tags around thoughts are left out.

    Args:
        tags: of the model.
        is_plain: take all as the answer, tags and thoughts too, as a text that goes on.
    Attributes:
        answer, thoughts: all text so far.
    """

    def __init__(self, tags: Tags | None, *, is_plain: bool = False) -> None:
        self.answer = ""
        self.thoughts = ""
        self._tags = tags
        self._is_plain = is_plain
        self._raw = ""  # of the thoughts, with tags
        self._has_thoughts = False

    def push(self, token: Token) -> tuple[str, str]:
        """Take a token in; return what it adds to the answer, and to the thoughts."""
        return self.push_text(token.text, token.kind)

    def push_text(self, text: str, kind: str) -> tuple[str, str]:
        """Take a text of that kind in; return what it adds to the answer, and to the thoughts."""
        if kind == "thinking" and not self._is_plain:
            self._has_thoughts = True
            self._raw += text
            known = self._without_tags()
            fresh, self.thoughts = known[len(self.thoughts) :], known
            return "", fresh
        if self._has_thoughts and not self.answer:
            text = text.lstrip("\r\n")
        self.answer += text
        return text, ""

    def _without_tags(self) -> str:
        if self._tags is None:
            return self._raw
        begin, end = self._tags
        raw = self._raw
        said = raw.lstrip()
        if begin.startswith(said):  # perhaps the tag, and not all of it yet
            return ""
        if said.startswith(begin):
            raw = said[len(begin) :].lstrip("\r\n")
        text, found, _ = raw.partition(end)
        if found:
            return text.rstrip("\r\n")
        open_end = max(n for n in range(len(end)) if raw.endswith(end[:n]))
        text = raw[: len(raw) - open_end]
        return text.rstrip("\r\n")  # they may stand before the end's tag
