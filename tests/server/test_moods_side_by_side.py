"""Many requests at once: each has its own mood, and none leaks into another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_families import FAMILIES
from engines import random_vector
from serving import CHAT, TEXT, chat, client_of, events, long_chat
from starlette.testclient import TestClient
from tiny_models import UNSTEERABLE, TinyModel

from pyemo import Model
from pyemo.server.config import ServerConfig
from pyemo.server.service import Service
from pyemo.vectors.metadata import VectorMetadata


def all_at_once(client: TestClient, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the answers to bodies that are sent at the same time, in their order."""
    answers: dict[int, dict[str, Any]] = {}

    def ask(i: int) -> None:
        answers[i] = client.post(CHAT, json=bodies[i]).json()

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers[i] for i in range(len(bodies))]


def test_sixteen_clients_have_sixteen_moods(settings: dict[str, Any]) -> None:
    service = Service(ServerConfig(**{**settings, "n_ctx": 4096, "n_seq_max": 16}))
    client = client_of(service)
    strengths = [round(0.1 * i - 0.8, 1) for i in range(16)]
    bodies = [chat(steering={"warm": strength}, max_tokens=24) for strength in strengths]
    together = all_at_once(client, bodies)
    alone = [client.post(CHAT, json=body).json() for body in bodies]
    for strength, one, other in zip(strengths, together, alone, strict=True):
        assert one["choices"][0]["pyemo"]["terms"][0]["strength"] == strength
        assert one["choices"][0]["message"] == other["choices"][0]["message"]
    texts = {one["choices"][0]["message"]["content"] for one in alone}
    assert len(texts) > 8
    service.close()


def test_a_mood_leaves_nothing_in_the_cache_of_the_next(new_client: Callable[..., Any]) -> None:
    client = new_client(n_seq_max=8, n_ctx=2048)
    moods = ["warm=0.5", "cold=0.5", "", "warm=0.5@1:2", "warm=0.25", "warm=0.5"]
    bodies = [chat("the happy story " * 40, steering=mood, cache_prompt=True) for mood in moods]
    served = [client.post(CHAT, json=body).json() for body in bodies]
    fresh = [new_client(prompt_cache=False).post(CHAT, json=body).json() for body in bodies]
    texts = [[answer["choices"][0]["message"] for answer in answers] for answers in (served, fresh)]
    assert texts[0] == texts[1]
    n_cached = [one["usage"]["prompt_tokens_details"]["cached_tokens"] for one in served]
    assert n_cached[:5] == [0] * 5
    assert n_cached[5] > 64


def test_a_second_turn_reads_only_what_is_new(new_client: Callable[..., Any]) -> None:
    client = new_client()
    messages = [{"role": "user", "content": "the happy story " * 40}]
    first = client.post(CHAT, json=chat(steering="warm=0.2") | {"messages": messages}).json()
    said = first["choices"][0]["message"]["content"]
    messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "and then"}]
    body = chat(steering="warm=0.2", cache_prompt=True) | {"messages": messages}
    second = client.post(CHAT, json=body).json()["usage"]
    assert second["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"]
    for anew in ({"cache_prompt": False}, {"cache_prompt": None, "seed": 7}):
        again = client.post(CHAT, json=body | anew).json()["usage"]
        assert again["prompt_tokens_details"]["cached_tokens"] == 0


def test_clients_with_broken_bodies_disturb_nobody(client: TestClient) -> None:
    bodies = [long_chat(max_tokens=60, steering="warm=0.2") if i % 2 else chat(steering="no=1")
              for i in range(12)]  # fmt: skip
    answers = all_at_once(client, bodies)
    texts = {str(answer["choices"][0]["message"]) for answer in answers[1::2]}
    assert len(texts) == 1
    assert {answer["error"]["code"] for answer in answers[::2]} == {"unknown_vector"}


@pytest.fixture
def thinker(tmp_path: Any, settings: dict[str, Any]) -> Any:
    """A server of a model whose template begins every reply with thoughts."""
    path = FAMILIES["deepseek"].build(tmp_path / "m.gguf")
    service = Service(ServerConfig(**{**settings, "model": str(path), "vectors": None}))
    yield client_of(service)
    service.close()


def test_thoughts_are_reasoning_content(thinker: TestClient) -> None:
    whole = thinker.post(CHAT, json=chat(max_tokens=12)).json()
    message = whole["choices"][0]["message"]
    assert message["content"] == ""
    assert message["reasoning_content"]
    assert "think>" not in message["reasoning_content"]
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == 12
    parts = events(thinker.post(CHAT, json=chat(max_tokens=12, stream=True)).text)
    deltas = [part["choices"][0]["delta"] for part in parts]
    thoughts = "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert thoughts == message["reasoning_content"]
    assert not any(delta.get("content") for delta in deltas)


def test_thoughts_have_no_logprobs_in_the_content(thinker: TestClient) -> None:
    answer = thinker.post(CHAT, json=chat(logprobs=True)).json()
    assert answer["choices"][0]["logprobs"]["content"] == []


def test_a_mood_for_a_model_that_cannot_be_steered_is_refused(
    tiny: Callable[[str], TinyModel], settings: dict[str, Any], tmp_path: Path
) -> None:
    path = tiny(next(iter(UNSTEERABLE))).path
    loaded = Model.load(path)
    known = VectorMetadata(unit="raw").with_source(loaded)
    random_vector(loaded, layers=[1], metadata=known).save(tmp_path / "mine.gguf")
    service = Service(ServerConfig(**{**settings, "model": str(path), "vectors": tmp_path}))
    client = client_of(service)
    body = {"prompt": [1, 2, 3], "max_tokens": 2}
    for stream in (False, True):
        answer = client.post(TEXT, json=body | {"steering": "mine=1", "stream": stream})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["code"] == "steering_unsupported"
    assert client.post(TEXT, json=body).status_code == 200
    service.close()
