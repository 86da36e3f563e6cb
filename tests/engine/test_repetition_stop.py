"""A reply that goes in circles ends if that was asked for, and not a token is another one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engines import PROMPT, random_vector

from pyemo import Chat, Engine, Reply, SamplerParams, Steering
from pyemo.errors import InputError
from pyemo.guard import Guard
from pyemo.measures.circles import circles_from

GREEDY = SamplerParams(temperature=0)
N = 240


@pytest.fixture
def mood(engine: Engine) -> Steering:
    """So strong that the tiny model says the same few tokens for ever."""
    return Steering({random_vector(engine.model): 5})


@pytest.fixture
def chat(engine: Engine, mood: Steering) -> Iterator[Chat]:
    with Chat(engine, sampler=GREEDY, max_tokens=N, steering=mood) as chat:
        yield chat


def finish(reply: Reply) -> list[int]:
    return [token.id for token in reply]


def test_circles_end_the_reply_where_they_are_seen(engine: Engine, mood: Steering) -> None:
    free = engine.generate(PROMPT, sampler=GREEDY, max_tokens=N, steering=mood)
    stopped = engine.generate(
        PROMPT, sampler=GREEDY, max_tokens=N, steering=mood, stop_repetition=True
    )
    ids, n = finish(free), len(finish(stopped))
    assert (free.stop_reason, stopped.stop_reason) == ("length", "repetition")
    assert [token.id for token in stopped.tokens] == ids[:n]
    assert circles_from(ids[:n]) == stopped.n_sound < n < N
    assert free.n_sound == N


def test_reply_without_circles_is_the_same_with_the_stop(engine: Engine) -> None:
    sampler = SamplerParams(temperature=1, seed=3)
    free, watched = (
        finish(engine.generate(PROMPT, sampler=sampler, max_tokens=N, stop_repetition=stops))
        for stops in (False, True)
    )
    assert watched == free


def test_chat_stops_circles_and_does_not_keep_what_they_repeat(chat: Chat) -> None:
    reply = chat.say("the story")
    n_shown = len(finish(reply))
    assert reply.stop_reason == "repetition"
    assert len(chat.turns[0].tokens) == reply.n_sound < n_shown
    chat.steering = Steering()
    finish(chat.say("and you"))
    held = chat.sequence.tokens
    assert len(chat.turns[0].tokens) == reply.n_sound
    assert circles_from(held[: held.index(chat.turns[0].tokens[-1]) + n_shown]) is None


def test_chat_that_lets_circles_keeps_them(engine: Engine, mood: Steering) -> None:
    settings = {"sampler": GREEDY, "max_tokens": 80, "steering": mood}
    with Chat(engine, stop_repetition=False, **settings) as chat:  # type: ignore[arg-type]
        finish(chat.say("the story"))
        assert len(chat.turns[0].tokens) == 80


def test_guard_turns_what_would_have_been_stopped(engine: Engine, mood: Steering) -> None:
    reply = Guard().generate(
        engine, PROMPT, sampler=GREEDY, max_tokens=N, steering=mood, stop_repetition=True
    )
    assert circles_from(finish(reply)) is None
    assert any(event.trouble for event in reply.events)
    assert reply.stop_reason in ("length", "end")


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_stop_that_is_neither_on_nor_off_is_named(engine: Engine, value: object) -> None:
    with pytest.raises(InputError, match="stop_repetition"):
        engine.generate(PROMPT, stop_repetition=value)  # type: ignore[arg-type]
