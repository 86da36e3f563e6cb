"""The scheduler, on tiny models: queue, cancelling, moods changed in mid-reply, errors, the end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from engines import PROMPT, needs_torch, random_vector
from measured_vectors import measured
from tiny_models import TinyModel

from pyemo import Condition, Engine, SamplerParams, Steering, Token
from pyemo.engine.pace import MOST
from pyemo.engine.row import ReplyLimits
from pyemo.engine.scheduler import Scheduler
from pyemo.engine.sequence import Sequence
from pyemo.engine.steps import step_many
from pyemo.engine.tickets import Request, Ticket
from pyemo.errors import (
    ClosedError,
    ContextFullError,
    DecodeAbortedError,
    InputError,
    QueueFullError,
)
from pyemo.guard import Guard

WARM = SamplerParams(temperature=0.9, seed=5)
WAIT_S = 20.0


@pytest.fixture
def new_scheduler() -> Iterator[Callable[..., Scheduler]]:
    """``new_scheduler(engine, **settings)``; closed when the test ends."""
    opened: list[Scheduler] = []

    def new_scheduler(engine: Engine, **settings: Any) -> Scheduler:
        opened.append(Scheduler(engine, **settings))
        return opened[-1]

    yield new_scheduler
    for scheduler in opened:
        scheduler.close()


@pytest.fixture
def scheduler(engine: Engine, new_scheduler: Callable[..., Scheduler]) -> Scheduler:
    """Over the tiny llama, four sequences and 512 cells."""
    return new_scheduler(engine)


def request(
    scheduler: Scheduler, prompt: str = PROMPT, max_tokens: int = 12, **settings: Any
) -> Request:
    stop, n_top = settings.pop("stop", ()), settings.pop("n_top", 0)
    tokens = scheduler.engine.prompt_tokens(prompt, raw=True)
    settings = {"sampler": WARM, **settings}
    return Request(tokens, ReplyLimits(max_tokens, stop, n_top), **settings)


class Gate:
    """An ``on_token`` that holds the scheduler's thread at a token until it is opened."""

    def __init__(self, at: int = 1) -> None:
        self.reached, self._opened = threading.Event(), threading.Event()
        self._left = at

    def __call__(self, token: Token) -> None:
        self._left -= 1
        if self._left == 0:
            self.reached.set()
            assert self._opened.wait(WAIT_S)

    def wait(self) -> None:
        assert self.reached.wait(WAIT_S)

    def open(self) -> None:
        self._opened.set()


def ids(ticket: Ticket) -> list[int]:
    return [token.id for token in ticket.tokens]


@pytest.mark.parametrize("is_steered", [False, True], ids=["plain", "steered"])
def test_a_request_alone_gives_what_generate_gives(
    engine: Engine, new_scheduler: Callable[..., Scheduler], is_steered: bool
) -> None:
    mood = Steering({random_vector(engine.model): 0.5}) if is_steered else Steering()
    expected = engine.generate(PROMPT, raw=True, sampler=WARM, steering=mood, max_tokens=12)
    tokens = list(expected)
    scheduler = new_scheduler(engine)
    ticket = scheduler.submit(request(scheduler, steering=mood)).wait(WAIT_S)
    assert ticket.tokens == tokens
    assert (ticket.text, ticket.stop_reason) == (expected.text, expected.stop_reason)


def test_a_request_without_the_cache_is_that_of_generate_to_the_bit_whatever_went_before(
    new_engine: Callable[..., Engine], new_scheduler: Callable[..., Scheduler]
) -> None:
    prompt = [3 + i % 40 for i in range(150)]
    with new_engine(kv_type="f16") as fresh:
        expected = list(fresh.generate(prompt, sampler=WARM, max_tokens=40))
    scheduler = new_scheduler(new_engine(kv_type="f16"))
    before = [Request(prompt[:n], ReplyLimits(5 + n % 7), sampler=WARM) for n in range(70, 150, 9)]
    for ticket in [scheduler.submit(request) for request in before]:
        ticket.wait(WAIT_S)
    ticket = scheduler.submit(Request(prompt, ReplyLimits(40), sampler=WARM, uses_cache=False))
    assert ticket.wait(WAIT_S).tokens == expected


def test_tokens_come_to_the_callback_and_to_whoever_iterates(scheduler: Scheduler) -> None:
    heard: list[Token] = []
    ended: list[Ticket] = []
    ticket = scheduler.submit(request(scheduler), on_token=heard.append, on_end=ended.append)
    assert list(ticket) == heard == ticket.tokens
    ticket.wait(WAIT_S)
    assert len(heard) == 12
    assert ended == [ticket]
    assert ticket.submitted <= ticket.started <= ticket.first_token <= ticket.ended  # type: ignore[operator]


def test_replies_are_written_side_by_side_each_with_its_own_mood_and_limits(
    scheduler: Scheduler,
) -> None:
    vector = random_vector(scheduler.engine.model)
    moods = [Steering({vector: 0.3 * k}) for k in range(6)]
    alone = [scheduler.submit(request(scheduler, steering=m)).wait(WAIT_S) for m in moods]
    tickets = [
        scheduler.submit(request(scheduler, max_tokens=6 + k, steering=mood, n_top=k))
        for k, mood in enumerate(moods)
    ]
    for k, ticket in enumerate(tickets):
        ticket.wait(WAIT_S)
        assert len(ticket.tokens) == 6 + k or ticket.stop_reason == "end"
        assert {len(token.top) for token in ticket.tokens} == {k}
        first, expected = ticket.tokens[0], alone[k].tokens[0]
        assert first.id == expected.id
        assert first.logprob == pytest.approx(expected.logprob, 1e-4)
    assert scheduler.stats().n_ended == 12


def test_a_stop_string_ends_the_reply_before_it(scheduler: Scheduler) -> None:
    whole = scheduler.submit(request(scheduler)).wait(WAIT_S).text
    stop = whole[4:6]
    ticket = scheduler.submit(request(scheduler, stop=[stop])).wait(WAIT_S)
    assert ticket.text == whole[: whole.index(stop)]
    assert ticket.stop_reason == "stop"


def test_requests_wait_in_order_and_too_many_are_refused(
    engine: Engine, new_scheduler: Callable[..., Scheduler]
) -> None:
    scheduler = new_scheduler(engine, max_queue=3)
    gate = Gate()
    order: list[int] = []
    first = scheduler.submit(request(scheduler), on_token=gate)
    gate.wait()
    waiting = [
        scheduler.submit(request(scheduler), on_end=lambda t: order.append(t.id)) for _ in range(3)
    ]
    with pytest.raises(QueueFullError, match="3 requests wait"):
        scheduler.submit(request(scheduler))
    assert scheduler.stats().queued == 3
    gate.open()
    for ticket in [first, *waiting]:
        assert ticket.wait(WAIT_S).stop_reason == "length"
    assert order == [ticket.id for ticket in waiting]


def test_a_cancelled_request_leaves_the_queue(scheduler: Scheduler) -> None:
    gate = Gate()
    running = [scheduler.submit(request(scheduler, max_tokens=40), on_token=gate)]
    gate.wait()
    running += [scheduler.submit(request(scheduler, max_tokens=40)) for _ in range(3)]
    waiting = scheduler.submit(request(scheduler))
    waiting.cancel()
    gate.open()
    assert waiting.wait(WAIT_S).stop_reason == "cancelled"
    assert waiting.tokens == []
    assert [ticket.wait(WAIT_S).stop_reason for ticket in running] == ["length"] * 4


def test_a_cancelled_reply_frees_its_cells_and_the_others_go_on(scheduler: Scheduler) -> None:
    gate = Gate(at=3)
    ended = threading.Event()
    cancelled = scheduler.submit(
        request(scheduler, max_tokens=200), on_token=gate, on_end=lambda _: ended.set()
    )
    other = scheduler.submit(request(scheduler, max_tokens=30))
    gate.wait()
    cancelled.cancel()
    gate.open()
    assert cancelled.wait(WAIT_S).stop_reason == "cancelled"
    assert len(cancelled.tokens) == 3
    assert ended.wait(WAIT_S)
    assert len(other.wait(WAIT_S).tokens) == 30
    scheduler.close()
    assert scheduler.engine.n_free_sequences == scheduler.engine.n_seq_max
    assert scheduler.engine.native.n_free_cells == scheduler.engine.n_ctx


def test_a_mood_given_in_mid_reply_acts_from_the_next_token(
    engine: Engine, new_scheduler: Callable[..., Scheduler]
) -> None:
    scheduler = new_scheduler(engine, prompt_cache=False)
    mood = Steering({random_vector(engine.model): 1.0})
    gate = Gate(at=4)
    ticket = scheduler.submit(request(scheduler), on_token=gate)
    gate.wait()
    ticket.steer(mood)
    gate.open()
    ticket.wait(WAIT_S)
    assert ticket.moods == [(0, Steering()), (4, mood)]
    expected = []
    with engine.sequence(PROMPT, raw=True, sampler=WARM) as sequence:
        for t in range(12):
            if t == 4:
                sequence.steering = mood
            expected.append(sequence.step())
    assert [token.logprob for token in ticket.tokens] == [token.logprob for token in expected]


@pytest.fixture
def ruled(tiny: Callable[[str], TinyModel]) -> Callable[[bool], Steering]:
    """``ruled(holds)``: a mood with a rule on the prompt that holds for all of them, or none."""
    model = tiny("llama")
    vector = measured(model, model.random_tokens(32))

    def ruled(holds: bool) -> Steering:
        condition = Condition(vector, -100.0 if holds else 100.0, layer=2)
        return Steering({vector: 1.0}, when_prompt=condition)

    return ruled


@needs_torch
@pytest.mark.parametrize("holds", [True, False])
def test_a_rule_on_the_prompt_is_decided_as_generate_does(
    scheduler: Scheduler, ruled: Callable[[bool], Steering], holds: bool
) -> None:
    mood = ruled(holds)
    asked = request(scheduler, steering=mood, uses_cache=False)
    with scheduler.engine.sequence(asked.tokens, steering=mood, sampler=WARM) as sequence:
        expected = [token.id for token in sequence.generate(max_tokens=12)]
        decisions = sequence.decisions
    ticket = scheduler.submit(asked).wait(WAIT_S)
    assert ids(ticket) == expected
    assert [one.holds for one in ticket.decisions] == [holds]
    assert ticket.decisions == decisions


@needs_torch
def test_a_long_prompt_decides_beside_a_running_reply(
    new_engine: Callable[..., Engine],
    new_scheduler: Callable[..., Scheduler],
    ruled: Callable[[bool], Steering],
    turns: list[tuple[int, int]],
) -> None:
    """In chunks: once to decide, and once more under what it decided."""
    engine = new_engine(n_ctx=2048)
    long = [3 + i % 40 for i in range(300)]
    greedy = SamplerParams(temperature=0)
    with engine.sequence(long, steering=ruled(True), sampler=greedy) as sequence:
        expected = [token.id for token in sequence.generate(max_tokens=6)]
    scheduler = new_scheduler(engine, row_budget=40)
    gate = Gate()
    running = scheduler.submit(request(scheduler, max_tokens=200), on_token=gate)
    gate.wait()
    del turns[:]
    asked = Request(long, ReplyLimits(6), steering=ruled(True), sampler=greedy)
    ticket = scheduler.submit(asked)
    gate.open()
    assert ids(ticket.wait(WAIT_S)) == expected
    assert ticket.decisions[0].holds
    assert max(n_drew + n_read for n_drew, n_read in turns) <= 40
    running.cancel()


@needs_torch
def test_a_rule_that_the_prompt_has_not_decided_is_refused_in_mid_reply(
    scheduler: Scheduler, ruled: Callable[[bool], Steering]
) -> None:
    gate = Gate()
    ticket = scheduler.submit(request(scheduler), on_token=gate)
    gate.wait()
    with pytest.raises(InputError, match="the prompt is read, and has not decided"):
        ticket.steer(ruled(True))
    gate.open()
    assert ticket.wait(WAIT_S).stop_reason == "length"


def test_a_mood_that_comes_while_it_waits_is_its_first(scheduler: Scheduler) -> None:
    mood = Steering({random_vector(scheduler.engine.model): 1.0})
    gate = Gate()
    scheduler.submit(request(scheduler), on_token=gate)
    gate.wait()
    ticket = scheduler.submit(request(scheduler))
    ticket.steer(mood)
    gate.open()
    assert ticket.wait(WAIT_S).moods == [(0, mood)]
    with pytest.raises(ClosedError, match="has ended"):
        ticket.steer(mood)


@pytest.mark.parametrize("where", ["on_token", "make_reply", "schedule"])
def test_an_error_in_a_callback_ends_that_reply_only(scheduler: Scheduler, where: str) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("mine")

    vector = random_vector(scheduler.engine.model)
    late = Steering({vector: 0.1}, scope="reply", schedule=lambda t: fail() if t == 3 else 1.0)
    bad = {
        "on_token": lambda: scheduler.submit(request(scheduler), on_token=fail),
        "make_reply": lambda: scheduler.submit(request(scheduler, make_reply=fail)),
        "schedule": lambda: scheduler.submit(request(scheduler, steering=late)),
    }
    good = [scheduler.submit(request(scheduler, max_tokens=20)) for _ in range(2)]
    ticket = bad[where]()
    with pytest.raises(RuntimeError, match="mine"):
        ticket.wait(WAIT_S)
    with pytest.raises(RuntimeError, match="mine"):
        list(ticket)
    assert ticket.stop_reason == "error"
    assert [len(one.wait(WAIT_S).tokens) for one in good] == [20, 20]
    assert scheduler.submit(request(scheduler)).wait(WAIT_S).stop_reason == "length"


def test_a_mood_that_breaks_the_numbers_ends_its_own_reply_only(scheduler: Scheduler) -> None:
    huge = Steering({random_vector(scheduler.engine.model, length=1e18): 1e6})
    good = scheduler.submit(request(scheduler, max_tokens=20))
    bad = scheduler.submit(request(scheduler, steering=huge))
    with pytest.raises(DecodeAbortedError):
        bad.wait(WAIT_S)
    assert len(good.wait(WAIT_S).tokens) == 20


def test_an_on_end_that_fails_is_logged(
    scheduler: Scheduler, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Ticket) -> None:
        raise RuntimeError("mine")

    scheduler.submit(request(scheduler), on_end=fail).wait(WAIT_S)
    scheduler.close()
    assert "on_end of reply 0 failed" in caplog.text


def test_what_cannot_be_answered_is_refused_at_once(scheduler: Scheduler) -> None:
    engine, limits = scheduler.engine, ReplyLimits(4)
    with pytest.raises(ContextFullError, match=r"512 tokens, and a sequence holds 512"):
        scheduler.submit(Request([3] * 512, limits))
    with pytest.raises(InputError, match="outside the vocabulary"):
        scheduler.submit(Request([engine.model.n_vocab], limits))
    with pytest.raises(InputError, match="no tokens"):
        Request([], limits)
    with pytest.raises(InputError, match="it must be a Steering"):
        Request([3], limits, steering=0.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not a Request"):
        scheduler.submit(PROMPT)
    assert scheduler.stats().n_requests == 0


def test_where_cells_run_out_the_youngest_waits_and_goes_on_later(
    new_engine: Callable[..., Engine], new_scheduler: Callable[..., Scheduler]
) -> None:
    engine = new_engine(n_ctx=128, n_seq_max=3)
    expected = [
        list(engine.generate(PROMPT, raw=True, sampler=SamplerParams(seed=k), max_tokens=100))
        for k in range(3)
    ]
    scheduler = new_scheduler(engine)
    tickets = [
        scheduler.submit(request(scheduler, max_tokens=100, sampler=SamplerParams(seed=k)))
        for k in range(3)
    ]
    for ticket, tokens in zip(tickets, expected, strict=True):
        assert ids(ticket.wait(WAIT_S)) == [token.id for token in tokens]
    assert sum(len(tokens) for tokens in expected) > engine.n_ctx
    assert sorted(tickets, key=lambda ticket: ticket.ended or 0)[0] is tickets[0]


def test_replies_that_fill_the_context_end_for_it_one_after_the_other(
    new_engine: Callable[..., Engine], new_scheduler: Callable[..., Scheduler]
) -> None:
    scheduler = new_scheduler(new_engine(n_ctx=96, n_seq_max=2))
    tickets = [scheduler.submit(request(scheduler, max_tokens=1000)) for _ in range(2)]
    assert [ticket.wait(WAIT_S).stop_reason for ticket in tickets] == ["context"] * 2
    assert {ticket.n_prompt + len(ticket.tokens) for ticket in tickets} == {96}


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """For each turn of the test (sequences that drew a token, rows of prompts beside them)."""
    seen: list[tuple[int, int]] = []

    def step(sequences, *, fills=(), **settings):  # type: ignore[no-untyped-def]
        seen.append((len(sequences), sum(n for _, n in fills)))
        return step_many(sequences, fills=fills, **settings)

    monkeypatch.setattr("pyemo.engine.rows.step_many", step)
    return seen


@pytest.mark.parametrize(
    ("kv_unified", "row_budget", "most"), [(True, 40, 40), (False, 40, 40), (True, None, MOST)]
)
def test_a_long_prompt_is_read_beside_running_replies_within_the_budget(
    new_engine: Callable[..., Engine],
    new_scheduler: Callable[..., Scheduler],
    turns: list[tuple[int, int]],
    kv_unified: bool,
    row_budget: int | None,
    most: int,
) -> None:
    engine = new_engine(n_ctx=2048, kv_unified=kv_unified)
    long = [3 + i % 40 for i in range(300)]
    greedy = SamplerParams(temperature=0)
    expected = engine.generate(long, sampler=greedy, max_tokens=6)
    list(expected)
    scheduler = new_scheduler(engine, row_budget=row_budget)
    gate = Gate()
    running = [scheduler.submit(request(scheduler, max_tokens=60), on_token=gate)]
    gate.wait()
    running.append(scheduler.submit(request(scheduler, max_tokens=60)))
    del turns[:]
    ticket = scheduler.submit(Request(long, ReplyLimits(6), sampler=greedy))
    gate.open()
    assert ids(ticket.wait(WAIT_S)) == [token.id for token in expected.tokens]
    beside = [turn for turn in turns if turn[1]]
    assert sum(n for _, n in beside) >= 300 - most
    assert all(n_drew >= 1 and n_drew + n_read <= most for n_drew, n_read in beside)
    assert [len(one.wait(WAIT_S).tokens) for one in running] == [60, 60]


def test_a_prompt_is_cancelled_between_its_chunks(
    new_engine: Callable[..., Engine], new_scheduler: Callable[..., Scheduler]
) -> None:
    scheduler = new_scheduler(new_engine(n_ctx=1024), row_budget=20, prompt_cache=False)
    gate, later = Gate(), Gate(at=3)

    def wait_twice(token: Token) -> None:
        gate(token)
        later(token)

    running = scheduler.submit(request(scheduler, max_tokens=100), on_token=wait_twice)
    gate.wait()
    long = scheduler.submit(Request([3 + i % 40 for i in range(400)], ReplyLimits(6)))
    gate.open()
    later.wait()  # two chunks of it are read, at most
    long.cancel()
    later.open()
    assert long.wait(WAIT_S).stop_reason == "cancelled"
    assert long.tokens == []
    assert len(running.wait(WAIT_S).tokens) == 100
    assert scheduler.engine.native.n_free_cells == 1024


def test_a_short_prompt_does_not_wait_for_a_long_one(
    new_engine: Callable[..., Engine], new_scheduler: Callable[..., Scheduler]
) -> None:
    scheduler = new_scheduler(new_engine(n_ctx=2048), row_budget=20)
    gate = Gate()
    scheduler.submit(request(scheduler, max_tokens=200), on_token=gate)
    gate.wait()
    long = scheduler.submit(Request([3 + i % 40 for i in range(400)], ReplyLimits(6)))
    short = scheduler.submit(request(scheduler))
    gate.open()
    for ticket in (long, short):
        ticket.wait(WAIT_S)
    assert short.first_token is not None
    assert long.first_token is not None
    assert short.first_token < long.first_token


def test_what_is_decoded_for_a_cancelled_request_alone_is_interrupted(
    new_engine: Callable[..., Engine],
) -> None:
    engine = new_engine(n_ctx=512)
    failed: list[DecodeAbortedError] = []

    def read(sequence: Sequence) -> None:
        try:
            for _ in range(10_000):
                sequence.refresh()
                sequence.logits()
        except DecodeAbortedError as error:
            failed.append(error)

    with engine.sequence([3] * 500) as mine, engine.sequence([3]) as other:
        reader = threading.Thread(target=read, args=(mine,))
        number = mine.id
        others = other.id
        reader.start()
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            engine.native.interrupt(others)  # is not what is being decoded
        assert not failed
        while reader.is_alive():
            engine.native.interrupt(number)
        assert len(failed) == 1
        assert mine.n_pending == 500  # as if the decode had never been


def test_a_request_waits_for_a_sequence_that_somebody_else_holds(
    new_engine: Callable[..., Engine], new_scheduler: Callable[..., Scheduler]
) -> None:
    engine = new_engine(n_seq_max=1)
    scheduler = new_scheduler(engine)
    with engine.sequence(PROMPT, raw=True):
        ticket = scheduler.submit(request(scheduler))
        with pytest.raises(TimeoutError, match="reply 0 has not ended"):
            ticket.wait(0.1)
    assert ticket.wait(WAIT_S).stop_reason == "length"


def test_closing_finishes_what_it_can_and_ends_the_rest_by_name(
    engine: Engine, new_scheduler: Callable[..., Scheduler]
) -> None:
    drained = new_scheduler(engine)
    short = [drained.submit(request(drained)) for _ in range(6)]
    drained.close(drain_seconds=WAIT_S)
    assert [ticket.stop_reason for ticket in short] == ["length"] * 6
    with pytest.raises(ClosedError, match="scheduler is closed"):
        drained.submit(request(drained))

    cut = new_scheduler(engine)
    gate = Gate()
    long = [cut.submit(request(cut, max_tokens=100), on_token=gate)]
    gate.wait()
    long += [cut.submit(request(cut, max_tokens=100)) for _ in range(5)]
    threading.Timer(0.1, gate.open).start()
    cut.close()
    assert [ticket.stop_reason for ticket in long] == ["cancelled"] * 6
    assert len(long[0].tokens) >= 1
    assert engine.n_free_sequences == engine.n_seq_max


def test_closing_from_a_callback_ends_after_it(scheduler: Scheduler) -> None:
    ticket = scheduler.submit(request(scheduler), on_token=lambda _: scheduler.close())
    assert ticket.wait(WAIT_S).stop_reason == "cancelled"


def test_a_closed_engine_ends_the_replies_by_name(
    new_engine: Callable[..., Engine], new_scheduler: Callable[..., Scheduler]
) -> None:
    engine = new_engine()
    scheduler = new_scheduler(engine)
    gate = Gate()
    tickets = [scheduler.submit(request(scheduler), on_token=gate)]
    gate.wait()
    tickets += [scheduler.submit(request(scheduler)) for _ in range(5)]
    engine.close()
    gate.open()
    for ticket in tickets:
        with pytest.raises(ClosedError, match="engine is closed"):
            ticket.wait(WAIT_S)


def test_a_guarded_reply_is_that_of_the_guard_alone(scheduler: Scheduler) -> None:
    engine = scheduler.engine
    mood = Steering({random_vector(engine.model): 3.0})
    greedy = SamplerParams(temperature=0)
    expected = Guard().generate(
        engine, PROMPT, raw=True, steering=mood, sampler=greedy, max_tokens=80
    )
    tokens = list(expected)
    assert expected.events  # it acted
    guarded = request(
        scheduler, max_tokens=80, steering=mood, sampler=greedy, make_reply=Guard().begin
    )
    ticket = scheduler.submit(guarded).wait(WAIT_S)
    assert ticket.tokens == tokens


def test_threads_that_submit_steer_and_cancel_at_once_lose_nothing(scheduler: Scheduler) -> None:
    mood = Steering({random_vector(scheduler.engine.model): 0.5})
    tickets: list[Ticket] = []

    def client(seed: int) -> None:
        for k in range(6):
            ticket = scheduler.submit(request(scheduler, max_tokens=8))
            tickets.append(ticket)
            time.sleep(0.001 * (seed + k))
            with contextlib.suppress(ClosedError):  # it may have ended
                ticket.cancel() if k % 3 == 0 else ticket.steer(mood)
            ticket.wait(WAIT_S)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert len(tickets) == 36
    assert {ticket.stop_reason for ticket in tickets} <= {"length", "cancelled", "end"}
    stats = scheduler.stats()
    assert (stats.queued, stats.running) == (0, 0)
    assert stats.n_ended + stats.n_cancelled == 36
