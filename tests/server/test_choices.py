"""Several choices of one request, whole and streamed; and steps of a guard as they happen."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from serving import CHAT, TEXT, chat, events
from starlette.testclient import TestClient

from pyemo import Token
from pyemo.server.bodies import chat_asked
from pyemo.server.service import Service

WARM = {"temperature": 0.9, "seed": 11, "steering": "warm=0.3", "max_tokens": 10}


def contents(client: TestClient, **fields: Any) -> list[str]:
    answer = client.post(CHAT, json=chat(**WARM | fields))
    assert answer.status_code == 200, answer.text
    return [choice["message"]["content"] for choice in answer.json()["choices"]]


def test_each_choice_is_the_reply_of_the_next_seed(client: TestClient) -> None:
    several = contents(client, n=3)
    assert several == [contents(client, seed=11 + i)[0] for i in range(3)]
    assert len(set(several)) == 3


def test_choices_say_their_index_and_seed_and_the_prompt_counts_once(client: TestClient) -> None:
    one = client.post(CHAT, json=chat(**WARM)).json()
    two = client.post(CHAT, json=chat(**WARM, n=2)).json()
    assert [choice["index"] for choice in two["choices"]] == [0, 1]
    assert [choice["pyemo"]["seed"] for choice in two["choices"]] == [11, 12]
    assert two["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert two["usage"]["completion_tokens"] == 2 * one["usage"]["completion_tokens"]
    assert two["usage"]["total_tokens"] == sum(
        two["usage"][name] for name in ("prompt_tokens", "completion_tokens")
    )


@pytest.mark.parametrize("logprobs", [False, True])
def test_a_stream_of_choices_carries_each_with_its_index(
    client: TestClient, logprobs: bool
) -> None:
    body = chat(**WARM, n=3, logprobs=logprobs)
    whole = client.post(CHAT, json=body).json()["choices"]
    streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
    parts = events(client.post(CHAT, json=streamed).text)
    assert parts[-1]["usage"]["completion_tokens"] == 30
    choices = [part["choices"][0] for part in parts[:-1]]
    for index in range(3):
        own = [choice for choice in choices if choice["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        text = "".join(choice["delta"].get("content") or "" for choice in own)
        assert text == whole[index]["message"]["content"]
        assert [choice["finish_reason"] for choice in own][-2:] == [None, "length"]
        if logprobs:
            told = [t for choice in own[:-1] for t in choice["logprobs"]["content"]]
            assert told == whole[index]["logprobs"]["content"]


def test_choices_of_a_text_have_offsets_of_their_own(client: TestClient) -> None:
    body = {"prompt": "the happy", "n": 2, "max_tokens": 4, "seed": 2, "logprobs": 0}
    choices = client.post(TEXT, json=body).json()["choices"]
    for choice in choices:
        assert choice["logprobs"]["text_offset"][0] == 0
        assert len(choice["logprobs"]["tokens"]) == 4


@pytest.mark.parametrize("n", [0, -1, 5, 10**9, 1.5, "many"])
def test_more_choices_than_sequences_are_refused_by_name(client: TestClient, n: Any) -> None:
    answer = client.post(CHAT, json=chat(n=n))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "n"


def test_a_mood_changed_in_mid_reply_is_that_of_all_choices(service: Service) -> None:
    both_run, may_go_on = threading.Event(), threading.Event()
    begun: set[int] = set()

    def hold(index: int, token: Token) -> None:
        begun.add(index)
        if len(begun) == 2 and not both_run.is_set():
            both_run.set()
            assert may_go_on.wait(60)

    asked = chat_asked(chat(**WARM | {"max_tokens": 40}, n=2))
    live = service.begin(asked, None, "c-", on_token=hold, on_end=lambda index, ticket: None)
    assert both_run.wait(60)
    service.steer(live.id, {"cold": 0.1})
    may_go_on.set()
    for ticket in live.tickets:
        assert [mood.terms[0].vector.name for _, mood in ticket.wait(60).moods] == ["warm", "cold"]
    service.forget(live)


# --- the guard's steps ---


def test_steps_of_the_guard_come_before_the_text_that_they_led_to(client: TestClient) -> None:
    body = chat(steering="warm=3", max_tokens=60, stream=True, pyemo={"guard": True, "live": True})
    choices = [part["choices"][0] for part in events(client.post(CHAT, json=body).text)]
    steps = [i for i, one in enumerate(choices) if "factor" in one["pyemo"].get("guard", {})]
    last = choices[-1]["pyemo"]["guard"]
    back = [choices[i] for i in steps[:-1] if choices[i]["pyemo"]["guard"]["trouble"]]
    assert len(back) == last["steps_back"] > 0
    assert back[0]["pyemo"]["regime"] in ("collapse", "explosion")
    assert back[0]["pyemo"]["guard"]["factor"] < 1
    first_text = next(i for i, one in enumerate(choices) if one["delta"].get("content"))
    assert steps[0] < first_text


def test_a_stream_that_asks_for_no_readings_has_no_steps(client: TestClient) -> None:
    body = chat(steering="warm=3", max_tokens=60, stream=True, pyemo={"guard": True})
    parts = events(client.post(CHAT, json=body).text)
    assert all("pyemo" not in part["choices"][0] for part in parts[:-1])
    assert parts[-1]["choices"][0]["pyemo"]["guard"]["steps_back"] > 0
