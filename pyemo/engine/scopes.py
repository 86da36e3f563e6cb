"""Which rows of a sequence a scope holds: those of its prompts, its replies, or parts of them.

A row reads one token and decides the next. So what a reply says is decided by the row of its
prompt's last token and by those of its own tokens but the last. Knows nothing of moods and of the
core.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pyemo.choices import POSITIONS, SCOPE_FORMS, SCOPES, Scope
from pyemo.errors import InputError

Kind: TypeAlias = Literal["prompt", "thinking", "answer"]
"""What a token belongs to: a prompt, a reply's thoughts, or what it says."""

OF_REPLY_PARTS = ("thinking", "answer")
"""The scopes, and the kinds, of a reply's parts."""

Segments: TypeAlias = "list[tuple[int, Kind]]"
"""Where tokens of a kind begin: (first position, kind), ascending from 0."""

_MOST_TOKENS = 1 << 30


@dataclass(frozen=True)
class Rows:
    """Rows of one kind that follow each other.

    Attributes:
        begin: the first.
        end: behind the last; None for those to come.
        kind: of the tokens that they decide.
        prompt: position of the prompt's first token; what went before for a reply.
        reply: position of the first token of the reply, or of the one that comes next.
    """

    begin: int
    end: int | None
    kind: Kind
    prompt: int
    reply: int

    def index(self, row: int) -> int:
        """Index in the reply of the token that ``row`` decides; 0 for the rows of a prompt."""
        return 0 if self.kind == "prompt" else max(0, row + 1 - self.reply)


def check_scope(scope: Scope) -> tuple[str, int]:
    """Return the scope's word and number of tokens, 0 for a scope that takes none.

    Raises:
        InputError: no scope.
    """
    if isinstance(scope, str):
        word, colon, count = scope.partition(":")
        if not colon and word in SCOPES:
            return word, 0
        if word in POSITIONS and count.isascii() and count.isdigit():
            n = int(count[:12])
            if 1 <= n <= _MOST_TOKENS:
                return word, n
    raise InputError(f"scope {scope!r} is unknown; use {SCOPE_FORMS} with N >= 1 tokens")


def is_of_reply(scope: Scope) -> bool:
    """Whether the scope holds no row before the one that decides the reply's first token."""
    return check_scope(scope)[0] in ("reply", "thinking", "answer", "first", "after")


def holds(scope: Scope, rows: Rows, row: int) -> bool:
    """Return whether ``row``, one of ``rows``, is steered."""
    word, n = check_scope(scope)
    if word == "both":
        return True
    if word == "last":
        return _last(rows, n) <= row < rows.reply
    if rows.kind == "prompt" or word == "prompt":
        return rows.kind == word
    if word == "first":
        return rows.index(row) < n
    if word == "after":
        return rows.index(row) >= n
    return word in ("reply", rows.kind)


def changes(scope: Scope, rows: Rows) -> Iterator[int]:
    """Yield the rows where what ``holds`` says may change, among ``rows`` or not."""
    word, n = check_scope(scope)
    if word == "last":
        yield from (_last(rows, n), rows.reply)
    if word in ("first", "after"):
        yield rows.reply - 1 + n


def rows_of(segments: Segments, n_tokens: int, next_kind: Kind | None) -> list[Rows]:
    """Return the rows of ``n_tokens`` tokens and those to come, in order from row 0.

    Args:
        next_kind: of the reply's token that comes next, where the last token is a prompt's; None
            where none will come.
    """
    marks = [*segments]
    if next_kind is not None and (not marks or marks[-1][1] == "prompt"):
        marks.append((n_tokens, next_kind))
    found: list[Rows] = []
    prompt = reply = 0
    for i, (first, kind) in enumerate(marks):
        follows = marks[i + 1][0] if i + 1 < len(marks) else None
        if kind == "prompt":
            prompt, reply = first, n_tokens if follows is None else follows
        elif i == 0 or marks[i - 1][1] == "prompt":
            reply = first
        begin = max(0, first - 1)
        end = None if follows is None else follows - 1
        if end is None or end > begin:
            found.append(Rows(begin, end, kind, prompt, reply))
    return found


def _last(rows: Rows, n: int) -> int:
    """The first of the rows of the prompt's last ``n`` tokens."""
    return max(rows.prompt, rows.reply - n)
