"""Terms that act where the prompt reads so: decided once, exact in both cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from engines import Array, forced, needs_torch
from measured_vectors import along, measured
from tiny_models import TinyModel

from pyemo import Chat, Condition, ControlVector, Engine, Steering
from pyemo.engine.rules import Rule
from pyemo.engine.steps import forward_many
from pyemo.errors import InputError

pytestmark = needs_torch  # the vectors are measured on the reference

N_PROMPT = 20
READS = 2
every_architecture = pytest.mark.parametrize("architecture", ["llama", "gemma3"])
every_scope = pytest.mark.parametrize("scope", ["both", "reply", "prompt"])


@pytest.fixture
def architecture() -> str:
    return "llama"


@pytest.fixture
def model(tiny: Callable[[str], TinyModel], architecture: str) -> TinyModel:
    return tiny(architecture)


@pytest.fixture
def engine(new_engine: Callable[..., Engine], architecture: str) -> Engine:
    return new_engine(architecture)


@pytest.fixture
def tokens(model: TinyModel) -> list[int]:
    return model.random_tokens(32)


@pytest.fixture
def vector(model: TinyModel, tokens: list[int]) -> ControlVector:
    return measured(model, tokens)


@pytest.fixture
def other(model: TinyModel, tokens: list[int]) -> ControlVector:
    return measured(model, tokens, seed=1)


def always(vector: ControlVector) -> Rule:
    return Condition(vector, -1e6, layer=READS)


def never(vector: ControlVector) -> Rule:
    return Condition(vector, 1e6, layer=READS)


def stream(engine: Engine, tokens: Sequence[int], mood: Steering) -> Array:
    """The logits after the prompt and after each token of a reply."""
    with engine.sequence(tokens[:N_PROMPT], steering=mood) as sequence:
        found = [sequence.logits(), *forced(sequence, tokens[N_PROMPT:], is_reply=True)]
        return np.stack(found)


@every_scope
@every_architecture
def test_rule_that_holds_is_bit_identical_to_none(
    engine: Engine, tokens: list[int], vector: ControlVector, other: ControlVector, scope: Any
) -> None:
    found = stream(engine, tokens, Steering({vector: 0.4}, scope=scope, when_prompt=always(other)))
    np.testing.assert_array_equal(
        found, stream(engine, tokens, Steering({vector: 0.4}, scope=scope))
    )


@every_scope
@every_architecture
def test_rule_that_does_not_hold_leaves_the_logits_bits(
    engine: Engine, tokens: list[int], vector: ControlVector, other: ControlVector, scope: Any
) -> None:
    found = stream(engine, tokens, Steering({vector: 0.4}, scope=scope, when_prompt=never(other)))
    np.testing.assert_array_equal(found, stream(engine, tokens, Steering()))


@pytest.mark.parametrize(
    ("make", "is_open"),
    [
        (lambda yes, no: yes & ~no, True),
        (lambda yes, no: yes & no, False),
        (lambda yes, no: no | yes, True),
        (lambda yes, no: ~yes | no, False),
    ],
)
def test_rules_of_not_and_or(
    engine: Engine,
    tokens: list[int],
    vector: ControlVector,
    other: ControlVector,
    make: Callable[[Rule, Rule], Rule],
    is_open: bool,
) -> None:
    rule = make(always(other), never(other))
    found = stream(engine, tokens, Steering({vector: 0.4}, when_prompt=rule))
    mood = Steering({vector: 0.4} if is_open else {})
    np.testing.assert_array_equal(found, stream(engine, tokens, mood))


@every_architecture
def test_decision_is_the_mean_reading_of_the_prompt_without_its_first_row(
    engine: Engine, model: TinyModel, tokens: list[int], vector: ControlVector, other: ControlVector
) -> None:
    rows = model.reference_hidden(tokens[:N_PROMPT])[READS, 1:].astype(float)
    projection = (rows @ along(other, READS)).mean() - other.neutral_projections[READS]
    expected = projection / other.residual_norms[READS]
    condition = Condition(other, expected - 0.01, layer=READS)
    with engine.sequence(
        tokens[:N_PROMPT], steering=Steering({vector: 0.4}, when_prompt=condition)
    ) as sequence:
        assert sequence.decisions == ()
        sequence.step()
        (decision,) = sequence.decisions
    assert decision.readings[condition] == pytest.approx(expected, abs=2e-3)
    assert decision.holds


def test_decision_is_held_for_the_reply_and_made_anew_for_the_next_prompt(
    engine: Engine, tokens: list[int], vector: ControlVector, other: ControlVector
) -> None:
    with engine.sequence(tokens[:8]) as probe:
        probe.start_reading([READS], begin=1)
        probe.logits()
        _, rows = probe.reading()
    first = rows[0].astype(float) @ along(other, READS) - other.neutral_projections[READS]
    threshold = first / other.residual_norms[READS]
    mood = Steering({vector: 0.4}, when_prompt=Condition(other, threshold - 1e-3, layer=READS))
    with engine.sequence(tokens[:8], steering=mood) as sequence:
        sequence.step()
        (before,) = sequence.decisions
        sequence.append(tokens[8:16], is_reply=True)
        sequence.step()
        assert sequence.decisions == (before,)
        sequence.append(tokens[16:24])
        assert sequence.decisions == ()
        sequence.step()
        (after,) = sequence.decisions
    assert before.holds
    assert after.readings != before.readings


def test_second_prompt_that_decides_for_the_term_is_bit_identical_to_none(
    engine: Engine, tokens: list[int], vector: ControlVector, other: ControlVector
) -> None:
    def second_turn(mood: Steering) -> Array:
        with engine.sequence(tokens[:8]) as sequence:
            sequence.logits()
            sequence.append(tokens[8:12], is_reply=True)
            sequence.logits()
            sequence.append(tokens[12:24])
            sequence.steering = mood
            return np.stack([sequence.logits(), *forced(sequence, tokens[24:28], is_reply=True)])

    np.testing.assert_array_equal(
        second_turn(Steering({vector: 0.4}, when_prompt=always(other))),
        second_turn(Steering({vector: 0.4})),
    )


def test_rows_of_a_batch_decide_each_for_itself(
    engine: Engine, tokens: list[int], vector: ControlVector, other: ControlVector
) -> None:
    def together(moods: list[Steering]) -> Array:
        sequences = [engine.sequence(tokens[:N_PROMPT], steering=mood) for mood in moods]
        try:
            forward_many(sequences)
            return np.stack([sequence.logits() for sequence in sequences])
        finally:
            for sequence in sequences:
                sequence.close()

    off = Steering({vector: 0.4}, when_prompt=never(other))
    mixed = together([off, Steering(), off, Steering()])
    np.testing.assert_array_equal(mixed, together([Steering()] * 4))
    on = Steering({vector: 0.4}, when_prompt=always(other))
    np.testing.assert_array_equal(together([on] * 4), together([Steering({vector: 0.4})] * 4))


def test_rules_on_prompt_and_row_must_both_hold(
    engine: Engine, tokens: list[int], vector: ControlVector, other: ControlVector
) -> None:
    def mood(when: Rule, when_prompt: Rule) -> Steering:
        return Steering({vector: 0.4}, layers=range(2, 9), when=when, when_prompt=when_prompt)

    on, off = always(other), never(other)
    plain = stream(engine, tokens, Steering())
    np.testing.assert_array_equal(stream(engine, tokens, mood(on, off)), plain)
    np.testing.assert_array_equal(stream(engine, tokens, mood(off, on)), plain)
    np.testing.assert_array_equal(
        stream(engine, tokens, mood(on, on)),
        stream(engine, tokens, Steering({vector: 0.4}, layers=range(2, 9))),
    )


def test_fork_holds_what_its_prompt_decided(
    engine: Engine, tokens: list[int], vector: ControlVector, other: ControlVector
) -> None:
    mood = Steering({vector: 0.4}, when_prompt=always(other))
    with engine.sequence(tokens[:N_PROMPT], steering=mood) as sequence:
        sequence.step()
        with sequence.fork() as twin:
            assert twin.decisions == sequence.decisions != ()


def test_prompt_that_was_taken_back_decides_anew(
    engine: Engine, tokens: list[int], vector: ControlVector, other: ControlVector
) -> None:
    mood = Steering({vector: 0.4}, when_prompt=always(other))
    with engine.sequence(tokens[:N_PROMPT], steering=mood) as sequence:
        sequence.step()
        sequence.rollback(1)
        assert len(sequence.decisions) == 1
        sequence.rollback(3)
        assert sequence.decisions == ()
        found = sequence.logits()
        assert len(sequence.decisions) == 1
    with engine.sequence(tokens[: N_PROMPT - 3], steering=Steering({vector: 0.4})) as sequence:
        np.testing.assert_array_equal(found, sequence.logits())


def test_sequence_that_starts_again_decides_anew(
    engine: Engine, tokens: list[int], vector: ControlVector, other: ControlVector
) -> None:
    mood = Steering({vector: 0.4}, when_prompt=always(other))
    with engine.sequence(tokens[:N_PROMPT], steering=mood) as sequence:
        sequence.step()
        sequence.restart(tokens[:N_PROMPT], mood, sequence.sampler, ())
        assert sequence.decisions == ()
        found = sequence.logits()
        assert len(sequence.decisions) == 1
    np.testing.assert_array_equal(found, stream(engine, tokens, Steering({vector: 0.4}))[0])


def test_mood_that_comes_after_the_prompt_was_computed_decides_it_all_the_same(
    engine: Engine, tokens: list[int], vector: ControlVector, other: ControlVector
) -> None:
    with engine.sequence(tokens[:N_PROMPT]) as sequence:
        sequence.logits()
        sequence.steering = Steering({vector: 0.4}, when_prompt=always(other))
        found = sequence.logits()
    expected = stream(engine, tokens, Steering({vector: 0.4}))[0]
    np.testing.assert_array_equal(found, expected)


def test_mood_that_comes_within_a_reply_waits_for_the_next_prompt(
    engine: Engine, tokens: list[int], vector: ControlVector, other: ControlVector
) -> None:
    with engine.sequence(tokens[:8]) as sequence:
        sequence.logits()
        forced(sequence, tokens[8:12], is_reply=True)
        sequence.steering = Steering({vector: 0.4}, when_prompt=always(other))
        sequence.step()
        assert sequence.decisions == ()
        sequence.append(tokens[12:20])
        sequence.step()
        assert len(sequence.decisions) == 1


def test_chat_decides_at_every_turn(
    engine: Engine, vector: ControlVector, other: ControlVector
) -> None:
    mood = Steering({vector: 0.1}, when_prompt=always(other))
    with Chat(engine, steering=mood, max_tokens=3) as chat:
        readings = []
        for text in ("the happy story", "the day was over and the story was happy"):
            list(chat.say(text))
            (decision,) = chat.sequence.decisions
            readings.append(decision.readings)
    assert readings[0] != readings[1]


# --- bad input ---


def test_scores_refuse_a_rule_that_nothing_decides(
    engine: Engine, vector: ControlVector, other: ControlVector
) -> None:
    mood = Steering({vector: 0.4}, when_prompt=always(other))
    with pytest.raises(InputError, match="decided in a sequence"):
        engine.score("the happy story", given=None, steering=mood)


def test_sequence_that_is_being_read_refuses_to_decide(
    engine: Engine, tokens: list[int], vector: ControlVector, other: ControlVector
) -> None:
    mood = Steering({vector: 0.4}, when_prompt=always(other))
    with engine.sequence(tokens[:N_PROMPT], steering=mood) as sequence:
        sequence.start_reading([1])
        with pytest.raises(InputError, match="stop the reading"):
            sequence.step()
        sequence.stop_reading()
        sequence.step()
        assert len(sequence.decisions) == 1
