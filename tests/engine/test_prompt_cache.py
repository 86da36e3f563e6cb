"""What ended replies have read is used again, for the same tokens under the same mood only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import random_vector

from pyemo import ControlVector, Engine, HalfLife, SamplerParams, Steering
from pyemo.engine.mood import OFF
from pyemo.engine.prompt_cache import WORTH
from pyemo.engine.row import ReplyLimits
from pyemo.engine.scheduler import Scheduler
from pyemo.engine.tickets import Request, Ticket
from pyemo.vectors.metadata import VectorMetadata

GREEDY = SamplerParams(temperature=0)
PROMPT = [3 + i % 40 for i in range(100)]
WAIT_S = 20.0


@pytest.fixture
def new_scheduler(new_engine: Callable[..., Engine]) -> Iterator[Callable[..., Scheduler]]:
    """``new_scheduler(**settings of the engine)``; closed when the test ends."""
    opened: list[Scheduler] = []

    def new_scheduler(**settings: Any) -> Scheduler:
        opened.append(Scheduler(new_engine(**{"n_ctx": 1024, **settings})))
        return opened[-1]

    yield new_scheduler
    for scheduler in opened:
        scheduler.close()


@pytest.fixture
def scheduler(new_scheduler: Callable[..., Scheduler]) -> Scheduler:
    return new_scheduler()


def ask(
    scheduler: Scheduler, tokens: list[int], mood: Steering = OFF, n: int = 8, **settings: Any
) -> Ticket:
    request = Request(tokens, ReplyLimits(n), steering=mood, sampler=GREEDY, **settings)
    return scheduler.submit(request).wait(WAIT_S)


def ids(ticket: Ticket) -> list[int]:
    return [token.id for token in ticket.tokens]


def logprobs(ticket: Ticket) -> list[float]:
    return [token.logprob for token in ticket.tokens]


def test_a_second_turn_reads_only_what_is_new(scheduler: Scheduler) -> None:
    first = ask(scheduler, PROMPT)
    second_prompt = [*PROMPT, *ids(first), 7, 8, 9]
    second = ask(scheduler, second_prompt)
    assert first.n_cached == 0
    assert second.n_cached == len(PROMPT) + len(first.tokens) - 1  # the last one was never read
    fresh = ask(scheduler, second_prompt, uses_cache=False)
    assert fresh.n_cached == 0
    assert ids(second) == ids(fresh)
    stats = scheduler.stats()
    assert stats.n_cached_tokens == second.n_cached
    assert stats.n_prompt_tokens == len(PROMPT) + 2 * len(second_prompt)


@pytest.mark.parametrize("kv_unified", [True, False])
def test_moods_do_not_leak_into_each_others_prompts(
    new_scheduler: Callable[..., Scheduler], new_engine: Callable[..., Engine], kv_unified: bool
) -> None:
    scheduler = new_scheduler(kv_unified=kv_unified)
    model = scheduler.engine.model
    a, b = (Steering({random_vector(model, seed=k): 0.5}) for k in (1, 2))
    found = [ask(scheduler, PROMPT, mood) for mood in (a, b, OFF, a)]
    assert [ticket.n_cached for ticket in found] == [0, 0, 0, len(PROMPT) - 1]
    with new_engine(n_ctx=1024, kv_unified=kv_unified) as fresh:
        for ticket, mood in zip(found, (a, b, OFF, a), strict=True):
            tokens = list(fresh.generate(PROMPT, steering=mood, sampler=GREEDY, max_tokens=8))
            assert ids(ticket) == [token.id for token in tokens]
            assert logprobs(ticket) == pytest.approx([t.logprob for t in tokens], abs=1e-4)
    assert len({tuple(logprobs(ticket)) for ticket in found[:3]}) == 3


def test_what_is_used_again_is_what_was_read_to_the_bit(
    new_scheduler: Callable[..., Scheduler], new_engine: Callable[..., Engine]
) -> None:
    scheduler = new_scheduler(kv_unified=False)  # cells do not depend on what else is kept
    mood = Steering({random_vector(scheduler.engine.model): 0.5})
    plain, _, again = (ask(scheduler, PROMPT, mood) for mood in (mood, OFF, mood))
    with new_engine(n_ctx=1024, kv_unified=False) as fresh:
        tokens = list(fresh.generate(PROMPT, steering=mood, sampler=GREEDY, max_tokens=8))
        assert logprobs(plain) == [token.logprob for token in tokens]
        with fresh.sequence(PROMPT, steering=mood, sampler=GREEDY) as sequence:
            sequence.logits()
            sequence.append([5])
            sequence.rollback(1)  # now the last token is read alone, as behind what was kept
            expected = [sequence.step().logprob for _ in range(8)]
    assert logprobs(again) == expected


def other_moods(vector: ControlVector, other: ControlVector) -> dict[str, Steering]:
    return {
        "other vector": Steering({other: 0.5}),
        "strength": Steering({vector: 0.5001}),
        "sign": Steering({vector: -0.5}),
        "layers": Steering({vector: 0.5}, layers=range(1, 3)),
        "operator": Steering({vector: 0.5}, operator="project_out"),
        "term": Steering({vector: 0.5}) + Steering({other: 0.1}),
        "schedule": Steering({vector: 0.5}, schedule=lambda _: 0.5),
        "scope": Steering({vector: 0.5}, scope="reply"),
    }


@pytest.mark.parametrize(
    "what",
    ["other vector", "strength", "sign", "layers", "operator", "term", "schedule", "scope"],
)
def test_a_mood_that_differs_in_anything_reads_anew(scheduler: Scheduler, what: str) -> None:
    model = scheduler.engine.model
    vector, other = (random_vector(model, seed=k) for k in (1, 2))
    ask(scheduler, PROMPT, Steering({vector: 0.5}))
    assert ask(scheduler, PROMPT, other_moods(vector, other)[what]).n_cached == 0


def test_an_overwritten_vector_file_is_another_mood_and_a_renamed_one_the_same(
    scheduler: Scheduler, tmp_path: Path
) -> None:
    model = scheduler.engine.model
    path = tmp_path / "mood.gguf"

    def load(name: Path = path) -> Steering:
        return Steering({ControlVector.load(name, model=model): 0.5})

    def save(seed: int, name: Path = path) -> None:
        metadata = VectorMetadata(architecture="llama")
        random_vector(model, layers=range(1, 4), seed=seed, metadata=metadata).save(name)

    save(1)
    ask(scheduler, PROMPT, load())
    assert ask(scheduler, PROMPT, load()).n_cached == len(PROMPT) - 1
    save(2)
    assert ask(scheduler, PROMPT, load()).n_cached == 0
    save(1, tmp_path / "other.gguf")
    assert ask(scheduler, PROMPT, load(tmp_path / "other.gguf")).n_cached == len(PROMPT) - 1


def test_a_mood_of_the_reply_leaves_the_prompt_to_others_and_its_reply_to_nobody(
    scheduler: Scheduler,
) -> None:
    mood = Steering({random_vector(scheduler.engine.model): 0.5}, scope="reply")
    first = ask(scheduler, PROMPT, mood)
    second = ask(scheduler, [*PROMPT, *ids(first), 7, 8], mood)
    assert second.n_cached == len(PROMPT) - 1  # its last row decides a reply, and was steered
    assert ask(scheduler, PROMPT).n_cached == len(PROMPT) - 1
    assert ids(second) == ids(ask(scheduler, [*PROMPT, *ids(first), 7, 8], mood, uses_cache=False))


def test_a_fading_mood_leaves_only_the_rows_that_it_steers_alike(scheduler: Scheduler) -> None:
    mood = Steering({random_vector(scheduler.engine.model): 0.5}, schedule=HalfLife(3))
    first = ask(scheduler, PROMPT, mood)
    second = ask(scheduler, [*PROMPT, *ids(first), 7, 8], mood)
    assert second.n_cached == len(PROMPT)  # the row of the first reply token has full strength


def test_a_mood_changed_in_mid_reply_counts_from_there(scheduler: Scheduler) -> None:
    mood = Steering({random_vector(scheduler.engine.model): 0.5})
    tickets: list[Ticket] = []

    def steer(_: object) -> None:
        if len(tickets[0].tokens) == 3:
            tickets[0].steer(mood)

    with scheduler.engine.turns:  # the first token comes after its ticket
        request = Request(PROMPT, ReplyLimits(8), sampler=GREEDY)
        tickets.append(scheduler.submit(request, on_token=steer))
    first = tickets[0].wait(WAIT_S)
    assert first.moods == [(0, OFF), (3, mood)]
    assert ask(scheduler, [*PROMPT, *ids(first), 7]).n_cached == len(PROMPT) + 2


def test_a_common_beginning_is_shared_and_both_conversations_go_on(scheduler: Scheduler) -> None:
    one, other = (ask(scheduler, [*PROMPT, k, 9]) for k in (5, 6))
    assert other.n_cached == len(PROMPT)
    prompt = [*PROMPT, 5, 9, *ids(one), 7]
    assert ask(scheduler, prompt).n_cached == len(prompt) - 2
    prompt = [*PROMPT, 6, 9, *ids(other), 7]
    assert ask(scheduler, prompt).n_cached == len(prompt) - 2


def test_a_running_reply_shares_its_prompt(scheduler: Scheduler) -> None:
    found: list[Ticket] = []
    request = Request(PROMPT, ReplyLimits(8), sampler=GREEDY)

    def ask_again(_: object) -> None:
        if not found:
            found.append(scheduler.submit(request))

    running = scheduler.submit(
        Request(PROMPT, ReplyLimits(20), sampler=GREEDY), on_token=ask_again
    ).wait(WAIT_S)
    assert found[0].wait(WAIT_S).n_cached == len(PROMPT) - 1
    assert ids(running)[:8] == ids(found[0])


def test_one_sequence_is_enough_for_a_conversation(new_scheduler: Callable[..., Scheduler]) -> None:
    scheduler = new_scheduler(n_seq_max=1)
    prompt = list(PROMPT)
    for turn in range(3):
        ticket = ask(scheduler, prompt)
        assert (ticket.n_cached > 0) == (turn > 0)
        assert ids(ticket) == ids(ask(scheduler, prompt, uses_cache=False))
        prompt += [*ids(ticket), 7, 8]


def test_the_least_recently_used_goes_when_sequences_or_cells_are_needed(
    new_scheduler: Callable[..., Scheduler],
) -> None:
    prompts = [[k, *PROMPT] for k in range(3, 8)]
    few_sequences = new_scheduler(n_seq_max=3)
    for prompt in prompts[:3]:
        ask(few_sequences, prompt)
    ask(few_sequences, [*prompts[0], 9])  # used again
    ask(few_sequences, prompts[3])
    assert ask(few_sequences, [*prompts[0], 9]).n_cached > 0
    assert ask(few_sequences, prompts[1]).n_cached == 0

    few_cells = new_scheduler(n_ctx=256)
    for prompt in prompts[:2]:
        ask(few_cells, prompt)
    assert few_cells.stats().n_cells_kept > 200
    ask(few_cells, prompts[2])
    assert few_cells.stats().n_cells_kept < 256
    assert ask(few_cells, prompts[0]).n_cached == 0


def test_a_long_reply_takes_the_cells_of_what_is_kept(
    new_scheduler: Callable[..., Scheduler],
) -> None:
    scheduler = new_scheduler(n_ctx=256)
    ask(scheduler, PROMPT)
    long = Request([9, *PROMPT[:50]], ReplyLimits(200), sampler=SamplerParams(seed=1))
    ticket = scheduler.submit(long).wait(WAIT_S)
    assert ticket.stop_reason in ("length", "end")
    assert scheduler.stats().n_cells_kept == ticket.n_prompt + len(ticket.tokens)


def test_short_beginnings_are_read_anew(scheduler: Scheduler) -> None:
    for n in (WORTH - 1, WORTH + 10):
        ask(scheduler, [n, *PROMPT[: n - 1]])
    assert ask(scheduler, [WORTH - 1, *PROMPT]).n_cached == 0
    assert ask(scheduler, [WORTH + 10, *PROMPT]).n_cached > 0


def test_the_cache_ends_with_the_scheduler_and_may_be_off(
    new_engine: Callable[..., Engine],
) -> None:
    engine = new_engine(n_ctx=1024)
    with Scheduler(engine, prompt_cache=False) as scheduler:
        assert [ask(scheduler, PROMPT).n_cached for _ in range(2)] == [0, 0]
    with Scheduler(engine) as scheduler:
        ask(scheduler, PROMPT)
        assert engine.native.n_free_cells < 1024
    assert (engine.native.n_free_cells, engine.n_free_sequences) == (1024, engine.n_seq_max)
