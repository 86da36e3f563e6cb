"""Conditions are found where they were planted, and kept in a plain vector file."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pyemo import Condition, ControlVector, Engine, Steering
from pyemo.errors import InputError
from pyemo.extract import conditions
from pyemo.extract.conditions import fit_condition, mean_rows, quality_of

WORDS = ["happy", "sad", "day", "story", "the", "and", "was", "over", "house", "river"]
HAPPY = [f"the happy story of the happy {WORDS[i % 10]} {WORDS[i // 3]}" for i in range(12)]
RIVER = [f"a river, a house and {WORDS[i % 10]} {WORDS[i // 3]} 1234" for i in range(12)]


@pytest.fixture
def engine(new_engine: Callable[..., Engine]) -> Engine:
    return new_engine("llama", n_ctx=2048, n_seq_max=8)


def test_two_kinds_of_prompts_are_told_apart(engine: Engine) -> None:
    found = fit_condition(engine, HAPPY[:8], RIVER[:8], name="happy")
    assert found.quality.f1 == 1.0
    assert quality_of(engine, found.vector, HAPPY[8:], RIVER[8:]).f1 == 1.0
    assert quality_of(engine, found.vector, RIVER[8:], HAPPY[8:]).f1 == 0.0


def test_a_sequence_decides_as_the_fit_reads(engine: Engine) -> None:
    found = fit_condition(engine, HAPPY[:8], RIVER[:8], name="happy")
    condition = Condition(found.vector)
    mood = Steering({found.vector: 0.1}, when_prompt=condition)
    assert condition.layer is not None
    for text, holds in ((HAPPY[9], True), (RIVER[9], False)):
        row = mean_rows(engine, [text], [condition.layer])[0, 0]
        projection = row @ condition.gauge().unit
        with engine.sequence(text, steering=mood) as sequence:
            sequence.step()
            (decision,) = sequence.decisions
        reading = projection - found.vector.neutral_projections[condition.layer]
        expected = reading / found.vector.residual_norms[condition.layer]
        assert decision.readings[condition] == pytest.approx(expected, abs=1e-4)
        assert decision.holds is holds


def test_kinds_that_do_not_differ_by_much_are_said_to_be_so(engine: Engine) -> None:
    mixed = [*HAPPY[:6], *RIVER[:6]], [*HAPPY[6:], *RIVER[6:]]
    assert fit_condition(engine, *mixed).quality.f1 < 0.95


def test_the_file_is_a_plain_vector_of_one_layer(engine: Engine, tmp_path: Any) -> None:
    found = fit_condition(engine, HAPPY[:8], RIVER[:8], name="happy", layers=range(2, 3))
    found.vector.save(tmp_path / "happy.gguf")
    loaded = ControlVector.load(tmp_path / "happy.gguf", engine.model)
    assert loaded.layers == (2,)
    assert loaded.metadata.condition == found.vector.metadata.condition
    assert loaded.metadata.condition is not None
    evidence = json.loads(loaded.metadata.condition.evidence)
    assert evidence["f1"] == found.quality.f1
    assert Condition(loaded).threshold == found.quality.threshold


def planted(own: float, other: float, spread: float, *, seed: int, width: int = 6) -> Any:
    """Rows of two kinds at three layers, apart at the second only."""
    rng = np.random.default_rng(seed)
    kinds = []
    for at in (own, other):
        rows = rng.normal(0, 1, (24, 3, width))
        rows[:, 1, 0] = at + spread * rng.normal(0, 1, 24)
        kinds.append(rows)
    return kinds


def test_the_layer_is_that_at_which_the_kinds_were_planted_apart(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = planted(4.0, -4.0, 0.5, seed=1, width=engine.model.n_embd)
    texts = [[f"{kind} {i}" for i in range(24)] for kind in "ab"]
    rows = iter((own[:, :2], other[:, :2]))
    monkeypatch.setattr(conditions, "mean_rows", lambda *_args, **_options: next(rows))
    found = fit_condition(engine, *texts)
    assert found.vector.layers == (2,)  # of the layers 1 and 2 of the tiny model
    assert found.quality.f1 == 1.0
    assert abs(found.vector.directions[2][0]) / np.linalg.norm(found.vector.directions[2]) > 0.9


@pytest.mark.parametrize("above", [True, False])
def test_threshold_is_in_the_middle_of_the_widest_gap(above: bool) -> None:
    own, other = np.array([4.0, 5.0, 9.0]), np.array([1.0, 2.0])
    threshold = conditions._best_threshold(
        own if above else -own, other if above else -other, above
    )
    assert threshold == (3.0 if above else -3.0)


def test_quality_counts_hits_and_false_alarms() -> None:
    found = conditions._quality(np.array([1.0, 2, 3, 4]), np.array([0.0, 3.5]), 1.5, True)
    assert (found.precision, found.recall) == (0.75, 0.75)
    assert found.f1 == 0.75
    nothing = conditions._quality(np.array([1.0]), np.array([0.0]), 5.0, True)
    assert (nothing.precision, nothing.recall, nothing.f1) == (0.0, 0.0, 0.0)


# --- bad input ---


@pytest.mark.parametrize(
    ("positive", "negative", "why"),
    [
        (HAPPY[:7], RIVER, "7 different positive texts; a condition needs 8"),
        (HAPPY, [RIVER[0]] * 12, "1 different negative texts"),
        (HAPPY, [*RIVER[:8], HAPPY[3]], "of both kinds"),
        (HAPPY, [*RIVER[:8], " "], "a negative text is empty"),
    ],
)
def test_texts_that_tell_nothing_are_refused(
    engine: Engine, positive: list[str], negative: list[str], why: str
) -> None:
    with pytest.raises(InputError, match=why):
        fit_condition(engine, positive, negative)


@pytest.mark.parametrize("layers", [range(1), range(3, 9)])
def test_layers_that_cannot_be_read_are_refused(engine: Engine, layers: range) -> None:
    with pytest.raises(InputError, match="reads one of 1 to 2"):
        fit_condition(engine, HAPPY, RIVER, layers=layers)
