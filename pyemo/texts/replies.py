"""Everyday prompts with a reply in the voice of each emotion, and a plain one: what a voice is
trained on, watched by and tested with.

Owns the texts and their split by prompt. docs/extraction.md says who wrote them and how.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from pyemo.emotions import EMOTIONS
from pyemo.errors import InputError
from pyemo.texts.sources import NEUTRAL
from pyemo.texts.toml_checks import check_distinct, check_keys

ReplySplit: TypeAlias = Literal["train", "watch", "test", "judge"]
"""Vectors are made of "train" and chosen by "watch"; "test" is for the final table only, and
"judge" for a judge of voices, which no vector is made of."""

ReplyStyle: TypeAlias = Literal["vivid", "simple"]
"""How replies are written: "vivid" ones show the emotion; "simple" ones name it, in the words of a
child, which a small model can imitate."""

VOICES = (NEUTRAL, *EMOTIONS)


@dataclass(frozen=True)
class ReplyPrompt:
    """An everyday prompt and its replies.

    Attributes:
        text: the prompt.
        kind: what is asked for: note, question, story, how-to, review, opinion, continuation.
        split: what its replies are used for.
        replies: emotion or "neutral" -> the reply in that voice.
    """

    text: str
    kind: str
    split: ReplySplit
    replies: Mapping[str, str]


def reply_prompts(split: ReplySplit, style: ReplyStyle = "vivid") -> tuple[ReplyPrompt, ...]:
    """Return the prompts of a split with their replies, in the file's order.

    Args:
        style: "train" and "watch" have simple replies to the same prompts too.
    Raises:
        InputError: no such split or style, the split has none in that style, or its file breaks a
            rule.
    """
    if split not in get_args(ReplySplit):
        raise InputError(f"no split {split!r}; it is {', '.join(get_args(ReplySplit))}")
    if style not in get_args(ReplyStyle):
        raise InputError(f"no style {style!r}; it is {', '.join(get_args(ReplyStyle))}")
    if style == "simple" and split not in _SPLITS_WITH_SIMPLE:
        raise InputError(
            f"the {split} replies are vivid ones only; simple ones are in "
            f"{', '.join(_SPLITS_WITH_SIMPLE)}"
        )
    return _bundled(split if style == "vivid" else f"{split}_{style}")


_SPLITS_WITH_SIMPLE = ("train", "watch")


@functools.cache
def _bundled(name: str) -> tuple[ReplyPrompt, ...]:
    path = files("pyemo.extract") / "data" / "replies" / f"{name}.toml"
    return parse_replies(path.read_text(encoding="utf-8"), f"the replies {name}.toml")


def parse_replies(text: str, where: str) -> tuple[ReplyPrompt, ...]:
    """Return the prompts that TOML text holds.

    Args:
        text: a list ``[[prompt]]`` with split, kind, text and a table of replies.
        where: begins each message.
    Raises:
        InputError: not TOML, a key that is missing or unknown, a reply that is empty, or the same
            prompt or reply twice.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{where}: not TOML: {error}") from None
    check_keys(where, document, ("prompt",))
    tables = document["prompt"]
    if not isinstance(tables, list) or not tables:
        raise InputError(f"{where}: prompt is not a list of tables; write [[prompt]]")
    prompts = tuple(_prompt(f"{where}, prompt {n}", t) for n, t in enumerate(tables, start=1))
    check_distinct(where, [prompt.text for prompt in prompts])
    check_distinct(where, [reply for prompt in prompts for reply in prompt.replies.values()])
    return prompts


def _prompt(where: str, table: object) -> ReplyPrompt:
    if not isinstance(table, dict):
        raise InputError(f"{where} is no table; write [[prompt]]")
    check_keys(where, table, ("split", "kind", "text", "replies"))
    split, replies = table["split"], table["replies"]
    if split not in get_args(ReplySplit):
        raise InputError(f"{where}: no split {split!r}; it is {', '.join(get_args(ReplySplit))}")
    if not isinstance(replies, dict):
        raise InputError(f"{where}: replies is no table; write [prompt.replies]")
    check_keys(f"{where}, replies", replies, VOICES)
    texts = {"kind": table["kind"], "text": table["text"], **replies}
    for name, value in texts.items():
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{where}: {name} is {value!r}; write a text")
    return ReplyPrompt(
        text=table["text"].strip(),
        kind=table["kind"].strip(),
        split=split,
        replies=MappingProxyType({name: replies[name].strip() for name in VOICES}),
    )
