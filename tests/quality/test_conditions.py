"""Conditions fitted on 40 + 40 prompts tell 40 + 40 others apart, and decide a reply exactly.

python -m pytest -m quality -s tests/quality/test_conditions.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyemo import Condition, ControlVector, Engine, Steering
from pyemo.extract.conditions import ConditionFit, fit_condition, quality_of

pytestmark = pytest.mark.quality

FOLDER = Path(__file__).parent / "conditions"
MODELS = ("smollm2-135m-instruct", "gemma-3-270m")
KINDS = (("angry", "calm"), ("code", "talk"))
LEAST_F1 = 0.9
PROMPTS = {
    "angry": "You lost my order again and nobody picks up the phone!",
    "calm": "Which tea goes well with apple cake?",
    "code": "How do I concatenate two strings in Lua?",
    "talk": "My brother sang all the way to the coast.",
}


def prompts(name: str) -> list[str]:
    """The prompts of a file, one a line."""
    return (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module", params=MODELS)
def engine(request: pytest.FixtureRequest):
    with Engine(request.param, n_ctx=2048, n_batch=512, n_seq_max=8, n_threads=1) as opened:
        yield opened


@pytest.fixture(scope="module", params=KINDS, ids=lambda kinds: kinds[0])
def kinds(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture(scope="module")
def fitted(engine: Engine, kinds: tuple[str, str]) -> ConditionFit:
    positive, negative = (prompts(f"{kind}-fit") for kind in kinds)
    return fit_condition(engine, positive, negative, name=kinds[0])


def test_other_prompts_are_told_apart(
    engine: Engine, kinds: tuple[str, str], fitted: ConditionFit
) -> None:
    found = quality_of(engine, fitted.vector, *(prompts(f"{kind}-test") for kind in kinds))
    print(
        f"{engine.model.name}, {kinds[0]}: layer {fitted.vector.layers[0]}, held out F1 "
        f"{fitted.quality.f1:.3f}, others F1 {found.f1:.3f}, precision {found.precision:.3f}, "
        f"recall {found.recall:.3f}"
    )
    assert found.f1 >= LEAST_F1


def test_condition_decides_a_reply_exactly(
    engine: Engine, kinds: tuple[str, str], fitted: ConditionFit
) -> None:
    vector = ControlVector.load("happy", engine.model)
    mood, plain = Steering({vector: 0.02}), Steering()
    gated = Steering({vector: 0.02}, when_prompt=Condition(fitted.vector))
    for kind, expected in zip(kinds, (mood, plain), strict=True):
        logits = []
        for steering in (gated, expected):
            with engine.sequence(PROMPTS[kind], steering=steering) as sequence:
                logits.append(sequence.logits())
        np.testing.assert_array_equal(*logits)
