"""The operators on one row of the residual stream, against NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pyemo import _core
from pyemo.choices import OPERATORS
from pyemo.errors import InputError, VectorShapeError

Row = NDArray[Any]

N_LAYER = 3
IL = 1
WIDTHS = (1, 7, 64, 67, 576)  # narrower than, equal to and beside the eight lanes of a sum
STRENGTHS = (-2.5, 0.3, 40.0)

every_operator = pytest.mark.parametrize("operator", _core.operator_names())
every_width = pytest.mark.parametrize("width", WIDTHS)
every_strength = pytest.mark.parametrize("strength", STRENGTHS)


def add(h: Row, v: Row, s: float) -> Row:
    return h + s * v


def project_out(h: Row, v: Row, s: float) -> Row:
    u = v / np.linalg.norm(v)
    return h - s * (h @ u) * u


def clamp(h: Row, v: Row, s: float) -> Row:
    length = np.linalg.norm(v)
    u = v / length
    return h + (NEUTRAL + s * length - h @ u) * u


def add_keep_norm(h: Row, v: Row, s: float) -> Row:
    moved = h + s * v
    return moved * np.linalg.norm(h) / np.linalg.norm(moved)


NEUTRAL, OWN = -1.25, 2.5  # where neutral texts and the vector's own lie along it


def raise_(h: Row, v: Row, s: float) -> Row:
    u = v / np.linalg.norm(v)
    return h + max(0.0, NEUTRAL + s * (OWN - NEUTRAL) - h @ u) * u


def cap(h: Row, v: Row, s: float) -> Row:
    u = v / np.linalg.norm(v)
    return h + min(0.0, NEUTRAL + s * (OWN - NEUTRAL) - h @ u) * u


N_COMPONENTS = 3
RADIUS2 = 30.0  # the rows below are outside at the larger strengths


def ellipsoid(width: int) -> tuple[Row, Row, float]:
    """Components, center and squared radius of where real rows lie."""
    rng = np.random.default_rng(width)
    components = rng.standard_normal((N_COMPONENTS, width)) / np.sqrt(width) / 2
    return components.astype(np.float32), np.full(N_COMPONENTS, 0.1, np.float32), RADIUS2


def add_within(h: Row, v: Row, s: float) -> Row:
    """The same by bisection, as the largest step that stays inside is not known in closed form."""
    components, center, radius2 = ellipsoid(len(h))
    low, high = 0.0, abs(s)

    def is_inside(x: float) -> bool:
        r = components.astype(float) @ (h + np.sign(s) * x * v) - center
        return bool(r @ r <= radius2)

    assert is_inside(0)
    if not is_inside(high):
        for _ in range(200):
            low, high = (
                ((low + high) / 2, high) if is_inside((low + high) / 2) else (low, (low + high) / 2)
            )
        high = low
    return h + np.sign(s) * high * v


NUMPY: dict[str, Callable[[Row, Row, float], Row]] = {
    "add": add,
    "project_out": project_out,
    "clamp": clamp,
    "add_keep_norm": add_keep_norm,
    "raise": raise_,
    "cap": cap,
    "add_within": add_within,
}


def random_row(width: int, seed: int) -> Row:
    return (5 * np.random.default_rng(seed).standard_normal(width)).astype(np.float32)


def term(
    v: Row,
    strength: float,
    operator: str = "add",
    *,
    il_begin: int = 0,
    il_end: int = N_LAYER,
    projections: tuple[float, float] = (NEUTRAL, OWN),
) -> _core.Term:
    within = {IL: ellipsoid(len(v))}
    directions = _core.Directions(N_LAYER, len(v), [(IL, v)], {IL: projections}, within)
    return _core.Term(directions, strength, operator, il_begin, il_end)


def apply(h: Row, *terms: _core.Term, il: int = IL) -> Row:
    return _core.apply_terms(h, list(terms), il, N_LAYER)


def assert_close(found: Row, expected: Row) -> None:
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * scale)


@every_operator
@every_width
@every_strength
def test_operator_is_that_of_numpy(operator: str, width: int, strength: float) -> None:
    h, v = random_row(width, 1), random_row(width, 2)
    expected = NUMPY[operator](h.astype(np.float64), v.astype(np.float64), strength)
    assert_close(apply(h, term(v, strength, operator)), expected)


@every_width
@every_strength
def test_add_rounds_the_product_before_the_sum(width: int, strength: float) -> None:
    h, v = random_row(width, 1), random_row(width, 2)
    np.testing.assert_array_equal(apply(h, term(v, strength)), h + np.float32(strength) * v)


def test_add_terms_are_summed_before_they_are_added() -> None:
    h, *vectors = (random_row(576, seed) for seed in range(4))
    terms = [term(v, s) for v, s in zip(vectors, (0.3, -1.7, 0.01), strict=True)]
    delta = np.float32(0.3) * vectors[0]
    delta = delta + np.float32(-1.7) * vectors[1]
    delta = delta + np.float32(0.01) * vectors[2]
    np.testing.assert_array_equal(apply(h, *terms), h + delta)


def test_add_terms_come_first_wherever_they_stand() -> None:
    h, v, w = (random_row(64, seed) for seed in range(3))
    first = apply(h, term(v, 0.5), term(w, 1.0, "project_out"))
    np.testing.assert_array_equal(apply(h, term(w, 1.0, "project_out"), term(v, 0.5)), first)


@pytest.mark.parametrize(
    "operators",
    [
        ("project_out", "clamp"),
        ("clamp", "project_out"),
        ("add_keep_norm", "project_out", "clamp"),
        ("clamp", "add_keep_norm", "project_out"),
    ],
)
def test_other_operators_act_in_the_order_given(operators: tuple[str, ...]) -> None:
    h, *vectors = (random_row(64, seed) for seed in range(1 + len(operators)))
    terms = [term(v, 0.7, operator) for v, operator in zip(vectors, operators, strict=True)]
    expected = h.astype(np.float64)
    for v, operator in zip(vectors, operators, strict=True):
        expected = NUMPY[operator](expected, v.astype(np.float64), 0.7)
    assert_close(apply(h, *terms), expected)


def test_order_of_other_operators_matters() -> None:
    h, v, w = (random_row(64, seed) for seed in range(3))
    terms = term(v, 0.7, "clamp"), term(w, 0.7, "clamp")
    assert not np.allclose(apply(h, *terms), apply(h, *terms[::-1]))


def test_full_projection_leaves_nothing_along_the_direction() -> None:
    h, v = random_row(576, 1), random_row(576, 2)
    left = apply(h, term(v, 1.0, "project_out"))
    assert abs(left @ v) <= 1e-5 * np.linalg.norm(h) * np.linalg.norm(v)


def test_projection_leaves_other_directions_alone() -> None:
    h, v = np.zeros(8, np.float32), np.zeros(8, np.float32)
    h[:], v[0] = 3, 2
    np.testing.assert_array_equal(apply(h, term(v, 1.0, "project_out"))[1:], h[1:])


def test_clamp_sets_the_projection_to_strength_times_length() -> None:
    h, v = random_row(576, 1), random_row(576, 2)
    length = np.linalg.norm(v)
    clamped = apply(h, term(v, -0.3, "clamp", projections=(0.0, 0.0)))
    assert clamped @ (v / length) == pytest.approx(-0.3 * length, rel=1e-5)


def test_clamp_counts_from_neutral_text() -> None:
    h, v = random_row(576, 1), random_row(576, 2)
    length = np.linalg.norm(v)
    clamped = apply(h, term(v, 0.3, "clamp"))
    assert clamped @ (v / length) == pytest.approx(NEUTRAL + 0.3 * length, rel=1e-5)


def test_clamp_to_zero_without_a_neutral_mean_removes_the_direction() -> None:
    h, v = random_row(64, 1), random_row(64, 2)
    clamped = apply(h, term(v, 0.0, "clamp", projections=(0.0, 0.0)))
    assert_close(clamped, project_out(h.astype(float), v.astype(float), 1))


@pytest.mark.parametrize(("operator", "sign"), [("raise", -1), ("cap", 1)])
def test_one_sided_operator_moves_a_row_beyond_its_target_to_it(operator: str, sign: int) -> None:
    h, v = random_row(576, 1), random_row(576, 2)
    u = v / np.linalg.norm(v)
    h += (NEUTRAL + 0.5 * (OWN - NEUTRAL) + sign * 3 - h @ u) * u
    moved = apply(h, term(v, 0.5, operator))
    assert moved @ u == pytest.approx(NEUTRAL + 0.5 * (OWN - NEUTRAL), abs=1e-4)


@pytest.mark.parametrize(("operator", "sign"), [("raise", 1), ("cap", -1)])
def test_one_sided_operator_leaves_other_rows_bits(operator: str, sign: int) -> None:
    h, v = random_row(576, 1), random_row(576, 2)
    u = v / np.linalg.norm(v)
    h += (NEUTRAL + 0.5 * (OWN - NEUTRAL) + sign * 3 - h @ u) * u
    np.testing.assert_array_equal(apply(h, term(v, 0.5, operator)), h)


@pytest.mark.parametrize("operator", ["raise", "cap"])
@pytest.mark.parametrize("own", [NEUTRAL, NEUTRAL - 1])
def test_one_sided_operator_leaves_a_layer_without_a_way_alone(operator: str, own: float) -> None:
    h, v = random_row(64, 1), random_row(64, 2)
    there = term(v, 0.5, operator, projections=(NEUTRAL, own))
    np.testing.assert_array_equal(apply(h, there), h)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_projection_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(VectorShapeError, match="projection of layer 1 is NaN or infinity"):
        term(random_row(64, 2), 1.0, "raise", projections=(0.0, value))


@every_strength
def test_add_keep_norm_keeps_the_norm(strength: float) -> None:
    h, v = random_row(576, 1), random_row(576, 2)
    moved = apply(h, term(v, strength, "add_keep_norm"))
    assert np.linalg.norm(moved) == pytest.approx(np.linalg.norm(h), rel=1e-5)


def test_add_keep_norm_leaves_a_row_that_it_would_cancel() -> None:
    h = random_row(64, 1)
    np.testing.assert_array_equal(apply(h, term(h, -1.0, "add_keep_norm")), h)


@pytest.mark.parametrize("operator", ["add", "project_out", "add_keep_norm"])
def test_strength_zero_is_off(operator: str) -> None:
    h, v = random_row(64, 1), random_row(64, 2)
    np.testing.assert_array_equal(apply(h, term(v, 0.0, operator)), h)


@every_operator
def test_direction_of_length_zero_leaves_the_row_alone(operator: str) -> None:
    h = random_row(64, 1)
    nowhere = term(np.zeros(64, np.float32), 2.0, operator)
    np.testing.assert_array_equal(apply(h, nowhere), h)


@every_operator
def test_row_of_zeros_stays_finite(operator: str) -> None:
    v = random_row(64, 2)
    assert np.isfinite(apply(np.zeros(64, np.float32), term(v, 2.0, operator))).all()


@every_operator
@pytest.mark.parametrize("il", [0, 2])
def test_layer_without_a_direction_is_left_alone(operator: str, il: int) -> None:
    h, v = random_row(64, 1), random_row(64, 2)
    np.testing.assert_array_equal(apply(h, term(v, 2.0, operator), il=il), h)


@every_operator
@pytest.mark.parametrize(("il_begin", "il_end"), [(0, 1), (2, 3), (1, 1)])
def test_layer_outside_the_range_is_left_alone(operator: str, il_begin: int, il_end: int) -> None:
    h, v = random_row(64, 1), random_row(64, 2)
    outside = term(v, 2.0, operator, il_begin=il_begin, il_end=il_end)
    np.testing.assert_array_equal(apply(h, outside), h)


def test_row_given_is_not_changed() -> None:
    h, v = random_row(64, 1), random_row(64, 2)
    apply(h, term(v, 2.0))
    np.testing.assert_array_equal(h, random_row(64, 1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_direction_that_is_not_finite_is_refused(value: float) -> None:
    v = random_row(64, 2)
    v[63] = value
    with pytest.raises(VectorShapeError, match="layer 1 holds NaN or infinity"):
        _core.Directions(N_LAYER, 64, [(IL, v)])


def test_direction_whose_norm_overflows_is_refused() -> None:
    with pytest.raises(VectorShapeError, match="its norm overflows float32"):
        _core.Directions(N_LAYER, 64, [(IL, np.full(64, 1e38, np.float32))])


@pytest.mark.parametrize("il", [-1, 3])
def test_direction_for_a_layer_the_model_has_not_is_refused(il: int) -> None:
    with pytest.raises(VectorShapeError, match=f"layer {il}, but the model has layers 0 to 2"):
        _core.Directions(N_LAYER, 64, [(il, random_row(64, 2))])


@pytest.mark.parametrize("width", [63, 65])
def test_direction_of_another_width_is_refused(width: int) -> None:
    with pytest.raises(VectorShapeError, match=r"shape \(64,\)"):
        _core.Directions(N_LAYER, 64, [(IL, random_row(width, 2))])


def test_the_names_are_those_that_steering_takes() -> None:
    assert _core.operator_names() == list(OPERATORS)


def test_an_unknown_operator_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="'rotate' is unknown; use one of add, project_out"):
        term(np.ones(64, np.float32), 1.0, "rotate")


def test_step_within_stops_at_the_ellipsoid() -> None:
    h, v = random_row(64, 1), random_row(64, 2)
    components, center, radius2 = ellipsoid(64)
    moved = components @ apply(h, term(v, 40.0, "add_within")) - center
    assert moved @ moved == pytest.approx(radius2, rel=1e-4)


def test_step_within_that_stays_inside_is_add() -> None:
    h, v = random_row(64, 1), random_row(64, 2)
    np.testing.assert_allclose(
        apply(h, term(v, 0.001, "add_within")), h + np.float32(0.001) * v, rtol=1e-6
    )


@pytest.mark.parametrize("s", [3.0, -3.0])
def test_row_that_is_outside_and_does_not_come_in_keeps_its_bits(s: float) -> None:
    components, center, _ = ellipsoid(64)
    h = (1000 * components[0] / np.linalg.norm(components[0]) ** 2).astype(np.float32)
    away = np.sign(s) * components[0]
    assert np.square(components @ h - center).sum() > RADIUS2
    np.testing.assert_array_equal(apply(h, term(away.astype(np.float32), s, "add_within")), h)


def test_row_that_is_outside_goes_on_to_the_far_side_at_most() -> None:
    components, center, radius2 = ellipsoid(64)
    h = (20 * components[0] / np.linalg.norm(components[0]) ** 2).astype(np.float32)
    inward = (-components[0] / np.linalg.norm(components[0]) ** 2).astype(np.float32)
    moved = components @ apply(h, term(inward, 1e4, "add_within")) - center
    assert moved @ moved == pytest.approx(radius2, rel=1e-3)


def test_layer_whose_real_rows_are_not_known_is_left_alone_by_the_core() -> None:
    h, v = random_row(64, 1), random_row(64, 2)
    directions = _core.Directions(N_LAYER, 64, [(IL, v)])
    there = _core.Term(directions, 1.0, "add_within", 0, N_LAYER)
    np.testing.assert_array_equal(apply(h, there), h)


@pytest.mark.parametrize(
    ("components", "center", "radius2", "why"),
    [
        (np.ones(64), np.zeros(1), 0.0, "radius above 0"),
        (np.ones(64), np.zeros(1), -1.0, "radius above 0"),
        (np.ones(64), np.zeros(1), np.nan, "must be finite"),
        (np.full(64, np.nan), np.zeros(1), 1.0, "must be finite"),
        (np.ones(64), np.full(1, np.inf), 1.0, "must be finite"),
        (np.ones(63), np.zeros(1), 1.0, "one center for each"),
        (np.ones(64), np.zeros(2), 1.0, "one center for each"),
        (np.ones(0), np.zeros(0), 1.0, "one center for each"),
    ],
)
def test_ellipsoid_that_is_none_is_refused(
    components: Row, center: Row, radius2: float, why: str
) -> None:
    found = components.astype(np.float32), center.astype(np.float32), radius2
    with pytest.raises(VectorShapeError, match=why):
        _core.Directions(N_LAYER, 64, [(IL, random_row(64, 2))], {}, {IL: found})


def test_ellipsoid_of_a_layer_without_a_direction_is_refused() -> None:
    with pytest.raises(VectorShapeError, match="no direction to limit"):
        _core.Directions(N_LAYER, 64, [(IL, random_row(64, 2))], {}, {0: ellipsoid(64)})
