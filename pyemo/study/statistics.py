"""The study's statistics: intervals, tests and correlations.

Pure functions of numbers; SciPy where it has them.

Every random draw takes a seed, so that a report can be made again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyemo.errors import InputError
from pyemo.measures.bootstrap import Interval

Floats = npt.NDArray[np.float64]

N_RESAMPLES = 1000
N_PERMUTATIONS = 9999


def percentile_interval(value: float, resampled: npt.ArrayLike) -> Interval:
    """Return ``value`` with the 2.5 and 97.5 percentiles of its bootstrap distribution."""
    low, high = np.quantile(np.asarray(resampled, np.float64), [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


@dataclass(frozen=True)
class GroupTest:
    """Two groups of independent numbers compared, as the paper compares its methods.

    Attributes:
        u: Mann-Whitney U of the first group.
        p: two-sided; exact where there are no ties.
        smallest_p: the smallest two-sided p that these group sizes allow: 2 / C(n1 + n2, n1).
        cohens_d: difference of means over the pooled standard deviation (n1 + n2 - 2 degrees of
            freedom).
        n: group sizes.
    """

    u: float
    p: float
    smallest_p: float
    cohens_d: float
    n: tuple[int, int]

    @property
    def can_reject(self) -> bool:
        """Whether any outcome at these sizes could fall below 0.05."""
        return self.smallest_p < 0.05


def compare_groups(a: npt.ArrayLike, b: npt.ArrayLike) -> GroupTest:
    """Return Mann-Whitney U and Cohen's d of two groups, each at least one number."""
    from scipy.stats import mannwhitneyu

    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    test = mannwhitneyu(x, y, alternative="two-sided", method="auto")
    smallest = min(1.0, 2 / math.comb(len(x) + len(y), len(x)))
    return GroupTest(
        float(test.statistic), float(test.pvalue), smallest, cohens_d(x, y), (len(x), len(y))
    )


def cohens_d(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Return (mean a - mean b) / pooled standard deviation.

    Nan for fewer than two numbers a group.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if len(x) < 2 or len(y) < 2:
        return math.nan
    pooled = ((len(x) - 1) * x.var(ddof=1) + (len(y) - 1) * y.var(ddof=1)) / (len(x) + len(y) - 2)
    difference = float(x.mean() - y.mean())
    if pooled == 0:
        return math.nan if difference == 0 else math.copysign(math.inf, difference)
    return difference / math.sqrt(float(pooled))


# --- cosines ---


def units(rows: npt.ArrayLike) -> Floats:
    """Return rows (..., n_embd) at unit length; a zero row stays zero."""
    values = np.asarray(rows, np.float64)
    lengths = np.linalg.norm(values, axis=-1, keepdims=True)
    unit: Floats = np.divide(values, lengths, out=np.zeros_like(values), where=lengths > 0)
    return unit


def mean_pairwise_cosine(directions: npt.ArrayLike) -> Floats:
    """Return the mean cosine over all pairs of the first axis: (n, ..., n_embd) -> (...).

    (|sum of units|^2 - n) / (n (n - 1)), which is the mean over pairs without forming them.

    Raises:
        InputError: fewer than two directions.
    """
    rows = units(directions)
    n = len(rows)
    if n < 2:
        raise InputError(f"{n} direction has no pair; at least two are needed")
    total = rows.sum(axis=0)
    lengths = (rows**2).sum(axis=(0, -1))  # n, less the zero rows
    return np.asarray(((total**2).sum(axis=-1) - lengths) / (n * (n - 1)))


def cosine_matrix(directions: npt.ArrayLike) -> Floats:
    """Return (n, n) cosines of (n, n_embd)."""
    rows = units(directions)
    cosines: Floats = np.clip(rows @ rows.T, -1.0, 1.0)
    return cosines


# --- matrices of dissimilarity ---


def upper(matrix: npt.ArrayLike) -> Floats:
    """Return the upper triangle of a square matrix without its diagonal, row by row."""
    values = np.asarray(matrix, np.float64)
    return values[np.triu_indices(len(values), k=1)]


@dataclass(frozen=True)
class MantelTest:
    """Spearman correlation of two dissimilarity matrices (Mantel 1967).

    Attributes:
        rho: Spearman correlation of the upper triangles.
        p: share of relabelings with a correlation at least as high, this one counted; one-sided.
    """

    rho: float
    p: float


def mantel(
    a: npt.ArrayLike, b: npt.ArrayLike, *, n_permutations: int = N_PERMUTATIONS, seed: int = 0
) -> MantelTest:
    """Return the Mantel test of two square dissimilarity matrices over the same labels.

    All relabelings are used where there are no more of them than ``n_permutations``.

    Raises:
        InputError: fewer than three labels, or matrices of unlike size.
    """
    from scipy.stats import rankdata

    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    n = len(x)
    if x.shape != y.shape or n < 3:
        raise InputError(
            f"matrices of {x.shape} and {y.shape} cannot be compared; both need the same "
            "3 or more labels"
        )
    rows, columns = np.triu_indices(n, k=1)
    ranks = np.zeros((n, n))
    ranks[rows, columns] = ranks[columns, rows] = _standard(rankdata(y[rows, columns]))
    fixed = _standard(rankdata(x[rows, columns]))
    rho = float(fixed @ ranks[rows, columns])
    n_all = math.factorial(n) if n < 9 else math.inf
    if n_all <= n_permutations:
        orders = np.array(list(itertools.permutations(range(n))))
        found = np.array([fixed @ ranks[o[rows], o[columns]] for o in orders])
        return MantelTest(rho, float(np.mean(found >= rho - 1e-12)))
    rng = np.random.default_rng(seed)
    found = np.empty(n_permutations)
    for i in range(n_permutations):
        order = rng.permutation(n)
        found[i] = fixed @ ranks[order[rows], order[columns]]
    return MantelTest(rho, float((1 + np.sum(found >= rho - 1e-12)) / (n_permutations + 1)))


def _standard(values: Floats) -> Floats:
    """Return values with mean 0 and length 1, so that a dot product is a correlation."""
    centred: Floats = values - values.mean()
    length = float(np.linalg.norm(centred))
    return centred / length if length > 0 else centred


@dataclass(frozen=True)
class PairedTest:
    """A mean paired difference.

    Attributes:
        difference: mean of a - b with its bootstrap interval.
        p: two-sided sign-flip permutation test.
    """

    difference: Interval
    p: float


def paired_difference(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> PairedTest:
    """Return the mean of a - b, its bootstrap interval and a sign-flip p.

    Raises:
        InputError: unlike lengths or nothing to compare.
    """
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    n = len(differences)
    if n == 0:
        raise InputError("no pairs to compare")
    rng = np.random.default_rng(seed)
    resampled = differences[rng.integers(0, n, (N_RESAMPLES, n))].mean(axis=1)
    mean = float(differences.mean())
    if n <= 13:
        signs = np.array(list(itertools.product([1.0, -1.0], repeat=n)))
        flipped = np.abs(signs @ differences) / n
        p = float(np.mean(flipped >= abs(mean) - 1e-12))
    else:
        signs = rng.choice([1.0, -1.0], (N_PERMUTATIONS, n))
        flipped = np.abs(signs @ differences) / n
        p = float((1 + np.sum(flipped >= abs(mean) - 1e-12)) / (N_PERMUTATIONS + 1))
    return PairedTest(percentile_interval(mean, resampled), p)
