"""Sequences with cells of their own (kv_unified off) compute what they compute in shared cells.

llama.cpp then takes several at once only if their ids follow each other and each has one token:
the engine orders and splits its batches by that, whatever order it is asked in.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from engines import error, forced, logits_after, random_vector, steering_of, tolerance
from tiny_models import ARCHITECTURES, TinyModel

from pyemo import Engine, SamplerParams, Steering
from pyemo.engine.steps import step_many
from pyemo.errors import ContextFullError

LENGTHS = (5, 17, 1, 9)
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.fixture
def engines(new_engine: Callable[..., Engine], architecture: str) -> tuple[Engine, Engine]:
    """The same tiny model with shared cells and with cells apart."""
    return (
        new_engine(architecture, n_ctx=4 * 256),
        new_engine(architecture, n_ctx=4 * 256, kv_unified=False),
    )


def prompts_of(model: TinyModel) -> list[list[int]]:
    return [model.random_tokens(n, seed=i) for i, n in enumerate(LENGTHS)]


@every_architecture
def test_moods_side_by_side_give_the_logits_of_shared_cells(
    engines: tuple[Engine, Engine], tiny: Callable[[str], TinyModel], architecture: str
) -> None:
    model = tiny(architecture)
    found = []
    for engine in engines:
        sequences = [
            engine.sequence(prompt, steering=Steering({random_vector(model, seed=i): 0.5 * i}))
            for i, prompt in enumerate(prompts_of(model))
        ]
        engine.native.forward([sequence.id for sequence in sequences])
        for sequence in sequences:
            sequence.append(model.random_tokens(1, seed=9))
        engine.native.forward([sequence.id for sequence in sequences])
        found.append(np.stack([sequence.logits() for sequence in sequences]))
    assert error(found[1], found[0]) <= tolerance(architecture)


@pytest.mark.parametrize("architecture", ["llama"])
def test_order_and_gaps_of_the_sequences_do_not_matter(
    engines: tuple[Engine, Engine], tiny: Callable[[str], TinyModel]
) -> None:
    model = tiny("llama")
    greedy = SamplerParams(temperature=0)
    tokens = []
    for engine in engines:
        sequences = [engine.sequence(prompt, sampler=greedy) for prompt in prompts_of(model)]
        sequences.pop(1).close()
        drawn = [[r.token for r in step_many(sequences[::-1])] for _ in range(4)]
        sequences.append(engine.sequence(prompts_of(model)[1], sampler=greedy))
        drawn += [[r.token for r in step_many(sequences)] for _ in range(4)]
        tokens.append(drawn)
    assert tokens[0] == tokens[1]


@every_architecture
def test_texts_read_and_score_as_in_shared_cells(
    engines: tuple[Engine, Engine], tiny: Callable[[str], TinyModel], architecture: str
) -> None:
    texts = [tokens for tokens in prompts_of(tiny(architecture)) if len(tokens) > 1] * 2
    shared, apart = (np.stack(engine.read_many(texts)) for engine in engines)
    assert error(apart, shared) <= tolerance(architecture)
    scores = [
        np.concatenate([s.logprobs for s in engine.score_many([(text, None) for text in texts])])
        for engine in engines
    ]
    np.testing.assert_allclose(scores[1], scores[0], atol=2e-2)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_fork_and_rollback_go_on_as_computed_anew(
    engines: tuple[Engine, Engine], tiny: Callable[[str], TinyModel], architecture: str
) -> None:
    model, engine = tiny(architecture), engines[1]
    tokens = model.random_tokens(60)
    expected = logits_after(engine, tokens)
    with engine.sequence(tokens[:50]) as sequence:
        sequence.logits()
        with sequence.fork() as twin:
            forced(sequence, model.random_tokens(6, seed=2))
            sequence.rollback(6)
            for each in (sequence, twin):
                assert error(forced(each, tokens[50:])[-1], expected) <= 1e-4


@pytest.mark.parametrize("architecture", ["llama"])
def test_sequence_holds_its_own_share_of_the_cells(
    engines: tuple[Engine, Engine], tiny: Callable[[str], TinyModel]
) -> None:
    tokens = tiny("llama").random_tokens(257)
    assert logits_after(engines[0], tokens).shape == (tiny("llama").n_vocab,)
    with pytest.raises(ContextFullError, match="at most 256"):
        engines[1].sequence(tokens)
    with pytest.raises(ContextFullError, match="257 tokens"):
        engines[1].read(tokens)


@pytest.mark.parametrize("architecture", ["llama"])
def test_steered_rows_are_steered_and_the_others_not(
    engines: tuple[Engine, Engine], tiny: Callable[[str], TinyModel]
) -> None:
    model, engine = tiny("llama"), engines[1]
    prompt = model.random_tokens(8)
    strong = steering_of({1: 10 * random_vector(model).directions[1]})
    plain = [engine.sequence(prompt) for _ in range(3)]
    steered = engine.sequence(prompt, steering=strong)
    engine.native.forward([sequence.id for sequence in (steered, *plain)])
    expected = plain[0].logits()
    np.testing.assert_array_equal(plain[2].logits(), expected)
    assert error(steered.logits(), expected) > 0.1


@pytest.mark.parametrize("n_prompt", [5, 300])
def test_what_a_sequence_computes_does_not_depend_on_when_another_ends(
    new_engine: Callable[..., Engine], tiny: Callable[[str], TinyModel], n_prompt: int
) -> None:
    model = tiny("llama")
    found = []
    for ends in (False, True):
        engine = new_engine(n_ctx=4 * 512, kv_unified=False, kv_type="f16")
        other = engine.sequence(model.random_tokens(20, seed=1))
        mine = engine.sequence(model.random_tokens(n_prompt, seed=2))
        for sequence in (other, mine):
            sequence.logits()
        if ends:
            other.close()
        found.append(np.stack(forced(mine, model.random_tokens(24, seed=3), is_reply=True)))
    np.testing.assert_array_equal(found[0], found[1])
