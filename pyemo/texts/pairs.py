"""Prompts with replies in a voice, from a file of the user's: chat or preference JSONL, or TOML.

Owns the formats, and what of a file is used. A file that breaks its format is refused with the
line; a line that is well formed and of no use is left out and counted by its reason.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from pyemo.errors import InputError
from pyemo.texts.toml_checks import check_keys

LEAST_PAIRS = 12
MOST_PAIRS = 128
"""More than a training draws from; of a larger file a random subset of this size is kept."""

MOST_LINES = 200_000
LEAST_WORDS = 60
_LINE_BYTES = 1 << 20
_TOML_BYTES = 32 << 20
_MOST_CHARACTERS = 8000
_ALIKE = 0.3
_REPLIES = ("chosen", "reply", "completion", "response")
_PLAIN = ("rejected", "plain")
_ROLES = {"system", "developer", "user", "assistant"}


@dataclass(frozen=True)
class ReplyPair:
    """A prompt and a reply in the voice; ``plain`` is a reply without it, None if not given."""

    prompt: str
    reply: str
    plain: str | None = None


@dataclass(frozen=True)
class ReplyPairs:
    """What of a file is used.

    Attributes:
        where: the file.
        pairs: different prompts and replies, in the file's order.
        n_usable: pairs that could be used; more than ``pairs`` if a subset was drawn.
        left_out: reason -> (how many, number of the first line).
        remarks: sentences on what the user should know.
    """

    where: str
    pairs: tuple[ReplyPair, ...]
    n_usable: int
    left_out: Mapping[str, tuple[int, int]]
    remarks: tuple[str, ...]


class _LeftOutError(Exception):
    """A line that is well formed, but no pair that can be used."""


@dataclass
class _Kept:
    """A bounded, random subset of the pairs that come by, and the reasons of those that did not."""

    chance: random.Random
    rows: list[tuple[int, ReplyPair]] = field(default_factory=list)
    n_usable: int = 0
    left_out: dict[str, list[int]] = field(default_factory=dict)
    _prompts: set[int] = field(default_factory=set)
    _replies: set[int] = field(default_factory=set)

    def add(self, line: int, pair: ReplyPair) -> None:
        prompt, reply = hash(_plain_words(pair.prompt)), hash(_plain_words(pair.reply))
        if prompt in self._prompts:
            self.leave_out(line, "with a prompt that came before")
            return
        if reply in self._replies:
            self.leave_out(line, "with a reply that came before")
            return
        self._prompts.add(prompt)
        self._replies.add(reply)
        self.n_usable += 1
        if len(self.rows) < MOST_PAIRS:
            self.rows.append((line, pair))
            return
        # Vitter 1985, algorithm R: each usable pair is as likely as any other to stay.
        at = self.chance.randrange(self.n_usable)
        if at < MOST_PAIRS:
            self.rows[at] = (line, pair)

    def leave_out(self, line: int, reason: str) -> None:
        count = self.left_out.setdefault(reason, [0, line])
        count[0] += 1


def read_pairs(path: str | os.PathLike[str], *, seed: int = 0) -> ReplyPairs:
    """Return the pairs of a file that can be used.

    A file ending in .toml has tables ``[[pair]]`` with prompt, reply and perhaps plain. Any other
    has a JSON object on each line: ``{"messages": [...]}``, of which the first exchange is used, or
    ``{"prompt", "chosen", "rejected"}``, whose rejected reply is the plain one; ``reply``,
    ``completion`` and ``response`` are other words for chosen, and other keys are left aside. The
    memory taken does not grow with the file.

    Args:
        seed: of the subset drawn from a file with more than :data:`MOST_PAIRS`.
    Raises:
        InputError: no such file, a line that breaks its format (number named), or too few pairs,
            pairs too short, or too alike.
    """
    file = Path(path).expanduser()
    where = os.fspath(path)
    if not file.is_file():
        raise InputError(f"no file {where!r}; give a file of prompts and replies, JSONL or TOML")
    kept = _Kept(random.Random(seed))
    found = _toml(file, where) if file.suffix.lower() == ".toml" else _jsonl(file, where, kept)
    n_systems = 0
    for line, row in found:
        try:
            pair, has_system = _pair(row, f"{where}, line {line}")
            kept.add(line, _checked(pair))
            n_systems += has_system
        except _LeftOutError as why:
            kept.leave_out(line, str(why))
    return _judged(where, kept, n_systems)


def _toml(file: Path, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    if file.stat().st_size > _TOML_BYTES:
        raise InputError(f"{where} is over {_TOML_BYTES >> 20} MB; write JSONL, read by the line")
    try:
        document = tomllib.loads(file.read_bytes().decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{where}: not TOML: {error}") from None
    check_keys(where, document, ("pair",))
    tables = document["pair"]
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InputError(f"{where}: pair is not a list of tables; write [[pair]]")
    for number, table in enumerate(tables, start=1):
        check_keys(f"{where}, pair {number}", table, ("prompt", "reply"), ("plain",))
        yield number, table


def _jsonl(file: Path, where: str, kept: _Kept) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open("rb") as lines:
        for number in range(1, MOST_LINES + 1):
            raw = lines.readline(_LINE_BYTES + 1)
            if not raw:
                return
            name = f"{where}, line {number}"
            if len(raw) > _LINE_BYTES:
                raise InputError(f"{name}: over {_LINE_BYTES >> 20} MB; one JSON object a line")
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                value = json.loads(text) if text else None
            except (ValueError, RecursionError) as error:
                raise InputError(f"{name}: not JSON: {_fault(error)}; {_remedy(number)}") from None
            if not text:
                continue
            if not isinstance(value, dict):
                raise InputError(f"{name}: {text[:40]!r} is no JSON object; {_remedy(number)}")
            yield number, value
        if lines.read(1):
            kept.leave_out(MOST_LINES + 1, f"and all lines behind it: {MOST_LINES} are read")


def _fault(error: Exception) -> str:
    """Return what is wrong with a line; the parser's own line number would be a second one."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error)


def _remedy(number: int) -> str:
    """Return what to do about a line; a file that is wrong from its first has another format."""
    if number == 1:
        return "write one JSON object a line (JSONL), not a list or a table, or [[pair]] in TOML"
    return "mend or remove it; one JSON object a line"


def _pair(row: Mapping[str, Any], name: str) -> tuple[ReplyPair, bool]:
    """Return a row's pair, and whether it had a system line, which is left aside."""
    if "messages" in row:
        return _exchange(_messages(row["messages"], name), name, bool(row.get("tools")))
    reply = next((key for key in _REPLIES if key in row), None)
    if "prompt" not in row or reply is None:
        raise InputError(
            f"{name}: neither 'messages' nor 'prompt' with one of {', '.join(_REPLIES)}; it has "
            f"{', '.join(sorted(row))[:80] or 'nothing'}"
        )
    plain = next((row[key] for key in _PLAIN if row.get(key) is not None), None)
    prompt, has_system = _said(row["prompt"], "user", f"{name}, prompt")
    return (
        ReplyPair(
            prompt,
            _said(row[reply], "assistant", f"{name}, {reply}")[0],
            None if plain is None else _said(plain, "assistant", f"{name}, plain")[0],
        ),
        has_system,
    )


def _said(value: object, role: str, name: str) -> tuple[str, bool]:
    """Return a text, or what ``role`` says in a list of messages of one turn."""
    if isinstance(value, str):
        return value, False
    messages = _messages(value, name)
    said = [text for who, text in messages if who == role]
    if len(said) != 1:
        raise _LeftOutError("of several turns in prompt or reply")
    return said[0], any(who in ("system", "developer") for who, _ in messages)


def _messages(value: object, name: str) -> list[tuple[str, str]]:
    """Return (role, text) of each message."""
    if not isinstance(value, list) or not value:
        raise InputError(f"{name}: {str(value)[:40]!r} is neither text nor a list of messages")
    out = []
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InputError(f"{name}: a message is an object with 'role' and 'content'")
        if message.get("tool_calls") or message.get("function_call"):
            raise _LeftOutError("with tools")
        if message["role"] in ("tool", "function"):
            raise _LeftOutError("with tools")
        if message["role"] not in _ROLES:
            raise _LeftOutError(f"with the role {message['role'][:20]!r}")
        out.append((message["role"], _content(message.get("content"), name)))
    return out


def _content(value: object, name: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise InputError(f"{name}: content is {str(value)[:40]!r}; it is text or a list of parts")
    if any(part.get("type") != "text" for part in value):
        raise _LeftOutError("with images or other parts that are no text")
    return "".join(str(part.get("text", "")) for part in value)


def _exchange(
    messages: Sequence[tuple[str, str]], name: str, has_tools: bool
) -> tuple[ReplyPair, bool]:
    """Return the first exchange: later turns answer a history that a prompt alone has not."""
    if has_tools:
        raise _LeftOutError("with tools")
    has_system = any(role in ("system", "developer") for role, _ in messages)
    turns = [(role, text) for role, text in messages if role in ("user", "assistant")]
    if [role for role, _ in turns[:2]] != ["user", "assistant"]:
        raise _LeftOutError("that do not begin with the user and an answer")
    return ReplyPair(turns[0][1], turns[1][1]), has_system


def _checked(pair: ReplyPair) -> ReplyPair:
    """Return the pair without blanks around its texts."""
    for what, text in (("prompt", pair.prompt), ("reply", pair.reply), ("plain", pair.plain)):
        if text is not None and not isinstance(text, str):
            raise _LeftOutError(f"whose {what} is no text")
    prompt, reply = pair.prompt.strip(), pair.reply.strip()
    plain = pair.plain.strip() if pair.plain is not None else None
    if not prompt:
        raise _LeftOutError("with an empty prompt")
    if not reply:
        raise _LeftOutError("with an empty reply")
    if plain == "":
        plain = None
    if plain is not None and _plain_words(plain) == _plain_words(reply):
        raise _LeftOutError("whose plain reply is the reply")
    if max(len(prompt), len(reply), len(plain or "")) > _MOST_CHARACTERS:
        raise _LeftOutError(f"with a text of over {_MOST_CHARACTERS} characters")
    return ReplyPair(prompt, reply, plain)


def _judged(where: str, kept: _Kept, n_systems: int) -> ReplyPairs:
    """Return what stays, or refuse what no voice can be learned from."""
    n_drawn = len(kept.rows)
    pairs: list[ReplyPair] = []
    seen: list[set[tuple[str, ...]]] = []
    for line, pair in sorted(kept.rows, key=lambda row: row[0]):
        grams = _grams(pair.reply)
        if any(_overlap(grams, other) >= _ALIKE for other in seen):
            kept.leave_out(line, "with a reply much like another")
            continue
        seen.append(grams)
        pairs.append(pair)
    left_out = {reason: (n, line) for reason, (n, line) in kept.left_out.items()}
    said = left_out_text(left_out)
    because = f" (left out: {said})" if said else ""
    if len(pairs) < LEAST_PAIRS:
        raise InputError(
            f"{where} has {len(pairs)} usable pairs of prompt and reply{because}; a voice takes at "
            f"least {LEAST_PAIRS}, on different prompts"
        )
    n_words = sum(len(pair.reply.split()) for pair in pairs)
    if n_words < LEAST_WORDS:
        raise InputError(
            f"{where}: its {len(pairs)} replies have {n_words} words in all, which is too short; "
            f"give at least {LEAST_WORDS}, best two or three sentences a reply"
        )
    remarks = [f"left out: {said}"] if said else []
    if kept.n_usable > n_drawn:
        remarks.append(
            f"{n_drawn} of {kept.n_usable} usable pairs are used, drawn at random: more than a "
            "training reads"
        )
    if n_systems:
        remarks.append(f"{n_systems} system lines are left aside: the vector is to do without one")
    remarks.extend(_openings(pairs))
    return ReplyPairs(
        where, tuple(pairs), kept.n_usable, MappingProxyType(left_out), tuple(remarks)
    )


def left_out_text(left_out: Mapping[str, tuple[int, int]]) -> str:
    """Return the reasons in words, such as "2 with tools (first: line 7)"."""
    return "; ".join(
        f"{n} {reason} (first: line {line})" for reason, (n, line) in sorted(left_out.items())
    )


def _openings(pairs: Sequence[ReplyPair]) -> Iterator[str]:
    openings = Counter(" ".join(_plain_words(pair.reply).split()[:2]) for pair in pairs)
    words, n = openings.most_common(1)[0]
    if n * 2 > len(pairs):
        yield (
            f"{n} of {len(pairs)} replies begin with {words!r}; the voice may learn little else: "
            "vary the openings"
        )


def _plain_words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _grams(text: str) -> set[tuple[str, ...]]:
    """Return a text's runs of three words, or the whole of a shorter one."""
    words = _plain_words(text).split()
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def _overlap(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    return len(one & other) / len(one | other)
