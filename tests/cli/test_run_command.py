"""``pyemo run``: what it prints where, what it refuses, and what it says then."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import pyemo, start
from tiny_models import build_tiny

from pyemo import CacheVector, ControlVector, Engine, SamplerParams, Sequence, Steering
from pyemo.engine.sampling import STANDARD
from pyemo.errors import VectorNotFoundError
from pyemo.files.catalog import list_vectors
from pyemo.vectors.metadata import VectorMetadata

SMALL = ("--threads", 1, "--max-tokens", 8, "--seed", 3)
CIRCLING = ("--temperature", 0, "--dry-multiplier", 0)


def run_json(*arguments: object, stdin: str | None = None) -> dict[str, Any]:
    result = pyemo("run", *SMALL, "--json", *arguments, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    described: dict[str, Any] = json.loads(result.stdout)
    return described


def library_text(model: Path, steering: Steering | None = None) -> str:
    with Engine(model, n_ctx=256, n_batch=256, n_outputs_max=1, n_threads=1) as engine:
        reply = engine.generate("the story", steering=steering or Steering(), max_tokens=8, seed=3)
        return "".join(token.text for token in reply)


# --- results ---


def test_reply_is_the_library_s(model: Path) -> None:
    result = pyemo("run", *SMALL, "-m", model, "the story")
    assert result.exit_code == 0
    assert result.stdout == library_text(model) + "\n"


def test_steered_reply_is_the_library_s(model: Path, vectors: Path) -> None:
    warm = ControlVector.load(vectors / "warm.gguf")
    result = pyemo("run", *SMALL, "-m", model, "-c", f"{vectors}/warm.gguf=0.5", "the story")
    assert result.stdout == library_text(model, Steering({warm: 0.5})) + "\n"


def test_result_and_messages_are_apart(model: Path, vectors: Path) -> None:
    result = pyemo("run", *SMALL, "-m", model, "-c", vectors / "warm.gguf", "--json", "the story")
    json.loads(result.stdout)
    assert "strength 0.02, the default" in result.stderr


def test_text_comes_token_by_token(smollm2: Path) -> None:
    with start("run", "--threads", 1, "-n", 60, "--raw", "-m", smollm2, "Once upon") as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        assert process.poll() is None  # the rest is still to come
        process.stdout.read()
    assert process.returncode == 0


def test_json_has_all_that_is_needed_to_repeat_it(model: Path, vectors: Path) -> None:
    described = run_json("-m", model, "-c", f"{vectors}/warm.gguf=0.25@1:3", "the story")
    assert described["text"] == "".join(token["text"] for token in described["tokens"])
    assert described["prompt"] == "the story"
    assert described["sampler"]["seed"] == 3
    assert described["engine"]["n_threads"] == 1
    assert len(described["model"]["sha256"]) == 64
    (term,) = described["steering"]["terms"]
    assert (term["vector"], term["strength"], term["layers"]) == ("warm", 0.25, [1, 3])
    assert term["fit"] == "same file"
    assert described["steering"]["dose"] > 0
    assert described["stop_reason"] == "length"


def test_json_is_the_same_reply(model: Path) -> None:
    assert run_json("-m", model, "the story")["text"] == library_text(model)


def test_comparison_has_both_replies_as_each_alone(model: Path, vectors: Path) -> None:
    cvec = ("-c", f"{vectors}/warm.gguf=0.5")
    both = run_json("-m", model, "--compare", *cvec, "the story")
    assert both["unsteered"]["text"] == run_json("-m", model, "the story")["text"]
    assert both["steered"]["text"] == run_json("-m", model, *cvec, "the story")["text"]


def test_comparison_shows_both_texts_under_their_titles(model: Path, vectors: Path) -> None:
    arguments = ("-m", model, "--compare", "-c", f"{vectors}/warm.gguf=0.5", "the story")
    result = pyemo("run", *SMALL, *arguments)
    _, _, rest = result.stdout.partition("--- unsteered ---\n")
    plain, _, steered = rest.partition("\n--- warm=0.5 ---\n")
    assert plain == library_text(model)
    assert steered.rstrip("\n") != plain


def test_prompt_comes_from_stdin(model: Path) -> None:
    assert run_json("-m", model, "-", stdin="the story\n")["prompt"] == "the story"


def test_prompt_of_any_bytes_is_read(model: Path) -> None:
    result = pyemo("run", *SMALL, "-m", model, "--json", "-", stdin=b"the \xff story")
    assert json.loads(result.stdout)["prompt"] == "the \N{REPLACEMENT CHARACTER} story"


def test_system_message_is_used(model: Path) -> None:
    plain = run_json("-m", model, "the story")
    told = run_json("-m", model, "--system", "you are happy", "the story")
    assert told["n_prompt_tokens"] > plain["n_prompt_tokens"]


def test_raw_leaves_out_the_template(model: Path) -> None:
    raw = run_json("-m", model, "--raw", "the story")
    assert raw["n_prompt_tokens"] < run_json("-m", model, "the story")["n_prompt_tokens"]


def test_base_model_says_that_it_has_no_template(base_model: Path) -> None:
    result = pyemo("run", *SMALL, "-m", base_model, "the story")
    assert result.exit_code == 0
    assert "no chat template" in result.stderr


def test_stop_string_may_have_escapes() -> None:
    from pyemo.cli.options import _unescaped

    texts = ["\\n", "a\\tb", "\\\\n", "\\q", "plain"]
    assert [_unescaped(text) for text in texts] == ["\n", "a\tb", "\\n", "\\q", "plain"]


def test_scope_of_the_reply_steers_its_first_token(model: Path, vectors: Path) -> None:
    arguments = ("-m", model, "-n", 1, "--temperature", 0, "the story")
    plain = run_json(*arguments)["tokens"][0]["logprob"]
    vector = ("-c", f"{vectors}/warm.gguf=0.5")
    steered = run_json("--scope", "reply", *vector, *arguments)["tokens"][0]["logprob"]
    assert abs(steered - plain) > 0.01


def test_tokens_have_their_bytes_and_kind(model: Path) -> None:
    described = run_json("-m", model, "the story")
    data = b"".join(bytes(token["bytes"]) for token in described["tokens"])
    assert data.decode("utf-8", "replace") == described["text"] == described["answer"]
    assert {token["kind"] for token in described["tokens"]} == {"answer"}


@pytest.fixture
def thinking_model(tmp_path: Path) -> Path:
    """A tiny llama whose template thinks unless it is told not to, and shows a variable."""
    template = (
        "<|im_start|>{{ messages[0].content }}{{ mark }}"
        "{% if enable_thinking is defined and not enable_thinking %}</think>{% else %}<think>"
        "{% endif %}"
    )
    return build_tiny("llama", tmp_path / "model.gguf", chat_template=template).path


def test_thinking_is_turned_off_by_an_option(thinking_model: Path) -> None:
    thinking = run_json("-m", thinking_model, "the story")
    assert {token["kind"] for token in thinking["tokens"]} == {"thinking"}
    told = run_json("-m", thinking_model, "--think", "off", "the story")
    assert told["answer"] == told["text"]


def test_variable_of_the_template_is_json_or_text(thinking_model: Path) -> None:
    def n_prompt(*arguments: object) -> int:
        return int(run_json("-m", thinking_model, *arguments, "the story")["n_prompt_tokens"])

    assert n_prompt("--template-arg", "mark=xy") == n_prompt() + 2
    assert n_prompt("--template-arg", "mark=12") == n_prompt() + 2
    off = n_prompt("--template-arg", "enable_thinking=false")
    assert off == n_prompt("--think", "off")


def test_thinking_of_a_model_that_does_not_think_is_refused(model: Path) -> None:
    result = pyemo("run", *SMALL, "-m", model, "--think", "on", "the story")
    assert result.exit_code == 1
    assert "no switch for thinking" in result.stderr


def test_stop_string_ends_the_reply(model: Path) -> None:
    whole = run_json("-m", model, "the story")["text"]
    stopped = run_json("-m", model, "--stop", whole[3:5], "the story")
    assert stopped["text"] == whole[:3]
    assert stopped["stop_reason"] == "stop"


def test_greedy_needs_no_seed(model: Path) -> None:
    texts = {
        run_json("-m", model, "--temperature", 0, "--seed", seed, "the story")["text"]
        for seed in (1, 2, 3)
    }
    assert len(texts) == 1


# --- moods ---


def test_a_reply_that_its_length_cuts_off_is_said(model: Path, vectors: Path) -> None:
    words = ("run", "--threads", 1, "-n", 2, "-m", model, "the story")
    assert "stopped after 2 tokens; take a larger --max-tokens" in pyemo(*words).stderr
    both = pyemo(*words, "--compare", "-c", f"{vectors}/warm.gguf=0.1").stderr
    assert [line.split(":")[0] for line in both.splitlines() if "larger --max-tokens" in line] == [
        "unsteered",
        "warm=0.1",
    ]


def test_several_vectors_are_one_mood(model: Path, vectors: Path) -> None:
    warm, cold = (ControlVector.load(vectors / f"{name}.gguf") for name in ("warm", "cold"))
    cvecs = ("-c", f"{vectors}/warm.gguf=0.5", "-c", f"{vectors}/cold.gguf=-0.25")
    described = run_json("-m", model, *cvecs, "the story")
    assert described["text"] == library_text(model, Steering({warm: 0.5, cold: -0.25}))


def test_strength_is_for_vectors_without_their_own(model: Path, vectors: Path) -> None:
    cvecs = ("-c", f"{vectors}/warm.gguf", "-c", f"{vectors}/cold.gguf=-0.25")
    terms = run_json("-m", model, *cvecs, "--strength", 0.1, "the story")["steering"]["terms"]
    assert [term["strength"] for term in terms] == [0.1, -0.25]


@pytest.mark.parametrize(
    ("asked", "n", "schedule", "strength", "reason", "is_said"),
    [
        (400, 40, "constant", 0.3, "end", True),
        (128, 40, "constant", 0.3, "end", False),  # the length of all replies: nobody asked
        (400, 300, "constant", 0.3, "end", False),
        (400, 40, "half-life:64", 0.3, "end", False),
        (400, 40, "constant", 0.0, "end", False),
        (400, 40, "constant", 0.3, "stop", False),
    ],
)
def test_a_long_reply_that_a_trained_vector_ended_is_explained(
    asked: int, n: int, schedule: str, strength: float, reason: str, is_said: bool
) -> None:
    from pyemo.cli.run_job import _learned_to_end

    metadata = VectorMetadata(strength=0.3)
    steering = Steering({ControlVector({1: [1.0, 0.0]}, metadata=metadata): strength})
    mood = SimpleNamespace(schedule=schedule)
    job: Any = SimpleNamespace(request=SimpleNamespace(max_tokens=asked, mood=mood))
    reply = SimpleNamespace(
        stop_reason=reason, tokens=[None] * n, sequence=SimpleNamespace(steering=steering)
    )
    answer: Any = SimpleNamespace(reply=reply)
    assert _learned_to_end(job, answer) is is_said
    steering = Steering({ControlVector({1: [1.0, 0.0]}): strength})
    reply.sequence.steering = steering  # a vector that nobody trained
    assert not _learned_to_end(job, answer)


def test_auto_takes_what_the_vector_knows(model: Path, vectors: Path) -> None:
    words = ("-c", vectors / "calibrated.gguf", "--strength", "auto", "story")
    result = pyemo("run", *SMALL, "-m", model, "--json", *words)
    assert result.exit_code == 0, result.stderr
    (term,) = json.loads(result.stdout)["steering"]["terms"]
    assert (term["strength"], term["strength_source"]) == (0.3, "calibration")
    assert "was found" not in result.stderr


def test_calibrated_strength_is_taken_and_said(model: Path, vectors: Path) -> None:
    result = pyemo("run", *SMALL, "-m", model, "--json", "-c", vectors / "calibrated.gguf", "story")
    (term,) = json.loads(result.stdout)["steering"]["terms"]
    assert (term["strength"], term["strength_source"]) == (0.3, "calibration")
    assert "calibrated: strength 0.3, as calibrated" in result.stderr
    said = result.stderr.replace("\n", " ")
    works = "it works from 0.2 (below: no effect) to 0.4 (above: the text may break)"
    assert f"on texts of 64 tokens {works}" in said
    assert "longer ones may loop" not in said


def test_a_reply_longer_than_its_calibration_is_said(model: Path, vectors: Path) -> None:
    vector = vectors / "calibrated.gguf"
    result = pyemo("run", "-m", model, "--threads", 1, "-n", 65, "-c", vector, "story")
    assert "longer ones may loop (--guard)" in result.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    "options",
    [
        ("--scope", "reply"),
        ("--schedule", "half-life:2"),
        ("--operator", "project_out"),
        ("--layers", "1:2"),
    ],
)
def test_option_of_the_mood_changes_the_numbers(
    model: Path, vectors: Path, options: tuple[str, str]
) -> None:
    cvec = ("-c", f"{vectors}/warm.gguf=0.7")
    plain = run_json("-m", model, *cvec, "the story")
    changed = run_json("-m", model, *cvec, *options, "the story")
    assert [t["logprob"] for t in plain["tokens"]] != [t["logprob"] for t in changed["tokens"]]
    key = options[0].removeprefix("--")
    expected = [1, 2] if key == "layers" else options[1]
    assert changed["steering"]["terms"][0][key] == expected


def test_gauge_reads_every_token(model: Path, vectors: Path) -> None:
    described = run_json("-m", model, "--gauge", f"{vectors}/warm.gguf@2", "the story")
    assert all(list(token["gauges"]) == ["warm@2"] for token in described["tokens"])


def test_gauge_is_shown_after_the_text(model: Path, vectors: Path) -> None:
    result = pyemo("run", *SMALL, "-m", model, "--gauge", vectors / "warm.gguf", "the story")
    assert "warm" in result.stderr
    assert "│" in result.stderr


# --- what is refused ---


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (("-c", "{v}/raw.gguf"), "pyemo rescale"),
        (("-c", "{v}/other.gguf"), "use a vector made for this model"),
        (("-c", "{v}/wide.gguf=0.1"), "use a vector made for this model"),
        (("-c", "{v}/missing.gguf"), "check the path"),
        (("-c", "{v}/warm.gguf=much"), "=0.02"),
        (("-c", "{v}/warm.gguf=0.1@5:9"), "it has 1 to 3"),
        (("-c", "{v}/warm.gguf=0.1@a:b"), "write 8:20"),
        (("-c", "=0.1"), "NAME_OR_FILE"),
        (("-c", "{v}/warm.gguf=nan"), "finite"),
        (("-c", "{v}/warm.gguf", "--schedule", "sine"), "ramp:N"),
        (("-c", "{v}/warm.gguf", "--layers", "9:2"), "write 8:20"),
        (
            (
                "-c",
                "anger",
            ),
            "path of a vector file",
        ),
        (("--gauge", "{v}/warm.gguf=0.1"), "anger@14"),
        (("--gauge", "{v}/raw.gguf"), "pyemo rescale"),
        (("--temperature", "-1"), "0 (greedy), or 0.001 to 100"),
        (("--max-tokens", "0"), "outside 1 to"),
        (("--n-ctx", "0"), "n_ctx"),
        (("--threads", "0"), "n_threads"),
        (("--stop", ""), "non-empty"),
    ],
)
def test_wrong_value_is_one_line_with_its_remedy(
    model: Path, vectors: Path, arguments: tuple[str, ...], remedy: str
) -> None:
    typed = [argument.format(v=vectors) for argument in arguments]
    result = pyemo("run", "--threads", 1, "-m", model, *typed, "the story")
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("Error: "))
    assert remedy in line


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "Missing argument 'PROMPT'"),
        (("--compare", "hello"), "--cvec"),
        (("--operator", "plus", "hello"), "project_out"),
        (("--scope", "all", "hello"), "both"),
        (("--strength", "much", "hello"), "is not a number or auto"),
        (("--no-such-option", "hello"), "No such option"),
        (("--template-arg", "think", "hello"), "NAME=VALUE"),
        (("--scope", "first:0", "hello"), "first:N"),
        (("--script", "cyrillic", "hello"), "--stay-in-script; give that too"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...], word: str) -> None:
    result = pyemo("run", *arguments)
    assert result.exit_code == 2
    assert word in result.stderr


def test_unknown_model_names_the_near_ones() -> None:
    result = pyemo("run", "-m", "smollm-135m", "hello")
    assert result.exit_code == 1
    assert "smollm2-135m-instruct" in result.stderr


def test_prompt_longer_than_the_context_says_what_to_do(model: Path) -> None:
    result = pyemo("run", "-m", model, "--n-ctx", 256, "the story " * 300)
    assert result.exit_code == 1
    assert "n_ctx" in result.stderr


def test_broken_chat_template_names_raw(broken_template_model: Path) -> None:
    result = pyemo("run", "-m", broken_template_model, "hello")
    assert result.exit_code == 1
    assert "--raw" in result.stderr


def test_debug_lets_the_error_through(model: Path) -> None:
    result = pyemo("run", "--debug", "-m", model, "-c", "missing.gguf", "hello")
    assert isinstance(result.exception, VectorNotFoundError)


# --- the process; on the default model, for the tiny one would have ended before anybody acts ---

LONG = ("run", "--threads", 1, "-n", 1500, "--raw", "--temperature", 0, "Once upon a time")


def test_ctrl_c_ends_with_130_and_no_traceback(smollm2: Path) -> None:
    with start(*LONG, "-m", smollm2) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        process.stdout.read()
        said = process.stderr.read()
        assert said.endswith(b"\nStopped.\n")
        assert b"Traceback" not in said
    assert time.monotonic() - began < 8  # 1,500 tokens take longer on any machine
    assert process.returncode == 130


@pytest.mark.parametrize("module", ["click", "pyemo.cli.convert"])
def test_ctrl_c_while_the_command_is_imported_ends_with_130(module: str) -> None:
    code = f"""
import sys

class Pressed:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Pressed())
sys.argv = ["pyemo", "convert", "--help"]
from pyemo.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (130, False)


def test_reader_that_leaves_ends_it_without_a_word(smollm2: Path) -> None:
    with start(*LONG, "-m", smollm2) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_bundled_vector_is_found_by_the_emotion_s_noun(smollm2: Path) -> None:
    assert "angry" in list_vectors("smollm2-135m-instruct")
    described = run_json("-c", "anger=0.02", "--max-tokens", 1, "hello")
    assert described["steering"]["terms"][0]["emotion"] == "angry"


def test_defaults_are_the_library_s(model: Path) -> None:
    described = json.loads(
        pyemo("run", "--json", "-m", model, "-n", 1, "--threads", 1, "the story").stdout
    )
    assert SamplerParams(**described["sampler"]) == STANDARD


def test_reply_in_circles_is_stopped_and_that_is_said(model: Path, vectors: Path) -> None:
    asked = ("run", "-m", model, "--cvec", f"{vectors}/warm.gguf=60", "-n", 90, *CIRCLING)
    stopped, free = pyemo(*asked, "the"), pyemo(*asked, "--no-repetition-stop", "the")
    assert stopped.exit_code == free.exit_code == 0
    assert "went in circles" in stopped.stderr
    assert "circles" not in free.stderr
    assert free.stdout.startswith(stopped.stdout.rstrip("\n"))
    assert len(stopped.stdout) < len(free.stdout)


@pytest.mark.parametrize(
    ("rule", "is_steered"), [("cold>-1e6", True), ("cold>1e6", False), ("not cold>1e6", True)]
)
def test_rule_says_whether_the_vector_acts(
    model: Path, vectors: Path, rule: str, is_steered: bool
) -> None:
    def text(*options: object) -> str:
        result = pyemo("run", "--threads", 1, "-n", 6, "-m", model, "--json", *options, "hello")
        assert result.exit_code == 0, result.stderr
        return str(json.loads(result.stdout)["text"])

    rule = rule.replace("cold", f"{vectors}/cold.gguf")
    mood = f"{vectors}/warm.gguf=0.6"
    expected = text("-c", mood) if is_steered else text()
    assert text("-c", f"{mood}@when:{rule}") == expected
    assert text("-c", mood) != text()


@pytest.mark.parametrize(("rule", "is_steered"), [("cold>-1e6", True), ("not cold>-1e6", False)])
def test_rule_on_the_prompt_says_whether_the_vector_acts(
    model: Path, vectors: Path, rule: str, is_steered: bool
) -> None:
    def reply(*options: object) -> dict[str, Any]:
        result = pyemo("run", "--threads", 1, "-n", 6, "-m", model, "--json", *options, "hello")
        assert result.exit_code == 0, result.stderr
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    rule = rule.replace("cold", f"{vectors}/cold.gguf")
    mood = f"{vectors}/warm.gguf=0.6"
    found = reply("-c", f"{mood}@when-prompt:{rule}")
    assert found["text"] == reply(*(("-c", mood) if is_steered else ()))["text"]
    (decision,) = found["decisions"]
    assert decision["holds"] is is_steered
    assert list(decision["readings"]) == ["cold@2>-1e+06"]


def test_what_the_prompt_decided_is_said(model: Path, vectors: Path) -> None:
    mood = f"{vectors}/warm.gguf=0.6@when-prompt:{vectors}/cold.gguf>1e6"
    result = pyemo("run", "--threads", 1, "-n", 2, "-m", model, "-c", mood, "hello")
    assert "the prompt has cold@2>1e+06: no (cold@2 " in result.stderr


# --- cache vectors ---


def cache_vector(model: Path, folder: Path, strength: float | None = None) -> Path:
    with Engine(model, n_ctx=64, n_threads=1) as engine:
        rng = np.random.default_rng(0)
        vector = CacheVector(
            {
                layer: rng.standard_normal((2, width))
                for layer, _, width in engine.native.cache_widths()
            },
            cells=(-3, -2),
        ).with_source(engine.model, strength=strength)
    vector.save(folder / "mine.gguf")
    return folder / "mine.gguf"


def test_a_cache_vector_acts_as_in_the_library(model: Path, tmp_path: Path) -> None:
    path = cache_vector(model, tmp_path)
    with Engine(model, n_ctx=256, n_batch=256, n_outputs_max=1, n_threads=1) as engine:
        reply = engine.generate("the story", max_tokens=8, seed=3)
        sequence = reply.sequence
        assert isinstance(sequence, Sequence)
        sequence.edit_cache(CacheVector.load(path), 0.5)
        expected = "".join(token.text for token in reply)
    found = run_json("-m", model, "--cache-vector", f"{path}=0.5", "the story")
    assert found["text"] == expected != library_text(model)
    cells = found["steering"]["cache"]
    assert cells == [{"name": "mine", "strength": 0.5, "cells": [-3, -2], "layers": [0, 1, 2, 3]}]


def test_a_comparison_leaves_the_unsteered_reply_without_cache_vector(
    model: Path, tmp_path: Path
) -> None:
    path = cache_vector(model, tmp_path, strength=0.5)
    result = pyemo("run", *SMALL, "-m", model, "--compare", "--cache-vector", path, "the story")
    assert result.exit_code == 0
    assert "--- mine=0.5 in the cache ---" in result.stdout
    assert library_text(model) in result.stdout


def test_what_is_no_cache_vector_is_refused_by_name(
    model: Path, vectors: Path, tmp_path: Path
) -> None:
    path = cache_vector(model, tmp_path)
    for typed, words in (
        (f"{vectors}/warm.gguf", "pass a cache vector"),
        (f"{path}@2:3", "which a cache vector has not"),
        (f"{tmp_path}/gone.gguf", "no cache vector"),
    ):
        result = pyemo("run", *SMALL, "-m", model, "--cache-vector", typed, "the story")
        assert result.exit_code == 1
        assert words in result.stderr
    quantized = ("--kv-type", "q8_0", "--cache-vector", path)
    result = pyemo("run", *SMALL, "-m", model, *quantized, "the story")
    assert result.exit_code == 1
    assert "open the engine with kv_type" in result.stderr


# --- system lines ---


@pytest.fixture
def lined(model: Path, vectors: Path, tmp_path: Path) -> Path:
    """A vector calibrated at 0.3, and at 0.1 together with a system line."""
    found = ControlVector.load(vectors / "calibrated.gguf").with_system_line("you are happy")
    (alone,) = found.metadata.calibrations
    together = replace(alone, window=(0.1, 0.2), strength=0.1)
    path = tmp_path / "lined.gguf"
    found.with_calibration(together, with_line=True).save(path)
    return path


def test_a_system_line_comes_with_its_own_strength_where_it_is_asked_for(
    model: Path, lined: Path
) -> None:
    mood = ("-m", model, "-c", lined)
    off = run_json(*mood, "the story")
    assert (off["system"], off["steering"]["terms"][0]["strength"]) == (None, 0.3)
    on = run_json(*mood, "--system-line", "on", "the story")
    assert (on["system"], on["steering"]["terms"][0]["strength"]) == ("you are happy", 0.1)
    same = run_json("-m", model, "-c", f"{lined}=0.1", "--system", "you are happy", "the story")
    assert on["text"] == same["text"]


def test_a_system_message_of_the_callers_own_leaves_the_line_out(model: Path, lined: Path) -> None:
    asked = ("-m", model, "-c", lined, "--system", "you are sad", "--system-line", "on")
    result = pyemo("run", *SMALL, "--json", *asked, "the story")
    described = json.loads(result.stdout)
    assert described["system"] == "you are sad"
    assert described["steering"]["terms"][0]["strength"] == 0.3
    assert "vectors bring none" in result.stderr


def test_the_unsteered_reply_beside_it_has_no_system_line(model: Path, lined: Path) -> None:
    asked = ("-m", model, "-c", lined, "--system-line", "on", "--compare")
    described = run_json(*asked, "the story")
    assert described["unsteered"]["text"] == run_json("-m", model, "the story")["text"]


def test_a_model_without_a_chat_template_gets_no_system_line(base_model: Path, lined: Path) -> None:
    asked = ("-m", base_model, "-c", lined, "--allow-other-weights", "--system-line", "on")
    assert run_json(*asked, "the story")["system"] is None


# --- scripts ---

FOREIGN = 'Я. "'  # what the default model says next is Latin


def test_scripts_reach_the_sampler(model: Path) -> None:
    options = ("-m", model, "--stay-in-script", "--script", "greek", "the story")
    sampler = run_json(*options)["sampler"]
    assert (sampler["stay_in_script"], sampler["scripts"]) == (True, ["greek"])


def test_steered_reply_may_have_the_scripts_of_the_unsteered_one(smollm2: Path) -> None:
    mood = ("-c", "anger=0.01")
    free, kept = (
        pyemo("run", *SMALL, "-m", smollm2, "--raw", *mood, *options, FOREIGN)
        for options in ((), ("--stay-in-script",))
    )
    assert kept.stdout == free.stdout


def test_steered_reply_that_leaves_its_script_is_said(smollm2: Path) -> None:
    mood = ("-c", "anger=0.01")
    result = pyemo("run", *SMALL, "-m", smollm2, "--raw", *mood, FOREIGN)
    assert "letters are in a script that the prompt has none of" in result.stderr
    plain = pyemo("run", *SMALL, "-m", smollm2, "--raw", FOREIGN)
    assert "script" not in plain.stderr


# --- grammars ---


def test_a_reply_follows_a_grammar_or_a_schema(model: Path, tmp_path: Path) -> None:
    (tmp_path / "yes.gbnf").write_text('root ::= "yes" | "no"', encoding="utf-8")
    (tmp_path / "yes.json").write_text('{"enum": ["yes", "no"]}', encoding="utf-8")
    plain = run_json("-m", model, "--grammar", tmp_path / "yes.gbnf", "the story")
    assert plain["text"] in ("yes", "no")
    assert plain["sampler"]["grammar"] == 'root ::= "yes" | "no"'
    quoted = run_json("-m", model, "--json-schema", tmp_path / "yes.json", "the story")
    assert json.loads(quoted["text"]) in ("yes", "no")


def test_a_reply_that_its_grammar_leaves_cut_off_is_said_to_be(model: Path, tmp_path: Path) -> None:
    (tmp_path / "long.gbnf").write_text("root ::= [a-z]{99}", encoding="utf-8")
    result = pyemo("run", *SMALL, "-m", model, "--grammar", tmp_path / "long.gbnf", "the story")
    assert result.exit_code == 0
    assert "cut off before what its grammar asks for was whole" in result.stderr


@pytest.mark.parametrize(
    ("option", "text", "words"),
    [
        ("--grammar", 'root ::= "a', "line 1: a "),
        ("--json-schema", '{"pattern": "a"}', "pattern is a keyword"),
        ("--json-schema", "{", "is not JSON"),
    ],
)
def test_a_file_that_is_no_grammar_is_refused_by_name(
    model: Path, tmp_path: Path, option: str, text: str, words: str
) -> None:
    (tmp_path / "file").write_text(text, encoding="utf-8")
    result = pyemo("run", "-m", model, option, tmp_path / "file", "the story")
    assert result.exit_code == 1
    assert words in result.stderr
    assert str(tmp_path / "file") in result.stderr
