"""Planted directions are found; what neutral texts vary in goes; nothing is made of nothing."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pyemo.errors import InputError
from pyemo.extract import directions as dirs

N_LAYER, N_EMBD = 3, 24
Floats = NDArray[np.float64]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def planted(rng: np.random.Generator) -> Floats:
    rows = rng.standard_normal((N_LAYER, N_EMBD))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def noisy(rng: np.random.Generator, centre: Floats, n: int, noise: float = 0.02) -> Floats:
    return centre + noise * rng.standard_normal((n, *centre.shape))


def cosines(one: Floats, other: Floats) -> Floats:
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return np.sum(one * other, axis=-1) / lengths


def test_mean_difference_finds_a_planted_direction(rng: np.random.Generator) -> None:
    direction, base = planted(rng), rng.standard_normal((N_LAYER, N_EMBD))
    states = {"angry": noisy(rng, base + direction, 8), "neutral": noisy(rng, base, 8)}
    means = dirs.class_means(states)
    assert cosines(means["angry"] - means["neutral"], direction).min() > 0.99


def test_every_class_counts_the_same_in_the_mean_over_classes(rng: np.random.Generator) -> None:
    many, few = np.ones((100, N_LAYER, N_EMBD)), np.zeros((3, N_LAYER, N_EMBD))
    mean = dirs.mean_of_classes(dirs.class_means({"many": many, "few": few}))
    assert np.array_equal(mean, np.full((N_LAYER, N_EMBD), 0.5))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_pca_of_differences_finds_a_planted_direction_with_its_sign(
    rng: np.random.Generator, sign: float
) -> None:
    direction = sign * planted(rng)
    strengths = rng.uniform(0.5, 1.5, (12, 1, 1))  # the largest variation lies along it
    differences = noisy(rng, np.zeros((N_LAYER, N_EMBD)), 12) + strengths * direction
    found = dirs.pair_direction(differences)
    assert cosines(found, direction).min() > 0.99
    assert np.allclose(np.linalg.norm(found, axis=1), 1)


def test_pca_is_not_misled_by_a_few_pairs_the_other_way_round(rng: np.random.Generator) -> None:
    direction = planted(rng)
    signs = np.array([1.0] * 9 + [-1.0] * 3)[:, None, None]
    found = dirs.pair_direction(noisy(rng, np.zeros((N_LAYER, N_EMBD)), 12) + signs * direction)
    assert cosines(found, direction).min() > 0.99


@pytest.mark.parametrize(("share", "n_expected"), [(0.0, 0), (0.5, 1), (0.95, 2), (0.9999, 3)])
def test_components_are_as_few_as_hold_the_share_of_the_variance(
    rng: np.random.Generator, share: float, n_expected: int
) -> None:
    # Three independent axes that hold 80%, 16% and 4% of the variance, exactly.
    axes = np.linalg.qr(rng.standard_normal((N_EMBD, N_EMBD)))[0][:3]
    scores = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * np.sqrt([80, 16, 4])
    states = np.repeat((scores @ axes)[:, None], N_LAYER, axis=1)
    for basis in dirs.principal_components(states, share):
        assert len(basis) == n_expected
        assert np.allclose(basis @ basis.T, np.eye(n_expected))
        assert np.allclose(np.abs(basis @ axes.T), np.eye(3)[:n_expected], atol=1e-9)


def test_texts_that_are_all_the_same_have_no_components() -> None:
    bases = dirs.principal_components(np.ones((5, N_LAYER, N_EMBD)), 0.5)
    assert [len(basis) for basis in bases] == [0] * N_LAYER


def test_projecting_out_leaves_what_is_orthogonal_and_nothing_else(
    rng: np.random.Generator,
) -> None:
    basis = np.linalg.qr(rng.standard_normal((N_EMBD, 4)))[0].T
    kept = planted(rng)
    kept -= kept @ basis.T @ basis
    mixed = kept + rng.standard_normal((N_LAYER, 4)) @ basis
    assert np.allclose(dirs.project_out(mixed, [basis] * N_LAYER), kept)


def test_unit_names_the_class_and_the_layer_without_variance(rng: np.random.Generator) -> None:
    rows = planted(rng)
    rows[1] = 0
    with pytest.raises(InputError, match=r"'angry' do not differ .* layer 1 \(zero variance\)"):
        dirs.unit(rows, "angry")


def test_unit_refuses_numbers_that_are_not_finite(rng: np.random.Generator) -> None:
    rows = planted(rng)
    rows[2, 0] = np.nan
    with pytest.raises(InputError):
        dirs.unit(rows, "angry")
