"""The guard: keeps a running generation out of collapse and explosion.

It watches the last tokens (``watch``). When they leave the coherent regime it takes back all that
was not shown yet, lowers the strength and goes on. It raises the strength again when there is room.
Output is held back by a window of tokens, so that nothing shown is ever taken back.
docs/measurements/guard.md has the measurements behind its numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, TypeAlias

from pyemo import _core
from pyemo.choices import GUARD_WINDOW
from pyemo.engine.engine import Engine, Prompt
from pyemo.engine.gauges import Gauge
from pyemo.engine.mood import OFF
from pyemo.engine.replies import (
    ReplyLimits,
    StopReason,
    end_reason,
    group_size,
    with_open_text,
)
from pyemo.engine.sampling import STANDARD, SamplerParams
from pyemo.engine.sequence import Sequence as TokenSequence
from pyemo.engine.sequence import make_token, step_many
from pyemo.engine.steering import Steering
from pyemo.engine.tokens import TextStream, Token, text_of
from pyemo.errors import ClosedError, ContextFullError, InputError, all_calls_named
from pyemo.guard import watch
from pyemo.guard.watch import Trouble

GuardMode: TypeAlias = Literal["fast", "exact"]
"""What is watched: ``fast`` the tokens and their distributions; ``exact`` the unsteered model's own
score of the last tokens too, which costs a second KV cache and about one more decode of each."""

LOWER = 0.5
"""What a step back multiplies the strength by."""
CEILING = 0.6
"""Share of the last strength that failed above which it is not raised again."""
RAISE = 1.25
CALM_TOKENS = 48
"""Good tokens after which the strength is raised by :data:`RAISE`."""
PENALTY = 1.1
"""What a step back from a repetition multiplies ``repeat_penalty`` by: less strength alone does not
leave a loop that the model would write unsteered too."""
MAX_PENALTY = 1.2
PENALTY_TOKENS = 128
"""Tokens that the penalty then looks back on, at least."""


@dataclass(frozen=True)
class GuardEvent:
    """One step back, or up.

    Attributes:
        token: tokens of the reply that were kept.
        trouble: what was seen; None when the strength was raised.
        factor: share of the mood's strength from there on, 0 to 1.
        repeat_penalty: the sampler's from there on.
    """

    token: int
    trouble: Trouble | None
    factor: float
    repeat_penalty: float


@all_calls_named
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
        window: tokens that are held back, and so how far a step goes back, 8 to 256.
        max_steps_back: of one reply; after the last one the reply goes on unsteered, 1 to 64.
        refreshes: compute the KV cache anew under the lower strength after a step back, instead of
            keeping what was computed under the one that failed.
    Raises:
        InputError: a value outside its range.
    """

    mode: GuardMode = "fast"
    window: int = GUARD_WINDOW
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
        chat_template_kwargs: Mapping[str, Any] | None = None,
        gauges: Sequence[Gauge] = (),
    ) -> GuardedReply:
        """Return the guarded reply to ``prompt``; arguments as :meth:`pyemo.Engine.generate`'s.

        The sequence is closed with the reply's end.
        """
        limits = ReplyLimits(max_tokens, stop)
        sampler = sampler or STANDARD
        if seed is not None:
            sampler = replace(sampler, seed=seed)
        sequence = engine.sequence(
            prompt,
            steering=steering,
            sampler=sampler,
            system=system,
            raw=raw,
            chat_template_kwargs=chat_template_kwargs,
            gauges=gauges,
        )
        return GuardedReply(self, sequence, limits, closes_sequence=True)

    def generate_many(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],
        *,
        steering: Steering = OFF,
        max_tokens: int = 128,
        sampler: SamplerParams | None = None,
        stop: Sequence[str] = (),
        system: str | None = None,
        raw: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[GuardedReply]:
        """Return the finished guarded replies to all prompts, decoded in batches.

        Arguments as :meth:`generate`'s; mood and sampler are those of all.
        """
        limits = ReplyLimits(max_tokens, stop)
        tokens = [
            engine._prompt_tokens(prompt, system, raw, chat_template_kwargs) for prompt in prompts
        ]
        replies: list[GuardedReply] = []
        while len(replies) < len(tokens):
            rest = tokens[len(replies) :]
            group: list[GuardedReply] = []
            unsteered = None
            try:
                size = group_size(engine, [len(ids) + limits.max_tokens for ids in rest])
                if self.mode == "exact":
                    unsteered = _unsteered_engine(engine, size)
                for ids in rest[:size]:
                    sequence = engine.sequence(ids, steering=steering, sampler=sampler)
                    group.append(
                        GuardedReply(self, sequence, limits, closes_sequence=True, beside=unsteered)
                    )
                while live := [reply for reply in group if reply.stop_reason is None]:
                    results = step_many([reply.sequence for reply in live])
                    for reply, result in zip(live, results, strict=True):
                        reply._take(result)
                        reply._show_ready()
            finally:
                for reply in group:
                    reply.close()
                if unsteered is not None:
                    unsteered.close()
            replies += group
        return replies

    def reply(
        self, sequence: TokenSequence, *, max_tokens: int = 128, stop: Sequence[str] = ()
    ) -> GuardedReply:
        """Return the model's guarded next words; the sequence stays open and keeps its mood."""
        return GuardedReply(self, sequence, ReplyLimits(max_tokens, stop), closes_sequence=False)


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
        limits: ReplyLimits,
        *,
        closes_sequence: bool,
        beside: Engine | None = None,
    ) -> None:
        """Use :meth:`Guard.generate` or :meth:`Guard.reply`.

        Args:
            beside: where the unsteered model follows; None for an engine of its own.
        """
        sequence.engine.follow_load()
        self.guard = guard
        self.sequence = sequence
        self.tokens: list[Token] = []
        self.stop_reason: StopReason | None = None
        self.events: list[GuardEvent] = []
        self.factor = 1.0
        self.model_fails = False
        self._mood = self._applied = sequence.steering
        self._sampler = self._set_sampler = sequence.sampler
        self._max_tokens = limits.max_tokens
        self._closes_sequence = closes_sequence
        self._stream = TextStream(limits.stop)
        self._stop = tuple(text.encode() for text in limits.stop)
        self._begin = sequence.n_tokens
        self._held: deque[_core.StepResult] = deque()
        self._drawn: list[_core.StepResult] = []  # all that stand, shown or held
        self._good_since = 0  # tokens drawn when the strength last changed
        self._ceiling = 1.0  # the strength is not raised above it
        self._beside = beside
        self._reason: StopReason | None = None  # why no more are drawn
        self._watch: _Unsteered | None = None
        self._is_closed = False

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
        if self._is_closed:
            raise ClosedError("the guarded reply is closed; begin another")
        n_stands, n_shown = self.sequence.n_tokens - len(self._held), len(self.tokens)
        try:
            while not self._is_ready():
                self._draw()
            if self._held:
                return self._show(self._held.popleft())
        except BaseException:
            # Interrupted anywhere, what was not shown before never was: reply and sequence agree.
            self.sequence.cut_to(n_stands)
            self._held.clear()
            del self.tokens[n_shown:]
            self.close()
            raise
        # The context filled up behind the last token shown.
        self.close()
        self.stop_reason = self._reason
        self.tokens[-1] = with_open_text(self.tokens[-1], self._stream)
        raise StopIteration

    def close(self) -> None:
        """Stop here: take back what was held, give mood and sampler back, free what was used."""
        self._is_closed = True
        if self.sequence._id is not None:
            if self._held:
                self.sequence.rollback(len(self._held))
                self._held.clear()
            # Settings changed meanwhile are kept.
            if self.sequence.steering is self._applied is not self._mood:
                self.sequence.steering = self._applied = self._mood
            if self.sequence.sampler is self._set_sampler is not self._sampler:
                self.sequence.sampler = self._set_sampler = self._sampler
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._closes_sequence:
            self.sequence.close()

    # --- drawing ---

    def _draw(self) -> None:
        try:
            result = step_many([self.sequence])[0]
        except ContextFullError:  # other sequences may have taken the cells that looked free
            if not self._drawn:
                raise
            self._reason = "context"
        else:
            self._take(result)

    def _take(self, result: _core.StepResult) -> None:
        """Look at a step's result, however it was computed, and act."""
        self._adopt_changes()
        self._drawn.append(result)
        self._held.append(result)
        if self._has_stop():
            self._reason = "stop"
        else:
            n_drawn = len(self._drawn)
            self._reason = end_reason(self.sequence, result, n_drawn, self._max_tokens)
        trouble = self._trouble()
        if trouble is not None:
            self._step_back(trouble)
        elif self._is_calm():
            self._set_factor(min(self._ceiling, self.factor * RAISE))
            self._note(None)

    def _show_ready(self) -> None:
        """Show what has stood long enough."""
        while self._is_ready():
            self._show(self._held.popleft())

    def _is_ready(self) -> bool:
        # Without a mood there is no strength to lower: nothing is held, what goes wrong is said.
        n_held = self.guard.window if self._mood else 0
        waits = self._reason is None and len(self._held) <= n_held
        return self.stop_reason is None and not waits

    def _has_stop(self) -> bool:
        """Whether a stop string is complete: later tokens do not matter."""
        if not self._stop:
            return False
        wanted = max(map(len, self._stop)) + len(self._drawn[-1].piece)
        tail = b""
        for result in reversed(self._answer()):
            if len(tail) >= wanted:
                break
            tail = result.piece + tail
        return any(stop in tail for stop in self._stop)

    def _show(self, result: _core.StepResult) -> Token:
        _, kind = self.sequence.segment_at(self._begin + len(self.tokens))
        text = self._stream.push(result.piece, is_thought=kind == "thinking")
        reason: StopReason | None = None
        if self._stream.stopped:
            reason = "stop"
        elif not self._held and self._reason is not None:
            reason = self._reason
            text += self._stream.flush()
        token = make_token(self.sequence, result, text, kind)
        self.tokens.append(token)
        if reason is not None:
            self.close()
            self.stop_reason = reason
        return token

    # --- acting ---

    def _adopt_changes(self) -> None:
        """Take over the mood or sampler that somebody has set since the last token."""
        if self.sequence.steering is not self._applied:
            self._mood = self._applied = self.sequence.steering
            self.factor = self._ceiling = 1.0
            self._good_since = len(self._drawn)
        if self.sequence.sampler is not self._set_sampler:
            self._sampler = self._set_sampler = self.sequence.sampler

    def _is_calm(self) -> bool:
        steps = self._n_steps_back
        return (
            0.0 < self.factor < self._ceiling
            and steps < self.guard.max_steps_back
            and len(self._drawn) - self._good_since >= CALM_TOKENS
        )

    @property
    def _n_steps_back(self) -> int:
        return sum(event.trouble is not None for event in self.events)

    def _step_back(self, trouble: Trouble) -> None:
        if not self._mood or self._n_steps_back >= self.guard.max_steps_back:
            # Unsteered: what is wrong is the model's own doing, and stays. A cache that was kept
            # is a steered one still, and proves nothing.
            is_off = self.factor == 0.0 and self.guard.refreshes
            self.model_fails = self.model_fails or not self._mood or is_off
            return
        n = len(self._held)
        self.sequence.rollback(n)
        del self._drawn[len(self._drawn) - n :]
        self._held.clear()
        self._reason = None
        is_last = self._n_steps_back + 1 == self.guard.max_steps_back
        self._ceiling = CEILING * self.factor
        self._set_factor(0.0 if is_last else self.factor * LOWER)
        if trouble == "repetition":
            self._penalize()
        if self.guard.refreshes:
            self.sequence.refresh()
        self._note(trouble)

    def _note(self, trouble: Trouble | None) -> None:
        penalty = self.sequence.sampler.repeat_penalty
        self.events.append(GuardEvent(len(self._drawn), trouble, self.factor, penalty))

    def _penalize(self) -> None:
        now = self.sequence.sampler
        if now.repeat_penalty < MAX_PENALTY:
            self.sequence.sampler = self._set_sampler = replace(
                now,
                repeat_penalty=min(MAX_PENALTY, now.repeat_penalty * PENALTY),
                repeat_last_n=max(now.repeat_last_n, PENALTY_TOKENS),
            )

    def _set_factor(self, factor: float) -> None:
        self.factor = factor
        self._good_since = len(self._drawn)
        if factor == 0.0:  # a clamp to 0 would still steer
            self._applied = Steering()
        else:
            self._applied = self._mood if factor == 1.0 else self._mood * factor
        self.sequence.steering = self._applied

    # --- watching ---

    def _trouble(self) -> Trouble | None:
        if self._reason is None and len(self._drawn) % watch.STRIDE:
            return None
        answer = self._answer()
        if not answer:
            return None
        tokens = [result.token for result in answer]
        entropies = [result.entropy for result in answer[-watch.LONGEST :]]
        surprises = None
        if self.guard.mode == "exact":
            surprises = self._surprises([result.token for result in self._drawn])[-len(answer) :]
        again = self._n_steps_back > 0
        return watch.trouble(tokens, entropies, surprises, again=again)

    def _answer(self) -> list[_core.StepResult]:
        """What was drawn of the answer: thoughts are not watched."""
        begin, kind = self.sequence.segment_at(self._begin + len(self._drawn) - 1)
        return self._drawn[max(0, begin - self._begin) :] if kind == "answer" else []

    def _surprises(self, tokens: Sequence[int]) -> list[float]:
        if self._watch is None:
            self._watch = _Unsteered(self.sequence, self._begin, self._beside)
        return self._watch.surprises(tokens)


class _Unsteered:
    """The unsteered model beside the steered one: a second context that follows the reply."""

    def __init__(self, sequence: TokenSequence, n_given: int, engine: Engine | None) -> None:
        self._owns = engine is None
        self._engine = engine or _unsteered_engine(sequence.engine, 1)
        try:
            self._sequence = self._engine.sequence(sequence.tokens[:n_given])
        except BaseException:
            if self._owns:
                self._engine.close()
            raise
        self._surprises: list[float] = []
        self._tokens: list[int] = []

    def surprises(self, tokens: Sequence[int]) -> list[float]:
        """Return the surprise of every token of the reply, nats."""
        n = _common(self._tokens, tokens)
        if n < len(self._tokens):  # the reply went back
            self._sequence.rollback(len(self._tokens) - n)
            del self._tokens[n:], self._surprises[n:]
        new = list(tokens[n:])
        self._surprises += (-self._sequence.score_next(new)).tolist()
        self._tokens += new
        return self._surprises

    def close(self) -> None:
        self._sequence.close()
        if self._owns:
            self._engine.close()


def _unsteered_engine(engine: Engine, n_sequences: int) -> Engine:
    return Engine(
        engine.model,
        n_ctx=engine.n_ctx,
        n_threads=engine.n_threads,
        n_batch=min(256, engine.n_ctx),
        n_outputs_max=watch.STRIDE,
        n_seq_max=n_sequences,
    )


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many first tokens are the same."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)
