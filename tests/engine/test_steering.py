"""What a mood does to a sequence: to the bit where two ways must be one, else against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engines import (
    FLOAT32,
    Array,
    error,
    forced,
    hidden_states,
    logits_after,
    logits_after_each,
    needs_torch,
    random_vector,
)
from tiny_models import ARCHITECTURES, TinyModel

from pyemo import ControlVector, Engine, Steering, SteeringTerm
from pyemo.errors import InputError, VectorError

TOKENS = [30, 41, 52, 63, 74, 85, 96, 107, 118, 129, 140, 151]
N_LAYER = 4
LAST = N_LAYER - 1  # what is added to the last block's output reaches no other token


@pytest.fixture
def vector(engine: Engine) -> ControlVector:
    return random_vector(engine.model, seed=1)


@pytest.fixture
def other(engine: Engine) -> ControlVector:
    return random_vector(engine.model, seed=2)


def assert_same(found: Array, expected: Array) -> None:
    np.testing.assert_array_equal(found, expected)


# --- nothing is nothing ---


@pytest.mark.parametrize("operator", ["add", "project_out", "add_keep_norm"])
def test_strength_zero_is_bit_identical_to_never_steered(
    engine: Engine, vector: ControlVector, operator: Any
) -> None:
    off = Steering({vector: 0.0}, operator=operator)
    assert_same(
        logits_after_each(engine, TOKENS, off, n_prompt=8),
        logits_after_each(engine, TOKENS, n_prompt=8),
    )


def test_cleared_mood_is_bit_identical_to_never_steered(
    engine: Engine, vector: ControlVector
) -> None:
    with engine.sequence(TOKENS, steering=Steering({vector: 1.0})) as sequence:
        sequence.steering = Steering()
        cleared = sequence.logits()
    assert_same(cleared, logits_after(engine, TOKENS))


def test_mood_cleared_and_refreshed_is_bit_identical_to_never_steered(
    engine: Engine, vector: ControlVector
) -> None:
    with engine.sequence(TOKENS, steering=Steering({vector: 1.0})) as sequence:
        sequence.logits()
        sequence.steering = Steering()
        sequence.refresh()
        refreshed = sequence.logits()
    assert_same(refreshed, logits_after(engine, TOKENS))


def test_mood_of_one_sequence_leaves_the_next_one_alone(
    engine: Engine, vector: ControlVector
) -> None:
    before = logits_after(engine, TOKENS)
    logits_after(engine, TOKENS, Steering({vector: 1.0}))
    assert_same(logits_after(engine, TOKENS), before)


def test_vector_minus_itself_is_never_steered(engine: Engine, vector: ControlVector) -> None:
    nothing = Steering({vector: 0.7}) + Steering({vector: -0.7})
    assert_same(logits_after(engine, TOKENS, nothing), logits_after(engine, TOKENS))


def test_steering_is_felt(engine: Engine, vector: ControlVector) -> None:
    steered = logits_after(engine, TOKENS, Steering({vector: 1.0}))
    assert error(steered, logits_after(engine, TOKENS)) > 0.5


# --- arithmetic ---


def test_second_change_of_mood_wins(
    engine: Engine, vector: ControlVector, other: ControlVector
) -> None:
    with engine.sequence(TOKENS, steering=Steering({vector: 1.0})) as sequence:
        sequence.steering = Steering({vector: -3.0})
        sequence.steering = Steering({other: 1.0})
        found = sequence.logits()
    assert_same(found, logits_after(engine, TOKENS, Steering({other: 1.0})))


def test_two_moods_together_are_the_sum_of_their_vectors(
    engine: Engine, vector: ControlVector, other: ControlVector
) -> None:
    # Powers of two, so that no product is rounded.
    together = Steering({vector: 0.5}) + Steering({other: 0.25})
    summed = Steering({vector * 0.5 + other * 0.25: 1.0})
    assert_same(logits_after(engine, TOKENS, together), logits_after(engine, TOKENS, summed))


def test_two_vectors_of_one_mood_are_the_sum_of_their_vectors(
    engine: Engine, vector: ControlVector, other: ControlVector
) -> None:
    together = Steering({vector: 0.5, other: -0.25})
    summed = Steering({vector * 0.5 - other * 0.25: 1.0})
    assert_same(logits_after(engine, TOKENS, together), logits_after(engine, TOKENS, summed))


def test_negative_strength_is_the_negated_vector(engine: Engine, vector: ControlVector) -> None:
    assert_same(
        logits_after(engine, TOKENS, Steering({vector: -0.7})),
        logits_after(engine, TOKENS, Steering({-vector: 0.7})),
    )


def test_strength_multiplies_the_vector(engine: Engine, vector: ControlVector) -> None:
    assert_same(
        logits_after(engine, TOKENS, Steering({vector: 2.0})),
        logits_after(engine, TOKENS, Steering({vector * 2.0: 1.0})),
    )


@pytest.mark.parametrize("factor", [0.5, np.float32(0.5), np.float64(0.5)], ids=repr)
def test_mood_times_a_number_is_its_strengths_times_the_number(
    vector: ControlVector, factor: Any
) -> None:
    mood = Steering({vector: 0.25}, operator="clamp", scope="reply")
    half = Steering({vector: 0.125}, operator="clamp", scope="reply")
    assert factor * mood == mood * factor == half


@pytest.mark.parametrize("strength", [1, np.float32(1), np.float64(1), np.int64(1)], ids=repr)
def test_numbers_of_numpy_are_strengths(
    engine: Engine, vector: ControlVector, strength: Any
) -> None:
    assert Steering({vector: strength}) == Steering({vector: 1.0})


# --- layers ---


@pytest.mark.parametrize("layer", range(N_LAYER))
def test_steering_a_layer_leaves_the_layers_below_it_unchanged(
    engine: Engine, vector: ControlVector, layer: int
) -> None:
    steered = hidden_states(engine, TOKENS, Steering({vector: 1.0}, layers=range(layer, N_LAYER)))
    assert_same(steered[:layer], hidden_states(engine, TOKENS)[:layer])


@pytest.mark.parametrize("layer", range(N_LAYER))
def test_steering_a_layer_changes_it_and_all_above_it(
    engine: Engine, vector: ControlVector, layer: int
) -> None:
    steered = hidden_states(engine, TOKENS, Steering({vector: 1.0}, layers=range(layer, layer + 1)))
    changed = (steered != hidden_states(engine, TOKENS)).all(axis=(1, 2))
    assert changed.tolist() == [il >= layer for il in range(N_LAYER)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adding_at_a_layer_adds_to_the_output_of_that_block(
    new_engine: Callable[..., Engine], architecture: str
) -> None:
    engine = new_engine(architecture)
    vector = random_vector(engine.model, layers=[2])
    steered = hidden_states(engine, TOKENS, Steering({vector: 0.3}))[2]
    expected = hidden_states(engine, TOKENS)[2] + np.float32(0.3) * vector.directions[2]
    assert_same(steered, expected)


@pytest.mark.parametrize("layer", [0, 2, LAST])
@pytest.mark.parametrize("operator", ["project_out", "clamp", "add_keep_norm"])
def test_operator_changes_the_output_of_its_block_as_numpy_does(
    engine: Engine, vector: ControlVector, layer: int, operator: Any
) -> None:
    mood = Steering({vector: 0.6}, operator=operator, layers=range(layer, layer + 1))
    steered = hidden_states(engine, TOKENS, mood)[layer]
    h = hidden_states(engine, TOKENS)[layer].astype(np.float64)
    v = vector.directions[layer].astype(np.float64)
    length = np.linalg.norm(v)
    along = (h @ v / length)[:, None] * v / length
    moved = h + 0.6 * v
    expected = {
        "project_out": h - 0.6 * along,
        "clamp": h - along + 0.6 * v,
        "add_keep_norm": moved
        * (np.linalg.norm(h, axis=1) / np.linalg.norm(moved, axis=1))[:, None],
    }[operator]
    np.testing.assert_allclose(steered, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("layers", [range(1, 3), range(1), range(2, 1 << 20)], ids=str)
def test_layers_of_a_mood_are_those_of_a_vector_that_has_no_others(
    engine: Engine, vector: ControlVector, layers: range
) -> None:
    assert_same(
        logits_after(engine, TOKENS, Steering({vector: 1.0}, layers=layers)),
        logits_after(engine, TOKENS, Steering({vector.only_layers(layers): 1.0})),
    )


def test_every_term_has_its_own_layers(
    engine: Engine, vector: ControlVector, other: ControlVector
) -> None:
    mood = Steering({vector: 1.0}, layers=range(2)) + Steering({other: 1.0}, layers=range(2, 4))
    rows = {layer: (vector if layer < 2 else other).directions[layer] for layer in range(N_LAYER)}
    assert_same(
        logits_after(engine, TOKENS, mood),
        logits_after(engine, TOKENS, Steering({ControlVector(rows): 1.0})),
    )


def test_layers_at_which_a_vector_is_all_zeros_are_refused() -> None:
    half = ControlVector({1: [0.0, 0.0], 2: [0.0, 0.0], 3: [1.0, 0.0]}, name="half")
    with pytest.raises(VectorError, match="'half' is all zeros at the layers steered, 1 to 2"):
        Steering({half: 1.0}, layers=range(1, 3))
    assert Steering({half: 1.0})
    assert Steering({half: 0.0}, layers=range(1, 3))


def test_a_vector_minus_itself_is_as_good_as_no_mood(engine: Engine, vector: ControlVector) -> None:
    nothing = Steering({vector - vector: 1.0})
    assert_same(logits_after(engine, TOKENS, nothing), logits_after(engine, TOKENS))


def test_layers_without_a_direction_of_the_vector_are_refused(engine: Engine) -> None:
    with pytest.raises(InputError, match="no direction in layers 2:3; it has 0 to 1"):
        Steering({random_vector(engine.model, layers=[0, 1]): 1.0}, layers=range(2, 3))


# --- several terms ---


def test_add_terms_act_before_the_other_operators(
    engine: Engine, vector: ControlVector, other: ControlVector
) -> None:
    added, removed = SteeringTerm(vector, 1.0), SteeringTerm(other, 1.0, operator="project_out")
    assert_same(
        logits_after(engine, TOKENS, Steering.from_terms(removed, added)),
        logits_after(engine, TOKENS, Steering.from_terms(added, removed)),
    )


def test_other_operators_act_in_the_order_of_the_terms(
    engine: Engine, vector: ControlVector, other: ControlVector
) -> None:
    mood = Steering.from_terms(
        SteeringTerm(vector, 0.5, operator="clamp", layers=range(2, 3)),
        SteeringTerm(other, 1.0, operator="project_out", layers=range(2, 3)),
    )
    v, w = (one.directions[2] / np.linalg.norm(one.directions[2]) for one in (vector, other))
    h = hidden_states(engine, TOKENS)[2]
    h = h + (0.5 * np.linalg.norm(vector.directions[2]) - h @ v)[:, None] * v
    h = h - (h @ w)[:, None] * w
    np.testing.assert_allclose(hidden_states(engine, TOKENS, mood)[2], h, rtol=0, atol=1e-4)


# --- scope ---


@pytest.mark.parametrize(
    ("scope", "steered"),
    [
        # tokens of prompt, reply, prompt, reply: 4, 4, 2, 2
        ("both", [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("reply", [0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1]),
        ("prompt", [1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0]),
        ("answer", [0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1]),
        ("thinking", [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("first:1", [0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0]),
        ("first:3", [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]),
        ("after:2", [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1]),
        ("last:1", [0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0]),
        ("last:3", [0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0]),
        ("last:99", [1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0]),
    ],
)
def test_scope_says_which_rows_are_steered(
    engine: Engine, vector: ControlVector, scope: Any, steered: list[int]
) -> None:
    mood = Steering({vector: 1.0}, layers=range(LAST, N_LAYER), scope=scope)

    def rows(steering: Steering) -> Array:
        with engine.sequence(TOKENS[:4], steering=steering) as sequence:
            sequence.start_reading([LAST], pooling="all")
            sequence.append(TOKENS[4:8], is_reply=True)
            sequence.append(TOKENS[8:10])
            sequence.append(TOKENS[10:], is_reply=True)
            sequence.logits()
            return sequence.reading()[1][:, 0]

    expected = rows(Steering()) + np.outer(steered, vector.directions[LAST]).astype(np.float32)
    assert_same(rows(mood), expected)


@pytest.mark.parametrize("scope", ["reply", "prompt", "first:2", "after:2", "last:2", "both"])
def test_scope_of_tokens_that_are_drawn_is_that_of_tokens_given(
    engine: Engine, vector: ControlVector, scope: str
) -> None:
    mood = Steering({vector: 1.0}, layers=range(LAST, N_LAYER), scope=scope)
    with engine.sequence(TOKENS, steering=mood) as sequence:
        sequence.start_reading([LAST], pooling="all")
        list(sequence.generate(max_tokens=5))
        sequence.logits()
        tokens, found = sequence.tokens, sequence.reading()[1][:, 0]
    with engine.sequence(TOKENS, steering=mood) as sequence:
        sequence.start_reading([LAST], pooling="all")
        sequence.logits()
        forced(sequence, tokens[len(TOKENS) :], is_reply=True)
        assert_same(found, sequence.reading()[1][:, 0])


def test_prompt_and_reply_together_are_both(engine: Engine, vector: ControlVector) -> None:
    def drawn(mood: Steering) -> list[tuple[int, float]]:
        tokens = engine.generate(TOKENS, steering=mood, max_tokens=6)
        return [(token.id, token.logprob) for token in tokens]

    apart = Steering({vector: 0.7}, scope="prompt") + Steering({vector: 0.7}, scope="reply")
    assert drawn(apart) == drawn(Steering({vector: 0.7}))


def test_first_token_of_a_reply_is_steered_by_the_scope_of_the_reply(
    engine: Engine, vector: ControlVector
) -> None:
    mood = Steering({vector: 1.0}, scope="reply")
    assert error(logits_after(engine, TOKENS, mood), logits_after(engine, TOKENS)) > 0.1


def test_prompt_in_several_pieces_has_one_last_row(engine: Engine, vector: ControlVector) -> None:
    mood = Steering({vector: 1.0}, scope="reply")
    with engine.sequence(TOKENS[:5], steering=mood) as sequence:
        sequence.append(TOKENS[5:7])
        sequence.append(TOKENS[7:])
        assert error(sequence.logits(), logits_after(engine, TOKENS, mood)) <= FLOAT32


@needs_torch
@pytest.mark.parametrize("scope", ["reply", "prompt", "first:2", "after:1", "last:2", "both"])
def test_scope_steers_the_rows_that_transformers_is_told_to(
    engine: Engine, tiny: Callable[[str], TinyModel], scope: str
) -> None:
    n_prompt, tokens = 5, TOKENS[:9]
    rows = {  # the row of token i decides token i + 1
        "reply": range(4, 9),
        "prompt": range(4),
        "first:2": range(4, 6),
        "after:1": range(5, 9),
        "last:2": range(3, 5),
        "both": range(9),
    }[scope]
    vector = random_vector(engine.model, seed=3)
    steered = np.isin(np.arange(len(tokens)), rows)[:, None]
    expected = tiny("llama").reference_logits(
        tokens, {il: steered * row for il, row in vector.directions.items()}
    )[n_prompt - 1 :]
    mood = Steering({vector: 1.0}, scope=scope)
    with engine.sequence(tokens[:n_prompt], steering=mood) as sequence:
        first = sequence.logits()
        found = np.stack([first, *forced(sequence, tokens[n_prompt:], is_reply=True)])
    assert error(found, expected) <= FLOAT32


@pytest.mark.parametrize(
    "scope", ["", "all", "first", "first:0", "last:-1", "after:1.5", "reply:3", "first:\u0663", 3]
)
def test_what_is_no_scope_is_refused(vector: ControlVector, scope: Any) -> None:
    with pytest.raises(InputError, match="prompt, reply, both, thinking, answer, first:N"):
        Steering({vector: 1.0}, scope=scope)


def test_mood_that_acts_on_the_prompt_is_felt_by_the_reply(
    engine: Engine, vector: ControlVector
) -> None:
    def after_reply(steering: Steering) -> Array:
        with engine.sequence(TOKENS[:8], steering=steering) as sequence:
            sequence.append(TOKENS[8:], is_reply=True)
            return sequence.logits()

    prompt_only = after_reply(Steering({vector: 1.0}, scope="prompt"))
    assert error(prompt_only, after_reply(Steering())) > 0.1


def test_prompt_of_a_reply_scope_mood_stays_plain_after_going_back_into_it(
    engine: Engine, vector: ControlVector
) -> None:
    mood = Steering({vector: 1.0}, scope="reply")
    with engine.sequence(TOKENS[:8], steering=mood) as sequence:
        list(sequence.generate(max_tokens=4))
        sequence.rollback(6)
        sequence.append(TOKENS[6:])
        found = sequence.logits()
    assert error(found, logits_after(engine, TOKENS, mood)) <= FLOAT32


# --- changed while it runs ---


@pytest.mark.parametrize("at", range(1, 6))
def test_mood_changes_between_any_two_tokens(
    engine: Engine, vector: ControlVector, other: ControlVector, at: int
) -> None:
    changed = Steering({other: -1.0}, layers=range(LAST, N_LAYER))
    mood = Steering({vector: 1.0}, layers=range(LAST, N_LAYER))

    def rows(*, steered: bool) -> Array:
        with engine.sequence(TOKENS[:6], steering=mood if steered else Steering()) as sequence:
            sequence.start_reading([LAST], pooling="all")
            sequence.logits()
            forced(sequence, TOKENS[6 : 6 + at])
            sequence.steering = changed if steered else Steering()
            forced(sequence, TOKENS[6 + at :])
            return sequence.reading()[1][:, 0]

    expected = rows(steered=False)
    expected[: 6 + at] += vector.directions[LAST]
    expected[6 + at :] -= other.directions[LAST]
    assert_same(rows(steered=True), expected)


def test_changed_mood_leaves_decoded_tokens_as_they_were(
    engine: Engine, vector: ControlVector
) -> None:
    with engine.sequence(TOKENS[:8], steering=Steering({vector: 1.0})) as sequence:
        before = sequence.logits()
        sequence.steering = Steering()
        assert_same(sequence.logits(), before)


def test_every_sequence_has_its_own_mood(
    engine: Engine, vector: ControlVector, other: ControlVector
) -> None:
    moods = Steering({vector: 1.0}), Steering(), Steering({other: -2.0}, operator="clamp")
    sequences = [engine.sequence(TOKENS, steering=mood) for mood in moods]
    engine.native.forward([sequence.id for sequence in sequences])
    found = [sequence.logits() for sequence in sequences]
    expected = [logits_after(engine, TOKENS, mood) for mood in moods]
    assert max(map(error, found, expected)) <= FLOAT32


def test_mood_can_be_changed_a_thousand_times(engine: Engine, vector: ControlVector) -> None:
    with engine.sequence(TOKENS, steering=Steering({vector: 1.0})) as sequence:
        for change in range(1000):
            sequence.steering = Steering({vector: change / 1000})
        sequence.steering = Steering({vector: 0.5})
        found = sequence.logits()
    assert_same(found, logits_after(engine, TOKENS, Steering({vector: 0.5})))


# --- the other ways through the hook ---


@pytest.mark.parametrize("operator", ["add", "project_out", "clamp", "add_keep_norm"])
def test_rows_fetched_and_put_back_are_bit_identical_to_rows_changed_in_place(
    new_engine: Callable[..., Engine], vector: ControlVector, operator: Any
) -> None:
    mood = Steering({vector: 0.6}, operator=operator)
    in_place, through_copies = new_engine(), new_engine(hook_through_copies=True)
    assert_same(
        logits_after_each(through_copies, TOKENS, mood, n_prompt=8),
        logits_after_each(in_place, TOKENS, mood, n_prompt=8),
    )


def test_rows_fetched_are_bit_identical_to_rows_read_in_place(
    new_engine: Callable[..., Engine], vector: ControlVector
) -> None:
    mood = Steering({vector: 0.6})
    in_place, through_copies = new_engine(), new_engine(hook_through_copies=True)
    assert_same(hidden_states(through_copies, TOKENS, mood), hidden_states(in_place, TOKENS, mood))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tiny_architecture_can_be_steered(
    new_engine: Callable[..., Engine], architecture: str
) -> None:
    assert new_engine(architecture).steering_unsupported == ""
