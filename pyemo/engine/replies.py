"""Replies: the model's words as they come, one at a time or many in a batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceABC
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pyemo import _core
from pyemo.engine.base_sequence import BaseSequence
from pyemo.engine.gauges import GaugeReading
from pyemo.engine.row import ReplyLimits, Row, StopReason
from pyemo.engine.rows import run, turn
from pyemo.engine.scopes import Kind
from pyemo.engine.tokens import TextStream, Token, TokenLogprob, text_of
from pyemo.errors import ContextFullError


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
        sequence: BaseSequence,
        limits: ReplyLimits,
        *,
        closes_sequence: bool,
    ) -> None:
        """Use :meth:`Engine.generate` or :meth:`Sequence.generate`."""
        sequence.engine.follow_load()
        self.sequence = sequence
        self.tokens: list[Token] = []
        self.stop_reason: StopReason | None = None
        self._row = Row(sequence, limits)
        self._stream = TextStream(limits.stop)
        self._held: deque[_core.StepResult] = deque()  # drawn and not shown
        self._n_top = limits.n_top
        self._closes_sequence = closes_sequence

    @property
    def text(self) -> str:
        """All text so far: empty until the reply is iterated over."""
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

    @property
    def n_sound(self) -> int:
        """Tokens before those that only repeat them, in a reply that went in circles; else all."""
        n_shown = len(self.tokens)
        if self.stop_reason != "repetition":
            return n_shown
        found = self._row.circles_from()
        return n_shown if found is None else min(found, n_shown)

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        if self.stop_reason is not None:
            raise StopIteration
        n_shown, mark = len(self.tokens), self._stream.mark()
        n_stands = self.sequence.n_tokens - len(self._held)
        try:
            while not self._is_ready():
                self._draw()
            if self._held:
                return self._show(self._held.popleft())
        except BaseException:
            # Interrupted anywhere, what was not shown before never was: reply and sequence agree.
            self.sequence.cut_to(n_stands)
            self._row.cut_to(n_shown)
            self._held.clear()
            del self.tokens[n_shown:]
            self.stop_reason = None
            self._stream.return_to(mark)
            self.close()  # a traceback that somebody keeps must not keep the sequence
            raise
        self._end(self._row.stop_reason)  # the context filled up behind the last token shown
        last = self.tokens[-1]
        self.tokens[-1] = replace(last, text=last.text + self._stream.flush())
        raise StopIteration

    def close(self) -> None:
        """Stop here; frees the sequence if the reply owns it."""
        if self._closes_sequence:
            self.sequence.close()

    def _draw(self) -> None:
        try:
            turn([self._row], on_token=self._take, n_top=self._n_top)
        except ContextFullError:  # other sequences may have taken the cells that looked free
            if not self._row.drawn:
                raise
            self._row.stop_reason = "context"

    def _take(self, row: Row) -> None:
        """Look at the token that ``row`` has drawn."""
        self._held.append(row.drawn[-1])

    def _is_ready(self) -> bool:
        """Whether a token can be shown, or there is none to wait for."""
        return bool(self._held) or self._row.stop_reason is not None

    def take(self, row: Row) -> Iterator[Token]:
        """Look at the token that ``row`` has drawn; yield those that can be shown now.

        For who runs many replies in one batch. Draws nothing.
        """
        self._take(row)
        return self.ready()

    def ready(self) -> Iterator[Token]:
        """Yield the tokens that can be shown without drawing another."""
        while self.stop_reason is None and self._held and self._is_ready():
            yield self._show(self._held.popleft())

    def _show(self, result: _core.StepResult) -> Token:
        _, kind = self.sequence.segment_at(self._row.begin + len(self.tokens))
        text = self._stream.push(result.piece, is_thought=kind == "thinking")
        reason = None if self._held else self._row.stop_reason
        if self._stream.stopped:
            reason = "stop"
        elif reason is not None:
            text += self._stream.flush()
        token = make_token(self.sequence, result, text, kind)
        self.tokens.append(token)
        if reason is not None:
            self._end(reason)
        return token

    def _end(self, reason: StopReason | None) -> None:
        self.close()
        self.stop_reason = self._row.stop_reason = reason

    def __repr__(self) -> str:
        state = self.stop_reason or "running"
        return f"<{type(self).__name__} {len(self.tokens)} tokens, {state}: {self.text[:60]!r}>"


def finish(
    replies: SequenceABC[Reply],
    group: range,
    *,
    fixed_shape: bool = False,
    on_reply: Callable[[int, Reply], None] | None = None,
) -> None:
    """Write those of the replies that ``group`` names to their end, in one batch."""
    index_of = {replies[i]._row: i for i in group}

    def take(row: Row) -> None:
        reply = replies[index_of[row]]
        for _ in reply.take(row):
            pass
        if reply.stop_reason is not None and on_reply is not None:
            on_reply(index_of[row], reply)

    run(index_of, keeps_ended=fixed_shape, on_token=take)


def make_token(
    sequence: BaseSequence, result: _core.StepResult, text: str, kind: Kind = "answer"
) -> Token:
    """Return the public token of a native step result."""
    if not sequence.gauges and not result.top:
        return Token(
            text, result.token, result.logprob, result.entropy, bytes=result.piece, kind=kind
        )
    readings = {
        gauge.name or "": GaugeReading(*reading)
        for gauge, reading in zip(sequence.gauges, result.gauges, strict=False)
    }
    piece = sequence.engine.model.native.piece
    top = tuple(TokenLogprob(token, logprob, piece(token)) for token, logprob in result.top)
    return Token(
        text,
        result.token,
        result.logprob,
        result.entropy,
        top,
        readings,
        result.dose,
        result.piece,
        kind,
    )
