"""The scheduler: many replies at a time from one engine, each with its own mood.

One thread decodes. Every turn carries a row for each reply that is being written; what comes in
waits in a queue until there is room. Whose texts they are, and how they travel, is the caller's.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as SequenceABC
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType

from pyemo.engine.engine import Engine
from pyemo.engine.pace import LEAST, Pace
from pyemo.engine.plan import Plan, Running, plan
from pyemo.engine.prompt_cache import PromptCache
from pyemo.engine.replies import Reply
from pyemo.engine.rows import turn
from pyemo.engine.sequence import Sequence
from pyemo.engine.steering import Steering
from pyemo.engine.tickets import EndReason, OnEnd, OnToken, Request, Ticket
from pyemo.engine.tokens import Token, whole
from pyemo.errors import (
    ClosedError,
    ContextFullError,
    InputError,
    QueueFullError,
    all_calls_named,
)

_AHEAD = 32  # cells that a running reply is sure to find
_RETRY_S = 0.05  # where others hold what is needed

logger = logging.getLogger("pyemo")


@dataclass(frozen=True)
class SchedulerStats:
    """What the scheduler has now, and what it has done since it began.

    Attributes:
        queued, running: requests that wait, and replies that are read or written.
        n_cells_used: cells of running replies; what they share counts for each.
        n_cells_kept: cells of ended ones, which are given up when others need them.
        n_requests, n_ended, n_cancelled, n_failed: requests taken; those that ended by themselves,
            were cancelled, or met an error.
        n_tokens_out, n_prompt_tokens, n_cached_tokens: tokens drawn; tokens of prompts; those of
            them that were not read again.
    """

    queued: int = 0
    running: int = 0
    n_cells_used: int = 0
    n_cells_kept: int = 0
    n_requests: int = 0
    n_ended: int = 0
    n_cancelled: int = 0
    n_failed: int = 0
    n_tokens_out: int = 0
    n_prompt_tokens: int = 0
    n_cached_tokens: int = 0


@dataclass(frozen=True)
class _Place:
    """Where a prompt begins: behind what ``source`` has in common with it, or nowhere."""

    source: Sequence | None
    takes_over: bool = False


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
        row_budget: rows of one decode while replies are written: one of each, and what is left for
            prompts. More is faster for who waits for the first token, less for all the others. None
            for as many as make a decode about 3.5 times as long, by the clock
            (docs/scheduling.md).
        max_queue: requests that may wait.
        prompt_cache: keep what ended replies have read, for prompts that begin alike.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        row_budget: int | None = None,
        max_queue: int = 64,
        prompt_cache: bool = True,
    ) -> None:
        self.engine = engine
        self.row_budget = None if row_budget is None else whole("row_budget", row_budget, 1)
        self._pace = Pace()
        self.max_queue = whole("max_queue", max_queue, 1)
        self._numbers = itertools.count()
        self._news = threading.Condition()  # guards the queue, and wakes the thread
        self._has_news = False
        self._queue: deque[Ticket] = deque()
        self._running: list[Running] = []  # the oldest first
        self._cache = PromptCache()
        self._uses_cache = prompt_cache
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
        return self._enqueue([request], [(on_token, on_end)])[0]

    def submit_twins(
        self,
        requests: SequenceABC[Request],
        *,
        on_token: Callable[[int, Token], None] | None = None,
        on_end: Callable[[int, Ticket], None] | None = None,
    ) -> list[Ticket]:
        """Put requests with one prompt in the queue, all of them or none.

        The first reads the prompt, and the others go on from there: they share its cells as far as
        their moods read it alike, whatever ``uses_cache`` says.

        Args:
            on_token, on_end: as :meth:`submit`'s, with which of the requests it is.
        Raises:
            as :meth:`submit`.
        """
        ways = [
            (
                None if on_token is None else functools.partial(on_token, i),
                None if on_end is None else functools.partial(on_end, i),
            )
            for i in range(len(requests))
        ]
        return self._enqueue(requests, ways)

    def _enqueue(
        self,
        requests: SequenceABC[Request],
        ways: SequenceABC[tuple[OnToken | None, OnEnd | None]],
    ) -> list[Ticket]:
        for request in requests:
            if not isinstance(request, Request):
                raise InputError(f"not a Request: {request!r}; write Request(tokens, limits)")
            self._check_request(request)
        with self._news:
            if self._closes_at is not None:
                raise ClosedError("the scheduler is closed; open a new one: Scheduler(engine)")
            if len(self._queue) + len(requests) > self.max_queue:
                raise QueueFullError(
                    f"{len(self._queue)} requests wait, and max_queue allows {self.max_queue}; "
                    "send it again later"
                )
            tickets: list[Ticket] = []
            for request, (on_token, on_end) in zip(requests, ways, strict=True):
                ticket = Ticket(self, next(self._numbers), request, on_token, on_end)
                ticket.reader = tickets[0] if tickets else None
                tickets.append(ticket)
            self._queue.extend(tickets)
            self._n_requests += len(tickets)
            self._notify()
        return tickets

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
            running = list(self._running)
        if running and all(one.ticket.is_cancelled for one in running):
            with suppress(ClosedError):  # nobody waits for what is being decoded
                self.engine.native.interrupt(running[0].sequence.id)

    def stats(self) -> SchedulerStats:
        """Return the present numbers."""
        with self._news:
            running, counts = list(self._running), self._counts
            return SchedulerStats(
                queued=len(self._queue),
                running=len(running),
                n_cells_used=sum(one.n_tokens - one.n_pending for one in running),
                n_cells_kept=self._cache.n_tokens,
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
        if drain_seconds <= 0:
            self._cancel_all()
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
                self._resume()
                self._admit()
                if self._running:
                    self._turn()
            self._cache.clear()
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
            self._cancel_all()
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

    def _cancel_all(self) -> None:
        with self._news:
            tickets = [*self._queue, *(one.ticket for one in self._running)]
        for ticket in tickets:
            ticket.cancel()

    def _steer(self, one: Running, mood: Steering) -> None:
        with self._blaming(one):
            one.sequence.steering = mood
            one.start_deciding()
            one.ticket.moods.append((len(one.row.drawn), mood))

    # --- who comes in ---

    def _resume(self) -> None:
        """Let paused replies go on, the oldest first, where there is room again."""
        for one in self._running:
            if one.is_paused:
                going = [other for other in self._running if not other.is_paused]
                if going and self.engine.native.n_free_cells < _ahead([*going, one]):
                    return
                one.is_paused = False

    def _admit(self) -> None:
        while not any(one.is_paused for one in self._running):
            ticket = next((one for one in list(self._queue) if not self._waits(one)), None)
            if ticket is None:
                return
            ticket.settle_mood()
            place = self._find_place(ticket)
            if place is None:
                return
            with self._news:
                self._queue.remove(ticket)
            with self._blaming(ticket):
                self._begin(ticket, place)

    def _reader_of(self, ticket: Ticket) -> Running | None:
        """Return who has read the prompt that the ticket shares, or reads it; None if it ended."""
        if ticket.reader is None:
            return None
        return next((one for one in self._running if one.ticket is ticket.reader), None)

    def _waits(self, ticket: Ticket) -> bool:
        """Whether the prompt that it shares is still being read."""
        reader = self._reader_of(ticket)
        return reader is not None and not reader.row.drawn

    def _find_place(self, ticket: Ticket) -> _Place | None:
        """Return where a prompt can begin; None where there is no room. Makes room in the cache."""
        engine, cache = self.engine, self._cache
        if not ticket.request.uses_cache and not self._running:
            cache.clear()
        if not cache and not engine.n_free_sequences:
            return None
        source, n = None, 0
        reader = self._reader_of(ticket)
        if reader is not None and engine.kv_unified:
            n = reader.sequence.n_common(ticket.request.tokens, ticket.mood)
            source = reader.sequence if n else None
        if source is None and ticket.request.uses_cache and self._uses_cache:
            beside = [one.sequence for one in self._running if engine.kv_unified]
            source, n = cache.best(ticket.request.tokens, ticket.mood, beside)
        n_ahead = _ahead(self._running) + min(_AHEAD, ticket.request.limits.max_tokens)
        n_more = min(ticket.n_prompt + n_ahead, engine.n_ctx if engine.kv_unified else 1) - n
        while True:
            is_kept = source in cache
            has_slot = engine.n_free_sequences > 0
            if source is not None and is_kept and (n == source.n_tokens or not engine.kv_unified):
                return _Place(source, takes_over=True)
            if has_slot and engine.native.n_free_cells >= n_more:
                return _Place(source)
            if cache.drop_oldest(but=source):
                continue
            if not is_kept:
                return None
            if not has_slot or self._running:
                return _Place(source, takes_over=True)
            cache.clear()
            source, n_more = None, n_more + n

    def _begin(self, ticket: Ticket, place: _Place) -> None:
        request = ticket.request
        ticket.started = time.monotonic()
        given = request.tokens, ticket.mood, request.drawing, tuple(request.gauges)
        if place.source is None:
            sequence = Sequence(self.engine, *given)
        elif place.takes_over:
            sequence = self._cache.take(place.source)
        else:
            sequence = place.source.fork()
        try:
            if place.source is not None:
                sequence.restart(*given)
            one = Running(ticket, sequence, request.make_reply(sequence, request.limits), 0)
            one.start_deciding()
        except BaseException:
            sequence.close()
            raise
        ticket.n_cached = ticket.n_prompt - one.n_pending
        with self._news:
            self._running.append(one)
        self._count("prompt", ticket.n_prompt)
        self._count("cached", ticket.n_cached)

    # --- decoding ---

    def _turn(self) -> None:
        n_batch = self.engine.n_batch
        next_one = plan(self._running, n_prompt_rows=self._n_prompt_rows, n_batch=n_batch)
        n_writing, n_rows = next_one.n_writing, next_one.n_prompt_rows  # before they change
        began = time.perf_counter()
        try:
            self._decode(next_one)
            if n_writing:
                self._pace.note(n_writing, n_rows, time.perf_counter() - began)
        except ContextFullError as error:
            self._make_room(error)
        except Exception:  # noqa: BLE001 -- it comes again where it belongs
            for one in self._running:
                one.look()
            if any(one.ticket.is_cancelled for one in self._running):
                return  # it was interrupted for that
            for one in next_one.draws:
                with self._blaming(one):
                    self._decode(Plan((one,), ()))
            for one, n_rows in next_one.fills:
                with self._blaming(one):
                    self._decode(Plan((), ((one, n_rows),)))

    def _n_prompt_rows(self, n_writing: int) -> int:
        if self.row_budget is None:
            return self._pace.n_rows(n_writing)
        return max(self.row_budget - n_writing, LEAST)

    def _decode(self, next_one: Plan) -> None:
        by_row = {one.row: one for one in next_one.draws}
        turn(
            list(by_row),
            on_token=lambda row: self._take(by_row[row]),
            n_top=[one.ticket.request.limits.n_top for one in next_one.draws],
            fills=[(one.sequence, n_rows) for one, n_rows in next_one.fills],
        )
        for one, n_rows in next_one.fills:
            one.n_pending -= n_rows
            if one.deciding is not None and one.n_pending == 0:
                with self._blaming(one):
                    one.decide()

    def _take(self, one: Running) -> None:
        """Look at the token that was drawn, and show what can be shown."""
        self._count("out", 1)
        with self._blaming(one):
            for token in one.reply.take(one.row):
                one.ticket.show(token)
            if one.reply.stop_reason is not None:
                self._end(one, one.reply.stop_reason)
            elif type(one.reply) is Reply:
                one.n_pending = 1
            else:
                one.look()  # it may have gone back

    def _make_room(self, error: ContextFullError) -> None:
        """Give up what is kept; then the youngest has to wait, or to end where it is alone."""
        if self._cache.drop_oldest():
            return
        going = [one for one in self._running if not one.is_paused]
        one = going[-1]
        with self._blaming(one):
            if len(going) > 1:
                one.pause()
            elif not one.row.drawn:
                raise error
            else:
                one.row.stop_reason = "context"
                for token in one.reply.ready():
                    one.ticket.show(token)
                self._end(one, "context")

    # --- the end ---

    @contextmanager
    def _blaming(self, one: Running | Ticket) -> Iterator[None]:
        """End this one, and no other, for an error that its callbacks or its mood raise."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- whoever waits for it hears of it
            if isinstance(one, Ticket):
                self._say_end(one, "error", error)
            else:
                self._end(one, "error", error)

    def _end(self, one: Running, reason: EndReason, error: Exception | None = None) -> None:
        with self._news:
            self._running.remove(one)
        rest = one.reply._stream.flush() if error is None else ""
        try:
            one.reply.close()
            if self._uses_cache and reason not in ("cancelled", "error"):
                self._cache.keep(one.sequence)
            else:
                one.sequence.close()
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
        self._cache.clear()

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


def _ahead(running: Iterable[Running]) -> int:
    """Cells that these replies are sure to find."""
    return sum(min(_AHEAD, one.row.n_left) for one in running)
