"""Finding 2: which method separates the emotions better, generation or comprehension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyemo.errors import InputError
from pyemo.measures.bootstrap import Interval
from pyemo.study import figures
from pyemo.study.finding import Finding, Verdict, described, table
from pyemo.study.states import States, common_emotions
from pyemo.study.statistics import (
    N_RESAMPLES,
    GroupTest,
    compare_groups,
    mean_pairwise_cosine,
    percentile_interval,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEED = 2


@dataclass(frozen=True, eq=False)
class MethodComparison:
    """Both methods on one model, with the same centring, emotions and number of texts.

    Attributes:
        generation, comprehension: neutral-centred mean pairwise cosine at layer n_layer // 2.
        difference: generation - comprehension; below 0, generation separates better.
        n_texts: texts a class that each resample draws.
    """

    model: str
    generation: float
    comprehension: float
    difference: Interval
    n_texts: int
    n_emotions: int


def compare(
    generation: States, comprehension: States, *, n_resamples: int = N_RESAMPLES
) -> MethodComparison:
    """Return the paired difference of the methods on one model.

    The point estimate uses all texts. Noise in class means moves mean cosines, so both methods are
    resampled with as many texts a class as the one that has fewer.

    Raises:
        InputError: fewer than two emotions in common.
    """
    emotions = common_emotions([generation, comprehension])
    if len(emotions) < 2:
        raise InputError(
            f"{generation.model}: the methods have {len(emotions)} emotions in common; two are "
            f"needed"
        )
    layer = slice(generation.middle, generation.middle + 1)
    sides = [generation.only(emotions), comprehension.only(emotions)]
    n_texts = min(side.n_texts for side in sides)
    values = [
        float(mean_pairwise_cosine(side.directions("neutral")[:, layer])[0]) for side in sides
    ]
    drawn = [
        mean_pairwise_cosine(
            side.resampled_directions("neutral", n_texts, n_resamples, SEED + i, layer)
        )[:, 0]
        for i, side in enumerate(sides)
    ]
    # The bootstrap's own bias (resampled means are noisier) is taken off each side.
    shifted = (drawn[0] - drawn[0].mean() + values[0]) - (drawn[1] - drawn[1].mean() + values[1])
    difference = percentile_interval(values[0] - values[1], shifted)
    return MethodComparison(
        generation.model, values[0], values[1], difference, n_texts, len(emotions)
    )


def finding(results: Sequence[MethodComparison]) -> Finding:
    """Return the finding over all models."""
    test = compare_groups([r.generation for r in results], [r.comprehension for r in results])
    better = sum(r.difference.high < 0 for r in results)
    worse = sum(r.difference.low > 0 for r in results)
    if better == len(results):
        verdict, reason = (
            Verdict.HOLDS,
            "generation's mean cosine is lower on every model, each interval below 0",
        )
    elif worse:
        verdict = Verdict.DOES_NOT
        reason = (
            f"comprehension separates better on {worse} of {len(results)} models, generation on "
            f"{better}"
        )
    else:
        verdict = Verdict.CANNOT_SAY
        reason = f"only {better} of {len(results)} intervals lie below 0"
    return described(
        "methods",
        numbers=dict(n_resamples=N_RESAMPLES, seed=SEED),
        ours="; ".join(f"{r.model}: difference {r.difference}" for r in results),
        verdict=verdict,
        reason=f"{reason}. {_group_words(test)}",
        tables=(
            table(
                "methods",
                (
                    "model",
                    "emotions",
                    "texts a class",
                    "generation",
                    "comprehension",
                    "difference",
                    "low",
                    "high",
                ),
                [
                    (
                        r.model,
                        r.n_emotions,
                        r.n_texts,
                        r.generation,
                        r.comprehension,
                        r.difference.value,
                        r.difference.low,
                        r.difference.high,
                    )
                    for r in results
                ],
            ),
            table(
                "methods-groups",
                (
                    "n generation",
                    "n comprehension",
                    "U",
                    "p (two-sided)",
                    "smallest possible p",
                    "Cohen's d",
                    "verdict",
                ),
                [
                    (
                        *test.n,
                        test.u,
                        test.p,
                        test.smallest_p,
                        _finite(test.cohens_d),
                        _group_verdict(test).value,
                    )
                ],
            ),
        ),
        figure=lambda: draw(results),
    )


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def _group_verdict(test: GroupTest) -> Verdict:
    if not test.can_reject:
        return Verdict.CANNOT_SAY
    return Verdict.HOLDS if test.p < 0.05 and test.cohens_d < 0 else Verdict.DOES_NOT


def _group_words(test: GroupTest) -> str:
    words = (
        f"Mann-Whitney over models: U = {test.u:g}, p = {test.p:.3f}, n = {test.n[0]} and "
        f"{test.n[1]}"
    )
    if not test.can_reject:
        words += (
            f"; at these sizes p cannot be below {test.smallest_p:.3f}, so this test cannot say"
        )
    return words


def draw(results: Sequence[MethodComparison]) -> Figure:
    """Return the differences with their intervals."""
    figure, (axis,) = figures.panels(1, width=6.0, height=1.4 + 0.5 * len(results))
    for y, r in enumerate(results):
        d = r.difference
        axis.plot([d.low, d.high], [y, y], color=figures.color(r.model), linewidth=3)
        axis.plot([d.value], [y], "o", color=figures.color(r.model))
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(results)), [r.model for r in results])
    axis.set(
        xlabel="generation less comprehension\n(below 0: generation separates better)",
        ylim=(-0.6, len(results) - 0.4),
    )
    return figure
