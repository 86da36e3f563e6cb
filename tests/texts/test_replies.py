"""The replies are what docs/extraction.md says; a file that breaks a rule is refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tomli_w

from pyemo.errors import InputError
from pyemo.texts.replies import VOICES, ReplyPrompt, ReplySplit, parse_replies, reply_prompts
from pyemo.texts.sources import prompts

SPLITS = ("train", "watch", "test", "judge")
COMMON = frozenset(
    [
        "a",
        "about",
        "after",
        "an",
        "and",
        "are",
        "as",
        "at",
        "by",
        "can",
        "could",
        "do",
        "does",
        "for",
        "from",
        "he",
        "how",
        "i",
        "in",
        "into",
        "is",
        "it",
        "me",
        "my",
        "not",
        "of",
        "on",
        "one",
        "or",
        "our",
        "over",
        "she",
        "should",
        "some",
        "that",
        "the",
        "their",
        "them",
        "there",
        "they",
        "this",
        "to",
        "us",
        "was",
        "we",
        "were",
        "what",
        "when",
        "who",
        "why",
        "will",
        "with",
        "would",
        "write",
        "you",
        "your",
        "tell",
        "describe",
        "say",
        "few",
        "short",
        "lines",
    ]
)


def every() -> list[ReplyPrompt]:
    return [prompt for split in SPLITS for prompt in reply_prompts(split)]


def simple() -> list[ReplyPrompt]:
    return [*reply_prompts("train", "simple"), *reply_prompts("watch", "simple")]


def stems(text: str) -> set[str]:
    return {word[:4] for word in re.findall(r"[a-z]{3,}", text.lower()) if word not in COMMON}


def test_prompts_are_split_for_good() -> None:
    assert [len(reply_prompts(split)) for split in SPLITS[:3]] == [32, 8, 8]
    assert len(reply_prompts("judge")) >= 12
    assert all(p.split == split for split in SPLITS for p in reply_prompts(split))


def test_no_prompt_stands_in_two_lists() -> None:
    texts = [prompt.text.casefold() for prompt in every()]
    known = {text.casefold() for use in ("selection", "evaluation") for text in prompts(use)}
    assert len(set(texts)) == len(texts)
    assert not known & set(texts)


@pytest.mark.parametrize("split", ["train", "watch"])
def test_simple_replies_are_to_the_same_prompts(split: ReplySplit) -> None:
    told = [(prompt.text, prompt.kind, prompt.split) for prompt in reply_prompts(split, "simple")]
    assert told == [(prompt.text, prompt.kind, split) for prompt in reply_prompts(split)]


def test_no_reply_is_written_twice() -> None:
    texts = [reply for prompt in (*every(), *simple()) for reply in prompt.replies.values()]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("prompt", [*every(), *simple()], ids=lambda prompt: prompt.text[:30])
def test_replies_are_short_plain_and_on_the_subject(prompt: ReplyPrompt) -> None:
    assert set(prompt.replies) == set(VOICES)
    for reply in prompt.replies.values():
        assert 20 <= len(reply.split()) <= 65
        assert reply.isascii()
        assert stems(prompt.text) & stems(reply), reply


@pytest.mark.parametrize("prompt", every(), ids=lambda prompt: prompt.text[:30])
def test_no_two_vivid_replies_to_a_prompt_begin_alike(prompt: ReplyPrompt) -> None:
    openings = [tuple(reply.split()[:5]) for reply in prompt.replies.values()]
    assert len(set(openings)) == len(openings)


# what is refused


def document(**changes: object) -> str:
    table = {"split": "train", "kind": "note", "text": "Write a note.", "replies": replies()}
    return tomli_w.dumps({"prompt": [{**table, **changes}]})


def replies(**changes: str) -> dict[str, str]:
    return {name: f"A note that is {name}." for name in VOICES} | changes


def test_a_file_gives_its_prompts() -> None:
    (prompt,) = parse_replies(document(), "mine")
    assert (prompt.text, prompt.kind, prompt.split) == ("Write a note.", "note", "train")
    assert prompt.replies["angry"] == "A note that is angry."


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("prompt = [", "mine: not TOML"),
        ("prompt = 3", "not a list of tables"),
        (document(split="holdout"), "prompt 1: no split 'holdout'"),
        (document(text=" "), "prompt 1: text is ' '"),
        (document(replies={"angry": "No!"}), "replies has no 'neutral'"),
        (document(replies=replies(jealous="Mine.")), "unknown key 'jealous'"),
        (document(replies=replies(angry="")), "angry is ''"),
        (document(replies=replies(angry="A note that is sad.")), "the same text twice"),
        (document() + document(), "the same text twice"),
    ],
)
def test_a_broken_file_is_refused_by_name(text: str, why: str) -> None:
    with pytest.raises(InputError, match=re.escape(why)):
        parse_replies(text, "mine")


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(InputError, match="no split 'eval'"):
        reply_prompts("eval")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("split", "style", "why"),
    [("train", "loud", "no style 'loud'"), ("test", "simple", "vivid ones only")],
)
def test_a_style_that_a_split_has_not_is_refused(split: str, style: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        reply_prompts(split, style)  # type: ignore[arg-type]


def test_bundled_files_name_their_use(request: pytest.FixtureRequest) -> None:
    folder = Path(str(request.config.rootpath)) / "extract" / "data" / "replies"
    assert {path.stem for path in folder.glob("*.toml")} == {
        *SPLITS,
        "train_simple",
        "watch_simple",
    }
