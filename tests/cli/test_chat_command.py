"""``pyemo chat``: lines in, replies and messages out, and it goes on after what goes wrong."""

from __future__ import annotations

import io
import json
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import pyemo, start
from rich.console import Console

from pyemo import Chat, ControlVector, Engine, Gauge
from pyemo.cli.live import stream_with_gauges
from pyemo.cli.run_job import Answer
from pyemo.engine.sampling import STANDARD

SMALL = ("--threads", 1, "--max-tokens", 8, "--seed", 3)
CIRCLING = ("--temperature", 0, "--dry-multiplier", 0)


def turns(*arguments: object, lines: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the JSON objects of a chat, one a turn."""
    result = pyemo("chat", *SMALL, "--json", *arguments, stdin="".join(f"{x}\n" for x in lines))
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_replies_are_the_library_s(model: Path) -> None:
    result = pyemo("chat", *SMALL, "-m", model, stdin="the story\nand you\n")
    with (
        Engine(model, n_ctx=512, n_batch=256, n_outputs_max=1, n_threads=1) as engine,
        Chat(engine, sampler=replace(STANDARD, seed=3), max_tokens=8) as chat,
    ):
        said = ["".join(t.text for t in chat.say(user)) for user in ("the story", "and you")]
    assert result.exit_code == 0
    assert result.stdout == "".join(f"{text}\n" for text in said)


def test_json_is_one_object_a_turn(model: Path) -> None:
    first, second = turns("-m", model, lines=("the story", "", "and you"))
    assert (first["user"], second["user"]) == ("the story", "and you")
    assert len(first["tokens"]) == 8
    assert second["n_context_tokens"] > first["n_context_tokens"]
    assert first["stop_reason"] == "length"


def test_mood_acts_from_the_line_it_is_set_on(model: Path, vectors: Path) -> None:
    plain = turns("-m", model, lines=("the story", "and you"))
    mood = f"/mood {vectors}/warm.gguf=0.9 {vectors}/cold.gguf=-0.5"
    steered = turns("-m", model, lines=("the story", mood, "and you"))
    assert steered[0]["text"] == plain[0]["text"]
    assert steered[1]["text"] != plain[1]["text"]
    terms = steered[1]["steering"]["terms"]
    assert [(term["vector"], term["strength"]) for term in terms] == [("warm", 0.9), ("cold", -0.5)]


def test_mood_off_steers_no_more(model: Path, vectors: Path) -> None:
    plain = turns("-m", model, lines=("the story",))
    steered = turns("-m", model, "-c", f"{vectors}/warm.gguf=0.9", lines=("/mood off", "the story"))
    assert steered[0]["text"] == plain[0]["text"]
    assert steered[0]["steering"]["terms"] == []


def test_mood_of_the_command_line_is_the_first(model: Path, vectors: Path) -> None:
    (turn,) = turns("-m", model, "-c", f"{vectors}/warm.gguf=0.9", lines=("the story",))
    assert [term["vector"] for term in turn["steering"]["terms"]] == ["warm"]


def test_mood_is_shown(model: Path, vectors: Path) -> None:
    lines = f"/mood\n/mood {vectors}/warm.gguf=0.5@1:3\n"
    result = pyemo("chat", *SMALL, "-m", model, stdin=lines)
    assert "mood: unsteered" in result.stderr
    assert "mood: warm=0.5@1:3; dose" in result.stderr
    assert result.stdout == ""


def test_a_new_mood_says_once_that_earlier_turns_keep_theirs(model: Path, vectors: Path) -> None:
    mood = f"/mood {vectors}/warm.gguf=0.5"
    lines = (mood, "/mood", "the story", "/mood", "/mood off", mood)
    result = pyemo("chat", *SMALL, "-m", model, stdin="".join(f"{line}\n" for line in lines))
    told = [line for line in result.stderr.splitlines() if "mood: " in line]
    kept = "what was said before keeps its mood; /refresh computes it anew"
    assert [kept in line for line in told] == [False, False, False, True, False]


def test_refresh_reads_the_conversation_again(model: Path, vectors: Path) -> None:
    mood = f"/mood {vectors}/warm.gguf=0.9"
    kept = turns("-m", model, lines=("the story", mood, "and you"))
    fresh = turns("-m", model, lines=("the story", mood, "/refresh", "and you"))
    logprobs = [[token["logprob"] for token in run[1]["tokens"]] for run in (kept, fresh)]
    assert logprobs[0] != logprobs[1]


def test_reset_begins_anew(model: Path) -> None:
    first, again = turns("-m", model, lines=("the story", "/reset", "the story"))
    assert first["text"] == again["text"]
    assert first["n_context_tokens"] == again["n_context_tokens"]


def test_quit_leaves_later_lines_alone(model: Path) -> None:
    assert len(turns("-m", model, lines=("the story", "/quit", "and you"))) == 1


def test_help_names_every_command(model: Path) -> None:
    result = pyemo("chat", *SMALL, "-m", model, stdin="/help\n")
    for command in ("/mood", "/refresh", "/reset", "/gauges", "/help", "/quit"):
        assert command in result.stderr


def test_gauges_follow_the_mood(model: Path, vectors: Path) -> None:
    mood = f"/mood {vectors}/warm.gguf=0.1"
    before, under, after = turns("-m", model, lines=("a", mood, "b", "/mood off", "c"))
    assert [list(turn["gauges"]) for turn in (before, under, after)] == [[], ["warm"], []]


def test_gauge_of_the_command_line_stays(model: Path, vectors: Path) -> None:
    lines = ("a", f"/mood {vectors}/warm.gguf=0.1", "b")
    before, under = turns("-m", model, "--gauge", f"{vectors}/cold.gguf", lines=lines)
    assert list(before["gauges"]) == ["cold"]
    assert list(under["gauges"]) == ["warm", "cold"]


def test_vector_without_norms_steers_without_a_gauge(model: Path, vectors: Path) -> None:
    (turn,) = turns("-m", model, "-c", f"{vectors}/raw.gguf=1", lines=("the story",))
    assert turn["gauges"] == {}
    assert turn["steering"]["dose"] is None


def test_gauges_are_shown_and_hidden(model: Path, vectors: Path) -> None:
    lines = "a\n/gauges\nb\n"
    result = pyemo("chat", *SMALL, "-m", model, "-c", f"{vectors}/warm.gguf=0.1", stdin=lines)
    assert result.stderr.count("│") == 1


def test_live_gauges_leave_the_whole_text(model: Path, vectors: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=200)
    warm = ControlVector.load(vectors / "warm.gguf")
    with Engine(model, n_threads=1) as engine:
        reply = engine.generate("the story", seed=3, max_tokens=40, gauges=[Gauge(warm)])
        stream_with_gauges(Answer(reply), console)
    shown = screen.getvalue()
    assert "│" in shown
    assert all(line.strip() in shown for line in reply.text.splitlines() if line.isprintable())


def test_full_context_is_said(model: Path) -> None:
    lines = "the story about my day\n" * 12
    result = pyemo("chat", *SMALL, "-m", model, "--n-ctx", 256, stdin=lines)
    assert result.exit_code == 0
    assert "the context is full: the oldest" in result.stderr


def test_base_model_continues_and_says_so(base_model: Path) -> None:
    result = pyemo("chat", *SMALL, "-m", base_model, stdin="the story\nand\n")
    assert result.exit_code == 0
    assert "no chat template" in result.stderr
    assert result.stdout.strip()


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("/mod off", "there are /mood"),
        ("/mood missing.gguf", "check the path"),
        ("/mood x=much", "=0.02"),
        ("/reset all", "/help"),
        ("the story " * 400, "shorten it"),
    ],
)
def test_line_that_fails_is_said_and_the_chat_goes_on(model: Path, line: str, remedy: str) -> None:
    lines = f"{line}\nthe story\n"
    result = pyemo("chat", *SMALL, "-m", model, "--n-ctx", 256, "--json", stdin=lines)
    assert remedy in result.stderr
    assert json.loads(result.stdout)["user"] == "the story"
    assert result.exit_code == 1


def test_bytes_that_are_no_text_are_taken(model: Path) -> None:
    result = pyemo("chat", *SMALL, "-m", model, "--json", stdin=b"the \xff story\n")
    assert json.loads(result.stdout)["user"] == "the \N{REPLACEMENT CHARACTER} story"


def test_nothing_to_read_is_no_error(model: Path) -> None:
    result = pyemo("chat", *SMALL, "-m", model, stdin="")
    assert (result.exit_code, result.stdout) == (0, "")


def test_ctrl_c_stops_the_reply_and_the_chat_goes_on(gemma: Path) -> None:
    arguments = ("-m", gemma, "--threads", 1, "-n", 1500, "--temperature", 0)
    with start("chat", *arguments, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"Once upon a time\n")
        process.stdin.flush()
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.stdin.write(b"/mood\n/quit\n")
        process.stdin.close()
        messages = process.stderr.read().decode()
    assert "stopped; what came so far stays" in messages
    assert "mood: unsteered" in messages
    assert process.returncode == 0


def test_reply_in_circles_is_stopped_and_not_kept(model: Path, vectors: Path) -> None:
    mood = ("-m", model, "--cvec", f"{vectors}/warm.gguf=60", "-n", 90, *CIRCLING)
    first, second = turns(*mood, lines=("the story", "and you"))
    assert first["stop_reason"] == "repetition"
    [free, _] = turns(*mood, "--no-repetition-stop", lines=("the story", "and you"))
    assert free["stop_reason"] == "length"
    assert second["n_context_tokens"] < 2 * free["n_context_tokens"]
    result = pyemo("chat", *SMALL, *mood, stdin="the story\n")
    assert "went in circles" in result.stderr
    assert "not kept" in result.stderr
