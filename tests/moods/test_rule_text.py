"""Rules as they are typed."""

from __future__ import annotations

import pytest

from pyemo import Condition, ControlVector
from pyemo.errors import InputError, VectorError
from pyemo.moods.rule_text import parse_rule
from pyemo.vectors.metadata import FittedCondition, VectorMetadata

NORMS, ZEROS = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
KNOWN = VectorMetadata(residual_norms=NORMS, neutral_projections=ZEROS)
FITTED = VectorMetadata(
    residual_norms=NORMS, neutral_projections=ZEROS, condition=FittedCondition(2, 0.5, "below")
)
ANGER = ControlVector({1: [1.0, 0.0], 2: [1.0, 0.0]}, name="anger", metadata=KNOWN)
JOY = ControlVector({1: [0.0, 1.0], 2: [0.0, 1.0]}, name="joy", metadata=KNOWN)
VECTORS = {
    "anger": ANGER,
    "joy": JOY,
    "./x@y.gguf": ANGER,
    "c.gguf": ControlVector({2: [1.0, 1.0]}, name="c", metadata=FITTED),
}
A, J = Condition(ANGER, 0.1), Condition(JOY, 0.1)


def load(name: str) -> ControlVector:
    return VECTORS[name]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("anger>0.1", A),
        ("anger > 0.1", A),
        ("anger<-1e-1", Condition(ANGER, -0.1, above=False)),
        ("anger@2>0.1", Condition(ANGER, 0.1, layer=2)),
        ("anger>0.1:0.05", Condition(ANGER, 0.1, softness=0.05)),
        ("./x@y.gguf>0.1", A),
        ("./x@y.gguf@2>0.1", Condition(ANGER, 0.1, layer=2)),
        ("not anger>0.1", ~A),
        ("not not anger>0.1", A),
        ("anger>0.1 and joy>0.1", A & J),
        ("anger>0.1&joy>0.1", A & J),
        ("anger>0.1|!joy>0.1", A | ~J),
        ("anger>0.1 or joy>0.1 and anger>0.1", A | (J & A)),
        ("(anger>0.1 or joy>0.1) and not (anger>0.1 and joy>0.1)", (A | J) & ~(A & J)),
    ],
)
def test_text_is_the_rule(text: str, expected: object) -> None:
    assert parse_rule(text, load) == expected


@pytest.mark.parametrize(
    "text",
    ["anger@2>0.1", "anger<0.25:0.5", "not anger>0.1", "((anger>0.1 and joy>0.1) or joy<0)"],
)
def test_what_a_rule_prints_is_read_as_itself(text: str) -> None:
    rule = parse_rule(text, load)
    assert parse_rule(str(rule), load) == rule


def test_name_alone_is_a_fitted_condition() -> None:
    assert parse_rule("c.gguf", load) == Condition(VECTORS["c.gguf"], 0.5, above=False, layer=2)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("anger>", "a number is missing"),
        ("anger>much", "'much' is not a number"),
        ("anger>0.1 joy>0.1", "'joy' stands where it should end"),
        ("anger>0.1 and", "a vector is missing"),
        ("and anger>0.1", "'and' stands where a vector should"),
        ("(anger>0.1", "a bracket is not closed"),
        ("anger>0.1)", r"'\)' stands where it should end"),
        ("()", r"'\)' stands where a vector should"),
        (">0.1", "'>' stands where a vector should"),
        ("(" * 5000, "more than 50 brackets"),
        (" and ".join(["anger>0.1"] * 5000), "more than 50 conditions"),
    ],
)
def test_what_is_no_rule_is_refused_with_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        parse_rule(text, load)


@pytest.mark.parametrize("text", ["anger>nan", "anger>inf"])
def test_threshold_that_is_not_finite_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="must be a finite number"):
        parse_rule(text, load)


def test_vector_that_was_not_fitted_needs_a_number() -> None:
    with pytest.raises(VectorError, match=r"anger>0\.1"):
        parse_rule("anger", load)
