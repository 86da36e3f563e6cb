"""Operators that know where texts lie, against transformers with a hook, and many in one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engines import (
    Array,
    error,
    forced,
    logits_after,
    logits_after_each,
    needs_torch,
    tolerance,
)
from measured_vectors import along, measured
from tiny_models import ARCHITECTURES, RowFunction, TinyModel

from pyemo import ControlVector, Engine, Steering
from pyemo.engine.gauges import Gauge
from pyemo.errors import VectorError
from pyemo.vectors.metadata import VectorMetadata

N_PROMPT = 20

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.fixture
def model(tiny: Callable[[str], TinyModel], architecture: str) -> TinyModel:
    return tiny(architecture)


@pytest.fixture
def tokens(model: TinyModel) -> list[int]:
    return model.random_tokens(32)


def target(vector: ControlVector, layer: int, operator: str, s: Any) -> Any:
    """The coordinate that an operator aims at, by its definition in the manual."""
    neutral = vector.neutral_projections[layer]
    if operator == "clamp":
        return neutral + s * vector.residual_norms[layer]
    return neutral + s * (vector.own_projections[layer] - neutral)


def steps_within(vector: ControlVector, layer: int, h: Array, s: float) -> Array:
    """The largest step of each row that stays inside, from the roots of the quadratic."""
    real = vector.ellipsoids[layer]
    w = real.components.astype(float) @ vector.directions[layer]
    r = h.astype(float) @ real.components.T - real.center
    steps = []
    for row in r:
        roots = np.roots([w @ w, 2 * w @ row, row @ row - real.radius2])
        steps.append(min(s, max(0.0, roots.real.max())) if np.isreal(roots).all() else 0.0)
    return np.array(steps)


def row_function(vector: ControlVector, layer: int, operator: str, s: Any) -> RowFunction:
    """The operator in NumPy; s is a number, or one for each token."""
    u = along(vector, layer)
    if operator == "add_within":
        return lambda h: h + steps_within(vector, layer, h, s)[:, None] * vector.directions[layer]

    def act(h: Array) -> Array:
        step = target(vector, layer, operator, s) - h @ u
        kept = {"clamp": step, "raise": np.maximum(step, 0), "cap": np.minimum(step, 0)}[operator]
        return h + kept[:, None] * u

    return act


@needs_torch
@every_architecture
@pytest.mark.parametrize(
    ("operator", "s"), [("raise", 0.5), ("cap", -0.2), ("clamp", 0.2), ("add_within", 0.4)]
)
def test_operator_is_that_of_a_hook_in_transformers(
    new_engine: Callable[..., Engine],
    model: TinyModel,
    tokens: list[int],
    operator: Any,
    s: float,
) -> None:
    vector = measured(model, tokens)
    hooks = {layer: row_function(vector, layer, operator, s) for layer in vector.layers}
    expected = model.reference_logits(tokens, hooks)[N_PROMPT - 1 :]
    mood = Steering({vector: s}, operator=operator)
    found = logits_after_each(new_engine(model.architecture), tokens, mood, n_prompt=N_PROMPT)
    assert error(found, expected) <= tolerance(model.architecture)
    assert error(found, model.reference_logits(tokens)[N_PROMPT - 1 :]) > 0.05


@needs_torch
@pytest.mark.parametrize("architecture", ["llama"])
@pytest.mark.parametrize("operator", ["raise", "cap"])
def test_target_changed_before_every_token_is_a_hook_that_changes_with_the_row(
    new_engine: Callable[..., Engine], model: TinyModel, tokens: list[int], operator: Any
) -> None:
    vector = measured(model, tokens)
    targets = np.random.default_rng(3).uniform(-0.3, 0.6, len(tokens))
    targets[:N_PROMPT] = targets[0]
    hooks = {layer: row_function(vector, layer, operator, targets) for layer in vector.layers}
    expected = model.reference_logits(tokens, hooks)[N_PROMPT - 1 :]
    mood = Steering({vector: 1.0}, operator=operator)
    engine = new_engine(model.architecture)
    with engine.sequence(tokens[:N_PROMPT], steering=mood * targets[0]) as sequence:
        found = [sequence.logits()]
        for token, z in zip(tokens[N_PROMPT:], targets[N_PROMPT:], strict=True):
            sequence.steering = mood * z
            found += forced(sequence, [token])
    assert error(np.stack(found), expected) <= tolerance(model.architecture)


@needs_torch
@pytest.mark.parametrize("architecture", ["llama"])
def test_rows_of_a_batch_have_each_its_own_operator(
    new_engine: Callable[..., Engine], model: TinyModel, tokens: list[int]
) -> None:
    vector, other = measured(model, tokens), measured(model, tokens, seed=1)
    raised = Steering({vector: 0.5}, operator="raise")
    moods = [
        raised,
        Steering({vector: -0.2}, operator="cap"),
        raised + Steering({other: -0.2}, operator="cap") + Steering({other: 0.1}),
        Steering({vector: 0.4}, operator="add_within"),
    ]
    engine = new_engine(model.architecture)

    def together(moods: list[Steering]) -> Array:
        sequences = [engine.sequence(tokens, steering=mood) for mood in moods]
        try:
            engine.native.forward([sequence.id for sequence in sequences])
            return np.stack([sequence.logits() for sequence in sequences])
        finally:
            for sequence in sequences:
                sequence.close()

    mixed = together(moods)
    for row, mood in enumerate(moods):
        np.testing.assert_array_equal(mixed[row], together([mood] * 4)[row])


@needs_torch
@pytest.mark.parametrize("architecture", ["llama"])
def test_clamped_rows_read_the_strength_on_a_gauge(
    new_engine: Callable[..., Engine], model: TinyModel, tokens: list[int]
) -> None:
    vector = measured(model, tokens)
    mood = Steering({vector: 0.3}, operator="clamp")
    gauge = Gauge(vector, layer=2, name="here")
    with new_engine("llama").sequence(tokens, steering=mood, gauges=[gauge]) as sequence:
        reading = sequence.step().gauges["here"]
    assert reading.value + reading.dose == pytest.approx(0.3, abs=1e-5)


@needs_torch
@pytest.mark.parametrize("architecture", ["llama"])
@pytest.mark.parametrize(("operator", "s"), [("raise", -100.0), ("cap", 100.0)])
def test_target_that_no_row_is_beyond_leaves_the_logits_bits(
    new_engine: Callable[..., Engine],
    model: TinyModel,
    tokens: list[int],
    operator: Any,
    s: float,
) -> None:
    engine = new_engine("llama")
    mood = Steering({measured(model, tokens): s}, operator=operator)
    np.testing.assert_array_equal(logits_after(engine, tokens, mood), logits_after(engine, tokens))


def test_vector_that_does_not_know_where_real_rows_lie_is_refused_with_the_next_step() -> None:
    vector = ControlVector({1: [1.0, 2.0]}, name="bare")
    with pytest.raises(VectorError, match=r"'bare'.*add_within.*--components 32"):
        Steering({vector: 1.0}, operator="add_within")


@pytest.mark.parametrize("operator", ["raise", "cap"])
def test_vector_that_does_not_know_its_own_texts_is_refused_with_the_next_step(
    operator: Any,
) -> None:
    vector = ControlVector({1: [1.0, 2.0]}, name="bare")
    with pytest.raises(VectorError, match=rf"'bare'.*operator {operator}.*rescale.*--own-texts"):
        Steering({vector: 1.0}, operator=operator)


@pytest.mark.parametrize("operator", ["raise", "cap"])
def test_vector_whose_own_texts_lie_no_further_along_is_refused(operator: Any) -> None:
    metadata = VectorMetadata(neutral_projections=(0.0, 2.0), own_projections=(0.0, 1.0))
    vector = ControlVector({1: [1.0, 2.0]}, name="flat", metadata=metadata)
    with pytest.raises(VectorError, match="'flat' point no further"):
        Steering({vector: 1.0}, operator=operator)
