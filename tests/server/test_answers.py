"""Shapes of answers that a running model rarely gives."""

from __future__ import annotations

import json
import math

from pyemo.engine.tokens import Token, TokenLogprob
from pyemo.server.answers import ChatShape, Head, Said, TextShape, compact

HEAD = Head("id", 0, "m", "f")
TOKEN = Token(
    "a", 1, -math.inf, 0.0, (TokenLogprob(1, -math.inf, b"a"), TokenLogprob(2, -1.0, b"\xff")),
    bytes=b"a",
)  # fmt: skip


def test_what_cannot_be_is_a_number_in_json() -> None:
    for shape in (ChatShape(HEAD), TextShape(HEAD)):
        part = shape.part(Said("a", tokens=[TOKEN]))
        text = compact(part).decode()
        assert "Infinity" not in text
        assert "-9999.0" in text


def test_bytes_that_are_no_text_are_told_as_bytes() -> None:
    part = ChatShape(HEAD).part(Said("a", tokens=[TOKEN]))
    other = part["choices"][0]["logprobs"]["content"][0]["top_logprobs"][1]
    assert other == {"token": "\ufffd", "logprob": -1.0, "bytes": [255]}


def test_lone_surrogates_never_break_a_stream() -> None:
    assert json.loads(compact({"a": "x\udc80y"})) == {"a": "x?y"}
