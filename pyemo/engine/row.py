"""A reply that is being written: what was asked of it, the tokens that stand, and why it ended.

Knows nothing of other rows; ``rows.py`` has the loop that draws.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceABC
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pyemo import _core
from pyemo.engine.base_sequence import BaseSequence
from pyemo.engine.tokens import stop_strings, whole
from pyemo.errors import InputError
from pyemo.measures import circles

StopReason: TypeAlias = Literal["end", "stop", "length", "context", "repetition"]
"""Why a reply ended: the model ended it or its grammar is complete, a stop string came,
max_tokens, the context is full, or it went in circles and that was to stop it."""


@dataclass(frozen=True)
class ReplyLimits:
    """What is asked of a reply, checked before a sequence is made for it.

    Attributes:
        max_tokens: 1 or more.
        stop: strings that end it; they are not part of it.
        n_top: alternatives to report with each token.
        stop_repetition: a reply that goes in circles (:mod:`pyemo.measures.circles`) ends.
        ignore_eos: the model's end token ends nothing; for measuring, where length has to be sure.
    Raises:
        InputError: a value outside its range.
    """

    max_tokens: int
    stop: SequenceABC[str] = ()
    n_top: int = 0
    stop_repetition: bool = False
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_tokens", whole("max_tokens", self.max_tokens, 1))
        object.__setattr__(self, "stop", stop_strings(self.stop))
        object.__setattr__(self, "n_top", whole("n_top", self.n_top, 0))
        for name in ("stop_repetition", "ignore_eos"):
            if not isinstance(value := getattr(self, name), bool):
                raise InputError(f"{name} = {value!r}; it must be True or False")


class Row:
    """A sequence that is being written.

    Attributes:
        sequence: where its tokens come from, and stay.
        begin: position of the first token that is drawn.
        drawn: the tokens that stand, the one that ended it included.
        stop_reason: why no more are drawn; None while it goes on.
    """

    def __init__(self, sequence: BaseSequence, limits: ReplyLimits) -> None:
        self.sequence = sequence
        self.begin = sequence.n_tokens
        self.drawn: list[_core.StepResult] = []
        self.stop_reason: StopReason | None = None
        self._max_tokens = limits.max_tokens
        self._stop_repetition = limits.stop_repetition
        self._ignore_eos = limits.ignore_eos
        self._stop = tuple(text.encode("utf-8", "surrogatepass") for text in limits.stop)

    @property
    def n_left(self) -> int:
        """Tokens that may still be drawn."""
        return self._max_tokens - len(self.drawn)

    def take(self, result: _core.StepResult) -> None:
        """Add a token that was drawn, and see whether it is the last."""
        self.drawn.append(result)
        if self._has_stop():
            self.stop_reason = "stop"
        elif (result.is_end and not self._ignore_eos) or result.is_whole:
            self.stop_reason = "end"
        elif self._is_due_for_a_look and self.circles_from() is not None:
            self.stop_reason = "repetition"
        elif len(self.drawn) >= self._max_tokens:
            self.stop_reason = "length"
        elif self.sequence.is_full:
            self.stop_reason = "context"

    @property
    def _is_due_for_a_look(self) -> bool:
        return self._stop_repetition and len(self.drawn) % circles.STRIDE == 0

    def circles_from(self) -> int | None:
        """Return how many drawn tokens stand before the rest only repeats them; None if none."""
        begin = max(0, len(self.drawn) - circles.LOOK_BACK)
        found = circles.circles_from([result.token for result in self.drawn[begin:]])
        return None if found is None else begin + found

    def take_back(self, n_tokens: int) -> None:
        """Take the last tokens off, so that others are drawn in their place."""
        self.sequence.rollback(n_tokens)
        del self.drawn[len(self.drawn) - n_tokens :]
        self.stop_reason = None

    def cut_to(self, n_drawn: int) -> None:
        """Forget what an interrupted call has drawn behind the first ``n_drawn`` tokens."""
        del self.drawn[n_drawn:]
        self.stop_reason = None

    def answer(self) -> list[_core.StepResult]:
        """Return what was drawn of the answer; nothing while the last token is a thought."""
        return self.drawn[self._answer_begin() :]

    def _answer_begin(self) -> int:
        """Return which of the drawn tokens the answer begins with; behind them if none."""
        begin, kind = self.sequence.segment_at(self.begin + len(self.drawn) - 1)
        return max(0, begin - self.begin) if kind == "answer" else len(self.drawn)

    def _has_stop(self) -> bool:
        """Whether a stop string is complete; thoughts have none."""
        if not self._stop:
            return False
        wanted = max(map(len, self._stop)) + len(self.drawn[-1].piece)
        tail = b""
        for i in range(len(self.drawn) - 1, self._answer_begin() - 1, -1):
            if len(tail) >= wanted:
                break
            tail = self.drawn[i].piece + tail
        return any(stop in tail for stop in self._stop)
