"""Bad input to the engine: a named error or the right result within a second, and usable after.

What the unit tests refuse without an engine (vector files, sampler values, chat messages) is not
repeated. What could kill or block the process is tried in a process of its own.
"""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import PROMPT, error, logits_after, random_vector
from tiny_layouts import N_CTX
from tiny_models import TinyModel

import pyemo
from pyemo import Engine, Gauge, Model, SamplerParams, Steering
from pyemo.engine.steps import step_many
from pyemo.errors import (
    ClosedError,
    ContextFullError,
    InputError,
    ModelError,
    ModelLoadError,
    PyemoError,
    SequenceLimitError,
)

GREEDY = SamplerParams(temperature=0)
TEXT = [3, 4, 5, 6, 7, 8]


@pytest.fixture
def usable(engine: Engine) -> Iterator[Engine]:
    """An engine that has to compute afterwards what it computed before."""
    before = logits_after(engine, TEXT)
    n_free = engine.native.n_free_sequences
    yield engine
    gc.collect()
    assert engine.native.n_free_sequences == n_free
    np.testing.assert_array_equal(logits_after(engine, TEXT), before)


def refused(
    call: Callable[[], object], kind: type[PyemoError] = InputError, match: str | None = None
) -> None:
    with pytest.raises(kind, match=match):
        call()


# --- tokens and prompts ---

NO_TOKEN_IDS: dict[str, Any] = {
    "negative": [-1],
    "outside": [10**6],
    "of_64_bits": [2**40],
    "of_200_bits": [1, -(2**200)],
    "float": [1.5],
    "floats": np.array([3.0]),
    "matrix": np.array([[3, 4]]),
    "words": ["a", 1],
    "none": None,
    "number": 5,
    "bytes": b"abc",
}


@pytest.mark.parametrize("tokens", NO_TOKEN_IDS.values(), ids=NO_TOKEN_IDS)
def test_what_is_no_list_of_token_ids_is_refused(usable: Engine, tokens: Any) -> None:
    refused(lambda: usable.sequence(tokens))
    refused(lambda: usable.score(tokens))
    refused(lambda: usable.read(tokens))
    refused(lambda: usable.model.detokenize(tokens))
    with usable.sequence(TEXT) as sequence:
        refused(lambda: sequence.append(tokens))
        refused(lambda: sequence.score_next(tokens))
        assert sequence.tokens == TEXT


@pytest.mark.parametrize("kind", [tuple, np.array, iter])
def test_any_list_of_whole_numbers_is_token_ids(engine: Engine, kind: Callable[..., Any]) -> None:
    expected = logits_after(engine, TEXT)
    np.testing.assert_array_equal(logits_after(engine, kind(TEXT)), expected)


def test_text_is_no_list_of_token_ids(usable: Engine) -> None:
    with usable.sequence(TEXT) as sequence:
        refused(lambda: sequence.append("abc"), match="'abc' is not a list of token ids")


@pytest.mark.parametrize(
    "use",
    [
        lambda engine, text: engine.sequence(text, raw=True),
        lambda engine, text: engine.generate(text),
        lambda engine, text: engine.score(text),
        lambda engine, text: engine.score("a", given=text),
        lambda engine, text: engine.read(text),
    ],
    ids=["sequence", "generate", "score", "given", "read"],
)
def test_text_longer_than_the_context_is_refused(usable: Engine, use: Callable[..., Any]) -> None:
    refused(lambda: use(usable, "word " * 50_000), ContextFullError, "larger n_ctx")


def test_prompt_with_its_reply_longer_than_the_context_is_refused(usable: Engine) -> None:
    refused(
        lambda: usable.generate_many([PROMPT], max_tokens=usable.n_ctx),
        ContextFullError,
        "a prompt with its reply may take",
    )


def test_prompt_that_fills_the_context_gives_one_token_less_than_there_is_room(
    new_engine: Callable[..., Engine],
) -> None:
    engine = new_engine(n_ctx=32)
    reply = engine.generate(TEXT * 5, max_tokens=50, sampler=GREEDY)
    assert (len(list(reply)), reply.stop_reason) == (2, "context")


@pytest.mark.parametrize("prompt", ["", []])
def test_empty_prompt_of_a_model_without_bos_is_refused(
    new_engine: Callable[..., Engine], prompt: Any
) -> None:
    engine = new_engine("gpt2")
    refused(lambda: list(engine.generate(prompt)), match="empty")
    assert logits_after(engine, TEXT).shape == (engine.model.n_vocab,)


def test_empty_prompt_of_a_model_with_bos_is_its_bos(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine("gemma3")
    with engine.sequence("") as sequence:
        assert sequence.tokens == [engine.model.native.bos]


def test_empty_sequence_predicts_nothing_until_something_is_appended(usable: Engine) -> None:
    with usable.sequence() as sequence:
        refused(sequence.step, match="empty sequence predicts nothing")
        sequence.append(TEXT)
        assert sequence.logits().shape == (usable.model.n_vocab,)


def test_empty_text_has_nothing_to_score(usable: Engine) -> None:
    refused(lambda: usable.score(""), match="leaves no token to score")


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3", "qwen2"])
@pytest.mark.parametrize(
    "raw",
    [b"\xff\xfe", b"caf\xe9 noir", b"\xe2\x82", b"a\x00b", b"\xed\xa0\x80", bytes(range(256))],
)
def test_bytes_that_are_no_utf8_survive(
    load: Callable[[str], Model], architecture: str, raw: bytes
) -> None:
    model = load(architecture)
    assert model.detokenize(model.tokenize(raw)) == raw


def test_text_with_escaped_bytes_is_a_prompt(usable: Engine) -> None:
    text = b"caf\xe9".decode("utf-8", "surrogateescape")
    with usable.sequence(text, raw=True) as sequence:
        assert usable.model.detokenize(sequence.tokens).endswith(b"caf\xe9")


@pytest.mark.parametrize("use", ["generate", "score", "read"])
def test_lone_surrogate_is_refused(usable: Engine, use: str) -> None:
    refused(lambda: getattr(usable, use)("a\ud800b"), match="lone surrogate at character")


def test_reply_of_broken_characters_is_text_with_replacement_characters(engine: Engine) -> None:
    from pyemo.engine.tokens import TextStream

    stream = TextStream()
    pieces = [b"\xf0\x9f", b"\x98", b"a", b"\xff", b"\xe2\x82"]
    assert "".join(map(stream.push, pieces)) + stream.flush() == "�a��"


# --- numbers ---

NO_SETTINGS: dict[str, dict[str, Any]] = {
    f"{name}_{value}": {name: value}
    for name, values in {
        "n_ctx": (0, -5, 2**31, 2**40, 1.5, "a", None),
        "n_seq_max": (0, 257, 2**40, None),
        "n_threads": (0, -1, 10**6, 1.5),
        "n_batch": (0, 2**31, None),
        "n_outputs_max": (0, -1, 2**40),
        "kv_type": ("q2_k", None, 5),
    }.items()
    for value in values
}


@pytest.mark.parametrize("settings", NO_SETTINGS.values(), ids=NO_SETTINGS)
def test_setting_outside_its_range_is_refused(
    load: Callable[[str], Model], settings: dict[str, Any]
) -> None:
    refused(lambda: Engine(load("llama"), **settings), match=next(iter(settings)))


NO_ARGUMENTS: dict[str, Callable[[Engine], object]] = {
    "max_tokens_0": lambda e: e.generate(PROMPT, max_tokens=0),
    "max_tokens_float": lambda e: e.generate(PROMPT, max_tokens=1.5),  # type: ignore[arg-type]
    "seed_negative": lambda e: e.generate(PROMPT, seed=-1),
    "seed_of_80_bits": lambda e: e.generate(PROMPT, seed=2**80),
    "n_top_negative": lambda e: next(e.generate(PROMPT, n_top=-1)),
    "n_top_huge": lambda e: next(e.generate(PROMPT, n_top=10**12)),
    "stop_text": lambda e: e.generate(PROMPT, stop="a"),
    "stop_empty": lambda e: e.generate(PROMPT, stop=[""]),
    "steering_number": lambda e: e.generate(PROMPT, steering=5),  # type: ignore[arg-type]
    "steering_scored": lambda e: e.score(PROMPT, steering=5),  # type: ignore[arg-type]
    "steerings_too_few": lambda e: e.generate_many([PROMPT] * 2, steering=[Steering()]),
    "sampler_number": lambda e: e.generate(PROMPT, sampler=5),  # type: ignore[arg-type]
    "gauge_number": lambda e: e.generate(PROMPT, gauges=[5]),  # type: ignore[list-item]
    "layer_outside": lambda e: e.read(PROMPT, layers=[4]),
    "layer_negative": lambda e: e.read(PROMPT, layers=[-1]),
    "layer_twice": lambda e: e.read(PROMPT, layers=[0, 0]),
    "layers_none": lambda e: e.read(PROMPT, layers=[]),
    "pooling": lambda e: e.read(PROMPT, pooling="max"),  # type: ignore[arg-type]
    "slice_empty": lambda e: e.read(PROMPT, tokens=slice(5, 2)),
    "slice_of_steps": lambda e: e.read(PROMPT, tokens=slice(0, 4, 2)),
    "threads_0": lambda e: setattr(e, "n_threads", 0),
    "system_for_token_ids": lambda e: e.generate(TEXT, system="Be brief."),
}


@pytest.mark.parametrize("call", NO_ARGUMENTS.values(), ids=NO_ARGUMENTS)
def test_argument_outside_its_range_is_refused(
    usable: Engine, call: Callable[[Engine], object]
) -> None:
    refused(lambda: call(usable))


NO_CHANGES: dict[str, Callable[[pyemo.Sequence], object]] = {
    "rollback_float": lambda s: s.rollback(1.5),  # type: ignore[arg-type]
    "rollback_none": lambda s: s.rollback(None),  # type: ignore[arg-type]
    "rollback_negative": lambda s: s.rollback(-1),
    "rollback_too_far": lambda s: s.rollback(10**30),
    "steering": lambda s: setattr(s, "steering", 0.5),
    "sampler": lambda s: setattr(s, "sampler", None),
    "fork": lambda s: s.fork(sampler=5),  # type: ignore[arg-type]
    "reading_nothing": lambda s: s.reading(),
    "reading_no_layer": lambda s: s.start_reading([99]),
    "reading_pooling": lambda s: s.start_reading([0], pooling="max"),  # type: ignore[arg-type]
    "reading_the_past": lambda s: s.start_reading([0], begin=-1),
    "step_of_none": lambda s: step_many([]),
    "step_of_one_twice": lambda s: step_many([s, s]),
}


@pytest.mark.parametrize("change", NO_CHANGES.values(), ids=NO_CHANGES)
def test_change_of_a_sequence_outside_its_range_leaves_it_as_it_was(
    usable: Engine, change: Callable[[pyemo.Sequence], object]
) -> None:
    with usable.sequence(TEXT) as sequence:
        expected = sequence.logits()
        refused(lambda: change(sequence))
        assert sequence.tokens == TEXT
        np.testing.assert_array_equal(sequence.logits(), expected)


def test_sequences_of_two_engines_are_not_stepped_together(
    usable: Engine, new_engine: Callable[..., Engine]
) -> None:
    with usable.sequence(TEXT) as here, new_engine().sequence(TEXT) as there:
        refused(lambda: step_many([here, there]), match="belong to several engines")


def test_gauge_of_another_width_is_refused(usable: Engine, load: Callable[[str], Model]) -> None:
    from pyemo.vectors.metadata import VectorMetadata

    wide = np.ones(usable.model.n_embd + 8, np.float32)
    n_layer = usable.model.n_layer
    metadata = VectorMetadata(residual_norms=[1.0] * n_layer, neutral_projections=[0.0] * n_layer)
    vector = pyemo.ControlVector({1: wide}, metadata=metadata)
    refused(lambda: usable.sequence(TEXT, gauges=[Gauge(vector)]), PyemoError, "width")


def test_mood_of_another_width_is_refused(usable: Engine) -> None:
    vector = pyemo.ControlVector({1: np.ones(usable.model.n_embd + 8, np.float32)})
    refused(lambda: usable.sequence(TEXT, steering=Steering({vector: 1.0})), PyemoError)


# --- what llama.cpp aborts on (test_engine_facts.py shows that it does) ---


def test_learned_positions_end_where_training_did(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine("gpt2", n_ctx=2 * N_CTX)
    too_long = [5] * (N_CTX + 1)
    refused(lambda: engine.sequence(too_long), ContextFullError, f"at most {N_CTX}")
    refused(lambda: engine.score(too_long), ContextFullError)
    refused(lambda: engine.read(too_long), ContextFullError)
    with engine.sequence(too_long[:-3]) as sequence:
        sequence.step()
        reply = sequence.generate(max_tokens=5)
        assert (len(list(reply)), reply.stop_reason) == (1, "context")
        refused(sequence.step, ContextFullError, "roll it back")
        sequence.rollback(100)
        assert sequence.step().id >= 0


@pytest.mark.parametrize("n_batch", [1, 2, 7])
def test_more_tokens_than_a_batch_holds_are_taken_in_chunks(
    new_engine: Callable[..., Engine], n_batch: int
) -> None:
    expected = logits_after(new_engine(), TEXT * 8)
    found = logits_after(new_engine(n_batch=n_batch), TEXT * 8)
    assert error(found, expected) <= 1e-4


def test_more_outputs_than_a_decode_gives_are_taken_in_chunks(
    new_engine: Callable[..., Engine],
) -> None:
    narrow, wide = new_engine(n_outputs_max=2), new_engine(n_outputs_max=512)
    text = TEXT * 8
    found, expected = narrow.score(text).logprobs, wide.score(text).logprobs
    np.testing.assert_allclose(found, expected, atol=1e-4)
    last = [narrow.model.n_layer - 1]
    found, expected = narrow.read(text, layers=last), wide.read(text, layers=last)
    assert error(found, expected) <= 1e-4


def test_more_sequences_than_outputs_are_stepped_together(
    new_engine: Callable[..., Engine],
) -> None:
    engine = new_engine(n_seq_max=8, n_outputs_max=2)
    sequences = [engine.sequence(TEXT, sampler=GREEDY) for _ in range(8)]
    tokens = [result.token for result in step_many(sequences)]
    assert len(tokens) == 8
    assert len(set(tokens)) == 1


@pytest.mark.parametrize("seq", [-1, 3, 4, 300])
def test_number_of_no_sequence_is_refused(usable: Engine, seq: int) -> None:
    native = usable.native
    for call in (
        lambda: native.step([seq], 0),
        lambda: native.forward([seq]),
        lambda: native.fork(seq),
        lambda: native.append(seq, TEXT),
        lambda: native.rollback(seq, 0),
        lambda: native.logits(seq),
    ):
        refused(call, ClosedError, f"sequence {seq} is closed")


def test_part_of_a_sequence_is_never_copied_but_computed(engine: Engine) -> None:
    # llama.cpp aborts on a partial copy between caches; a fork that is taken back is one.
    with engine.sequence(TEXT * 3) as parent:
        parent.logits()
        twin = parent.fork()
        twin.rollback(10)
        expected = logits_after(engine, (TEXT * 3)[:-10])
        assert error(twin.logits(), expected) <= 1e-4


# --- room ---


def test_more_prompts_than_sequences_are_answered_in_turns(usable: Engine) -> None:
    replies = usable.generate_many([TEXT[: 2 + i % 4] for i in range(11)], max_tokens=3)
    assert [len(reply.tokens) for reply in replies] == [3] * 11


def test_no_sequence_left_is_named_by_every_call_that_needs_one(usable: Engine) -> None:
    held = [usable.sequence(TEXT) for _ in range(4)]
    refused(lambda: usable.sequence(TEXT), SequenceLimitError, "all 4 sequences are in use")
    refused(lambda: usable.generate(TEXT), SequenceLimitError)
    refused(lambda: usable.score(TEXT), SequenceLimitError)
    refused(lambda: usable.read(TEXT), SequenceLimitError)
    refused(lambda: usable.generate_many([TEXT]), ContextFullError, "0 sequences are free")
    held.clear()


# --- use after close ---

USES: dict[str, Callable[[Engine], object]] = {
    "n_ctx": lambda e: e.n_ctx,
    "n_threads": lambda e: e.n_threads,
    "steering_unsupported": lambda e: e.steering_unsupported,
    "sequence": lambda e: e.sequence(TEXT),
    "generate": lambda e: e.generate(TEXT),
    "generate_many": lambda e: e.generate_many([TEXT]),
    "score": lambda e: e.score(TEXT),
    "read": lambda e: e.read(TEXT),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_closed_engine_is_refused_by_name(
    new_engine: Callable[..., Engine], use: Callable[[Engine], object]
) -> None:
    engine = new_engine()
    engine.close()
    engine.close()
    refused(lambda: use(engine), ClosedError, "the engine is closed; open a new one")


SEQUENCE_USES: dict[str, Callable[[pyemo.Sequence], object]] = {
    "tokens": lambda s: s.tokens,
    "step": lambda s: s.step(),
    "logits": lambda s: s.logits(),
    "append": lambda s: s.append(TEXT),
    "score_next": lambda s: s.score_next(TEXT),
    "fork": lambda s: s.fork(),
    "rollback": lambda s: s.rollback(1),
    "refresh": lambda s: s.refresh(),
    "steering": lambda s: setattr(s, "steering", Steering()),
    "sampler": lambda s: setattr(s, "sampler", GREEDY),
    "gauges": lambda s: setattr(s, "gauges", ()),
    "start_reading": lambda s: s.start_reading([0]),
    "reading": lambda s: s.reading(),
    "generate": lambda s: next(s.generate()),
}


@pytest.mark.parametrize("use", SEQUENCE_USES.values(), ids=SEQUENCE_USES)
def test_closed_sequence_is_refused_by_name(
    usable: Engine, use: Callable[[pyemo.Sequence], object]
) -> None:
    sequence = usable.sequence(TEXT)
    sequence.close()
    sequence.close()
    refused(lambda: use(sequence), ClosedError, "the sequence is closed; make a new one")


@pytest.mark.parametrize("use", SEQUENCE_USES.values(), ids=SEQUENCE_USES)
def test_sequence_of_a_closed_engine_is_refused_by_name(
    new_engine: Callable[..., Engine], use: Callable[[pyemo.Sequence], object]
) -> None:
    engine = new_engine()
    sequence = engine.sequence(TEXT)
    sequence.logits()
    engine.close()
    refused(lambda: use(sequence), ClosedError, "the engine is closed")
    sequence.close()


def test_reply_of_a_closed_engine_is_refused_by_name(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine()
    reply = engine.generate(TEXT)
    next(reply)
    engine.close()
    refused(lambda: next(reply), ClosedError)


def test_objects_may_go_in_any_order(tiny_model_path: Path) -> None:
    def made() -> dict[str, Any]:
        model = Model.load(tiny_model_path)
        engine = Engine(model, n_ctx=64, n_seq_max=2, n_threads=1)
        sequence = engine.sequence(TEXT, steering=Steering({random_vector(model): 1.0}))
        sequence.step()
        return {"model": model, "engine": engine, "sequence": sequence, "twin": sequence.fork()}

    names = ["model", "engine", "sequence", "twin"]
    for i in range(4):
        objects = made()
        for name in names[i:] + names[:i]:
            objects.pop(name)
            gc.collect()
            for left in objects.values():
                if isinstance(left, pyemo.Sequence):
                    assert left.step().id >= 0


# --- threads ---


def test_two_threads_on_one_engine_give_the_texts_of_one(engine: Engine) -> None:
    prompts = [TEXT[: 2 + i] for i in range(4)]

    def text(prompt: list[int]) -> str:
        reply = engine.generate(prompt, max_tokens=40, sampler=GREEDY)
        list(reply)
        return reply.text

    expected = [text(prompt) for prompt in prompts]
    found: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.setdefault(i, text(prompts[i]))) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(4)] == expected


def test_threads_that_use_one_sequence_take_turns(engine: Engine) -> None:
    sequence = engine.sequence(TEXT, sampler=GREEDY)
    failures: list[BaseException] = []

    def steps() -> None:
        try:
            for _ in range(20):
                sequence.step()
        except PyemoError as error:
            failures.append(error)

    threads = [threading.Thread(target=steps) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sequence.n_tokens == len(TEXT) + 60
    expected = [*logits_after(engine, sequence.tokens)]
    assert error(sequence.logits(), np.array(expected)) <= 1e-3


def test_engine_closed_by_another_thread_is_a_named_error(
    new_engine: Callable[..., Engine],
) -> None:
    engine = new_engine()
    ended: list[str] = []

    def run() -> None:
        try:
            for _ in engine.generate(TEXT, max_tokens=400):
                pass
            ended.append("finished")
        except ClosedError:
            ended.append("closed")

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.02)
    engine.close()
    thread.join(timeout=10)
    assert ended in (["closed"], ["finished"])


# --- Python that raises ---


class Stop(Exception):
    """Raised by a schedule."""


@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt, SystemExit])
def test_whatever_a_schedule_raises_comes_through_and_nothing_is_lost(
    usable: Engine, kind: type[BaseException]
) -> None:
    def schedule(t: int) -> float:
        if t == 2:
            raise kind
        return 1.0

    mood = Steering({random_vector(usable.model): 1.0}, schedule=schedule)
    with usable.sequence(TEXT, steering=mood, sampler=GREEDY) as sequence:
        for _ in range(2):
            sequence.step()
        with pytest.raises(kind):
            sequence.step()
        n = sequence.n_tokens
        sequence.steering = Steering()
        sequence.step()
        assert sequence.n_tokens == n + 1


def test_on_reply_that_raises_leaves_no_sequence_behind(usable: Engine) -> None:
    def on_reply(index: int, reply: pyemo.Reply) -> None:
        raise Stop

    with pytest.raises(Stop):
        usable.generate_many([TEXT, TEXT], max_tokens=2, on_reply=on_reply)


# --- Ctrl-C ---

_INTERRUPTED = """
import signal, sys, threading, time, os
import pyemo
model = pyemo.Model.load({path!r})
engine = pyemo.Engine(model, n_ctx=8192, n_seq_max=2, n_threads=1)
expected = engine.score([3, 4, 5, 6]).logprobs
sequence = engine.sequence([3, 4, 5, 6] * 2000)
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
started = time.perf_counter()
try:
    for _ in range(10_000):
        {call}
except KeyboardInterrupt:
    print("interrupted", time.perf_counter() - started < 30)
print((engine.score([3, 4, 5, 6]).logprobs == expected).all(), sequence.n_tokens >= 8000)
"""


@pytest.mark.parametrize(
    "call",
    [
        "sequence.logits(); sequence.refresh()",
        "for _ in engine.generate([3, 4], max_tokens=100): pass",
        "engine.score([3, 4, 5, 6] * 40)",
    ],
    ids=["prefill", "generate", "score"],
)
def test_ctrl_c_stops_the_work_and_leaves_the_engine_usable(
    tiny_model_path: Path, call: str
) -> None:
    program = _INTERRUPTED.format(path=str(tiny_model_path), call=call)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["interrupted", "True", "True", "True"], done.stderr


# --- model files ---


def broken(model: TinyModel, folder: Path, content: bytes) -> Path:
    path = folder / "broken.gguf"
    path.write_bytes(content)
    return path


def test_model_file_cut_off_anywhere_is_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    content = tiny_model.path.read_bytes()
    for n in (0, 3, 4, 20, 200, 5_000, len(content) // 2, len(content) - 1):
        path = broken(tiny_model, tmp_path, content[:n])
        refused(lambda path=path: Model.load(path), ModelError, "broken.gguf")


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(5000), b"ggml" + bytes(5000), b"{}"])
def test_file_that_is_no_gguf_is_refused(
    tiny_model: TinyModel, tmp_path: Path, content: bytes
) -> None:
    path = broken(tiny_model, tmp_path, content)
    refused(lambda: Model.load(path), ModelError, "GGUF")


def test_architecture_llama_cpp_does_not_know_is_named(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    content = tiny_model.path.read_bytes().replace(b"llama", b"lmaal")
    path = broken(tiny_model, tmp_path, content)
    refused(lambda: Model.load(path), ModelLoadError, "lmaal")


def test_control_vector_is_no_model(tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "golden" / "v1-raw.gguf"
    refused(lambda: Model.load(path), ModelLoadError, "is a control vector, not a model")


def test_folder_is_no_model(tmp_path: Path) -> None:
    refused(lambda: Model.load(tmp_path), ModelError)


@pytest.fixture
def tiny_model(tiny: Callable[[str], TinyModel]) -> TinyModel:
    return tiny("llama")


# --- one text where a list is asked for, and copies ---


def test_one_text_is_not_taken_for_a_list_of_them(engine: Engine) -> None:
    refused(lambda: engine.generate_many("abc", max_tokens=1), match="not a list of them")
    refused(lambda: engine.score_many(["ab"]), match="not a pair")  # type: ignore[list-item]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_sequence_is_forked_and_not_copied(
    engine: Engine, copied: Callable[[object], object]
) -> None:
    with engine.sequence(TEXT) as sequence:
        refused(lambda: copied(sequence), match=r"fork\(\)|cannot be pickled")
        assert np.isfinite(sequence.logits()).all()  # still open


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_engine_and_its_model_say_what_to_do_instead_of_a_copy(
    engine: Engine, copied: Callable[[object], object]
) -> None:
    refused(lambda: copied(engine), match=r"Engine\(engine\.model\)")
    refused(lambda: copied(engine.model), match=r"Model\.load\('.*\.gguf'\)")
    assert engine.score("a text").mean_logprob < 0  # still open
