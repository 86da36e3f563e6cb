"""How fast a model reads and writes here: prompt, decode, several sequences, a longer run.

Speeds are those of this moment on this machine; a busy neighbour shows in them.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

from pyemo.check.readings import Findings
from pyemo.check.subject import PROMPT, Subject
from pyemo.engine.engine import Engine
from pyemo.engine.memory import resident_bytes
from pyemo.engine.mood import OFF
from pyemo.engine.sampling import GREEDY, SamplerParams
from pyemo.engine.sequence import Sequence
from pyemo.engine.steering import Steering
from pyemo.engine.steps import step_many
from pyemo.texts.sources import neutral_texts

N_DECODE, N_ROUNDS, N_SEQUENCES = 32, 3, 8

_N_PROMPT_TOKENS = 256


def add_prompt_speed(findings: Findings, subject: Subject, engine: Engine) -> None:
    """Read neutral text, several times."""
    n = min(_N_PROMPT_TOKENS, subject.plan.n_ctx - 2)
    tokens = subject.model.tokenize(" ".join(neutral_texts()), add_special=True)[:n]
    spent = [_timed(functools.partial(_read, engine, tokens)) for _ in range(N_ROUNDS)]
    findings.add(
        "prompt_tokens_per_s",
        "read a prompt",
        len(tokens) / statistics.median(spent),
        "tokens/s",
        "min_prompt_tokens_per_s",
        note=f"{len(tokens)} tokens",
    )


def add_decode_speed(findings: Findings, subject: Subject, engine: Engine) -> None:
    """Decode one sequence, unsteered and steered in turns, so that both see the same machine."""
    has_vector = bool(subject.mood.terms)
    spent: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(N_ROUNDS):
        for is_steered in (False, True) if has_vector else (False,):
            mood = subject.mood if is_steered else OFF
            spent[is_steered].append(_decode_s(engine, mood, N_DECODE))
    findings.add(
        "unsteered_tokens_per_s",
        "decode, unsteered",
        N_DECODE / statistics.median(spent[False]),
        "tokens/s",
        "" if has_vector else "min_tokens_per_s",
    )
    if has_vector:
        findings.add(
            "tokens_per_s",
            "decode, steered",
            N_DECODE / statistics.median(spent[True]),
            "tokens/s",
            "min_tokens_per_s",
            note=f"{len(subject.vector.layers) if subject.vector else 0} layers",
        )


def add_batch_speed(findings: Findings, subject: Subject) -> None:
    """Decode several sequences in one batch."""
    n_tokens = 16
    prompt = subject.model.prompt_tokens(PROMPT)
    n_ctx = N_SEQUENCES * (len(prompt) + n_tokens + 4)
    with subject.engine(n_ctx=n_ctx, n_seq_max=N_SEQUENCES) as engine:
        sequences = [
            engine.sequence(prompt, steering=subject.mood, sampler=SamplerParams(seed=i))
            for i in range(N_SEQUENCES)
        ]
        step_many(sequences)
        spent = _timed(lambda: [step_many(sequences) for _ in range(n_tokens)])
    findings.add(
        "batch_tokens_per_s",
        f"decode, {N_SEQUENCES} sequences",
        N_SEQUENCES * n_tokens / spent,
        "tokens/s",
        "min_batch_tokens_per_s",
        note="all together",
    )


def add_slowdown(findings: Findings, subject: Subject) -> None:
    """Decode a longer text; compare its first quarter with its last."""
    n = max(8, subject.plan.n_long // 4 * 4)
    prompt = subject.model.prompt_tokens(PROMPT)
    n_ctx = len(prompt) + n + 4
    with (
        subject.engine(n_ctx=n_ctx) as engine,
        engine.sequence(prompt, steering=subject.mood) as sequence,
    ):
        sequence.step()
        before = resident_bytes()
        quarters = [_timed(functools.partial(_steps, sequence, n // 4)) for _ in range(4)]
        after = resident_bytes()
    grown = "" if before is None or after is None else f", {(after - before) / 1e6:+.1f} MB"
    first, last = (n // 4 / quarter for quarter in (quarters[0], quarters[-1]))
    findings.add(
        "slowdown",
        f"slowdown over {n} tokens",
        1 - last / first,
        limit_name="max_slowdown",
        note=f"{first:.0f} tokens/s in the first quarter, {last:.0f} in the last{grown}",
    )


def _read(engine: Engine, tokens: list[int]) -> None:
    with engine.sequence(tokens) as sequence:
        sequence.logits()


def _decode_s(engine: Engine, mood: Steering, n: int) -> float:
    """Return the seconds that ``n`` tokens take after the first."""
    with engine.sequence(PROMPT, steering=mood, sampler=GREEDY) as sequence:
        sequence.step()
        return _timed(functools.partial(_steps, sequence, n))


def _steps(sequence: Sequence, n: int) -> None:
    for _ in range(n):
        sequence.step()


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
