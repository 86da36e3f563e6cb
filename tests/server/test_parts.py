"""Thoughts and answers are told apart as they come."""

from __future__ import annotations

import pytest

from pyemo.engine.thoughts import Tags
from pyemo.server.parts import Parts

TAGS = Tags("<think>", "</think>")
SAID = [("<think>\n", "thinking"), ("let me\n\nsee", "thinking"), ("</think>", "thinking")]


def taken(said: list[tuple[str, str]], **options: bool) -> tuple[str, str]:
    """Return what all pieces make, which must be what :class:`Parts` says of itself."""
    parts = Parts(TAGS, **options)
    pieces = [parts.push_text(text, kind) for text, kind in said]
    answer, thoughts = ("".join(column) for column in zip(*pieces, strict=True))
    assert (answer, thoughts) == (parts.answer, parts.thoughts)
    return answer, thoughts


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_tags_are_left_out_however_the_pieces_fall(size: int) -> None:
    text = "".join(piece for piece, _ in SAID)
    pieces = [(text[i : i + size], "thinking") for i in range(0, len(text), size)]
    assert taken([*pieces, ("\n\nYes", "answer"), ("\n!", "answer")]) == ("Yes\n!", "let me\n\nsee")


def test_thoughts_that_the_prompt_began_have_no_first_tag() -> None:
    said = [("well", "thinking"), ("</think>", "thinking"), ("Yes", "answer")]
    assert taken(said) == ("Yes", "well")


def test_thoughts_that_never_end_are_thoughts() -> None:
    assert taken([("<think>well", "thinking"), (" <", "thinking")]) == ("", "well ")


def test_an_answer_without_thoughts_keeps_its_line_ends() -> None:
    assert taken([("\n\nYes", "answer")]) == ("\n\nYes", "")


def test_a_text_that_goes_on_keeps_everything() -> None:
    said = [*SAID, ("\n\nYes", "answer")]
    assert taken(said, is_plain=True) == ("<think>\nlet me\n\nsee</think>\n\nYes", "")
