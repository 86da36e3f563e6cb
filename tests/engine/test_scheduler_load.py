"""Many requests at once, a third of them cancelled at random moments: nothing is lost or mixed."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable

from engines import random_vector

from pyemo import Engine, SamplerParams, Steering
from pyemo.engine.row import ReplyLimits
from pyemo.engine.scheduler import Scheduler
from pyemo.engine.tickets import Request, Ticket

N_REQUESTS, N_CLIENTS = 500, 16
WAIT_S = 60.0


def kinds(engine: Engine) -> list[Request]:
    """Requests that share beginnings and differ in length, mood, seed and limits."""
    vector = random_vector(engine.model)
    prompts = [[3 + (i * k) % 40 for i in range(n)] for k, n in ((1, 10), (1, 90), (3, 150))]
    moods = [Steering(), Steering({vector: 0.4}), Steering({vector: 0.4}, scope="reply")]
    return [
        Request(prompt, ReplyLimits(4 + 3 * m), steering=mood, sampler=SamplerParams(seed=m))
        for prompt, (m, mood) in itertools.product(prompts, enumerate(moods))
    ]


def test_500_requests_with_random_cancels_lose_and_mix_nothing(
    new_engine: Callable[..., Engine],
) -> None:
    engine = new_engine(n_ctx=1024, n_seq_max=6)
    requests = kinds(engine)
    expected = [
        [token.id for token in engine.generate(
            request.tokens, steering=request.steering, sampler=request.sampler,
            max_tokens=request.limits.max_tokens,
        )]
        for request in requests
    ]  # fmt: skip
    scheduler = Scheduler(engine, row_budget=32, max_queue=N_CLIENTS)
    numbers = iter(range(N_REQUESTS))
    ended: dict[int, Ticket] = {}
    faults: list[str] = []

    def client(seed: int) -> None:
        chance = random.Random(seed)
        for number in numbers:
            kind = chance.randrange(len(requests))
            ticket = scheduler.submit(requests[kind])
            is_cancelled = chance.random() < 1 / 3
            if is_cancelled:
                time.sleep(chance.random() * 0.03)
                ticket.cancel()
            ticket.wait(WAIT_S)
            ended[number] = ticket
            found = [token.id for token in ticket.tokens]
            if found != expected[kind][: len(found)]:
                faults.append(f"request {number} of kind {kind} gave {found}")
            if len(found) < len(expected[kind]) and ticket.stop_reason != "cancelled":
                faults.append(f"request {number} ended early: {ticket.stop_reason}")

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(N_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert faults == []
    assert len(ended) == N_REQUESTS
    stats = scheduler.stats()
    assert (stats.queued, stats.running, stats.n_cells_used) == (0, 0, 0)
    assert stats.n_ended + stats.n_cancelled == stats.n_requests == N_REQUESTS
    assert stats.n_cancelled > 20
    assert stats.n_cached_tokens > 1000
    scheduler.close()
    assert engine.native.n_free_cells == engine.n_ctx
    assert engine.n_free_sequences == engine.n_seq_max
