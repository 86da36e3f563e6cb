"""Terms that act on some rows only: by what the row itself reads, in the same pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engines import Array, error, forced, logits_after, logits_after_each, needs_torch, tolerance
from measured_vectors import along, measured
from tiny_models import ARCHITECTURES, RowFunction, TinyModel

from pyemo import Condition, ControlVector, Engine, Steering, _core
from pyemo.engine.rules import Rule
from pyemo.errors import InputError, VectorError, VectorModelMismatchError
from pyemo.vectors.metadata import FittedCondition, VectorMetadata

pytestmark = needs_torch  # the vectors are measured on the reference

N_PROMPT = 20
READS = 1  # the layer of the conditions
MIDDLE = 0.0  # a threshold that some rows are above and some below

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
every_operator = pytest.mark.parametrize("operator", ["add", "project_out", "raise"])


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


@pytest.fixture
def third(model: TinyModel, tokens: list[int]) -> ControlVector:
    return measured(model, tokens, seed=2)


def always(vector: ControlVector) -> Rule:
    return Condition(vector, -1e6, layer=READS)


def never(vector: ControlVector) -> Rule:
    return Condition(vector, 1e6, layer=READS)


def reading(vector: ControlVector, layer: int, h: Array) -> Array:
    """What a gauge reads, in NumPy."""
    projection = h @ along(vector, layer) - vector.neutral_projections[layer]
    return projection / vector.residual_norms[layer]


def gated_add(
    vector: ControlVector, condition: ControlVector, strength: float, softness: float
) -> dict[int, RowFunction]:
    """Hooks that read at ``READS`` and add from there on."""
    share: list[Array] = []

    def act(layer: int) -> RowFunction:
        def hook(h: Array) -> Array:
            if layer == READS:
                beyond = reading(condition, READS, h) - MIDDLE
                step = (beyond > 0).astype(float)
                share[:] = [1 / (1 + np.exp(-beyond / softness)) if softness else step]
            return h + strength * share[0][:, None] * vector.directions[layer]

        return hook

    return {layer: act(layer) for layer in vector.layers if layer >= READS}


@every_architecture
@pytest.mark.parametrize("softness", [0.0, 0.05])
def test_gate_is_a_hook_in_transformers_that_reads_the_row(
    engine: Engine,
    model: TinyModel,
    tokens: list[int],
    vector: ControlVector,
    other: ControlVector,
    softness: float,
) -> None:
    rule = Condition(other, MIDDLE, layer=READS, softness=softness)
    mood = Steering({vector: 0.3}, layers=range(READS, 99), when=rule)
    found = logits_after_each(engine, tokens, mood, n_prompt=N_PROMPT)
    hooks = gated_add(vector, other, 0.3, softness)
    expected = model.reference_logits(tokens, hooks)[N_PROMPT - 1 :]
    assert error(found, expected) <= tolerance(model.architecture)


@every_operator
def test_closed_gate_leaves_the_logits_bits(
    engine: Engine, tokens: list[int], vector: ControlVector, other: ControlVector, operator: Any
) -> None:
    mood = Steering({vector: 1.0}, operator=operator, layers=range(READS, 99), when=never(other))
    np.testing.assert_array_equal(
        logits_after_each(engine, tokens, mood, n_prompt=N_PROMPT),
        logits_after_each(engine, tokens, n_prompt=N_PROMPT),
    )


@every_operator
def test_open_gate_is_bit_identical_to_none(
    engine: Engine, tokens: list[int], vector: ControlVector, other: ControlVector, operator: Any
) -> None:
    def mood(when: Rule | None) -> Steering:
        # two terms of an operator, one gated: adds are summed in the order of the terms
        layers = range(READS, 99)
        mine = Steering({vector: 0.7}, operator=operator, layers=layers, when=when)
        return Steering({other: 0.4}, operator=operator, layers=layers) + mine

    np.testing.assert_array_equal(
        logits_after_each(engine, tokens, mood(always(other)), n_prompt=N_PROMPT),
        logits_after_each(engine, tokens, mood(None), n_prompt=N_PROMPT),
    )


def test_closed_gate_beside_an_open_term_is_that_term_alone(
    engine: Engine, tokens: list[int], vector: ControlVector, other: ControlVector
) -> None:
    alone = Steering({other: 0.4}, layers=range(READS, 99))
    mood = alone + Steering({vector: 0.7}, layers=range(READS, 99), when=never(other))
    np.testing.assert_array_equal(
        logits_after(engine, tokens, mood), logits_after(engine, tokens, alone)
    )


@pytest.mark.parametrize(
    ("make", "is_open"),
    [
        (lambda yes, no: yes & no, False),
        (lambda yes, no: yes & yes, True),
        (lambda yes, no: no | yes, True),
        (lambda yes, no: no | no, False),
        (lambda yes, no: ~no, True),
        (lambda yes, no: ~yes, False),
        (lambda yes, no: ~(yes & no) & (no | yes), True),
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
    layers = range(READS, 99)
    rule = make(always(other), never(other))
    found = logits_after(engine, tokens, Steering({vector: 0.7}, layers=layers, when=rule))
    expected = Steering({vector: 0.7} if is_open else {}, layers=layers)
    np.testing.assert_array_equal(found, logits_after(engine, tokens, expected))
    assert rule.holds(lambda condition: 0.0) is is_open


def test_condition_below_is_that_above_turned_round(
    engine: Engine, tokens: list[int], vector: ControlVector, other: ControlVector
) -> None:
    def mood(rule: Rule) -> Steering:
        return Steering({vector: 0.5}, layers=range(READS, 99), when=rule)

    below = Condition(other, MIDDLE, above=False, layer=READS)
    np.testing.assert_array_equal(
        logits_after(engine, tokens, mood(below)),
        logits_after(engine, tokens, mood(~Condition(other, MIDDLE, layer=READS))),
    )


def test_threshold_changed_between_tokens_acts_from_the_next_row_on(
    engine: Engine, tokens: list[int], vector: ControlVector, other: ControlVector
) -> None:
    def mood(rule: Rule | None) -> Steering:
        return Steering({vector: 0.5}, layers=range(READS, 99), when=rule)

    def stream(rules: list[Rule | None]) -> list[Array]:
        with engine.sequence(tokens[:N_PROMPT], steering=mood(rules[0])) as sequence:
            found = [sequence.logits()]
            for token, rule in zip(tokens[N_PROMPT:], rules[1:], strict=False):
                sequence.steering = mood(rule) if rule is not None else Steering()
                found += forced(sequence, [token])
            return found

    changing = stream([always(other), never(other), always(other)])
    expected = stream([always(other), None, always(other)])
    np.testing.assert_array_equal(np.stack(changing), np.stack(expected))


def test_rows_of_a_batch_have_each_its_own_gate(
    engine: Engine,
    tokens: list[int],
    vector: ControlVector,
    other: ControlVector,
    third: ControlVector,
) -> None:
    soft = Condition(other, MIDDLE, layer=READS, softness=0.1)
    moods = [
        Steering({vector: 0.5}, layers=range(READS, 99), when=soft),
        Steering({vector: 0.5}, layers=range(2, 99), when=Condition(third, MIDDLE, layer=2)),
        Steering({third: 0.5}, operator="raise", layers=range(READS, 99), when=soft),
        Steering(),
    ]

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


@pytest.mark.parametrize("operator", ["add", "project_out", "clamp", "add_keep_norm", "raise"])
def test_soft_gate_takes_its_share_of_the_displacement(operator: str) -> None:
    rng = np.random.default_rng(5)
    h, v, c = (rng.standard_normal(67).astype(np.float32) for _ in range(3))
    unit = c / np.linalg.norm(c)
    probe = _core.Probe(_core.Gauge(unit, 0, 0.5, 2.0), 0.1, True, 0.3)
    directions = _core.Directions(1, 67, [(0, v)], {0: (0.1, 3.0)})
    plain = _core.Term(directions, 0.6, operator, 0, 1)
    gated = _core.Term(directions, 0.6, operator, 0, 1, _core.Gate([probe], [0]))
    moved = _core.apply_terms(h, [plain], 0, 1).astype(float)
    found = _core.apply_terms(h, [gated], 0, 1)
    share = 1 / (1 + np.exp(-((h.astype(float) @ unit - 0.5) / 2.0 - 0.1) / 0.3))
    expected = h + share * (moved - h)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_condition_without_a_layer_reads_the_first_steered_one(
    vector: ControlVector, other: ControlVector
) -> None:
    mood = Steering({vector: 0.5}, layers=range(2, 4), when=Condition(other, 0.1))
    assert mood.terms[0].when == Condition(other, 0.1, layer=2)


def test_fitted_condition_needs_no_threshold(other: ControlVector) -> None:
    found = FittedCondition(2, 0.25, "below")
    metadata = VectorMetadata(
        residual_norms=other.metadata.residual_norms,
        neutral_projections=other.metadata.neutral_projections,
        condition=found,
    )
    condition = Condition(other.with_metadata(metadata))
    assert (condition.layer, condition.threshold, condition.above) == (2, 0.25, False)


# --- bad input ---


def test_condition_on_a_layer_after_the_first_steered_one_is_refused(
    vector: ControlVector, other: ControlVector
) -> None:
    with pytest.raises(InputError, match="reads layer 2, but its term steers from layer 0"):
        Steering({vector: 0.5}, when=Condition(other, 0.1, layer=2))


def test_the_core_refuses_a_condition_on_a_later_layer_too(
    engine: Engine, tokens: list[int], vector: ControlVector, other: ControlVector
) -> None:
    gate = _core.Gate([_core.Probe(_core.Gauge(other.directions[2], 2, 0, 1), 0, True, 0)], [0])
    directions = _core.Directions(4, engine.model.n_embd, list(vector.directions.items()))
    term = _core.Term(directions, 1.0, "add", 0, 4, gate)
    with (
        engine.sequence(tokens) as sequence,
        pytest.raises(InputError, match="reads layer 2, but its term steers layer 0"),
    ):
        engine.native.set_spans(sequence.id, [(0, [term])])


@pytest.mark.parametrize("program", [[], [-2], [0, 0], [0, -2], [1], [-1], [0, -4]])
def test_program_that_comes_to_no_value_is_refused(program: list[int]) -> None:
    probe = _core.Probe(_core.Gauge(np.ones(4, np.float32), 0, 0, 1), 0, True, 0)
    with pytest.raises(InputError, match="does not come to one value"):
        _core.Gate([probe], program)


@pytest.mark.parametrize("threshold", [np.nan, np.inf, "much"])
def test_threshold_that_is_no_finite_number_is_refused(
    other: ControlVector, threshold: Any
) -> None:
    with pytest.raises(InputError, match=r"threshold .* must be a finite number"):
        Condition(other, threshold)


@pytest.mark.parametrize("softness", [np.nan, -0.1])
def test_softness_out_of_range_is_refused(other: ControlVector, softness: float) -> None:
    with pytest.raises(InputError, match=r"softness .* at least 0"):
        Condition(other, 0.1, softness=softness)


def test_vector_that_is_no_fitted_condition_needs_a_threshold(other: ControlVector) -> None:
    with pytest.raises(VectorError, match=r"no fitted condition.*pyemo condition fit"):
        Condition(other)


def test_condition_on_a_vector_without_norms_is_refused() -> None:
    with pytest.raises(InputError, match="pyemo rescale"):
        Condition(ControlVector({1: [1.0, 2.0]}), 0.1, layer=1)


def test_condition_of_another_model_is_refused(
    engine: Engine, tokens: list[int], vector: ControlVector
) -> None:
    norms, zeros = [1.0] * 4, [0.0] * 4
    alien = ControlVector({1: [1.0, 2.0]}, name="alien").rescaled(norms, zeros)
    mood = Steering({vector: 0.5}, layers=range(1, 4), when=Condition(alien, 0.1, layer=1))
    with pytest.raises(VectorModelMismatchError, match="'alien'"):
        engine.sequence(tokens, steering=mood)


def test_condition_with_no_direction_where_its_term_begins_says_where_to(
    vector: ControlVector, other: ControlVector
) -> None:
    late = other.only_layers(range(2, 4))
    with pytest.raises(InputError, match=r"reads no layer 0.*steer from there on \(@2:\)"):
        Steering({vector: 0.5}, when=Condition(late, 0.1))


def test_what_is_no_rule_is_refused(vector: ControlVector) -> None:
    with pytest.raises(InputError, match=r"not a rule: 0\.5; write Condition"):
        Steering({vector: 0.5}, when=0.5)  # type: ignore[arg-type]
