"""Each statistic against SciPy or a hand-worked example."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pyemo.errors import InputError
from pyemo.study.statistics import (
    cohens_d,
    compare_groups,
    cosine_matrix,
    mantel,
    mean_pairwise_cosine,
    paired_difference,
    upper,
)


def test_mean_pairwise_cosine_is_the_mean_over_all_pairs() -> None:
    rows = np.random.default_rng(0).standard_normal((7, 3, 11))
    cosines = [
        [
            1 - stats_cosine(rows[i, layer], rows[j, layer])
            for i, j in itertools.combinations(range(7), 2)
        ]
        for layer in range(3)
    ]
    np.testing.assert_allclose(mean_pairwise_cosine(rows), np.mean(cosines, axis=1), rtol=1e-12)


def stats_cosine(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.spatial.distance import cosine

    return float(cosine(a, b))


def test_mean_pairwise_cosine_of_one_direction_is_refused() -> None:
    with pytest.raises(InputError, match="at least two"):
        mean_pairwise_cosine(np.ones((1, 4)))


def test_centring_puts_equal_lengths_at_minus_one_over_n_minus_one() -> None:
    # four corners of a tetrahedron, moved away from the origin and centred again
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], float) + 5
    centred = corners - corners.mean(axis=0)
    assert mean_pairwise_cosine(centred) == pytest.approx(-1 / 3)


def test_cosine_matrix_has_ones_on_its_diagonal_and_is_symmetric() -> None:
    matrix = cosine_matrix(np.random.default_rng(1).standard_normal((5, 8)))
    np.testing.assert_allclose(np.diag(matrix), 1)
    np.testing.assert_allclose(matrix, matrix.T)


def test_group_test_is_scipys_mann_whitney() -> None:
    a, b = [0.4, 0.5, 0.45, 0.6], [0.7, 0.9, 0.8]
    found = compare_groups(a, b)
    expected = stats.mannwhitneyu(a, b, alternative="two-sided", method="exact")
    assert (found.u, found.p) == pytest.approx((expected.statistic, expected.pvalue))


@pytest.mark.parametrize(("n1", "n2"), [(3, 3), (4, 5), (7, 7)])
def test_smallest_p_is_what_complete_separation_gives(n1: int, n2: int) -> None:
    found = compare_groups(np.arange(n1), 100 + np.arange(n2))
    assert found.p == pytest.approx(found.smallest_p)


def test_three_models_against_three_cannot_reject() -> None:
    found = compare_groups([1, 2, 3], [4, 5, 6])
    assert found.smallest_p == pytest.approx(0.1)
    assert not found.can_reject


def test_cohens_d_of_a_worked_example() -> None:
    # means 2 and 5; variances 1 and 1; pooled standard deviation 1
    assert cohens_d([1, 2, 3], [4, 5, 6]) == pytest.approx(-3.0)


def test_cohens_d_of_single_numbers_is_not_known() -> None:
    assert math.isnan(cohens_d([1.0], [2.0]))


def test_mantel_rho_is_scipys_spearman() -> None:
    rng = np.random.default_rng(2)
    a, b = (symmetric(rng.random((6, 6))) for _ in range(2))
    found = mantel(a, b, n_permutations=99)
    assert found.rho == pytest.approx(stats.spearmanr(upper(a), upper(b)).statistic)


def test_mantel_p_counts_all_relabelings_of_few_labels() -> None:
    a = symmetric(np.random.default_rng(3).random((4, 4)))
    rows, columns = np.triu_indices(4, k=1)
    rhos = [
        stats.spearmanr(a[rows, columns], a[np.ix_(order, order)][rows, columns]).statistic
        for order in map(list, itertools.permutations(range(4)))
    ]
    expected = np.mean([rho >= 1 - 1e-9 for rho in rhos])
    assert mantel(a, a).p == pytest.approx(expected)


def test_mantel_finds_a_matrix_again_under_noise() -> None:
    rng = np.random.default_rng(4)
    a = symmetric(rng.random((12, 12)))
    b = symmetric(a + 0.1 * rng.standard_normal((12, 12)))
    assert mantel(a, b, n_permutations=999).p < 0.01


def test_mantel_refuses_matrices_of_unlike_size() -> None:
    with pytest.raises(InputError, match="same 3 or more labels"):
        mantel(np.zeros((4, 4)), np.zeros((5, 5)))


def test_paired_difference_of_few_pairs_counts_all_signs() -> None:
    found = paired_difference([2, 3, 4], [1, 1, 1])
    # of the 8 sign patterns only + + + and - - - are as far from 0
    assert found.p == pytest.approx(2 / 8)
    assert found.difference.value == pytest.approx(2.0)


def test_paired_difference_agrees_with_scipys_permutation_test() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.5, 1, 30), rng.normal(0, 1, 30)
    expected = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        rng=6,
    )
    assert paired_difference(a, b).p == pytest.approx(expected.pvalue, abs=0.01)


def symmetric(matrix: np.ndarray) -> np.ndarray:
    out = (matrix + matrix.T) / 2
    np.fill_diagonal(out, 0)
    return out
