"""``bench/streams.py`` keeps a clean cache where it says so, and changes nothing without a mood."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from pages import ROOT, script

from pyemo import ControlVector, Engine, SamplerParams, Steering

GREEDY = SamplerParams(temperature=0)
N_TOKENS = 10


@pytest.fixture(scope="module")
def streams() -> ModuleType:
    return script(ROOT / "bench" / "streams.py")


@pytest.fixture
def engine(new_engine: Callable[..., Engine]) -> Engine:
    return new_engine(n_ctx=256, n_seq_max=2, kv_type="f32")


@pytest.fixture
def mood(engine: Engine) -> Steering:
    rows = np.random.default_rng(0).standard_normal((2, engine.model.n_embd))
    return Steering({ControlVector({1: rows[0], 2: rows[1]}): 4.0})


def tokens_of(
    streams: ModuleType, engine: Engine, way: str, prompt: list[int], mood: Steering
) -> list[int]:
    text = streams.Text(engine, way, prompt, mood, GREEDY)
    try:
        (found,) = streams.write(engine, [text], N_TOKENS)
    finally:
        text.close()
    return list(found.tokens)


@pytest.mark.parametrize("way", ["kept", "plain", "mask"])
def test_without_a_mood_every_way_writes_what_the_engine_writes(
    streams: ModuleType, engine: Engine, way: str
) -> None:
    prompt = engine.model.tokenize("the story of a day")
    found = tokens_of(streams, engine, way, prompt, Steering())
    reply = engine.generate(prompt, sampler=GREEDY, max_tokens=N_TOKENS)
    expected = [token.id for token in reply]
    assert found == [t for t in expected if not engine.model.native.is_end_of_generation(t)]


def test_the_ways_differ_under_a_mood(streams: ModuleType, engine: Engine, mood: Steering) -> None:
    prompt = engine.model.tokenize("the story of a day")
    texts = [tokens_of(streams, engine, way, prompt, mood) for way in ("kept", "plain")]
    assert texts[0] != texts[1]


def test_a_clean_cache_holds_unsteered_rows_and_the_drawn_row_reads_them(
    streams: ModuleType, engine: Engine, mood: Steering
) -> None:
    prompt = engine.model.tokenize("the story of a day")
    found = tokens_of(streams, engine, "plain", prompt, mood)
    # Each token by hand: all rows but the last unsteered, that one steered.
    tokens = list(prompt)
    expected = []
    for _ in range(len(found)):
        with engine.sequence(tokens[:-1]) as sequence:
            sequence.logits()
            sequence.steering = mood
            sequence.append(tokens[-1:])
            expected.append(int(sequence.logits().argmax()))
        tokens.append(expected[-1])
    assert found == expected
