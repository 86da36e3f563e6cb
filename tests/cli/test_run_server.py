"""``pyemo run --server``: the same words, answered by a running server."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import pyemo, start

SMALL = ("-n", 8, "--seed", 3)
KEY = "a-secret"
CIRCLES = ("--repetition-stop", "--no-repetition-stop")


@pytest.fixture(scope="module")
def server(model: Path, vectors: Path) -> Iterator[str]:
    """A server of the tiny llama and its vectors, with a key."""
    options = ("-m", model, "--vectors", vectors, "--threads", 1, "--api-key", KEY)
    with start("serve", "--port", 0, "--json", *options) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.send_signal(signal.SIGTERM)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYEMO_API_KEY", KEY)


def local(model: Path, *words: object) -> str:
    result = pyemo("run", "--threads", 1, "-m", model, *SMALL, *words)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout)


def remote(server: str, *words: object) -> str:
    result = pyemo("run", "--server", server, *SMALL, *words)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout)


def test_reply_is_that_of_the_command_itself(server: str, model: Path) -> None:
    assert remote(server, "the story") == local(model, "the story")


def test_steered_reply_is_that_of_the_command_itself(
    server: str, model: Path, vectors: Path
) -> None:
    options = ("--schedule", "half-life:3", "--scope", "reply", "--system", "the", "the story")
    said = remote(server, "-c", "warm=0.5@1:3", "-c", "cold=-0.2", *options)
    warm, cold = f"{vectors}/warm.gguf=0.5@1:3", f"{vectors}/cold.gguf=-0.2"
    assert said == local(model, "-c", warm, "-c", cold, *options)
    assert said != remote(server, *options)


def test_a_reply_that_its_length_cuts_off_is_said(server: str) -> None:
    result = pyemo("run", "--server", server, "-n", 2, "--seed", 3, "the story")
    assert "stopped after 2 tokens; take a larger --max-tokens" in result.stderr


def test_sampler_and_stop_reach_the_server(server: str, model: Path) -> None:
    options: list[object] = ["--temperature", 1.5, "--top-k", 9, "--top-p", 0.8, "--min-p", 0.01]
    options += ["--repeat-penalty", 1.3]
    options += ["--dry-multiplier", "0", "--stop", "e"]
    options += ["--stay-in-script", "--script", "greek", "the story"]
    assert remote(server, *options) == local(model, *options)


def test_a_grammar_reaches_the_server(server: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "words.gbnf").write_text('root ::= ("yes " | "no ")+', encoding="utf-8")
    options = ("--grammar", tmp_path / "words.gbnf", "the story")
    assert remote(server, *options) == local(model, *options)
    assert remote(server, *options).startswith(("yes ", "no "))


def test_circles_end_or_go_on_as_asked(server: str, model: Path) -> None:
    looping = ("--temperature", 0, "--dry-multiplier", 0, "--repeat-penalty", 0.5)
    options = ("-n", 120, *looping, "the story the story")
    ended, gone_on = (local(model, how, *options) for how in CIRCLES)
    assert len(ended) < len(gone_on)
    assert [remote(server, how, *options) for how in CIRCLES] == [ended, gone_on]


def test_raw_prompt_from_stdin_is_continued(server: str, model: Path) -> None:
    result = pyemo("run", "--server", server, *SMALL, "--raw", "-", stdin="the story\n")
    assert result.stdout == local(model, "--raw", "the story")


def test_gauges_and_guard_are_told_behind_the_reply(server: str) -> None:
    words = ("-c", "warm=3", "--gauge", "cold", "--guard", "-n", 60, "the story")
    result = pyemo("run", "--server", server, *words)
    assert "cold " in result.stderr
    assert "steps back" in result.stderr


def test_json_tells_the_mood_that_was_applied(server: str, model: Path) -> None:
    told = json.loads(remote(server, "--json", "-c", "calibrated", "the story"))
    assert told["server"] == server
    assert told["steering"] == "calibrated=0.3"
    assert told["seed"] == 3
    assert told["stop_reason"] == "length"
    assert told["text"]


def test_comparison_has_both_replies(server: str, model: Path) -> None:
    said = remote(server, "--compare", "-c", "warm=0.5", "the story")
    plain, steered = (remote(server, *mood, "the story") for mood in ((), ("-c", "warm=0.5")))
    assert said == f"--- unsteered ---\n{plain}--- steered ---\n{steered}"
    told: dict[str, Any] = json.loads(
        remote(server, "--compare", "--json", "-c", "warm=0.5", "the story")
    )
    assert told["unsteered"]["text"] + "\n" == plain
    assert told["steered"]["text"] + "\n" == steered


def fails(*words: object) -> str:
    result = pyemo("run", *words)
    assert result.exit_code == 1
    assert result.stdout == ""
    return str(result.stderr)


def test_refusal_is_told_in_the_server_s_words(server: str) -> None:
    told = fails("--server", server, "-c", "wram", "the story")
    assert "refuses: no vector 'wram'" in told
    assert "warm" in told
    assert "no model 'nonesuch'" in fails("--server", server, "-m", "nonesuch", "the story")


def test_missing_key_says_where_it_is_taken_from(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYEMO_API_KEY")
    assert "PYEMO_API_KEY" in fails("--server", server, "the story")


def test_nobody_at_the_address_is_an_error_that_says_its_remedy() -> None:
    with socket.socket() as taken:  # bound and not listening: nobody answers
        taken.bind(("127.0.0.1", 0))
        told = fails("--server", f"127.0.0.1:{taken.getsockname()[1]}", "the story")
    assert "pyemo serve" in told
    assert "pyemo serve" in fails("--server", "http://[::bad", "the story")


@pytest.mark.parametrize(
    "option",
    [("--threads", 1), ("--n-ctx", 64), ("--kv-type", "f32"), ("--guard-exact",)],
    ids=lambda option: option[0],
)
def test_options_of_the_engine_are_wrong_usage(option: tuple[object, ...]) -> None:
    result = pyemo("run", "--server", "localhost:1", *option, "the story")
    assert result.exit_code == 2
    assert "the server's to choose" in result.stderr


def test_asking_a_server_loads_no_engine(server: str) -> None:
    code = (
        "import sys; from pyemo.cli import main; "
        f"main(['run', '--server', {server!r}, '-n', '2', 'x'], standalone_mode=False); "
        "print({'pyemo._core', 'llama_cpp'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
