"""The guard: keeps a running generation out of collapse and explosion.

It watches the last tokens, and when they leave the coherent regime it goes back to the last good
token, lowers the strength and goes on; it raises the strength again when there is room. Output is
held back by the detector's window, so that nothing shown is ever taken back. docs/guard.md has the
measurements behind its numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, TypeAlias

import numpy as np

from pyemo import _core
from pyemo.engine import Engine, Prompt
from pyemo.errors import InputError
from pyemo.gauges import Gauge
from pyemo.replies import StopReason
from pyemo.sampling import SamplerParams
from pyemo.sequence import OFF, make_token, step_many
from pyemo.sequence import Sequence as TokenSequence
from pyemo.steering import Steering
from pyemo.tokens import TextStream, Token

GuardMode: TypeAlias = Literal["fast", "exact"]
"""What is watched: ``fast`` the tokens and their distributions; ``exact`` the unsteered model's own
score of the last tokens too, which costs a second KV cache and about one more decode of each."""

Trouble: TypeAlias = Literal["repetition", "explosion"]

REPEATED_TOKENS = 12
"""So many last tokens that stood in the same order before are a repetition."""
LOOK_BACK = 160
"""Tokens that are searched for them."""
MIN_DISTINCT = 0.5
"""Least share of different token trigrams in the last LOOP_WINDOW tokens."""
LOOP_WINDOW = 48
MAX_ENTROPY = 4.5
"""Mean entropy of the window's distributions, nats, from which on the text is explosive."""
MAX_SURPRISE = 5.0
"""Mean surprise of the window under the unsteered model, nats per token, likewise."""
LOWER = 0.5
RAISE = 1.25
CALM_TOKENS = 48
"""Good tokens after which the strength is raised again."""


@dataclass(frozen=True)
class GuardEvent:
    """One step back, or up.

    Attributes:
        token: tokens of the reply that were kept.
        trouble: what was seen; None when the strength was raised.
        factor: share of the mood's strength from there on, 0 to 1.
    """

    token: int
    trouble: Trouble | None
    factor: float


@dataclass(frozen=True)
class Guard:
    """How a generation is watched.

    ```
    guard = Guard()
    for token in guard.generate(engine, "Hello!", steering=Steering({angry: 0.1})):
        print(token.text, end="", flush=True)
    ```

    Attributes:
        mode: see :data:`GuardMode`.
        window: tokens that are held back and looked at, 8 to 256.
        max_steps_back: of one reply; after the last one the reply goes on unsteered, 1 to 64.
        refreshes: compute the KV cache anew under the lower strength after a step back, instead of
            keeping what was computed under the one that failed.
    Raises:
        InputError: a value outside its range.
    """

    mode: GuardMode = "fast"
    window: int = 16
    max_steps_back: int = 8
    refreshes: bool = True

    def __post_init__(self) -> None:
        if self.mode not in ("fast", "exact"):
            raise InputError(f"guard mode {self.mode!r} is unknown; use fast or exact")
        if not isinstance(self.window, int) or not 8 <= self.window <= 256:
            raise InputError(f"window = {self.window!r}; it must be a whole number from 8 to 256")
        steps = self.max_steps_back
        if not isinstance(steps, int) or not 1 <= steps <= 64:
            raise InputError(f"max_steps_back = {steps!r}; it must be a whole number from 1 to 64")

    def generate(
        self,
        engine: Engine,
        prompt: Prompt,
        *,
        steering: Steering = OFF,
        max_tokens: int = 128,
        seed: int | None = None,
        sampler: SamplerParams | None = None,
        stop: Sequence[str] = (),
        system: str | None = None,
        raw: bool = False,
        gauges: Sequence[Gauge] = (),
    ) -> GuardedReply:
        """Return the guarded reply to ``prompt``; arguments as :meth:`pyemo.Engine.generate`'s.

        The sequence is closed with the reply's end.
        """
        sampler = sampler or SamplerParams()
        if seed is not None:
            sampler = replace(sampler, seed=seed)
        sequence = engine.sequence(
            prompt, steering=steering, sampler=sampler, system=system, raw=raw, gauges=gauges
        )
        try:
            return GuardedReply(self, sequence, max_tokens, stop, closes_sequence=True)
        except BaseException:
            sequence.close()
            raise

    def reply(
        self, sequence: TokenSequence, *, max_tokens: int = 128, stop: Sequence[str] = ()
    ) -> GuardedReply:
        """Return the model's guarded next words; the sequence stays open and keeps its mood."""
        return GuardedReply(self, sequence, max_tokens, stop, closes_sequence=False)


class GuardedReply:
    """The model's words as they come, watched: an iterator of :class:`Token`.

    A guard that never acts gives the very tokens of the unguarded reply.

    Attributes:
        text: all text so far.
        tokens: the tokens so far.
        stop_reason: why it ended, None while it has not.
        sequence: the sequence it comes from.
        events: what the guard did.
        factor: share of the mood's strength that is in force, 0 to 1.
        model_fails: True if the text went wrong at strength 0 too: the model itself does that.
    """

    def __init__(
        self,
        guard: Guard,
        sequence: TokenSequence,
        max_tokens: int,
        stop: Sequence[str],
        *,
        closes_sequence: bool,
    ) -> None:
        """Use :meth:`Guard.generate` or :meth:`Guard.reply`."""
        if not isinstance(max_tokens, int) or max_tokens < 1:
            raise InputError(
                f"max_tokens = {max_tokens!r}; it must be a whole number of at least 1"
            )
        self.guard = guard
        self.sequence = sequence
        self.tokens: list[Token] = []
        self.stop_reason: StopReason | None = None
        self.events: list[GuardEvent] = []
        self.factor = 1.0
        self.model_fails = False
        self._mood = self._applied = sequence.steering
        # Without a mood there is no strength to lower: what goes wrong is only said.
        self._n_held = guard.window if self._mood else 0
        self._max_tokens = max_tokens
        self._closes_sequence = closes_sequence
        self._stream = TextStream(stop)
        self._begin = sequence.n_tokens
        self._held: deque[_core.StepResult] = deque()
        self._drawn: list[_core.StepResult] = []  # all that stand, shown or held
        self._good_since = 0  # tokens drawn when the strength last changed
        self._reason: StopReason | None = None  # why no more are drawn
        self._watch: _Unsteered | None = None

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(token.text for token in self.tokens)

    def __iter__(self) -> Iterator[Token]:
        return self

    def __enter__(self) -> GuardedReply:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __next__(self) -> Token:
        if self.stop_reason is not None:
            raise StopIteration
        try:
            while self._reason is None and len(self._held) <= self._n_held:
                self._draw()
        except BaseException:
            self.close()
            raise
        return self._show(self._held.popleft())

    def close(self) -> None:
        """Stop here: take back what was held, give the sequence its mood, free what was used."""
        if self.sequence._id is not None:
            if self._held:
                self.sequence.rollback(len(self._held))
                self._held.clear()
            # A mood that somebody else has set in the meantime stays.
            if self.sequence.steering is self._applied is not self._mood:
                self.sequence.steering = self._applied = self._mood
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._closes_sequence:
            self.sequence.close()

    # --- drawing ---

    def _draw(self) -> None:
        result = step_many([self.sequence])[0]
        self._drawn.append(result)
        self._held.append(result)
        if result.is_end:
            self._reason = "end"
        elif len(self._drawn) >= self._max_tokens:
            self._reason = "length"
        elif self.sequence.is_full:
            self._reason = "context"
        trouble = self._trouble()
        if trouble is not None:
            self._step_back(trouble)
        elif self._is_calm():
            self._set_factor(min(1.0, self.factor * RAISE or RAISE / 2**self.guard.max_steps_back))
            self.events.append(GuardEvent(len(self._drawn), None, self.factor))

    def _show(self, result: _core.StepResult) -> Token:
        text = self._stream.push(result.piece)
        reason: StopReason | None = None
        if self._stream.stopped:
            reason = "stop"
        elif not self._held and self._reason is not None:
            reason = self._reason
            text += self._stream.flush()
        token = make_token(self.sequence, result, text)
        self.tokens.append(token)
        if reason is not None:
            self.close()
            self.stop_reason = reason
        return token

    # --- acting ---

    def _is_calm(self) -> bool:
        steps = self._n_steps_back
        return (
            self.factor < 1.0
            and steps < self.guard.max_steps_back
            and len(self._drawn) - self._good_since >= CALM_TOKENS
        )

    @property
    def _n_steps_back(self) -> int:
        return sum(event.trouble is not None for event in self.events)

    def _step_back(self, trouble: Trouble) -> None:
        if not self._mood or self._n_steps_back >= self.guard.max_steps_back:
            # Unsteered: what is wrong is the model's own doing, and stays.
            self.model_fails = self.model_fails or not self._mood or self.factor == 0.0
            return
        n = len(self._held)
        self.sequence.rollback(n)
        del self._drawn[len(self._drawn) - n :]
        self._held.clear()
        self._reason = None
        is_last = self._n_steps_back + 1 == self.guard.max_steps_back
        self._set_factor(0.0 if is_last else self.factor * LOWER)
        if self.guard.refreshes:
            self.sequence.refresh()
        self.events.append(GuardEvent(len(self._drawn), trouble, self.factor))

    def _set_factor(self, factor: float) -> None:
        self.factor = factor
        self._good_since = len(self._drawn)
        self._applied = self._mood if factor == 1.0 else self._mood * factor
        self.sequence.steering = self._applied

    # --- watching ---

    def _trouble(self) -> Trouble | None:
        tokens = [result.token for result in self._drawn]
        if repeats(tokens):
            return "repetition"
        window = self.guard.window
        if len(tokens) < window or len(tokens) % (window // 2):
            return None
        entropies = [result.entropy for result in self._drawn[-window:]]
        if float(np.mean(entropies)) > MAX_ENTROPY:
            return "explosion"
        if self.guard.mode == "exact" and self._surprise(tokens) > MAX_SURPRISE:
            return "explosion"
        return None

    def _surprise(self, tokens: Sequence[int]) -> float:
        if self._watch is None:
            self._watch = _Unsteered(self.sequence, self._begin)
        return self._watch.surprise(tokens, self.guard.window)


class _Unsteered:
    """The unsteered model beside the steered one: a second context that follows the reply."""

    def __init__(self, sequence: TokenSequence, n_given: int) -> None:
        engine = sequence.engine
        self._engine = Engine(
            engine.model,
            n_ctx=engine.n_ctx,
            n_threads=engine.n_threads,
            n_batch=min(256, engine.n_ctx),
            n_outputs_max=32,
        )
        self._sequence = self._engine.sequence(sequence.tokens[:n_given])
        self._logprobs: list[float] = []
        self._tokens: list[int] = []

    def surprise(self, tokens: Sequence[int], window: int) -> float:
        """Return the mean surprise of the last ``window`` tokens, nats per token."""
        n = _common(self._tokens, tokens)
        if n < len(self._tokens):  # the reply went back
            self._sequence.rollback(len(self._tokens) - n)
            del self._tokens[n:], self._logprobs[n:]
        new = list(tokens[n:])
        self._logprobs += self._sequence.score_next(new).tolist()
        self._tokens += new
        return -float(np.mean(self._logprobs[-window:]))

    def close(self) -> None:
        self._sequence.close()
        self._engine.close()


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many first tokens are the same."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


def repeats(tokens: Sequence[int]) -> bool:
    """Whether a reply has begun to repeat itself.

    Its last :data:`REPEATED_TOKENS` tokens stood in the same order within the last
    :data:`LOOK_BACK`, or the last :data:`LOOP_WINDOW` have too few different trigrams.
    """
    recent = list(tokens[-LOOK_BACK:])
    end = recent[-REPEATED_TOKENS:]
    if len(recent) > REPEATED_TOKENS:
        last = end[-1]
        for stop in range(len(recent) - 1, REPEATED_TOKENS - 1, -1):
            if recent[stop - 1] == last and recent[stop - REPEATED_TOKENS : stop] == end:
                return True
    if len(tokens) >= LOOP_WINDOW:
        window = list(tokens[-LOOP_WINDOW:])
        grams = set(zip(window, window[1:], window[2:], strict=False))
        return len(grams) < MIN_DISTINCT * (LOOP_WINDOW - 2)
    return False
