"""The guard: keeps a running generation out of collapse and explosion.

It watches the last tokens (``watch``). When they leave the coherent regime it takes back all that
was not shown yet, lowers the strength and goes on. It raises the strength again when there is room.
Output is held back by a window of tokens, so that nothing shown is ever taken back.
docs/measurements/guard.md has the measurements behind its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, TypeAlias

from pyemo.choices import GUARD_WINDOW
from pyemo.engine.base_engine import BaseEngine
from pyemo.engine.base_sequence import BaseSequence
from pyemo.engine.engine import Engine, Prompt
from pyemo.engine.gauges import Gauge
from pyemo.engine.mood import OFF
from pyemo.engine.replies import Reply, finish
from pyemo.engine.row import ReplyLimits, Row
from pyemo.engine.rows import groups
from pyemo.engine.sampling import SamplerParams, chosen
from pyemo.engine.sequence import Sequence as TokenSequence
from pyemo.engine.steering import Steering
from pyemo.engine.tokens import Token
from pyemo.errors import ClosedError, InputError, all_calls_named
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
        stop_repetition: bool = False,
    ) -> GuardedReply:
        """Return the guarded reply to ``prompt``; arguments as :meth:`pyemo.Engine.generate`'s.

        The sequence is closed with the reply's end.
        """
        limits = ReplyLimits(max_tokens, stop, stop_repetition=stop_repetition)
        sequence = engine.sequence(
            prompt,
            steering=steering,
            sampler=chosen(sampler, seed),
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
        for group in groups(engine, [len(ids) + limits.max_tokens for ids in tokens]):
            with ExitStack() as stack:
                beside = None
                if self.mode == "exact":
                    beside = stack.enter_context(_unsteered_engine(engine, len(group)))
                for i in group:
                    sequence = engine.sequence(tokens[i], steering=steering, sampler=sampler)
                    stack.callback(sequence.close)
                    reply = GuardedReply(
                        self, sequence, limits, closes_sequence=True, beside=beside
                    )
                    replies.append(stack.enter_context(reply))
                finish(replies, group)
        return replies

    def reply(
        self,
        sequence: TokenSequence,
        *,
        max_tokens: int = 128,
        stop: Sequence[str] = (),
        stop_repetition: bool = False,
    ) -> GuardedReply:
        """Return the model's guarded next words; the sequence stays open and keeps its mood."""
        limits = ReplyLimits(max_tokens, stop, stop_repetition=stop_repetition)
        return self.begin(sequence, limits)

    def begin(
        self,
        sequence: TokenSequence,
        limits: ReplyLimits,
        *,
        on_event: Callable[[GuardEvent], None] | None = None,
    ) -> GuardedReply:
        """Return the same, for a :class:`pyemo.engine.tickets.Request`'s ``make_reply``.

        Args:
            on_event: called with each step when it happens, before the text is shown that it led
                to.
        """
        return GuardedReply(self, sequence, limits, closes_sequence=False, on_event=on_event)


class GuardedReply(Reply):
    """A reply that is watched.

    A guard that never acts gives the very tokens of the unguarded reply.

    Attributes:
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
        on_event: Callable[[GuardEvent], None] | None = None,
    ) -> None:
        """Use :meth:`Guard.generate` or :meth:`Guard.reply`.

        Args:
            beside: where the unsteered model follows; None for an engine of its own.
        """
        super().__init__(sequence, limits, closes_sequence=closes_sequence)
        self.guard = guard
        self.events: list[GuardEvent] = []
        self.factor = 1.0
        self.model_fails = False
        self._mood = self._applied = sequence.steering
        self._sampler = self._set_sampler = sequence.sampler
        self._good_since = 0  # tokens drawn when the strength last changed
        self._ceiling = 1.0  # the strength is not raised above it
        self._beside = beside
        self._on_event = on_event
        self._watch: _Unsteered | None = None
        self._is_closed = False

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
        if self._is_closed and self.stop_reason is None:
            raise ClosedError("the guarded reply is closed; begin another")
        return super().__next__()

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
        super().close()

    def _take(self, row: Row) -> None:
        """Look at the token that was drawn, and act."""
        self._adopt_changes()
        super()._take(row)
        trouble = self._trouble()
        if trouble is not None:
            self._step_back(trouble)
        elif self._is_calm():
            self._set_factor(min(self._ceiling, self.factor * RAISE))
            self._note(None)

    def _is_ready(self) -> bool:
        # Without a mood there is no strength to lower: nothing is held, what goes wrong is said.
        n_held = self.guard.window if self._mood else 0
        return len(self._held) > n_held or self._row.stop_reason is not None

    # --- acting ---

    def _adopt_changes(self) -> None:
        """Take over the mood or sampler that somebody has set since the last token."""
        if self.sequence.steering is not self._applied:
            self._mood = self._applied = self.sequence.steering
            self.factor = self._ceiling = 1.0
            self._good_since = len(self._row.drawn) - 1
        if self.sequence.sampler is not self._set_sampler:
            self._sampler = self._set_sampler = self.sequence.sampler

    def _is_calm(self) -> bool:
        steps = self._n_steps_back
        return (
            0.0 < self.factor < self._ceiling
            and steps < self.guard.max_steps_back
            and len(self._row.drawn) - self._good_since >= CALM_TOKENS
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
        self._row.take_back(len(self._held))
        self._held.clear()
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
        self.events.append(GuardEvent(len(self._row.drawn), trouble, self.factor, penalty))
        if self._on_event is not None:
            self._on_event(self.events[-1])

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
        self._good_since = len(self._row.drawn)
        if factor == 0.0:  # a clamp to 0 would still steer
            self._applied = Steering()
        else:
            self._applied = self._mood if factor == 1.0 else self._mood * factor
        self.sequence.steering = self._applied

    # --- watching ---

    def _trouble(self) -> Trouble | None:
        if self._row.stop_reason is None and len(self._row.drawn) % watch.STRIDE:
            return None
        answer = self._row.answer()
        if not answer:
            return None
        tokens = [result.token for result in answer]
        entropies = [result.entropy for result in answer[-watch.LONGEST :]]
        surprises = None
        if self.guard.mode == "exact":
            drawn = [result.token for result in self._row.drawn]
            surprises = self._surprises(drawn)[-len(answer) :]
        again = self._n_steps_back > 0
        return watch.trouble(tokens, entropies, surprises, again=again)

    def _surprises(self, tokens: Sequence[int]) -> list[float]:
        if self._watch is None:
            self._watch = _Unsteered(self.sequence, self._row.begin, self._beside)
        return self._watch.surprises(tokens)


class _Unsteered:
    """The unsteered model beside the steered one: a second context that follows the reply."""

    def __init__(self, sequence: BaseSequence, n_given: int, engine: Engine | None) -> None:
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


def _unsteered_engine(engine: BaseEngine, n_sequences: int) -> Engine:
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
