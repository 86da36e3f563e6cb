"""Replies that a request's grammar or JSON schema rules, over every route."""

from __future__ import annotations

import json
from typing import Any

import pytest
from serving import CHAT, TEXT, chat, events, streamed_text
from starlette.testclient import TestClient

SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["calm", "sad"]}, "n": {"type": "integer", "maximum": 9}},
    "required": ["mood", "n"],
}
ASKED: dict[str, dict[str, Any]] = {
    "openai": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "mood", "strict": True, "schema": SCHEMA},
        }
    },
    "llama.cpp": {"json_schema": SCHEMA},
    "llama.cpp, in the format": {"response_format": {"type": "json_object", "schema": SCHEMA}},
}


def holds(text: str) -> bool:
    value = json.loads(text)
    return list(value) == ["mood", "n"] and value["mood"] in ("calm", "sad") and value["n"] <= 9


@pytest.mark.parametrize("fields", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("steering", [{}, {"warm": 0.3}])
def test_a_reply_meets_the_schema_in_every_spelling_and_mood(
    client: TestClient, fields: dict[str, Any], steering: dict[str, float]
) -> None:
    body = chat(max_tokens=200, seed=1, temperature=0.9, steering=steering, **fields)
    choice = client.post(CHAT, json=body).json()["choices"][0]
    assert holds(choice["message"]["content"])
    assert choice["finish_reason"] == "stop"


def test_a_stream_carries_the_same_text_and_ends_with_it(client: TestClient) -> None:
    body = chat(max_tokens=200, seed=1, **ASKED["openai"])
    whole = client.post(CHAT, json=body).json()["choices"][0]["message"]["content"]
    parts = events(client.post(CHAT, json=body | {"stream": True}).text)
    assert streamed_text(parts) == whole
    assert parts[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_text_is_continued_as_the_grammar_asks(client: TestClient) -> None:
    body = {"prompt": "the happy", "grammar": 'root ::= " story" | " and"', "seed": 0}
    assert client.post(TEXT, json=body).json()["choices"][0]["text"] in (" story", " and")


def test_any_object_meets_json_object(client: TestClient) -> None:
    """Of random weights a reply may be cut off; what is whole is an object."""
    found = [
        client.post(
            CHAT, json=chat(max_tokens=80, seed=seed, temperature=1, response_format=form)
        ).json()["choices"][0]
        for seed in range(3)
        for form in [{"type": "json_object"}]
    ]
    for choice in found:
        text = choice["message"]["content"]
        assert text.startswith("{")
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("form", [SCHEMA, "json"], ids=["schema", "json"])
def test_ollamas_format_is_understood(client: TestClient, form: Any) -> None:
    body = {"messages": chat()["messages"], "format": form, "stream": False}
    answer = client.post("/api/chat", json=body | {"options": {"num_predict": 200, "seed": 1}})
    text = answer.json()["message"]["content"]
    assert text.startswith("{")
    assert form == "json" or holds(text)


def test_ollamas_format_of_a_number_is_refused(client: TestClient) -> None:
    answer = client.post("/api/chat", json={"messages": chat()["messages"], "format": 5})
    assert answer.status_code == 400
    assert "format" in answer.json()["error"]


def test_a_grammar_that_grows_too_wide_ends_its_own_reply(client: TestClient) -> None:
    """Twice as many readings with every character; the server goes on."""
    grammar = 'root ::= s "!"\ns ::= "a" s "x" | "a" s "y" | "a"'
    answer = client.post(CHAT, json=chat(max_tokens=60, grammar=grammar))
    assert answer.status_code in (200, 400)
    assert answer.status_code == 200 or "too many ways" in answer.json()["error"]["message"]
    assert client.post(CHAT, json=chat()).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_that_no_token_meets_is_refused_with_its_field(
    client: TestClient, stream: bool
) -> None:
    answer = client.post(CHAT, json=chat(grammar=r"root ::= [\uD800-\uDFFF]", stream=stream))
    is_begun = answer.status_code == 200  # a slow machine has sent the stream's head
    error = (events(answer.text)[-1] if is_begun else answer.json())["error"]
    assert error["param"] == "grammar"
