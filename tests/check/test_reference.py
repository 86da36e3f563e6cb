"""References: what agrees, what does not, and files that are none; checked against NumPy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import log_softmax, random_vector

from pyemo import Engine, Model, Steering
from pyemo.check.reference import MAX_KL, MIN_TOP1, Reference, compare, record
from pyemo.errors import InputError
from pyemo.formats.quantize import requantize

PROMPTS = ["the happy story", "a dog and a gate"]
N_TOKENS = 4


@pytest.fixture(scope="module")
def recorded(load: Callable[[str], Model]) -> Reference:
    vector = random_vector(load("llama"))
    with Engine(load("llama"), n_ctx=256, n_threads=1) as engine:
        return record(engine, PROMPTS, vector=vector, strength=0.5, n_tokens=N_TOKENS)


def test_the_same_model_agrees_bit_for_bit_with_any_threads(
    load: Callable[[str], Model], recorded: Reference
) -> None:
    for n_threads in (1, 2):
        with Engine(load("llama"), n_ctx=256, n_threads=n_threads) as engine:
            found = compare(recorded, engine, vector=random_vector(load("llama")))
        assert (found.top1, found.n_tokens, found.same_file) == (1.0, 4 * N_TOKENS, True)
        assert found.mean_kl < 1e-9


def test_a_file_gives_back_what_was_saved(
    load: Callable[[str], Model], recorded: Reference, tmp_path: Path
) -> None:
    recorded.save(tmp_path / "r.json")
    again = Reference.load(tmp_path / "r.json")
    assert again.source == recorded.source
    for run, other in zip(again.runs, recorded.runs, strict=True):
        assert run.tokens == other.tokens
        np.testing.assert_array_equal(run.top, other.top)
        np.testing.assert_allclose(run.logprobs, other.logprobs, atol=1e-5)


def test_steered_runs_are_recorded_beside_unsteered_ones(recorded: Reference) -> None:
    assert [run.is_steered for run in recorded.runs] == [False, False, True, True]
    assert (recorded.runs[0].logprobs != recorded.runs[2].logprobs).any()


def test_predictions_are_those_of_the_logits(
    load: Callable[[str], Model], recorded: Reference
) -> None:
    run = recorded.runs[2]
    mood = Steering({random_vector(load("llama")): 0.5})
    prompt = list(run.tokens[: run.n_prompt])
    with (
        Engine(load("llama"), n_ctx=256, n_threads=1) as engine,
        engine.sequence(prompt, steering=mood) as sequence,
    ):
        logprobs = log_softmax(sequence.logits())
    np.testing.assert_allclose(run.logprobs[0], np.sort(logprobs)[::-1][:64], atol=1e-6)
    assert run.tokens[run.n_prompt] == logprobs.argmax()


def test_another_quantization_is_told_apart(
    load: Callable[[str], Model], recorded: Reference, tmp_path: Path
) -> None:
    file = requantize(load("llama").path, "Q4_0", target=tmp_path / "q.gguf").path
    with Engine(file, n_ctx=256, n_threads=1) as engine:
        found = compare(recorded, engine, vector=random_vector(load("llama")))
    assert not found.same_file
    assert found.mean_kl > MAX_KL
    assert found.top1 < MIN_TOP1


def test_another_model_is_refused(load: Callable[[str], Model], recorded: Reference) -> None:
    with (
        Engine(load("gemma2"), n_ctx=256, n_threads=1) as engine,
        pytest.raises(InputError, match="recorded with 'llama', whose weights are not"),
    ):
        compare(recorded, engine, vector=random_vector(load("gemma2")))


def test_another_vector_or_none_is_refused(
    load: Callable[[str], Model], recorded: Reference
) -> None:
    with Engine(load("llama"), n_ctx=256, n_threads=1) as engine:
        with pytest.raises(InputError, match="recorded with another vector"):
            compare(recorded, engine, vector=random_vector(load("llama"), seed=5))
        with pytest.raises(InputError, match="recorded with a vector; give the same --cvec"):
            compare(recorded, engine)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is no reference"),
        ({"version": 2}, "has version 2, this pyemo reads 1"),
        ({"runs": []}, "is damaged"),
        ({"source": {}}, "is damaged"),
        ({"runs": [{"tokens": [1, 2], "n_prompt": 2}]}, "is damaged"),
    ],
)
def test_files_that_are_no_reference_are_refused(
    recorded: Reference, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "r.json"
    recorded.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        Reference.load(path)


def _set(*path: object) -> Callable[[Any], None]:
    """Return what puts the last of ``path`` where the others lead."""
    *steps, last, value = path

    def change(content: Any) -> None:
        for step in steps:
            content = content[step]
        content[last] = value

    return change


RUN = ("runs", 0)
DAMAGES: dict[str, Callable[[Any], None]] = {
    "token-huge": _set(*RUN, "tokens", 0, 10**20),
    "token-infinite": _set(*RUN, "tokens", 0, float("inf")),
    "token-nan": _set(*RUN, "tokens", 0, float("nan")),
    "token-negative": _set(*RUN, "tokens", 0, -5),
    "token-beyond": _set(*RUN, "tokens", 0, 10**6),
    "token-true": _set(*RUN, "tokens", 0, True),
    "reply-token-beyond": _set(*RUN, "tokens", -2, 10**6),
    "tokens-text": _set(*RUN, "tokens", "abc"),
    "tokens-null": _set(*RUN, "tokens", None),
    "top-beyond": _set(*RUN, "top", 0, 0, 10**6),
    "top-huge": _set(*RUN, "top", 0, 0, 10**20),
    "top-float": _set(*RUN, "top", 0, 0, 1.5),
    "top-text": _set(*RUN, "top", 0, 0, "x"),
    "top-ragged": _set(*RUN, "top", 0, [1, 2]),
    "top-empty": _set(*RUN, "top", []),
    "logprob-text": _set(*RUN, "logprobs", 0, 0, "x"),
    "logprob-infinite": _set(*RUN, "logprobs", 0, 0, float("-inf")),
    "logprob-digits": _set(*RUN, "logprobs", 0, 0, 10**400),
    "strength-text": _set("source", "strength", "x"),
    "strength-null": _set("source", "strength", None),
    "strength-list": _set("source", "strength", [1]),
    "strength-infinite": _set("source", "strength", float("inf")),
    "strength-digits": _set("source", "strength", 10**400),
    "hash-number": _set("source", "file_sha256", 5),
    "fingerprint-list": _set("source", "weights_fingerprint", []),
    "model-object": _set("source", "model", {}),
    "vocabulary-huge": _set("source", "n_vocab", 10**20),
    "source-more": _set("source", "more", "x"),
    "source-list": _set("source", [1]),
    "source-null": _set("source", None),
    "runs-object": _set("runs", {}),
    "runs-text": _set("runs", "abc"),
    "runs-null": _set("runs", None),
    "run-null": _set("runs", [None]),
    "count-infinite": _set(*RUN, "n_prompt", float("inf")),
    "count-text": _set(*RUN, "n_prompt", "1e9"),
    "count-negative": _set(*RUN, "n_prompt", -1),
    "version-list": _set("version", []),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_reference_is_refused_by_name(
    recorded: Reference, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "r.json"
    recorded.save(path)
    content = json.loads(path.read_text())
    DAMAGES[damage](content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="record it anew"):
        Reference.load(path)


NO_JSON = [b"", b"{", b"[1]", b"\xff\xfe", b"null", b"NaN", b"[" * 100_000, b'{"a":' * 50_000]


@pytest.mark.parametrize("content", NO_JSON, ids=range(len(NO_JSON)))
def test_files_that_are_no_json_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(InputError, match="reference"):
        Reference.load(tmp_path / "r.json")
