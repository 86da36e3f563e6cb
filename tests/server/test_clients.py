"""The clients of docs/use-it-from.md against a running server: each gets ``pyemo run``'s text."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner
from commands import pyemo
from pages import ROOT, blocks, read
from server_process import Process, posted
from serving import chat

from pyemo.engine.sampling import STANDARD

PROMPT = "How was your day?"
MODEL = "smollm2-135m-instruct"
MESSAGES: Any = [{"role": "user", "content": PROMPT}]
STEERING = "anger=0.03"
PAGE = read(ROOT / "docs" / "use-it-from.md")


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        find_spec(package) is None,
        reason=f"{package} is not installed: pip install -c constraints.txt '.[clients]'",
    )


def section(title: str) -> str:
    """Return the page's text under a heading."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """An idle server of the default model, with the page's preset."""
    config = tmp_path_factory.mktemp("config") / "pyemo.toml"
    (toml,) = blocks(section("Open WebUI"), "toml")
    config.write_text(toml)
    with Process("--config", config, "--n-ctx", 4096) as server:
        yield server


@pytest.fixture(scope="module")
def url(server: Process) -> str:
    return server.url


@pytest.fixture(scope="module")
def text() -> str:
    """What the page promises that each client gets."""
    settings = ("--threads", 1, "--seed", 7, "--max-tokens", 24, "--cvec", STEERING)
    result = pyemo("run", *settings, PROMPT)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout.removesuffix("\n"))


def run_python(title: str, url: str) -> str:
    """Run the page's first example under a heading; return what it prints."""
    code = blocks(section(title), "python")[0].replace("http://localhost:8080", url)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        # LiteLLM would look its prices up in a network
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGCHAIN_TRACING_V2": ""},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


# --- the page's examples ---


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl: apt install curl")
def test_curl(url: str, text: str) -> None:
    (command,) = blocks(section("curl"), "sh")
    command = command.replace("http://localhost:8080", url)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == text


@needs("openai")
def test_openai_python(url: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(blocks(section("openai-python"), "python")[0].replace("http://localhost:8080", url), {})
    assert capsys.readouterr().out == text + "\n"


@needs("langchain_openai")
def test_langchain(url: str, text: str) -> None:
    assert run_python("LangChain", url) == text


@needs("litellm")
def test_litellm(url: str, text: str) -> None:
    assert run_python("LiteLLM", url) == text


@needs("llm")
@pytest.mark.parametrize("model", ["angry", "angry-by-name"])
def test_llm_with_its_file_of_openai_models(
    url: str, text: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm.cli import cli

    file, command = blocks(section("llm"), "yaml")[0], blocks(section("llm"), "sh")[-1]
    (tmp_path / "extra-openai-models.yaml").write_text(file.replace("http://localhost:8080", url))
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setattr("llm.plugins.LLM_LOAD_PLUGINS", "pyemo")  # none that happens to be there
    program, *words = shlex.split(command.replace("-m angry", f"-m {model}"))
    assert program == "llm"
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert done.stdout == text + "\n"


def test_sillytavern_s_body(url: str, text: str) -> None:
    included = dict(re.findall(r'(\w+): "(.*)"', blocks(section("SillyTavern"), "yaml")[0]))
    body = {
        "messages": MESSAGES,
        "model": MODEL,
        "temperature": STANDARD.temperature,
        "max_tokens": 24,
        "stream": True,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "top_p": 0.95,
        "top_k": 40,
        "stop": [],
        "logit_bias": {},
        "seed": 7,
        "n": 1,
        "logprobs": 0,
        **included,
    }
    assert streamed(url, body, {"Authorization": "Bearer undefined"}) == text


def test_open_webui_s_requests(url: str, text: str) -> None:
    listed = httpx2.get(f"{url}/v1/models", headers={"Authorization": "Bearer none"}).json()
    (name,) = [model["id"] for model in listed["data"] if model["id"].endswith(":angry")]
    usage = {"include_usage": True}
    body = {"stream": True, "model": name, "messages": MESSAGES, "stream_options": usage}
    assert streamed(url, {**body, "seed": 7, "max_tokens": 24}, {}) == text


def streamed(url: str, body: dict[str, Any], headers: dict[str, str]) -> str:
    said = ""
    with httpx2.stream(
        "POST", f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60
    ) as answer:
        assert answer.status_code == 200, answer.read()
        for event in httpx2.EventSource(answer):
            if event.data == "[DONE]":
                break
            for choice in json.loads(event.data)["choices"]:
                said += choice["delta"].get("content") or ""
    return said


# --- openai-python, further ---


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    openai = pytest.importorskip("openai", reason="pip install -c constraints.txt '.[clients]'")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: Any, **fields: Any) -> Any:
    settings = {"model": MODEL, "messages": MESSAGES, "seed": 7, "max_tokens": 24, **fields}
    return client.chat.completions.create(**settings)


SPELLINGS: dict[str, dict[str, Any]] = {
    "object": {"extra_body": {"steering": {"anger": 0.03}}},
    "terms": {"extra_body": {"steering": {"terms": [{"name": "anger", "strength": 0.03}]}}},
    "header": {"extra_headers": {"X-Pyemo-Steering": STEERING}},
    "metadata": {"metadata": {"steering": STEERING}},
    "model": {"model": f"{MODEL}:{STEERING}"},
    "preset": {"model": f"{MODEL}:angry"},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_place_of_a_mood_reaches_the_model(client: Any, text: str, spelling: str) -> None:
    choice = ask(client, **SPELLINGS[spelling]).choices[0]
    assert choice.message.content == text
    assert choice.finish_reason == "length"
    assert choice.pyemo["steering"] == "angry=0.03"


def test_stream_joins_to_the_same_text(client: Any, text: str) -> None:
    options = {"include_usage": True}
    body = {"steering": STEERING}
    parts = list(ask(client, stream=True, stream_options=options, extra_body=body))
    contents = [part.choices[0].delta.content or "" for part in parts if part.choices]
    assert "".join(contents) == text
    assert parts[-1].usage.completion_tokens == 24


def test_logprobs_carry_bytes_and_alternatives(client: Any, text: str) -> None:
    body = {"steering": STEERING}
    answer = ask(client, logprobs=True, top_logprobs=3, extra_body=body)
    tokens = answer.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == text
    assert all(len(token.top_logprobs) == 3 for token in tokens)
    assert all(token.logprob <= 0 for token in tokens)


def test_refusals_are_openai_s_classes(client: Any) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="there are: afraid, angry") as caught:
        ask(client, extra_body={"steering": "angri=0.03"})
    assert caught.value.param == "steering"
    with pytest.raises(openai.NotFoundError, match="nonesuch"):
        ask(client, model="nonesuch")
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, messages=[{"role": "user", "content": "word " * 5000}])
    assert caught.value.code == "context_length_exceeded"


def test_client_that_leaves_ends_the_reply(client: Any, url: str) -> None:
    with ask(client, stream=True, max_tokens=800, extra_body={"steering": STEERING}) as parts:
        next(iter(parts))
    assert ask(client, max_tokens=1).choices[0].message.content  # the server goes on


def test_models_are_listed_with_their_presets(client: Any) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, f"{MODEL}:angry"]


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
    assert server.is_well()


@needs("langchain_openai")
def test_langchain_streams_and_binds_another_mood(url: str, text: str) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports warn
        from langchain_openai import ChatOpenAI

        settings: dict[str, Any] = {"base_url": f"{url}/v1", "api_key": "none", "model": MODEL}
        chat = ChatOpenAI(**settings, seed=7, max_tokens=24)
        bound = chat.bind(extra_body={"steering": STEERING})
        assert "".join(str(part.content) for part in bound.stream(PROMPT)) == text
        assert bound.invoke(PROMPT).content == text
        assert chat.invoke(PROMPT).content != text
