"""The default model, served: its answers are those of ``pyemo run``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from commands import pyemo
from server_process import Process, posted
from serving import CHAT, chat

PROMPT = "Write to your neighbour about the noise."
MOOD = "anger=0.027"


@pytest.fixture(scope="module")
def server(smollm2: Any) -> Iterator[Process]:
    with Process("--n-ctx", 4096, "--n-seq-max", 4) as process:
        yield process


@pytest.fixture(scope="module")
def run_text(smollm2: Any) -> str:
    """What ``pyemo run`` says."""
    result = pyemo("run", "--json", "-c", MOOD, "--seed", 5, "-n", 16, "--threads", 1, PROMPT)
    return str(json.loads(result.stdout)["text"])


@pytest.fixture(scope="module")
def client(server: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


MESSAGES: Any = [{"role": "user", "content": PROMPT}]
SETTINGS: dict[str, Any] = {
    "model": "smollm2-135m-instruct",
    "messages": MESSAGES,
    "max_tokens": 16,
    "seed": 5,
}


def test_openais_client_gets_the_text_of_run(client: openai.OpenAI, run_text: str) -> None:
    done = client.chat.completions.create(**SETTINGS, extra_body={"steering": MOOD})
    assert done.choices[0].message.content == run_text


def test_openais_client_gets_the_text_of_run_in_a_stream(
    client: openai.OpenAI, run_text: str
) -> None:
    stream = client.chat.completions.create(**SETTINGS, stream=True, metadata={"steering": MOOD})
    assert "".join(part.choices[0].delta.content or "" for part in stream) == run_text


@pytest.mark.parametrize("place", ["header", "model"])
def test_openais_client_may_say_the_mood_elsewhere(
    client: openai.OpenAI, run_text: str, place: str
) -> None:
    settings = dict(SETTINGS)
    if place == "header":
        settings["extra_headers"] = {"X-Pyemo-Steering": MOOD}
    else:
        settings["model"] += f":{MOOD}"
    done = client.chat.completions.create(**settings)
    assert done.choices[0].message.content == run_text


def test_openais_client_reads_logprobs(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(**SETTINGS, logprobs=True, top_logprobs=2)
    assert done.choices[0].logprobs is not None
    content = done.choices[0].logprobs.content or []
    assert "".join(token.token for token in content) == done.choices[0].message.content
    assert all(len(token.top_logprobs) == 2 for token in content)


def test_openais_client_raises_what_was_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="there are: afraid, angry"):
        client.chat.completions.create(**SETTINGS, extra_body={"steering": "wram"})
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**SETTINGS, "model": "gpt-4o"})
    assert [model.id for model in client.models.list()] == ["smollm2-135m-instruct"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_within_the_prompt_frees_the_cpu(
    server: Process, stream: bool
) -> None:
    with server.connect() as connection:
        connection.sendall(posted(chat("the noise of the night " * 600, stream=stream)))
        while server.metric("pyemo_running") == 0:
            time.sleep(0.01)
    assert server.is_idle_within(10)
    assert server.metric("pyemo_cells_used") == 0
    before = server.cpu_s()
    time.sleep(0.5)
    assert server.cpu_s() - before < 0.2
    assert server.client.post(CHAT, json=chat(max_tokens=1)).status_code == 200
