"""Continuations in batches of fixed shape, on tiny models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from engines import log_softmax, logits_after, open_engine, random_vector
from tiny_models import TinyModel

from pyemo import Engine, Model, SamplerParams, Steering
from pyemo.engine.batches import (
    GREEDY,
    Continuation,
    Job,
    continue_many,
    n_ctx_for,
    score_unsteered,
)
from pyemo.errors import ContextFullError, InputError

N = 12
WILD = SamplerParams(temperature=9, top_k=0, top_p=1, min_p=0)


@pytest.fixture(scope="module")
def engine(tiny: Callable[[str], TinyModel]) -> Iterator[Engine]:
    with open_engine(Model.load(tiny("llama").path), n_seq_max=4) as opened:
        yield opened


def prompt(engine: Engine, text: str) -> tuple[int, ...]:
    return tuple(engine.prompt_tokens(text, raw=True))


def mood(engine: Engine, strength: float, scope: str = "both") -> Steering:
    vector = random_vector(engine.model, seed=3)
    return Steering({vector: strength}, scope=scope)  # type: ignore[arg-type]


def test_a_continuation_is_what_generate_gives(engine: Engine) -> None:
    job = Job(prompt(engine, "the happy story"), mood(engine, 0.5))
    (found,) = continue_many(engine, [job], max_tokens=N, n_rows=1)
    reply = engine.generate(list(job.prompt), steering=job.steering, max_tokens=N, sampler=GREEDY)
    tokens = list(reply)
    assert list(found.tokens) == [t.id for t in tokens][: len(found.tokens)]
    assert found.text == reply.text
    assert found.ended == (reply.stop_reason == "end")


@pytest.mark.parametrize("scope", ["both", "reply"])
def test_a_row_does_not_depend_on_its_neighbours_strengths(engine: Engine, scope: str) -> None:
    tokens = prompt(engine, "the happy story")
    moods = [mood(engine, s, scope) for s in (0.0, 0.3, 0.6, 0.9)]
    mixed = continue_many(engine, [Job(tokens, m) for m in moods], max_tokens=N, n_rows=4)
    for k, own in enumerate(moods):
        alike = continue_many(engine, [Job(tokens, own)] * 4, max_tokens=N, n_rows=4)
        assert alike[k] == mixed[k]


def test_a_batch_that_is_not_full_is_filled_up(engine: Engine) -> None:
    tokens = prompt(engine, "the happy story")
    jobs = [Job(tokens, mood(engine, s)) for s in (0.2, 0.4, 0.6, 0.8, 1.0, 0.1)]
    found = continue_many(engine, jobs, max_tokens=N, n_rows=4)
    again = continue_many(engine, [*jobs[4:], jobs[5], jobs[5]], max_tokens=N, n_rows=4)
    assert len(found) == 6
    assert found[4:] == again[:2]


def test_a_shared_prompt_gives_what_a_prompt_of_its_own_gives(engine: Engine) -> None:
    tokens = prompt(engine, "the happy story")
    moods = [Steering(), mood(engine, 0.8, "reply"), mood(engine, -0.8, "reply")]
    together = continue_many(engine, [Job(tokens, m) for m in moods], max_tokens=N, n_rows=3)
    for own, found in zip(moods, together, strict=True):
        (alone,) = continue_many(engine, [Job(tokens, own)], max_tokens=N, n_rows=1)
        assert found.tokens == alone.tokens


@pytest.mark.parametrize("sampler", [GREEDY, SamplerParams(seed=5)])
def test_the_first_tokens_are_a_shorter_continuation(
    engine: Engine, sampler: SamplerParams
) -> None:
    jobs = [Job(prompt(engine, "the happy story"), mood(engine, 0.4), sampler)]
    (long,) = continue_many(engine, jobs, max_tokens=N, n_rows=2)
    (short,) = continue_many(engine, jobs, max_tokens=5, n_rows=2)
    assert long.first(5) == short


def test_what_the_model_ends_has_no_end_token_and_keeps_its_row(engine: Engine) -> None:
    jobs = [
        Job(prompt(engine, "the happy story"), sampler=replace(WILD, seed=seed))
        for seed in range(40)
    ]
    found = continue_many(engine, jobs, max_tokens=40, n_rows=4)
    ended = [text for text in found if text.ended]
    assert ended, "none of 40 wild samples ended; sample more"
    for text in ended:
        assert len(text.tokens) < 40
        assert not any(engine.model.native.is_end_of_generation(t) for t in text.tokens)


def test_scores_are_log_probabilities_of_the_unsteered_model(engine: Engine) -> None:
    tokens = prompt(engine, "the happy story")
    jobs = [Job(tokens, mood(engine, s)) for s in (0.0, 0.7)]
    found = continue_many(engine, jobs, max_tokens=4, n_rows=2)
    scores = score_unsteered(engine, [tokens, tokens], found)
    for text, score in zip(found, scores, strict=True):
        expected = [
            log_softmax(logits_after(engine, [*tokens, *text.tokens[:i]]))[token]
            for i, token in enumerate(text.tokens)
        ]
        np.testing.assert_allclose(score, expected, atol=1e-4)


def test_an_empty_continuation_has_no_score(engine: Engine) -> None:
    nothing = Continuation((), (), (), True)
    assert nothing.text == ""
    (score,) = score_unsteered(engine, [prompt(engine, "the")], [nothing])
    assert score.shape == (0,)


def test_a_prompt_that_fills_the_context_is_named(engine: Engine) -> None:
    fits, long = prompt(engine, "the"), prompt(engine, "the happy story " * 30)
    jobs = [Job(fits), Job(long)]
    with pytest.raises(ContextFullError, match=r"prompt 2 has .* larger n_ctx"):
        continue_many(engine, jobs, max_tokens=100, n_rows=4)
    beyond = engine.model.n_ctx_train
    with pytest.raises(ContextFullError, match=r"prompt 1 has .* leaves no room"):
        continue_many(engine, [Job(fits)], max_tokens=beyond, n_rows=1)


@pytest.mark.parametrize(("max_tokens", "n_rows"), [(0, 1), (1, 0), (1, 99)])
def test_numbers_outside_their_range_are_refused(
    engine: Engine, max_tokens: int, n_rows: int
) -> None:
    with pytest.raises(InputError, match="at least 1"):
        continue_many(engine, [Job((1,))], max_tokens=max_tokens, n_rows=n_rows)


def test_the_context_asked_for_is_enough() -> None:
    assert n_ctx_for([[1] * 10, [1] * 20], 48, 4) == 512  # 4 * 68 = 272, in whole 256 cells
