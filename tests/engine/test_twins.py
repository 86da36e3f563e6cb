"""Several replies of one prompt on a scheduler: they share what is read of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from engines import open_engine, random_vector
from tiny_models import TinyModel

from pyemo import Engine, Model, ReplyLimits, Request, SamplerParams, Scheduler, Steering
from pyemo.errors import InputError, QueueFullError
from pyemo.guard import Guard

PROMPT = [3 + i % 40 for i in range(150)]
WAIT_S = 60.0


@pytest.fixture(scope="module")
def engine(tiny: Callable[[str], TinyModel]) -> Iterator[Engine]:
    with open_engine(Model.load(tiny("llama").path)) as engine:
        yield engine


@pytest.fixture
def scheduler(engine: Engine) -> Iterator[Scheduler]:
    with Scheduler(engine) as scheduler:
        yield scheduler


def request(seed: int = 0, **fields: object) -> Request:
    sampler = SamplerParams(temperature=2.0, seed=seed)
    return Request(PROMPT, ReplyLimits(12), sampler=sampler, uses_cache=False, **fields)  # type: ignore[arg-type]


def alone(engine: Engine, asked: Request) -> list[int]:
    reply = engine.generate(
        asked.tokens, steering=asked.steering, sampler=asked.sampler, max_tokens=12
    )
    return [token.id for token in reply]


def test_twins_share_the_prompt_and_write_each_its_own(
    engine: Engine, scheduler: Scheduler
) -> None:
    asked = [request(seed) for seed in range(3)]
    tickets = scheduler.submit_twins(asked)
    found = [[token.id for token in ticket.wait(WAIT_S).tokens] for ticket in tickets]
    assert found == [alone(engine, one) for one in asked]
    assert len({tuple(ids) for ids in found}) == 3
    assert [ticket.n_cached for ticket in tickets] == [0, len(PROMPT) - 1, len(PROMPT) - 1]
    assert scheduler.stats().n_tokens_out == 36


def test_twins_of_other_moods_share_nothing(engine: Engine, scheduler: Scheduler) -> None:
    mood = Steering({random_vector(engine.model): 1.0})
    tickets = scheduler.submit_twins([request(), request(steering=mood)])
    found = [[token.id for token in ticket.wait(WAIT_S).tokens] for ticket in tickets]
    assert found == [alone(engine, ticket.request) for ticket in tickets]
    assert tickets[1].n_cached == 0


def test_twins_are_told_which_they_are(scheduler: Scheduler) -> None:
    shown: dict[int, list[int]] = {0: [], 1: []}
    ended: list[int] = []
    tickets = scheduler.submit_twins(
        [request(0), request(1)],
        on_token=lambda i, token: shown[i].append(token.id),
        on_end=lambda i, ticket: ended.append(i),
    )
    for i, ticket in enumerate(tickets):
        assert shown[i] == [token.id for token in ticket.wait(WAIT_S).tokens]
    assert sorted(ended) == [0, 1]


def test_a_twin_reads_the_prompt_itself_where_its_reader_has_left(
    engine: Engine, scheduler: Scheduler
) -> None:
    tickets = scheduler.submit_twins([request(0), request(1)])
    tickets[0].cancel()
    assert [token.id for token in tickets[1].wait(WAIT_S).tokens] == alone(engine, request(1))


def test_more_twins_than_sequences_come_after_each_other(engine: Engine) -> None:
    asked = [request(seed) for seed in range(6)]
    with Scheduler(engine, prompt_cache=False) as scheduler:
        tickets = scheduler.submit_twins(asked)
        found = [[token.id for token in ticket.wait(WAIT_S).tokens] for ticket in tickets]
    assert found == [alone(engine, one) for one in asked]


def test_guarded_twins_share_too(scheduler: Scheduler) -> None:
    tickets = scheduler.submit_twins([request(i, make_reply=Guard().begin) for i in range(2)])
    texts = [ticket.wait(WAIT_S).text for ticket in tickets]
    assert texts[0] != texts[1]
    assert tickets[1].n_cached == len(PROMPT) - 1


def test_all_twins_come_into_the_queue_or_none(engine: Engine) -> None:
    with Scheduler(engine, max_queue=2) as scheduler:
        with pytest.raises(QueueFullError, match="max_queue allows 2"):
            scheduler.submit_twins([request(i) for i in range(3)])
        bad = replace(request(), tokens=[10**6])
        with pytest.raises(InputError, match="outside the vocabulary"):
            scheduler.submit_twins([request(), bad])
        assert scheduler.stats().n_requests == 0
