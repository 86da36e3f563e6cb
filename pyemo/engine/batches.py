"""Continuations of many prompts in batches of fixed shape: results that may be stored and compared.

Kernels round differently in batches of different shape (docs/determinism.md). Here every batch has
the same number of rows from its first token to its last: a continuation that has ended keeps its
row, and a batch with too few jobs is filled up. A row's text then depends on its own mood and on
its batch's prompts, but neither on the moods of other rows nor on when they end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyemo.engine import scopes
from pyemo.engine.engine import Engine
from pyemo.engine.model import Model
from pyemo.engine.mood import OFF
from pyemo.engine.row import ReplyLimits, Row
from pyemo.engine.rows import run
from pyemo.engine.sampling import GREEDY, SamplerParams
from pyemo.engine.sequence import Sequence as EngineSequence
from pyemo.engine.steering import Steering
from pyemo.errors import ContextFullError, InputError, names_bad_calls


@dataclass(frozen=True)
class Job:
    """One continuation to compute: token ids, the mood, how tokens are drawn."""

    prompt: tuple[int, ...]
    steering: Steering = OFF
    sampler: SamplerParams = GREEDY


@dataclass(frozen=True)
class Continuation:
    """What a model wrote.

    Attributes:
        tokens: ids, without an end-of-generation token.
        pieces: the tokens' bytes.
        entropies: of the distributions the tokens were drawn from, nats; (n_tokens,).
        ended: whether the model ended it.
    """

    tokens: tuple[int, ...]
    pieces: tuple[bytes, ...]
    entropies: tuple[float, ...]
    ended: bool

    @property
    def text(self) -> str:
        """The tokens' text; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.pieces).decode("utf-8", "replace")

    def first(self, n_tokens: int) -> Continuation:
        """Return what it would have been with ``n_tokens`` at most."""
        if len(self.tokens) < n_tokens:
            return self
        return Continuation(
            self.tokens[:n_tokens], self.pieces[:n_tokens], self.entropies[:n_tokens], False
        )


@names_bad_calls
def continue_many(
    engine: Engine,
    jobs: Sequence[Job],
    *,
    max_tokens: int,
    n_rows: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[Continuation]:
    """Return each job's continuation, computed ``n_rows`` at a time in batches of fixed shape.

    A prompt that several rows of a batch share is computed once where no mood acts on it: all of
    it where the mood is off, all but its last token where the scope is of the reply. Elsewhere it
    is computed for each row, since its keys and values differ.

    Args:
        max_tokens: of a continuation, 1 or more.
        n_rows: 1 or more; the engine must have as many free sequences.
        on_progress: called with the number of jobs finished since the last call.
    Raises:
        ContextFullError: a batch does not fit into the engine's context.
        InputError: a number outside its range.
        DecodeAbortedError: logits that are not finite; the strength is far too high.
    """
    if max_tokens < 1 or not 1 <= n_rows <= engine.n_seq_max:
        raise InputError(
            f"max_tokens = {max_tokens}, n_rows = {n_rows}; they must be at least 1, and there are "
            f"{engine.n_seq_max} sequences: open the engine with a larger n_seq_max"
        )
    check_room(engine, [job.prompt for job in jobs], max_tokens, n_rows)
    found: list[Continuation] = []
    for begin in range(0, len(jobs), n_rows):
        batch = list(jobs[begin : begin + n_rows])
        found += _continue(engine, batch, max_tokens, n_rows)
        if on_progress is not None:
            on_progress(len(batch))
    return found


def n_ctx_for(prompts: Sequence[Sequence[int]], max_tokens: int, n_rows: int) -> int:
    """Return the context that batches of these prompts need, rounded up to whole 256 cells."""
    longest = max((len(prompt) for prompt in prompts), default=0)
    return -(-n_rows * (longest + max_tokens) // 256) * 256


def check_lengths(model: Model, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
    """Raise unless the model can read each prompt with its continuation.

    Raises:
        ContextFullError: names the prompt and what it needs.
    """
    for index, prompt in enumerate(prompts):
        if len(prompt) + max_tokens > model.n_ctx_train:
            raise ContextFullError(
                f"prompt {index + 1} has {len(prompt)} tokens and leaves no room for {max_tokens} "
                f"more: {model.name} reads {model.n_ctx_train}; shorten it, or ask for fewer tokens"
            )


def check_room(
    engine: Engine, prompts: Sequence[Sequence[int]], max_tokens: int, n_rows: int
) -> None:
    """Raise unless each prompt leaves room for its continuation, in the model and in a batch.

    Raises:
        ContextFullError: names the prompt and what it needs.
    """
    check_lengths(engine.model, prompts, max_tokens)
    for index, prompt in enumerate(prompts):
        n = len(prompt) + max_tokens
        if n * n_rows > engine.n_ctx or n > engine.n_ctx_seq:
            raise ContextFullError(
                f"prompt {index + 1} has {len(prompt)} tokens; {n_rows} rows of it with "
                f"{max_tokens} more take {n * n_rows} cells, and the context has {engine.n_ctx}: "
                "shorten it, take fewer rows, or open the engine with a larger n_ctx"
            )


def score_unsteered(
    engine: Engine, prompts: Sequence[tuple[int, ...]], continuations: Sequence[Continuation]
) -> list[npt.NDArray[np.float32]]:
    """Return each continuation's log-probabilities under the unsteered model, float32 (n_tokens,).

    All are scored together, many a batch; an empty one has none.
    """
    found = [np.zeros(0, np.float32)] * len(continuations)
    rows = [index for index, text in enumerate(continuations) if text.tokens]
    pairs = [(list(continuations[index].tokens), list(prompts[index])) for index in rows]
    for index, score in zip(rows, engine.score_many(pairs) if pairs else [], strict=True):
        found[index] = score.logprobs
    return found


def _continue(engine: Engine, jobs: list[Job], max_tokens: int, n_rows: int) -> list[Continuation]:
    with _open(engine, [*jobs, *[jobs[-1]] * (n_rows - len(jobs))]) as sequences:
        rows = [Row(sequence, ReplyLimits(max_tokens)) for sequence in sequences[: len(jobs)]]
        run(rows, keeps_ended=True, idle=sequences[len(jobs) :])
        return [_continuation(row) for row in rows]


def _continuation(row: Row) -> Continuation:
    ended = row.stop_reason == "end"
    drawn = [result for result in row.drawn if not result.is_end]
    return Continuation(
        tuple(result.token for result in drawn),
        tuple(result.piece for result in drawn),
        tuple(result.entropy for result in drawn),
        ended,
    )


@contextmanager
def _open(engine: Engine, jobs: list[Job]) -> Iterator[list[EngineSequence]]:
    """Yield each job's sequence; prompts that are the same are computed once."""
    with ExitStack() as stack:
        sequences: list[EngineSequence] = []
        read: dict[tuple[int, ...], EngineSequence] = {}
        for job in jobs:
            shared = _shared(job)
            if shared and shared in read:
                sequence = read[shared].fork(sampler=job.sampler)
                stack.callback(sequence.close)
            else:
                sequence = engine.sequence(shared, sampler=job.sampler)
                stack.callback(sequence.close)
                if shared:
                    sequence.logits()  # decodes it, so that later rows can fork it
                    read[shared] = sequence
            sequences.append(sequence)
        for sequence, job in zip(sequences, jobs, strict=True):
            sequence.steering = job.steering
            sequence.append(job.prompt[sequence.n_tokens :])
        yield sequences


def _shared(job: Job) -> tuple[int, ...]:
    """Return what no mood of the job acts on: its prompt's beginning, or nothing."""
    if not job.steering:
        return job.prompt
    is_of_reply = all(scopes.is_of_reply(term.scope) for term in job.steering.terms)
    return job.prompt[:-1] if is_of_reply else ()
