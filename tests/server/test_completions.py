"""Answers of the server: whole and streamed, and equal to what the engine alone writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from serving import CHAT, TEXT, chat, events, streamed_text
from starlette.testclient import TestClient

from pyemo import ControlVector, Engine, SamplerParams, Steering
from pyemo.engine.sampling import STANDARD
from pyemo.server.service import Service

SAMPLED = {"temperature": STANDARD.temperature, "seed": 7}


def alone(service: Service, prompt: Any, vectors: Path, **settings: Any) -> str:
    """Return the text of a new engine's reply, with the vector warm at 0.3."""
    with Engine(service.model, n_ctx=512, n_threads=1, kv_type="f32", n_outputs_max=1) as engine:
        warm = ControlVector.load(vectors / "warm.gguf", model=engine.model)
        reply = engine.generate(prompt, steering=Steering({warm: 0.3}), **settings)
        assert list(reply)
        return reply.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_steered_answer_is_the_engines_own(
    client: TestClient, service: Service, vectors: Path, stream: bool
) -> None:
    answer = client.post(CHAT, json=chat(steering="warm=0.3", stream=stream, **SAMPLED))
    assert answer.status_code == 200, answer.text
    wanted = alone(service, "the happy story", vectors, max_tokens=8, seed=7)
    if stream:
        assert streamed_text(events(answer.text)) == wanted
    else:
        assert answer.json()["choices"][0]["message"]["content"] == wanted


def test_a_text_is_continued_as_the_engine_does(
    client: TestClient, service: Service, vectors: Path
) -> None:
    body = {"prompt": "the happy story", "max_tokens": 8, "steering": {"warm": 0.3}, **SAMPLED}
    answer = client.post(TEXT, json=body).json()
    wanted = alone(service, "the happy story", vectors, max_tokens=8, seed=7, raw=True)
    assert answer["choices"][0]["text"] == wanted
    assert answer["object"] == "text_completion"


def test_steering_changes_the_answer(client: TestClient) -> None:
    texts = {
        client.post(CHAT, json=chat(steering=mood)).json()["choices"][0]["message"]["content"]
        for mood in ("", "warm=0.5", "cold=0.5")
    }
    assert len(texts) == 3


def test_a_prompt_may_be_tokens(client: TestClient, service: Service) -> None:
    tokens = service.model.prompt_tokens("the happy story", raw=True)
    texts = [
        client.post(TEXT, json={"prompt": prompt, "max_tokens": 6, "temperature": 0}).json()
        for prompt in ("the happy story", tokens, [tokens], ["the happy story"])
    ]
    assert len({text["choices"][0]["text"] for text in texts}) == 1


def test_an_answer_has_openais_shape(client: TestClient, service: Service) -> None:
    answer = client.post(CHAT, json=chat(seed=3)).json()
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["model"] == service.model.name
    (choice,) = answer["choices"]
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "length"
    used = answer["usage"]
    assert used["completion_tokens"] == 8
    assert used["total_tokens"] == used["prompt_tokens"] + 8


def test_a_stream_begins_with_the_role_and_ends_with_reason_and_usage(client: TestClient) -> None:
    body = chat(stream=True, stream_options={"include_usage": True})
    parts = events(client.post(CHAT, json=body).text)
    assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [part["choices"][0]["finish_reason"] for part in parts[:-2]] == [None] * (len(parts) - 2)
    assert parts[-2]["choices"][0]["finish_reason"] == "length"
    assert parts[-1]["choices"] == []
    assert parts[-1]["usage"]["completion_tokens"] == 8
    assert len({part["id"] for part in parts}) == 1


def test_a_stream_says_no_usage_unless_asked(client: TestClient) -> None:
    parts = events(client.post(CHAT, json=chat(stream=True)).text)
    assert not any("usage" in part for part in parts)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_have_bytes_that_make_the_text(client: TestClient, stream: bool) -> None:
    body = chat(logprobs=True, top_logprobs=3, stream=stream)
    answer = client.post(CHAT, json=body)
    parts = events(answer.text) if stream else [answer.json()]
    found = [
        token
        for part in parts
        for token in (part["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    text = streamed_text(parts) if stream else parts[0]["choices"][0]["message"]["content"]
    data = bytes(byte for token in found for byte in token["bytes"])
    assert data.decode(errors="replace") == text
    assert all(len(token["top_logprobs"]) == 3 for token in found)
    assert all(token["logprob"] <= 0 for token in found)
    for token in found:
        ranked = [top["logprob"] for top in token["top_logprobs"]]
        assert ranked == sorted(ranked, reverse=True)


def test_logprobs_without_alternatives_have_an_empty_list(client: TestClient) -> None:
    answer = client.post(CHAT, json=chat(logprobs=True)).json()
    assert answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_logprobs_of_a_text_are_parallel_lists(client: TestClient) -> None:
    body = {"prompt": "the happy story", "max_tokens": 5, "logprobs": 2, "temperature": 0}
    found = client.post(TEXT, json=body).json()["choices"][0]["logprobs"]
    assert {len(found[key]) for key in found} == {5}
    assert found["text_offset"][0] == 0


def test_a_stop_string_ends_the_answer_and_is_not_in_it(client: TestClient) -> None:
    whole = client.post(CHAT, json=chat()).json()["choices"][0]["message"]["content"]
    stop = whole[4:7]
    choice = client.post(CHAT, json=chat(stop=stop)).json()["choices"][0]
    assert choice["message"]["content"] == whole[: whole.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_an_answer_without_seed_says_which_one_it_drew(client: TestClient) -> None:
    body = chat(temperature=1.0, max_tokens=12)
    first = client.post(CHAT, json=body).json()["choices"][0]
    again = client.post(CHAT, json={**body, "seed": first["pyemo"]["seed"]}).json()["choices"][0]
    assert again["message"] == first["message"]
    other = client.post(CHAT, json=body).json()["choices"][0]
    assert other["pyemo"]["seed"] != first["pyemo"]["seed"]


def test_a_message_of_the_assistant_is_continued(client: TestClient, service: Service) -> None:
    begun = [{"role": "user", "content": "the happy"}, {"role": "assistant", "content": "story"}]
    body = {**chat(), "messages": begun, "continue_final_message": True}
    choice = client.post(CHAT, json=body).json()["choices"][0]
    with Engine(service.model, n_ctx=512, n_threads=1, kv_type="f32") as engine:
        sampler = SamplerParams(temperature=0, dry_multiplier=STANDARD.dry_multiplier)
        reply = engine.generate(begun, max_tokens=8, sampler=sampler)
        assert choice["message"]["content"] == "".join(token.text for token in reply)


def test_a_guarded_answer_says_what_its_guard_did(client: TestClient) -> None:
    choice = client.post(CHAT, json=chat(steering="warm=0.3", pyemo={"guard": True})).json()
    assert choice["choices"][0]["pyemo"]["guard"]["factor"] <= 1.0


def test_gauges_are_read_at_every_token_of_a_stream(client: TestClient) -> None:
    body = chat(steering="warm=0.3", stream=True, pyemo={"gauges": ["warm", "cold@2"]})
    parts = events(client.post(CHAT, json=body).text)
    readings = [part["choices"][0]["pyemo"] for part in parts[:-1]]
    assert len(readings) == 8
    assert all(set(reading["gauges"]) == {"warm", "cold@2"} for reading in readings)
    assert all(reading["regime"] in ("surgical", "collapse", "explosion") for reading in readings)
    assert readings[0]["dose"] > 0
    last = parts[-1]["choices"][0]["pyemo"]
    mean = sum(reading["gauges"]["warm"] for reading in readings) / 8
    assert last["gauges"]["warm"] == pytest.approx(mean, abs=1e-5)
