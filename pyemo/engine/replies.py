"""Replies: the model's words as they come, one at a time or many in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceABC
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from pyemo import _core
from pyemo.engine.sampling import SamplerParams
from pyemo.engine.sequence import Sequence, make_token, step_many
from pyemo.engine.steering import Steering
from pyemo.engine.tokens import TextStream, Token, stop_strings, text_of, whole
from pyemo.errors import ContextFullError

if TYPE_CHECKING:
    from pyemo.engine.engine import Engine

StopReason: TypeAlias = Literal["end", "stop", "length", "context"]
"""Why a reply ended: the model ended it, a stop string came, max_tokens, or the context is full."""


@dataclass(frozen=True)
class ReplyLimits:
    """What is asked of a reply, checked before a sequence is made for it.

    Attributes:
        max_tokens: 1 or more.
        stop: strings that end it; they are not part of it.
        n_top: alternatives to report with each token.
    Raises:
        InputError: a value outside its range.
    """

    max_tokens: int
    stop: SequenceABC[str] = ()
    n_top: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_tokens", whole("max_tokens", self.max_tokens, 1))
        object.__setattr__(self, "stop", stop_strings(self.stop))
        object.__setattr__(self, "n_top", whole("n_top", self.n_top, 0))


class Reply:
    """The model's words as they come: an iterator of :class:`Token`.

    Attributes:
        text: all text so far.
        tokens: the tokens so far.
        stop_reason: why it ended (see :data:`StopReason`), None while it has not.
        sequence: the sequence it comes from.
    """

    def __init__(
        self,
        sequence: Sequence,
        limits: ReplyLimits,
        *,
        closes_sequence: bool,
    ) -> None:
        """Use :meth:`Engine.generate` or :meth:`Sequence.generate`."""
        sequence.engine.follow_load()
        self.sequence = sequence
        self.tokens: list[Token] = []
        self.stop_reason: StopReason | None = None
        self._begin = sequence.n_tokens
        self._stream = TextStream(limits.stop)
        self._max_tokens = limits.max_tokens
        self._n_top = limits.n_top
        self._closes_sequence = closes_sequence

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(token.text for token in self.tokens)

    @property
    def answer(self) -> str:
        """The text so far without the thoughts, which are in ``thoughts``."""
        return text_of(self.tokens, "answer")

    @property
    def thoughts(self) -> str:
        """The text of the model's thoughts so far, with the tags around them."""
        return text_of(self.tokens, "thinking")

    @property
    def logprobs(self) -> npt.NDArray[np.float32]:
        """Log-probabilities of the tokens, the last one's included; float32 (n_tokens,)."""
        return np.array([token.logprob for token in self.tokens], dtype=np.float32)

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        if self.stop_reason is not None:
            raise StopIteration
        n_tokens, n_shown, mark = self.sequence.n_tokens, len(self.tokens), self._stream.mark()
        try:
            return self.take(step_many([self.sequence], n_top=self._n_top)[0])
        except ContextFullError:
            if not self.tokens:
                self.close()
                raise
            self._end("context")
            self.tokens[-1] = with_open_text(self.tokens[-1], self._stream)
            raise StopIteration from None
        except BaseException:
            # Interrupted anywhere, the token never was: reply and sequence agree.
            self.sequence.cut_to(n_tokens)
            del self.tokens[n_shown:]
            self.stop_reason = None
            self._stream.return_to(mark)
            self.close()  # a traceback that somebody keeps must not keep the sequence
            raise

    def take(self, result: _core.StepResult) -> Token:
        """Add a step's result, however it was computed; return its token."""
        _, kind = self.sequence.segment_at(self._begin + len(self.tokens))
        text = self._stream.push(result.piece, is_thought=kind == "thinking")
        reason: StopReason | None
        if self._stream.stopped:
            reason = "stop"
        else:
            reason = end_reason(self.sequence, result, len(self.tokens) + 1, self._max_tokens)
        if reason is not None:
            text += self._stream.flush()
        token = make_token(self.sequence, result, text, kind)
        self.tokens.append(token)
        if reason is not None:
            self._end(reason)
        return token

    def close(self) -> None:
        """Stop here; frees the sequence if the reply owns it."""
        if self._closes_sequence:
            self.sequence.close()

    def _end(self, reason: StopReason) -> None:
        self.stop_reason = reason
        self.close()

    def __repr__(self) -> str:
        state = self.stop_reason or "running"
        return f"<Reply {len(self.tokens)} tokens, {state}: {self.text[:60]!r}>"


def end_reason(
    sequence: Sequence, result: _core.StepResult, n_drawn: int, max_tokens: int
) -> StopReason | None:
    """Return why ``result``, the ``n_drawn``-th token of a reply, is its last; None if it is not.

    Stop strings are the caller's.
    """
    if result.is_end:
        return "end"
    if n_drawn >= max_tokens:
        return "length"
    return "context" if sequence.is_full else None


def with_open_text(last: Token, stream: TextStream) -> Token:
    """Return a reply's last token with the text that its stream still holds back."""
    return replace(last, text=last.text + stream.flush())


def generate_many(
    engine: Engine,
    prompts: SequenceABC[list[int]],
    *,
    steering: SequenceABC[Steering],
    samplers: SequenceABC[SamplerParams],
    max_tokens: int,
    stop: SequenceABC[str],
    fixed_shape: bool,
    on_reply: Callable[[int, Reply], None] | None,
) -> list[Reply]:
    """Return the finished replies; see :meth:`pyemo.Engine.generate_many`."""
    limits = ReplyLimits(max_tokens, stop)
    replies: list[Reply] = []
    while len(replies) < len(prompts):
        done = len(replies)
        size = group_size(engine, [len(tokens) + limits.max_tokens for tokens in prompts[done:]])
        group: list[Reply] = []
        try:
            for i in range(done, done + size):
                sequence = Sequence(engine, prompts[i], steering[i], samplers[i], ())
                group.append(Reply(sequence, limits, closes_sequence=False))
            _run(group, done, fixed_shape, on_reply)
        finally:
            for reply in group:
                reply.sequence.close()
        replies += group
    return replies


def group_size(engine: Engine, lengths: list[int]) -> int:
    """Return how many of the next texts fit: free sequences, and cells for all their tokens."""
    room = n_free_cells = engine.native.n_free_cells
    n_free = engine.native.n_free_sequences
    size = 0
    while size < min(n_free, len(lengths)) and lengths[size] <= min(room, engine.n_ctx_seq):
        room -= lengths[size]
        size += 1
    if size == 0:
        raise ContextFullError(
            f"a prompt with its reply may take {lengths[0]} tokens; a sequence holds "
            f"{engine.n_ctx_seq} at most, and {n_free_cells} cells of {engine.n_ctx} and {n_free} "
            "sequences are free: shorten it, close a sequence, or open the engine with a larger "
            "n_ctx or n_seq_max"
        )
    return size


def _run(
    group: list[Reply],
    first: int,
    fixed_shape: bool,
    on_reply: Callable[[int, Reply], None] | None,
) -> None:
    while any(reply.stop_reason is None for reply in group):
        rows = group if fixed_shape else [reply for reply in group if reply.stop_reason is None]
        results = step_many([reply.sequence for reply in rows])
        for reply, result in zip(rows, results, strict=True):
            if reply.stop_reason is None:
                reply.take(result)
                if reply.stop_reason is not None and on_reply is not None:
                    on_reply(first + group.index(reply), reply)
