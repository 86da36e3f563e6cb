"""Tells a reply's thoughts from its answer, by the tags that models put around their thoughts.

Knows the tags and how a template's switch for thinking is called; nothing of engines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

ReplyKind: TypeAlias = Literal["thinking", "answer"]
"""What a token of a reply belongs to; the tags around thoughts are thinking."""


class Tags(NamedTuple):
    """What stands before and behind thoughts."""

    begin: str
    end: str


_TAGS = (
    Tags("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # gpt-oss
    Tags("<|channel>thought", "<channel|>"),  # Gemma 4
    Tags("[THINK]", "[/THINK]"),  # Mistral
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),  # Command
    Tags("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    Tags("<seed:think>", "</seed:think>"),
    Tags("<mm:think>", "</mm:think>"),  # MiniMax M3
    Tags("<think>", "</think>"),
)

_SWITCHES: dict[str, tuple[Any, Any]] = {  # variable -> (on, off)
    "enable_thinking": (True, False),
    "thinking": (True, False),
    "skip_thinking": (False, True),
    "thinking_budget": (None, 0),
}


def tags_of(template: str) -> Tags | None:
    """Return the tags that a chat template writes or looks for; None for a model that says all."""
    return next((t for t in _TAGS if t.begin in template and t.end in template), None)


def switches_of(variables: set[str], *, on: bool) -> dict[str, Any]:
    """Return what turns thinking on or off, of the variables that a template asks for."""
    return {name: values[0 if on else 1] for name, values in _SWITCHES.items() if name in variables}


@dataclass(frozen=True, slots=True)
class Thoughts:
    """Where a reply is: what the next token belongs to, as far as its text is known.

    Attributes:
        tags: of the model.
        kind: of the token that comes next.
        said: text that may be part of a tag that began.
        may_begin: whether thoughts can still begin: nothing was said yet.
        is_tag: whether what is in ``said`` began with a special token.
    """

    tags: Tags
    kind: ReplyKind = "answer"
    said: str = ""
    may_begin: bool = True
    is_tag: bool = False

    def after(self, text: str, *, is_special: bool) -> tuple[ReplyKind, Thoughts]:
        """Return what a token with this text belongs to, and where the reply is after it.

        Args:
            is_special: whether it is no token of plain text, and so may begin a tag of several.
        """
        said = self.said + text
        if self.kind == "thinking":
            if self.tags.end in said:
                return "thinking", replace(self, kind="answer", said="", may_begin=False)
            return "thinking", replace(self, said=said[1 - len(self.tags.end) :])
        if not self.may_begin:
            return "answer", self
        begun = said.lstrip()
        if begun.startswith(self.tags.begin):
            inside = replace(self, kind="thinking", said="", may_begin=False)
            return inside.after(begun[len(self.tags.begin) :], is_special=is_special)
        if self.tags.begin.startswith(begun):
            is_tag = begun and (is_special or self.is_tag)
            kind: ReplyKind = "thinking" if is_tag else "answer"
            return kind, replace(self, said=said, is_tag=bool(is_tag))
        return "answer", replace(self, said="", may_begin=False)
