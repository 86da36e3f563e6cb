"""Moods whose strength changes over the reply: seen at the rows themselves, token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engines import Array, forced, logits_after, logits_after_each, random_vector

from pyemo import ControlVector, Engine, HalfLife, Ramp, Steering
from pyemo.engine.schedules import Schedule
from pyemo.errors import InputError

PROMPT = [30, 41, 52, 63]
REPLY = [74, 85, 96, 107, 118, 129, 140, 151]


@pytest.fixture
def vector(engine: Engine) -> ControlVector:
    """Acts on the last block alone: what is added there reaches no other row."""
    return random_vector(engine.model, layers=[engine.model.n_layer - 1], seed=1)


def rows_of(engine: Engine, mood: Steering, prompt: list[int], reply: list[int]) -> Array:
    """Return the last block's output at every token, the reply decoded one token at a time."""
    with engine.sequence(prompt, steering=mood) as sequence:
        sequence.start_reading([engine.model.n_layer - 1], pooling="all")
        sequence.logits()
        forced(sequence, reply, is_reply=True)
        return sequence.reading()[1][:, 0]


def strengths(engine: Engine, mood: Steering) -> list[float]:
    """Return the strength that each row was steered with, the prompt's first."""
    row = mood.terms[0].vector.directions[engine.model.n_layer - 1].astype(np.float64)
    moved = rows_of(engine, mood, PROMPT, REPLY) - rows_of(engine, Steering(), PROMPT, REPLY)
    return (moved @ row / (row @ row)).tolist()


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (None, [1.0] * 8),
        (Ramp(4), [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
        (Ramp(1), [1.0] * 8),
        (HalfLife(2), [1.0, 0.5**0.5, 0.5, 0.5**1.5, 0.25, 0.5**2.5, 0.125, 0.5**3.5]),
        (lambda t: -t, [0, -1, -2, -3, -4, -5, -6, -7]),
        (lambda t: np.float32(t), [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
    ids=["constant", "ramp:4", "ramp:1", "half-life:2", "function", "numpy"],
)
def test_schedule_sets_the_strength_of_every_token_of_the_reply(
    engine: Engine, vector: ControlVector, schedule: Schedule | None, factors: list[float]
) -> None:
    found = strengths(engine, Steering({vector: 0.8}, schedule=schedule))
    deciding = found[len(PROMPT) - 1 : -1]  # the row before a token decides it
    assert deciding == pytest.approx(0.8 * np.array(factors), abs=1e-5)


def test_prompt_is_steered_as_the_first_token_of_the_reply(
    engine: Engine, vector: ControlVector
) -> None:
    found = strengths(engine, Steering({vector: 0.8}, schedule=Ramp(4)))
    assert found[: len(PROMPT)] == pytest.approx([0.2] * len(PROMPT), abs=1e-5)


def test_every_reply_of_a_sequence_begins_its_schedule_anew(
    engine: Engine, vector: ControlVector
) -> None:
    asked: list[int] = []
    mood = Steering({vector: 1.0}, schedule=lambda t: asked.append(t) or 1.0)  # type: ignore[func-returns-value]
    with engine.sequence(PROMPT, steering=mood) as sequence:
        for _ in range(2):
            list(sequence.generate(max_tokens=3))
            sequence.append(PROMPT)
        asked.clear()
        list(sequence.generate(max_tokens=4))
    # The prompt, whose first row reads the old reply's last token; the new reply's tokens.
    assert asked == [0, 0, 1, 2, 3]


def test_schedule_sees_the_tokens_of_a_long_append_one_by_one(
    engine: Engine, vector: ControlVector
) -> None:
    mood = Steering({vector: 0.8}, schedule=HalfLife(2))
    last = engine.model.n_layer - 1

    def rows(steering: Steering) -> Array:
        with engine.sequence(PROMPT, steering=steering) as sequence:
            sequence.start_reading([last], pooling="all")
            sequence.append(REPLY, is_reply=True)
            sequence.logits()
            return sequence.reading()[1][len(PROMPT) - 1 : -1, 0]

    factors = 0.8 * 2.0 ** (-np.arange(len(REPLY)) / 2)
    expected = rows(Steering()) + factors[:, None] * vector.directions[last]
    np.testing.assert_allclose(rows(mood), expected, rtol=0, atol=1e-5)


def test_function_is_asked_once_before_every_decode(engine: Engine, vector: ControlVector) -> None:
    asked: list[int] = []
    mood = Steering({vector: 1.0}, schedule=lambda t: asked.append(t) or 1.0)  # type: ignore[func-returns-value]
    with engine.sequence(PROMPT, steering=mood) as sequence:
        calls = []
        for _ in sequence.generate(max_tokens=5):
            calls.append(asked.copy())
            asked.clear()
    # The prompt and its last row; also when the mood is set, so that a bad function is told.
    assert calls == [[0, 0, 0, 0], [1], [2], [3], [4]]


def test_function_may_follow_what_happens_outside(engine: Engine, vector: ControlVector) -> None:
    level = 1.0
    mood = Steering({vector: 1.0}, schedule=lambda t: level)
    with engine.sequence(PROMPT, steering=mood) as sequence:
        sequence.logits()
        level = 0.0
        found = forced(sequence, REPLY, is_reply=True)
    with engine.sequence(PROMPT) as sequence:
        sequence.logits()
        expected = forced(sequence, REPLY, is_reply=True)
    np.testing.assert_array_equal(found, expected)


def test_scheduled_factor_of_one_is_bit_identical_to_a_constant_mood(engine: Engine) -> None:
    vector = random_vector(engine.model)
    np.testing.assert_array_equal(
        logits_after_each(
            engine, PROMPT + REPLY, Steering({vector: 0.7}, schedule=Ramp(1)), n_prompt=4
        ),
        logits_after_each(engine, PROMPT + REPLY, Steering({vector: 0.7}), n_prompt=4),
    )


def test_every_term_has_its_own_schedule(engine: Engine, vector: ControlVector) -> None:
    last = engine.model.n_layer - 1
    other = random_vector(engine.model, layers=[last], seed=2)
    mood = Steering({vector: 1.0}, schedule=Ramp(4)) + Steering({other: 1.0}, schedule=HalfLife(1))
    t = np.arange(len(REPLY))[:, None]
    deciding = slice(len(PROMPT) - 1, -1)
    expected = rows_of(engine, Steering(), PROMPT, REPLY)[deciding]
    expected = expected + np.minimum(1, (t + 1) / 4) * vector.directions[last]
    expected = expected + 0.5**t * other.directions[last]
    found = rows_of(engine, mood, PROMPT, REPLY)[deciding]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_schedule_of_a_reply_scope_mood_leaves_the_prompt_plain(
    engine: Engine, vector: ControlVector
) -> None:
    mood = Steering({vector: 1.0}, schedule=Ramp(4), scope="reply")
    np.testing.assert_array_equal(
        rows_of(engine, mood, PROMPT, REPLY)[: len(PROMPT) - 1],
        rows_of(engine, Steering(), PROMPT, REPLY)[: len(PROMPT) - 1],
    )


def test_token_drawn_again_after_going_back_has_the_strength_of_its_place(
    engine: Engine, vector: ControlVector
) -> None:
    mood = Steering({vector: 0.8}, schedule=HalfLife(2))
    last = engine.model.n_layer - 1
    with engine.sequence(PROMPT, steering=mood) as sequence:
        sequence.logits()
        forced(sequence, REPLY, is_reply=True)
        sequence.rollback(5)
        sequence.logits()
        sequence.start_reading([last], pooling="all")
        forced(sequence, REPLY[3:], is_reply=True)
        found = sequence.reading()[1][:, 0]
    np.testing.assert_array_equal(found, rows_of(engine, mood, PROMPT, REPLY)[len(PROMPT) + 3 :])


# --- functions that fail ---


def raises_at(t: int) -> Schedule:
    def schedule(now: int) -> float:
        if now == t:
            raise ZeroDivisionError("no such mood")
        return 1.0

    return schedule


def test_error_of_a_schedule_comes_through(engine: Engine, vector: ControlVector) -> None:
    reply = engine.generate(
        PROMPT, steering=Steering({vector: 1.0}, schedule=raises_at(3)), raw=True
    )
    with pytest.raises(ZeroDivisionError, match="no such mood"):
        list(reply)


def test_text_before_the_error_of_a_schedule_is_kept(engine: Engine, vector: ControlVector) -> None:
    reply = engine.generate(PROMPT, steering=Steering({vector: 1.0}, schedule=raises_at(3)))
    with pytest.raises(ZeroDivisionError):
        list(reply)
    assert len(reply.tokens) == 3  # t = 3 decides the fourth


def test_engine_for_one_sequence_is_usable_after_a_schedule_raised(
    new_engine: Callable[..., Engine], vector: ControlVector
) -> None:
    engine = new_engine(n_seq_max=1)
    reply = engine.generate(PROMPT, steering=Steering({vector: 1.0}, schedule=raises_at(2)))
    with pytest.raises(ZeroDivisionError) as kept:
        list(reply)
    assert len(list(engine.generate(PROMPT, max_tokens=3))) == 3
    del kept


def test_sequence_goes_on_after_its_schedule_raised(engine: Engine, vector: ControlVector) -> None:
    mood = Steering({vector: 1.0}, schedule=raises_at(2))
    with engine.sequence(PROMPT + REPLY[:2], steering=mood) as sequence:
        sequence.logits()
        forced(sequence, REPLY[2:3], is_reply=True)
        sequence.append(REPLY[3:4], is_reply=True)
        with pytest.raises(ZeroDivisionError):
            sequence.logits()
        sequence.steering = Steering({vector: 1.0})
        found = sequence.logits()
    tokens = PROMPT + REPLY[:4]
    expected = logits_after_each(engine, tokens, Steering({vector: 1.0}), n_prompt=6)[-1]
    np.testing.assert_array_equal(found, expected)


def test_mood_whose_schedule_raises_at_once_is_not_taken(
    engine: Engine, vector: ControlVector
) -> None:
    with engine.sequence(PROMPT) as sequence:
        with pytest.raises(ZeroDivisionError):
            sequence.steering = Steering({vector: 1.0}, schedule=raises_at(0))
        found = sequence.logits()
    np.testing.assert_array_equal(found, logits_after(engine, PROMPT))


@pytest.mark.parametrize("factor", [np.nan, np.inf, "0.5", None, 1j], ids=repr)
def test_factor_that_is_no_finite_number_is_refused(
    engine: Engine, vector: ControlVector, factor: Any
) -> None:
    with (
        pytest.raises(InputError, match="for token 0; it must give a finite number"),
        engine.sequence(PROMPT, steering=Steering({vector: 1.0}, schedule=lambda t: factor)),
    ):
        pass


@pytest.mark.parametrize(("kind", "n_tokens"), [(Ramp, 0), (HalfLife, 0.5), (HalfLife, np.inf)])
def test_schedule_of_less_than_a_token_is_refused(kind: Any, n_tokens: float) -> None:
    with pytest.raises(InputError, match="must be at least 1"):
        kind(n_tokens)
