"""No deadlock, no abort, no wrong sequence: whatever Python does while the engine is at work."""

from __future__ import annotations

import gc
import random
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hostile_models
import numpy as np
import pytest
from tiny_models import build_tiny

from pyemo import CacheVector, ControlVector, Engine, Model, SamplerParams, Sequence, Steering
from pyemo.errors import ClosedError, DecodeAbortedError, InputError, ModelLoadError, PyemoError

LONG = [30, 41, 52, 63] * 900  # some seconds of prompt for the tiny model


@contextmanager
def while_it_runs(handler: Callable[[], None]) -> Iterator[list[BaseException]]:
    """Call ``handler`` in a signal handler during what follows; yields what it raised."""
    raised: list[BaseException] = []

    def run(_number: int, _frame: object) -> None:
        try:
            handler()
        except BaseException as error:
            raised.append(error)
            raise

    before = signal.signal(signal.SIGALRM, run)
    signal.setitimer(signal.ITIMER_REAL, 0.08)
    try:
        yield raised
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def busy(new_engine: Callable[..., Engine]) -> tuple[Engine, Sequence]:
    """An engine, and a sequence with a long prompt that is not read yet."""
    engine = new_engine(n_ctx=4096, n_seq_max=4)
    return engine, engine.sequence(LONG)


ASKED = {
    "n_free_sequences": lambda engine, other: engine.native.n_free_sequences,
    "n_threads": lambda engine, other: engine.n_threads,
    "set_n_threads": lambda engine, other: engine.native.set_n_threads(1, 1),
    "add_sequence": lambda engine, other: engine.sequence([5]),
    "fork": lambda engine, other: other.fork(),
    "tokens": lambda engine, other: other.tokens,
    "append": lambda engine, other: other.append([5]),
    "rollback": lambda engine, other: other.rollback(1),
    "refresh": lambda engine, other: other.refresh(),
    "read_cache": lambda engine, other: other.read_cache(0, 1),
    "edit_cache": lambda engine, other: other.edit_cache(CacheVector({0: [[1.0]]}, cells=[-2])),
    "undo_cache_edit": lambda engine, other: other.undo_cache_edit(),
    "step": lambda engine, other: other.step(),
    "logits": lambda engine, other: other.logits(),
    "reading": lambda engine, other: other.start_reading([0]),
    "score": lambda engine, other: engine.score([5, 6, 7]),
    "read": lambda engine, other: engine.read([5, 6, 7], layers=[0]),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_signal_handler_that_calls_the_working_engine_is_refused_by_name(
    busy: tuple[Engine, Sequence], ask: Callable[[Engine, Sequence], object]
) -> None:
    engine, sequence = busy
    other = engine.sequence([5, 6, 7])
    with while_it_runs(lambda: ask(engine, other)) as raised, pytest.raises(InputError):
        sequence.logits()
    assert "at work in this very thread" in str(raised[0])
    assert np.isfinite(sequence.logits()).all()  # the engine goes on, the prompt is still there


def test_a_sequence_closed_by_a_handler_is_freed_once_the_work_is_done(
    busy: tuple[Engine, Sequence],
) -> None:
    engine, sequence = busy
    other = engine.sequence([5, 6, 7])
    free = engine.native.n_free_sequences
    with while_it_runs(other.close) as raised:
        sequence.logits()
    assert raised == []
    assert engine.native.n_free_sequences == free + 1


def test_a_collection_in_the_middle_of_a_decode_frees_dead_sequences(
    busy: tuple[Engine, Sequence],
) -> None:
    engine, sequence = busy

    class Knot:
        pass

    knot = Knot()
    knot.sequence, knot.itself = engine.sequence([5, 6, 7]), knot  # type: ignore[attr-defined]
    free = engine.native.n_free_sequences
    del knot
    with while_it_runs(lambda: (gc.collect(), None)[1]) as raised:
        sequence.logits()
    assert raised == []
    assert engine.native.n_free_sequences == free + 1


def test_a_thread_that_waits_for_the_engine_obeys_ctrl_c(busy: tuple[Engine, Sequence]) -> None:
    engine, sequence = busy

    def interrupt() -> None:
        raise KeyboardInterrupt

    def wait_for_the_engine() -> None:
        while worker.is_alive():
            engine.score([5, 6, 7])

    worker = threading.Thread(target=sequence.logits)
    worker.start()
    time.sleep(0.02)
    with while_it_runs(interrupt), pytest.raises(KeyboardInterrupt):
        wait_for_the_engine()
    worker.join()


def test_the_number_of_a_closed_sequence_is_never_used_again(engine: Engine) -> None:
    numbers = set()
    for _ in range(50):
        with engine.sequence([5, 6]) as sequence:
            numbers.add(sequence._id)
    assert len(numbers) == 50
    with pytest.raises(ClosedError):
        engine.native.append(next(iter(numbers)), [5])


def test_a_failed_decode_leaves_no_row_in_a_mean_reading(engine: Engine) -> None:
    width, last = engine.model.n_embd, engine.model.n_layer - 1
    too_strong = Steering({ControlVector({1: np.full(width, 1e15)}): 1e6})

    def mean(*, fails: bool) -> np.ndarray:
        with engine.sequence([5, 6, 7, 8], sampler=SamplerParams(temperature=0)) as sequence:
            sequence.start_reading([last, 0], pooling="mean")  # layer 0 is seen before the failure
            if fails:
                sequence.steering = too_strong
                with pytest.raises(DecodeAbortedError):
                    sequence.logits()
                sequence.steering = Steering()
            sequence.logits()
            return np.asarray(sequence.reading()[1])

    assert np.array_equal(mean(fails=True), mean(fails=False))


# --- the end of the process ---


WORK = {
    "generate": "[t for t in engine.generate('the happy story', max_tokens=50)]",
    "score": "engine.score('the happy story ' * 20)",
    "tokenize": "engine.model.tokenize('the happy story ' * 5000)",
    "load": "pyemo.Model.load(path)",
    "open": "pyemo.Engine(engine.model, n_ctx=256, n_threads=1).close()",
}


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_a_process_ends_with_its_own_code_while_a_thread_works(
    work: str, tiny_model_path: Path
) -> None:
    code = f"""
        import sys, threading, time, pyemo
        path = {str(tiny_model_path)!r}
        engine = pyemo.Engine(path, n_ctx=512, n_seq_max=2, n_threads=1)
        def work():
            while True:
                {work}
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.2)
        print("done", flush=True)
        sys.exit(7)
    """
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stdout.strip(), done.stderr) == (7, "done", "")


# --- model files ---


def test_positions_end_where_the_table_of_positions_does(tmp_path: Path) -> None:
    """A StarCoder model has the table, and llama.cpp says of it that it rotates."""
    damage, base = hostile_models.mutation_of(156)
    whole = build_tiny(base.partition("-")[0], tmp_path / "whole.gguf").path
    parts = hostile_models.GgufParts.parse(whole.read_bytes())
    path = tmp_path / "starcoder.gguf"
    path.write_bytes(damage(random.Random(156), parts))
    model = Model.load(path)
    assert model.architecture == "starcoder"
    with Engine(model, n_ctx=1024, n_threads=1) as engine, pytest.raises(PyemoError, match="512"):
        engine.sequence([i % model.n_vocab for i in range(600)]).logits()


def _gguf(tmp_path: Path, tokens: bytes, n: int) -> Path:
    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    path = tmp_path / "model.gguf"
    keys = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
    keys += text(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, n) + tokens
    tensor = text(b"token_embd.weight") + struct.pack("<IQIQ", 1, 32, 0, 0)
    body = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + keys + tensor
    path.write_bytes(body + bytes(-len(body) % 32) + bytes(128))
    return path


def test_a_vocabulary_of_empty_tokens_is_looked_at_in_linear_time(tmp_path: Path) -> None:
    n = 1_000_000
    started = time.process_time()
    with pytest.raises(ModelLoadError):
        Model.load(_gguf(tmp_path, bytes(8) * n, n))
    assert time.process_time() - started < 30  # took minutes: each looked at all before it


def test_a_header_that_claims_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    key = struct.pack("<Q", 5) + b"a.key" + struct.pack("<IQ", 8, 3 << 30)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + key)
    with path.open("r+b") as file:
        file.truncate(4 << 30)  # sparse: takes no room
    with pytest.raises(ModelLoadError, match="more than 256 MiB"):
        Model.load(path)
