"""Ollama's clients are answered in their own shape."""

from __future__ import annotations

import json
from typing import Any

import pytest
from serving import CHAT, chat
from starlette.testclient import TestClient

from pyemo.server.ollama import ollama_asked
from pyemo.server.service import Service

PATH = "/api/chat"
USER = {"role": "user", "content": "the happy story"}


def asked(**fields: Any) -> dict[str, Any]:
    options = {"temperature": 0, "num_predict": 8, **fields.pop("options", {})}
    return {"model": "llama:latest", "messages": [USER], "options": options} | fields


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_stream_of_lines_says_what_openais_route_says(client: TestClient) -> None:
    answer = client.post(PATH, json=asked(options={"steer": "warm=0.3"}))
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    parts = lines(answer.text)
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]
    text = "".join(part["message"]["content"] for part in parts)
    other = client.post(CHAT, json=chat(steering="warm=0.3")).json()
    assert text == other["choices"][0]["message"]["content"]
    assert parts[-1]["done_reason"] == "length"
    assert parts[-1]["eval_count"] == 8
    assert parts[-1]["pyemo"]["steering"] == "warm=0.3"


def test_a_whole_answer_is_one_object(client: TestClient) -> None:
    answer = client.post(PATH, json=asked(stream=False, steering={"warm": 0.3})).json()
    assert answer["done"]
    assert answer["message"]["role"] == "assistant"
    assert answer["prompt_eval_count"] > 0
    assert answer["total_duration"] > 0


def test_options_that_are_not_understood_are_named(client: TestClient) -> None:
    answer = client.post(PATH, json=asked(options={"num_ctx": 4096, "mirostat": 0}, keep_alive=5))
    assert answer.headers["X-Pyemo-Ignored"] == "options.num_ctx, options.mirostat"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": "xml"}, "format"),
        ({"options": {"temperature": "hot"}}, "temperature"),
        ({"options": [1]}, "options"),
        ({"options": {"steer": "wram"}}, "there are: calibrated"),
        ({"messages": [{**USER, "images": ["aGk="]}]}, "images"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"model": "mistral"}, "no model 'mistral'"),
        ({"messages": []}, "messages"),
        ({"think": True}, "thinking"),
    ],
)
def test_errors_are_one_text(client: TestClient, fields: dict[str, Any], words: str) -> None:
    body = asked(**fields) if isinstance(fields.get("options", {}), dict) else asked() | fields
    answer = client.post(PATH, json=body)
    assert 400 <= answer.status_code < 500
    assert words in answer.json()["error"]


@pytest.mark.parametrize("n", [-1, -2, None])
def test_no_limit_is_the_contexts_end(n: int | None) -> None:
    assert ollama_asked(asked(options={"num_predict": n})).max_tokens is None


def test_a_think_of_false_is_neutral_for_a_model_without_thoughts(client: TestClient) -> None:
    answer = client.post(PATH, json=asked(stream=False, think=False))
    assert answer.status_code == 200


def test_the_tags_are_the_models(client: TestClient, service: Service) -> None:
    (model,) = client.get("/api/tags").json()["models"]
    assert model["name"] == service.model.name
    assert model["digest"] == service.model.file_sha256
    assert model["size"] == service.model.path.stat().st_size
    assert client.get("/api/version").json()["version"]
