"""A request to the scheduler, and the ticket that its sender holds.

What is asked is checked here, and what came of it is kept for any thread to look at. Knows nothing
of queues and batches.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceABC
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from pyemo.engine.gauges import Gauge
from pyemo.engine.mood import OFF
from pyemo.engine.prompt_rules import Decision, prompt_rules
from pyemo.engine.replies import Reply
from pyemo.engine.row import ReplyLimits, StopReason
from pyemo.engine.sampling import SamplerParams, chosen
from pyemo.engine.sequence import Sequence
from pyemo.engine.steering import Steering
from pyemo.engine.tokens import Token, token_ids
from pyemo.errors import ClosedError, InputError, all_calls_named

EndReason: TypeAlias = StopReason | Literal["cancelled", "error"]
"""Why a ticket ended: as a reply does, by :meth:`Ticket.cancel`, or by an error."""

MakeReply: TypeAlias = Callable[[Sequence, ReplyLimits], Reply]
OnToken: TypeAlias = Callable[[Token], None]
OnEnd: TypeAlias = "Callable[[Ticket], None]"


def plain_reply(sequence: Sequence, limits: ReplyLimits) -> Reply:
    """Return a reply that is shown as it is drawn. The sequence stays open."""
    return Reply(sequence, limits, closes_sequence=False)


@all_calls_named
@dataclass(frozen=True)
class Request:
    """What one reply is asked to be, checked when it is made.

    Attributes:
        tokens: the prompt; see :meth:`Engine.prompt_tokens`.
        limits: max_tokens, stop strings, alternatives to report.
        steering: its mood; :meth:`Ticket.steer` changes it while it is written.
        sampler: how tokens are drawn; None for ``STANDARD``, as :meth:`Engine.generate`.
        gauges: what to read at every token.
        make_reply: what looks at each token that is drawn, before it is shown, in the scheduler's
            thread; ``Guard().begin`` for a guarded reply.
        uses_cache: take what ended replies have read of the same beginning. Off, the prompt is read
            anew, and alone on the scheduler the text is :meth:`Engine.generate`'s, to the bit.
    Raises:
        InputError: no tokens, or a value of another kind.
    """

    tokens: SequenceABC[int]
    limits: ReplyLimits
    steering: Steering = OFF
    sampler: SamplerParams | None = None
    gauges: SequenceABC[Gauge] = ()
    make_reply: MakeReply = plain_reply
    uses_cache: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(token_ids(self.tokens)))
        object.__setattr__(self, "gauges", tuple(self.gauges))
        if not self.tokens:
            raise InputError("a request has no tokens; pass engine.prompt_tokens(...)")
        for name, kind in (("limits", ReplyLimits), ("steering", Steering)):
            if not isinstance(value := getattr(self, name), kind):
                raise InputError(f"{name} = {value!r}; it must be a {kind.__name__}")
        if self.sampler is not None and not isinstance(self.sampler, SamplerParams):
            raise InputError(f"sampler = {self.sampler!r}; it must be a SamplerParams")
        if wrong := [gauge for gauge in self.gauges if not isinstance(gauge, Gauge)]:
            raise InputError(f"not a Gauge: {wrong[0]!r}; write Gauge(vector)")
        if not callable(self.make_reply):
            raise InputError(f"make_reply = {self.make_reply!r}; it must be a function")
        if not isinstance(self.uses_cache, bool):
            raise InputError(f"uses_cache = {self.uses_cache!r}; it must be True or False")

    @property
    def drawing(self) -> SamplerParams:
        """How tokens are drawn, the default filled in."""
        return chosen(self.sampler)


class Owner(Protocol):
    """What a ticket tells its scheduler."""

    def check(self, steering: Steering) -> None:
        """Raise unless the mood fits the model."""

    def wake(self) -> None:
        """Look at the tickets again."""


@all_calls_named
class Ticket:
    """One request and what has come of it. Made by :meth:`Scheduler.submit`.

    Any thread may read it and call its methods.

    Attributes:
        id: its number, ascending from 0.
        request: what was asked.
        tokens: what was shown so far.
        moods: (index of the first token that it decides, mood): the request's, and those that
            :meth:`steer` brought.
        stop_reason: why it ended; None while it goes on.
        error: what made it end, where that was an error.
        n_prompt: tokens of the prompt.
        n_cached: how many of them were not read again.
        decisions: what the prompt decided for the mood's rules on it, once it is read.
        reader: the ticket that reads the prompt for this one; None where it reads it itself.
        submitted, started, first_token, ended: when, by ``time.monotonic()``; None where not yet.
    """

    def __init__(
        self,
        owner: Owner,
        number: int,
        request: Request,
        on_token: OnToken | None,
        on_end: OnEnd | None,
    ) -> None:
        """Use :meth:`Scheduler.submit`."""
        self.id = number
        self.request = request
        self.tokens: list[Token] = []
        self.moods: list[tuple[int, Steering]] = [(0, request.steering)]
        self.stop_reason: EndReason | None = None
        self.error: Exception | None = None
        self.n_prompt = len(request.tokens)
        self.n_cached = 0
        self.decisions: tuple[Decision, ...] = ()
        self.reader: Ticket | None = None
        self.submitted = time.monotonic()
        self.started: float | None = None
        self.first_token: float | None = None
        self.ended: float | None = None
        self._owner = owner
        self._on_token = on_token
        self._on_end = on_end
        self._rest = ""  # text that no token carries
        self._changed = threading.Condition()
        self._is_cancelled = False
        self._next_mood: Steering | None = None

    @property
    def text(self) -> str:
        """All text so far. At the end it may have more than the tokens: what was held back."""
        return "".join(token.text for token in self.tokens) + self._rest

    def cancel(self) -> None:
        """End it, within its prompt too; its cells are free at once. A second call does nothing."""
        self._is_cancelled = True
        self._owner.wake()

    def steer(self, steering: Steering) -> None:
        """Change its mood, from the next token decoded on.

        Raises:
            ClosedError: it has ended.
            InputError, VectorError: no mood, or none for this model.
        """
        self._owner.check(steering)
        known = prompt_rules(self.moods[0][1])
        if self.tokens and (fresh := [r for r in prompt_rules(steering) if r not in known]):
            raise InputError(
                f"the prompt is read, and has not decided {fresh[0]}; give the mood that the rule "
                "comes to, or a mood whose rules the request's had"
            )
        with self._changed:
            if self.stop_reason is not None:
                raise ClosedError(f"reply {self.id} has ended; send a new request")
            self._next_mood = steering
        self._owner.wake()

    def wait(self, timeout: float | None = None) -> Ticket:
        """Return the ticket when it has ended.

        Args:
            timeout: seconds; None for ever.
        Raises:
            TimeoutError: it has not ended by then.
            Exception: what made it end.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.stop_reason is not None, timeout):
                raise TimeoutError(f"reply {self.id} has not ended within {timeout} s")
        if self.error is not None:
            raise self.error
        return self

    def __iter__(self) -> Iterator[Token]:
        """Yield the tokens as they come; raises what made it end, where that was an error."""
        n = 0
        while True:
            with self._changed:
                while len(self.tokens) <= n and self.stop_reason is None:
                    self._changed.wait()
                fresh = self.tokens[n:]
            if not fresh:
                break
            yield from fresh
            n += len(fresh)
        if self.error is not None:
            raise self.error

    # --- for the scheduler ---

    @property
    def is_cancelled(self) -> bool:
        """Whether :meth:`cancel` was called."""
        return self._is_cancelled

    def take_mood(self) -> Steering | None:
        """Return the mood that :meth:`steer` brought since the last call."""
        with self._changed:
            mood, self._next_mood = self._next_mood, None
        return mood

    def settle_mood(self) -> None:
        """Let a mood that :meth:`steer` brought be the first, where nothing is decoded yet."""
        if (mood := self.take_mood()) is not None:
            self.moods = [(0, mood)]

    @property
    def mood(self) -> Steering:
        """The mood that acts."""
        return self.moods[-1][1]

    def show(self, token: Token) -> None:
        """Add a token."""
        with self._changed:
            self.tokens.append(token)
            if self.first_token is None:
                self.first_token = time.monotonic()
            self._changed.notify_all()
        if self._on_token is not None:
            self._on_token(token)

    def end(self, reason: EndReason, error: Exception | None = None, rest: str = "") -> None:
        """Say that no more comes."""
        with self._changed:
            self._rest, self.error, self.stop_reason = rest, error, reason
            self.ended = time.monotonic()
            self._changed.notify_all()
        if self._on_end is not None:
            self._on_end(self)

    def __repr__(self) -> str:
        state = self.stop_reason or ("running" if self.started is not None else "queued")
        return f"<Ticket {self.id}, {len(self.tokens)} tokens, {state}>"
