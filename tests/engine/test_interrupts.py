"""Ctrl-C at any moment: obeyed at once, and what was interrupted never was."""

from __future__ import annotations

import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from engines import random_vector

from pyemo import Engine, SamplerParams, Sequence, Steering
from pyemo.guard import Guard

PROMPT = [5, 6, 7, 8]
N_ROUNDS = 15
GREEDY = SamplerParams(temperature=0)


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Press Ctrl-C ``seconds`` from now, unless what follows has ended."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def whole_reply(engine: Engine, steering: Steering, n: int) -> list[int]:
    with engine.sequence(PROMPT, sampler=GREEDY, steering=steering) as sequence:
        return [sequence.step().id for _ in range(n)]


def test_an_interrupted_reply_and_its_sequence_agree(engine: Engine) -> None:
    rng = random.Random(0)
    expected = whole_reply(engine, Steering(), 120)
    for _ in range(N_ROUNDS):
        with engine.sequence(PROMPT, sampler=GREEDY) as sequence:
            reply = sequence.generate(max_tokens=100)
            with interrupted_after(rng.uniform(0.001, 0.06)):
                list(reply)
            shown = [token.id for token in reply.tokens]
            assert sequence.tokens == PROMPT + shown
            assert sequence._segments == [(0, "prompt"), (4, "answer")][: 2 if shown else 1]
            assert shown == expected[: len(shown)]
            # and it goes on as if nothing had been
            assert [token.id for token in sequence.generate(max_tokens=3)] == (
                expected[len(shown) : len(shown) + 3]
            )


def test_an_interrupted_guarded_reply_and_its_sequence_agree(engine: Engine) -> None:
    rng = random.Random(1)
    mood = Steering({random_vector(engine.model): 0.05})
    for _ in range(N_ROUNDS):
        with engine.sequence(PROMPT, sampler=GREEDY, steering=mood) as sequence:
            reply = Guard(window=8).reply(sequence, max_tokens=100)
            with interrupted_after(rng.uniform(0.001, 0.06)):
                list(reply)
            reply.close()  # an interrupt between two tokens leaves those that it holds
            assert sequence.tokens == PROMPT + [token.id for token in reply.tokens]
            assert sequence.steering == mood


def _interrupt_after_the_work(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Press Ctrl-C between the engine's work and taking its result, at the next call."""
    import pyemo.engine.sequence as module

    before = getattr(module.Sequence, name)

    def press(*args: object, **kwargs: object) -> object:
        monkeypatch.setattr(module.Sequence, name, before)
        raise KeyboardInterrupt

    monkeypatch.setattr(module.Sequence, name, press)


@pytest.mark.parametrize(
    "call",
    [
        lambda sequence: sequence.step(),
        lambda sequence: next(sequence.generate()),
        lambda sequence: sequence.append([9, 10], is_reply=True),
    ],
    ids=["step", "reply", "append"],
)
def test_an_interrupt_behind_the_native_work_takes_it_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, call: Callable[[Sequence], object]
) -> None:
    with engine.sequence(PROMPT, sampler=GREEDY) as sequence:
        _interrupt_after_the_work(monkeypatch, "_begin_segment")
        with pytest.raises(KeyboardInterrupt):
            call(sequence)
        assert sequence.tokens == PROMPT
        assert sequence._segments == [(0, "prompt")]
        assert np.isfinite(sequence.logits()).all()


def test_a_failed_score_next_leaves_tokens_and_segments(engine: Engine) -> None:
    with engine.sequence(PROMPT) as sequence:
        with pytest.raises(ValueError, match="token ids"):
            sequence.score_next("text", is_reply=True)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="outside"):
            sequence.score_next([10**6], is_reply=True)
        assert (sequence.tokens, sequence._segments) == (PROMPT, [(0, "prompt")])


def test_ctrl_c_is_obeyed_within_a_step_of_a_long_prompt(smollm2: Path) -> None:
    """In processor time, which a busy machine does not stretch, beside that of a whole batch."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    prompt = [5] * 1000
    with Engine(smollm2, n_ctx=1024, n_batch=256, n_threads=1) as engine:
        began = time.process_time()
        with engine.sequence(prompt[:256]) as sequence:
            sequence.logits()
        a_batch = time.process_time() - began
        before = signal.signal(signal.SIGVTALRM, interrupt)
        try:
            for share in (0.4, 1.3):
                with engine.sequence(prompt) as sequence:
                    began = time.process_time()
                    signal.setitimer(signal.ITIMER_VIRTUAL, share * a_batch)
                    with pytest.raises(KeyboardInterrupt):
                        sequence.logits()
                    late = time.process_time() - began - share * a_batch
                    assert late < 0.1 + 0.2 * a_batch
                    assert sequence.tokens == prompt
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)


# --- work that llama.cpp cannot stop goes on alone ---


def _of_empty_tokens(path: Path, n: int) -> Path:
    """Write a file that looks like a model whose vocabulary takes llama.cpp seconds to read."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    keys = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
    keys += text(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, n) + bytes(8) * n
    tensor = text(b"token_embd.weight") + struct.pack("<IQIQ", 1, 32, 0, 0)
    body = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + keys + tensor
    path.write_bytes(body + bytes(-len(body) % 32) + bytes(128))
    return path


_LONG_WORK = """
import signal, sys, time
import pyemo
model = pyemo.Model.load({model!r})
pressed = []

def interrupt(number, frame):
    pressed.append(time.perf_counter())
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    {call}
except KeyboardInterrupt:
    print(time.perf_counter() - pressed[0] < 0.3, model.tokenize("the happy story") != [])
    sys.exit(130)
"""


@pytest.mark.parametrize(
    "call",
    [
        "pyemo.Model.load({slow!r})",
        "model.tokenize('the happy story ' * 500_000)",
    ],
    ids=["load", "tokenize"],
)
def test_ctrl_c_is_obeyed_while_llama_cpp_cannot_stop(
    call: str, tiny_model_path: Path, tmp_path: Path
) -> None:
    slow = _of_empty_tokens(tmp_path / "slow.gguf", 1_000_000)
    program = _LONG_WORK.format(model=str(tiny_model_path), call=call.format(slow=str(slow)))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (130, ["True", "True"], "")
