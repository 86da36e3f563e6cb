"""The scheduler: many replies at a time from one engine, each with its own mood.

One thread decodes. Every turn carries a row for each reply that is being written; what comes in
waits in a queue until there is room. Whose texts they are, and how they travel, is the caller's.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType

from pyemo.engine.engine import Engine
from pyemo.engine.replies import Reply
from pyemo.engine.rows import Row, turn
from pyemo.engine.sequence import Sequence
from pyemo.engine.steering import Steering
from pyemo.engine.tickets import EndReason, Request, Ticket
from pyemo.engine.tokens import Token, whole
from pyemo.errors import (
    ClosedError,
    ContextFullError,
    InputError,
    QueueFullError,
    all_calls_named,
)

ROW_BUDGET = 128
_AHEAD = 32  # cells that a running reply is sure to find
_RETRY_S = 0.05  # where others hold what is needed

logger = logging.getLogger("pyemo")


@dataclass(frozen=True)
class SchedulerStats:
    """What the scheduler has now, and what it has done since it began.

    Attributes:
        queued, running: requests that wait, and replies that are read or written.
        n_cells_used: tokens that its sequences hold.
        n_requests, n_ended, n_cancelled, n_failed: requests taken; those that ended by themselves,
            were cancelled, or met an error.
        n_tokens_out, n_prompt_tokens, n_cached_tokens: tokens drawn; tokens of prompts; those of
            them that were not read again.
    """

    queued: int = 0
    running: int = 0
    n_cells_used: int = 0
    n_requests: int = 0
    n_ended: int = 0
    n_cancelled: int = 0
    n_failed: int = 0
    n_tokens_out: int = 0
    n_prompt_tokens: int = 0
    n_cached_tokens: int = 0


@dataclass(eq=False)
class _Running:
    """A request that has a sequence."""

    ticket: Ticket
    sequence: Sequence
    reply: Reply

    @property
    def row(self) -> Row:
        return self.reply._row


@all_calls_named
class Scheduler:
    """Writes many replies at a time, in a thread of its own. Any thread may call its methods.

    ```
    with Scheduler(engine) as scheduler:
        request = Request(engine.prompt_tokens("Hello!"), ReplyLimits(64), steering=mood)
        for token in scheduler.submit(request):
            print(token.text, end="", flush=True)
    ```

    The engine may be used beside it; what others hold of its sequences and cells, it has not.

    Args:
        row_budget: rows of one decode at most.
        max_queue: requests that may wait.
        prompt_cache: keep what ended replies have read, for prompts that begin alike.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        row_budget: int = ROW_BUDGET,
        max_queue: int = 64,
        prompt_cache: bool = True,
    ) -> None:
        self.engine = engine
        self.row_budget = whole("row_budget", row_budget, 1)
        self.max_queue = whole("max_queue", max_queue, 1)
        self._numbers = itertools.count()
        self._news = threading.Condition()  # guards the queue, and wakes the thread
        self._has_news = False
        self._queue: deque[Ticket] = deque()
        self._running: list[_Running] = []
        self._closes_at: float | None = None
        self._counts = dict.fromkeys(("ended", "cancelled", "failed", "out", "prompt", "cached"), 0)
        self._n_requests = 0
        self._thread = threading.Thread(target=self._run, name="pyemo scheduler", daemon=True)
        self._thread.start()

    # --- from any thread ---

    def submit(
        self,
        request: Request,
        *,
        on_token: Callable[[Token], None] | None = None,
        on_end: Callable[[Ticket], None] | None = None,
    ) -> Ticket:
        """Put a request in the queue; returns at once.

        Args:
            on_token, on_end: called in the scheduler's thread for each token and at the end. They
                must not wait for anything: no reply goes on meanwhile. What they raise ends this
                reply.
        Raises:
            QueueFullError: ``max_queue`` requests wait.
            ContextFullError: the prompt leaves no room for a token.
            InputError, VectorError: tokens, a mood or gauges that do not fit the model.
            ClosedError: the scheduler or the engine was closed.
        """
        if not isinstance(request, Request):
            raise InputError(f"not a Request: {request!r}; write Request(tokens, limits)")
        self._check_request(request)
        with self._news:
            if self._closes_at is not None:
                raise ClosedError("the scheduler is closed; open a new one: Scheduler(engine)")
            if len(self._queue) >= self.max_queue:
                raise QueueFullError(
                    f"{len(self._queue)} requests wait, the most that max_queue allows; "
                    "send it again later"
                )
            ticket = Ticket(self, next(self._numbers), request, on_token, on_end)
            self._queue.append(ticket)
            self._n_requests += 1
            self._notify()
        return ticket

    def check(self, steering: Steering) -> None:
        """Raise unless the mood fits the model.

        Raises:
            InputError, VectorError: no mood, or none for this model.
        """
        self.engine.moods.check(steering)

    def wake(self) -> None:
        """Look at the tickets again: one was cancelled or steered."""
        with self._news:
            self._notify()

    def stats(self) -> SchedulerStats:
        """Return the present numbers."""
        with self._news:
            running, counts = list(self._running), self._counts
            return SchedulerStats(
                queued=len(self._queue),
                running=len(running),
                n_cells_used=sum(one.row.begin + len(one.row.drawn) for one in running),
                n_requests=self._n_requests,
                n_ended=counts["ended"],
                n_cancelled=counts["cancelled"],
                n_failed=counts["failed"],
                n_tokens_out=counts["out"],
                n_prompt_tokens=counts["prompt"],
                n_cached_tokens=counts["cached"],
            )

    def close(self, *, drain_seconds: float = 0.0) -> None:
        """Take no more requests, and end those that have not ended by then as "cancelled".

        Returns when all have. A second call may shorten the time. From a callback it returns at
        once, and the end comes after the callback.
        """
        with self._news:
            at = time.monotonic() + max(0.0, drain_seconds)
            self._closes_at = at if self._closes_at is None else min(at, self._closes_at)
            self._notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _notify(self) -> None:
        self._has_news = True
        self._news.notify_all()

    def _check_request(self, request: Request) -> None:
        n, n_most = len(request.tokens), self.engine.n_ctx_seq
        if n >= n_most:
            raise ContextFullError(
                f"the prompt has {n} tokens, and a sequence holds {n_most}, one of them for the "
                "reply; shorten it, or open the engine with a larger n_ctx"
            )
        n_vocab = self.engine.model.n_vocab
        if not 0 <= min(request.tokens) <= max(request.tokens) < n_vocab:
            raise InputError(
                f"the prompt has token ids outside the vocabulary's 0 to {n_vocab - 1}"
            )
        self.check(request.steering)
        for gauge in request.gauges:
            gauge.vector.check(self.engine.model, allow_other_weights=True)

    # --- the thread ---

    def _run(self) -> None:
        try:
            while self._wait():
                self._look_at_tickets()
                self._admit()
                if self._running:
                    self._turn()
        except BaseException as error:  # of a closed engine, or a fault of ours: nobody may hang
            self._end_all(error)
            if not isinstance(error, ClosedError):
                raise

    def _wait(self) -> bool:
        """Return when there is something to do; False when the thread has to end."""
        with self._news:
            while True:
                has_work = bool(self._queue or self._running)
                if self._closes_at is not None and not has_work:
                    return False
                if self._running or self._has_news:
                    self._has_news = False
                    return True
                self._news.wait(_RETRY_S if has_work else None)
                if has_work:
                    return True

    def _look_at_tickets(self) -> None:
        """Do what was asked from outside since the last turn."""
        if self._closes_at is not None and time.monotonic() >= self._closes_at:
            with self._news:
                queued = list(self._queue)
            for ticket in [*queued, *(one.ticket for one in self._running)]:
                ticket.cancel()
        with self._news:
            gone = [ticket for ticket in self._queue if ticket.is_cancelled]
            for ticket in gone:
                self._queue.remove(ticket)
        for ticket in gone:
            self._say_end(ticket, "cancelled")
        for one in list(self._running):
            if one.ticket.is_cancelled:
                self._end(one, "cancelled")
            elif (mood := one.ticket.take_mood()) is not None:
                self._steer(one, mood)

    def _steer(self, one: _Running, mood: Steering) -> None:
        with self._blaming(one):
            one.sequence.steering = mood
            one.ticket.moods.append((len(one.row.drawn), mood))

    def _admit(self) -> None:
        while self._queue and self._has_room(self._queue[0]):
            with self._news:
                ticket = self._queue.popleft()
            with self._blaming(ticket):
                self._begin(ticket)

    def _has_room(self, ticket: Ticket) -> bool:
        engine = self.engine
        ahead = sum(min(_AHEAD, one.row.n_left) for one in self._running)
        n = ticket.n_prompt + min(_AHEAD, ticket.request.limits.max_tokens)
        n = min(n, engine.n_ctx_seq)
        return engine.n_free_sequences > 0 and engine.native.n_free_cells >= n + ahead

    def _begin(self, ticket: Ticket) -> None:
        request = ticket.request
        ticket.started = time.monotonic()
        if (mood := ticket.take_mood()) is not None:
            ticket.moods = [(0, mood)]
        sequence = self.engine.sequence(
            request.tokens,
            steering=ticket.moods[0][1],
            sampler=request.drawing,
            gauges=request.gauges,
        )
        try:
            reply = request.make_reply(sequence, request.limits)
        except BaseException:
            sequence.close()
            raise
        with self._news:
            self._running.append(_Running(ticket, sequence, reply))
        self._count("prompt", ticket.n_prompt)

    def _turn(self) -> None:
        try:
            self._decode(self._running)
        except ContextFullError as error:
            self._make_room(error)
        except Exception:  # noqa: BLE001 -- it comes again where it belongs
            for one in list(self._running):
                with self._blaming(one):
                    self._decode([one])

    def _decode(self, batch: list[_Running]) -> None:
        by_row = {one.row: one for one in batch}
        n_top = max(one.ticket.request.limits.n_top for one in batch)
        turn(list(by_row), on_token=lambda row: self._take(by_row[row]), n_top=n_top)

    def _take(self, one: _Running) -> None:
        """Look at the token that was drawn, and show what can be shown."""
        reply = one.reply
        self._count("out", 1)
        with self._blaming(one):
            reply._take(one.row)
            while reply.stop_reason is None and reply._is_ready():
                token = reply._show(reply._held.popleft())
                if len(token.top) > one.ticket.request.limits.n_top:  # another asked for more
                    token = replace(token, top=token.top[: one.ticket.request.limits.n_top])
                one.ticket.show(token)
            if reply.stop_reason is not None:
                self._end(one, reply.stop_reason)

    def _make_room(self, error: ContextFullError) -> None:
        """End the youngest reply, for the cells are used up."""
        one = self._running[-1]
        if one.row.drawn:
            self._end(one, "context")
        else:
            self._end(one, "error", error)

    @contextmanager
    def _blaming(self, one: _Running | Ticket) -> Iterator[None]:
        """End this one, and no other, for an error that its callbacks or its mood raise."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- whoever waits for it hears of it
            if isinstance(one, Ticket):
                self._say_end(one, "error", error)
            else:
                self._end(one, "error", error)

    def _end(self, one: _Running, reason: EndReason, error: Exception | None = None) -> None:
        with self._news:
            self._running.remove(one)
        rest = one.reply._stream.flush() if error is None else ""
        try:
            one.reply.close()
        except Exception as failed:  # noqa: BLE001 -- whoever waits for it hears of it
            reason, error = "error", error or failed
        one.sequence.close()
        self._say_end(one.ticket, reason, error, rest)

    def _end_all(self, error: BaseException) -> None:
        told = (
            error if isinstance(error, Exception) else ClosedError(f"the scheduler died: {error!r}")
        )
        with self._news:
            self._closes_at = time.monotonic()
            queued, self._queue = list(self._queue), deque()
        for one in list(self._running):
            self._end(one, "error", told)
        for ticket in queued:
            self._say_end(ticket, "error", told)

    def _say_end(
        self, ticket: Ticket, reason: EndReason, error: Exception | None = None, rest: str = ""
    ) -> None:
        self._count({"cancelled": "cancelled", "error": "failed"}.get(reason, "ended"), 1)
        try:
            ticket.end(reason, error, rest)
        except Exception:
            logger.exception("on_end of reply %d failed", ticket.id)

    def _count(self, name: str, n: int) -> None:
        with self._news:
            self._counts[name] += n
