"""The engine computes what transformers computes, unsteered and steered at the same blocks.

Errors are the largest difference of any logit, in standard deviations of the logits. This file
fixes the layer index: layer L is the output of block L, counted from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from engines import (
    WITH_GELU,
    WITH_WINDOW,
    Array,
    error,
    forced,
    hidden_states,
    logits_after_each,
    needs_torch,
    steering_of,
    tolerance,
)
from tiny_layouts import SLIDING_WINDOW
from tiny_models import ARCHITECTURES, TinyModel

from pyemo import ControlVector, Engine, HalfLife, Steering

pytestmark = needs_torch

N_PROMPT = 20  # tokens of one prefill; as many are then decoded one at a time
N_LAYER = {"gpt2": 4, "llama": 4, "gemma2": 4, "gemma3": 6, "qwen2": 4}
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
every_layer = pytest.mark.parametrize(
    ("architecture", "layer"),
    [(name, layer) for name in ARCHITECTURES for layer in range(N_LAYER[name])],
)


@pytest.fixture
def model(tiny: Callable[[str], TinyModel], architecture: str) -> TinyModel:
    return tiny(architecture)


@pytest.fixture
def engine(new_engine: Callable[..., Engine], architecture: str) -> Engine:
    return new_engine(architecture)


@pytest.fixture
def tokens(model: TinyModel) -> list[int]:
    return model.random_tokens(2 * N_PROMPT)


def directions(model: TinyModel, tokens: Sequence[int]) -> dict[int, Array]:
    """A random direction for each layer, 0 included, 30% of the residual's mean norm there."""
    norms = np.linalg.norm(model.reference_hidden(tokens), axis=2).mean(axis=1)
    rows = np.random.default_rng(7).standard_normal((model.n_layer, model.n_embd))
    rows *= 0.3 * norms[:, None] / np.linalg.norm(rows, axis=1, keepdims=True)
    return dict(enumerate(rows.astype(np.float32)))


def layer_error(found: Array, expected: Array) -> float:
    """Return the largest difference of hidden states, in standard deviations of their layer."""
    return max(map(error, found, expected))


@every_architecture
def test_unsteered_logits_are_those_of_transformers(
    engine: Engine, model: TinyModel, tokens: list[int]
) -> None:
    expected = model.reference_logits(tokens)[N_PROMPT - 1 :]
    found = logits_after_each(engine, tokens, n_prompt=N_PROMPT)
    assert error(found, expected) <= tolerance(model.architecture)


@every_architecture
def test_logits_steered_at_every_layer_are_those_of_transformers(
    engine: Engine, model: TinyModel, tokens: list[int]
) -> None:
    steer = directions(model, tokens)
    expected = model.reference_logits(tokens, steer)[N_PROMPT - 1 :]
    found = logits_after_each(engine, tokens, steering_of(steer), n_prompt=N_PROMPT)
    assert error(found, expected) <= tolerance(model.architecture)


@every_layer
def test_logits_steered_at_one_layer_are_those_of_transformers(
    engine: Engine, model: TinyModel, tokens: list[int], layer: int
) -> None:
    steer = {layer: directions(model, tokens)[layer]}
    expected = model.reference_logits(tokens, steer)[N_PROMPT - 1 :]
    found = logits_after_each(engine, tokens, steering_of(steer), n_prompt=N_PROMPT)
    assert error(found, expected) <= tolerance(model.architecture)


@every_layer
def test_steering_one_layer_off_misses_by_fifty_times_as_much(
    engine: Engine, model: TinyModel, tokens: list[int], layer: int
) -> None:
    direction = directions(model, tokens)[layer]
    found = logits_after_each(engine, tokens, steering_of({layer: direction}), n_prompt=N_PROMPT)

    def miss(at: int) -> float:
        return error(found, model.reference_logits(tokens, {at: direction})[N_PROMPT - 1 :])

    neighbours = {layer - 1, layer + 1} & set(range(model.n_layer))
    assert min(map(miss, neighbours)) >= 50 * miss(layer)


@every_architecture
def test_logits_vary_enough_to_tell_tokens_apart(engine: Engine, tokens: list[int]) -> None:
    assert logits_after_each(engine, tokens, n_prompt=N_PROMPT).std() >= 1


@pytest.mark.parametrize("n_batch", [512, 16])
@pytest.mark.parametrize("architecture", WITH_WINDOW)
def test_steered_logits_agree_past_the_sliding_window(
    new_engine: Callable[..., Engine], model: TinyModel, n_batch: int
) -> None:
    tokens = model.random_tokens(3 * SLIDING_WINDOW)
    steer = directions(model, tokens)
    expected = model.reference_logits(tokens, steer)[2 * SLIDING_WINDOW - 1 :]
    engine = new_engine(model.architecture, n_batch=n_batch)
    found = logits_after_each(engine, tokens, steering_of(steer), n_prompt=2 * SLIDING_WINDOW)
    assert error(found, expected) <= tolerance(model.architecture)


@pytest.mark.parametrize("architecture", WITH_GELU)
def test_half_precision_gelu_is_all_that_differs(engine: Engine, model: TinyModel) -> None:
    # One token at a time: now and then a value falls on the other side of a half's rounding, which
    # shows in every later token.
    tokens = model.random_tokens(50)
    steer = directions(model, tokens)
    errors = [
        error(
            logits_after_each(engine, [token], steering_of(steer), n_prompt=1),
            model.reference_logits([token], steer, f16_gelu=True),
        )
        for token in tokens
    ]
    assert np.median(errors) <= 1e-5


@every_architecture
def test_mood_changed_before_every_token_is_a_hook_that_changes_with_the_row(
    engine: Engine, model: TinyModel, tokens: list[int]
) -> None:
    directions_by_layer = directions(model, tokens)
    strengths = np.random.default_rng(3).uniform(-1, 1, len(tokens)).astype(np.float32)
    strengths[:N_PROMPT] = strengths[0]
    rows = {layer: strengths[:, None] * row for layer, row in directions_by_layer.items()}
    expected = model.reference_logits(tokens, rows)[N_PROMPT - 1 :]

    vector = ControlVector(directions_by_layer)
    with engine.sequence(tokens[:N_PROMPT], steering=Steering({vector: strengths[0]})) as sequence:
        found = [sequence.logits()]
        for token, strength in zip(tokens[N_PROMPT:], strengths[N_PROMPT:], strict=True):
            sequence.steering = Steering({vector: float(strength)})
            found += forced(sequence, [token])
    assert error(np.stack(found), expected) <= tolerance(model.architecture)


@every_architecture
def test_scheduled_mood_is_a_hook_that_changes_with_the_row(
    engine: Engine, model: TinyModel, tokens: list[int]
) -> None:
    directions_by_layer = directions(model, tokens)
    strengths = np.ones(len(tokens), np.float32)
    # the prompt's last row decides the reply's first token
    strengths[N_PROMPT - 1 :] = 0.5 ** (np.arange(len(tokens) - N_PROMPT + 1) / 5)
    rows = {layer: strengths[:, None] * row for layer, row in directions_by_layer.items()}
    expected = model.reference_logits(tokens, rows)[N_PROMPT - 1 :]

    mood = Steering({ControlVector(directions_by_layer): 1.0}, schedule=HalfLife(5))
    with engine.sequence(tokens[:N_PROMPT], steering=mood) as sequence:
        found = [sequence.logits(), *forced(sequence, tokens[N_PROMPT:], is_reply=True)]
    assert error(np.stack(found), expected) <= tolerance(model.architecture)


@every_architecture
def test_two_moods_in_one_batch_are_each_those_of_transformers(
    engine: Engine, model: TinyModel, tokens: list[int]
) -> None:
    steer = directions(model, tokens)
    away = {layer: -row for layer, row in steer.items()}
    with (
        engine.sequence(tokens, steering=steering_of(steer)) as one,
        engine.sequence(tokens[:13], steering=steering_of(away)) as two,
    ):
        engine.native.forward([one.id, two.id])
        found = [one.logits(), two.logits()]
    expected = [
        model.reference_logits(tokens, steer)[-1],
        model.reference_logits(tokens[:13], away)[-1],
    ]
    assert max(map(error, found, expected)) <= tolerance(model.architecture)


@every_architecture
def test_hidden_states_are_those_of_transformers_last_block_included(
    engine: Engine, model: TinyModel, tokens: list[int]
) -> None:
    expected = model.reference_hidden(tokens)
    assert layer_error(hidden_states(engine, tokens), expected) <= tolerance(model.architecture)


@every_architecture
def test_steered_hidden_states_are_those_of_transformers_last_block_included(
    engine: Engine, model: TinyModel, tokens: list[int]
) -> None:
    steer = directions(model, tokens)
    expected = model.reference_hidden(tokens, steer)
    found = hidden_states(engine, tokens, steering_of(steer))
    assert layer_error(found, expected) <= tolerance(model.architecture)


@every_architecture
def test_mean_pooling_is_the_mean_over_the_tokens(
    engine: Engine, model: TinyModel, tokens: list[int]
) -> None:
    expected = model.reference_hidden(tokens)[:, 10:].mean(axis=1)
    found = engine.read(tokens, pooling="mean", tokens=slice(10, None))
    assert layer_error(found, expected) <= tolerance(model.architecture)


@every_architecture
def test_last_pooling_is_the_last_token(
    engine: Engine, model: TinyModel, tokens: list[int]
) -> None:
    expected = model.reference_hidden(tokens)[:, 29]
    found = engine.read(tokens, pooling="last", tokens=slice(10, 30))
    assert layer_error(found, expected) <= tolerance(model.architecture)


@every_architecture
def test_layers_are_read_in_the_order_asked_for(
    engine: Engine, model: TinyModel, tokens: list[int]
) -> None:
    layers = [model.n_layer - 1, 0, 2]
    expected = model.reference_hidden(tokens)[layers].mean(axis=1)
    found = engine.read(tokens, layers=layers)
    assert layer_error(found, expected) <= tolerance(model.architecture)
