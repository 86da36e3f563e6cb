"""Requests to a server, and what comes back, in few words."""

from __future__ import annotations

import json
from typing import Any

from starlette.testclient import TestClient

from pyemo.server.app import make_app
from pyemo.server.service import Service

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def chat(words: str = "the happy story", **fields: Any) -> dict[str, Any]:
    """Return a body for :data:`CHAT`: greedy, 8 tokens, but for ``fields``."""
    messages = [{"role": "user", "content": words}]
    return {"messages": messages, "max_tokens": 8, "temperature": 0} | fields


def long_chat(**fields: Any) -> dict[str, Any]:
    """Return a body that the tiny llama answers with 1,900 tokens, in about a second.

    Its text depends on the machine's kernels, and ends nowhere by itself.
    """
    length = {"max_tokens": 1900, "ignore_eos": True}
    return chat("hello world") | length | {"temperature": 0.8, "seed": 0} | fields


def second_turn(words: str, first: Any) -> dict[str, Any]:
    """Return the body that goes on from the answer to ``chat(words)``."""
    said = first.json()["choices"][0]["message"]["content"]
    messages = [
        {"role": "user", "content": words},
        {"role": "assistant", "content": said},
        {"role": "user", "content": "and then"},
    ]
    return chat(messages=messages)


def events(text: str) -> list[Any]:
    """Return the events of a stream, the last one's text as it is."""
    lines = [line for line in text.split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines), lines
    datas = [line.removeprefix("data: ") for line in lines]
    assert datas[-1] == "[DONE]"
    return [json.loads(data) for data in datas[:-1]]


def streamed_text(parts: list[Any]) -> str:
    """Return the text that the parts of a stream make."""
    texts = []
    for part in parts:
        for choice in part.get("choices", ()):
            texts.append(choice.get("text") or choice.get("delta", {}).get("content") or "")
    return "".join(texts)


def client_of(service: Service) -> TestClient:
    """Return a client of an open service, within this process."""
    return TestClient(make_app(service), base_url="http://127.0.0.1")
