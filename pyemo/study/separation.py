"""Finding 1: how far apart the emotions' directions lie.

The paper's measure is the mean pairwise cosine: lower is further apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyemo.emotions import PAPER_OPPOSITES
from pyemo.measures.bootstrap import Interval
from pyemo.study import figures
from pyemo.study.finding import Finding, Verdict, described, table
from pyemo.study.states import Centring, States
from pyemo.study.statistics import (
    N_RESAMPLES,
    Floats,
    cosine_matrix,
    mean_pairwise_cosine,
    percentile_interval,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CENTRINGS: tuple[Centring, ...] = ("neutral", "emotions")
PAPER_FLOOR = 0.35
SEED = 1


@dataclass(frozen=True, eq=False)
class Separation:
    """Separation of one model by one method.

    Attributes:
        curves: centring -> mean pairwise cosine by layer, (n_layers,).
        middle: the neutral-centred mean pairwise cosine at layer n_layer // 2, with its interval
            over texts.
        opposites: (emotion, opposite, cosine at that layer), neutral-centred.
        centred_floor: -1 / (n - 1), where centring on the emotions' mean puts any n directions of
            equal length.
    """

    states: States
    curves: dict[Centring, Floats]
    middle: Interval
    opposites: tuple[tuple[str, str, float], ...]
    centred_floor: float


def separate(states: States, *, n_resamples: int = N_RESAMPLES) -> Separation:
    """Return how far apart the directions of one model and method lie."""
    layer = states.middle
    curves = {c: mean_pairwise_cosine(states.directions(c)) for c in CENTRINGS}
    drawn = states.resampled_directions(
        "neutral", states.n_texts, n_resamples, SEED, slice(layer, layer + 1)
    )
    at_middle = states.directions("neutral")[:, layer]
    cosines = cosine_matrix(at_middle)
    names = states.emotions
    opposites = tuple(
        (a, b, float(cosines[names.index(a), names.index(b)]))
        for a, b in PAPER_OPPOSITES
        if a in names and b in names
    )
    value = float(curves["neutral"][layer])
    interval = percentile_interval(value, mean_pairwise_cosine(drawn)[:, 0])
    return Separation(states, curves, interval, opposites, -1 / (len(names) - 1))


def finding(results: Sequence[Separation]) -> Finding:
    """Return the finding over all models and methods."""
    lows, highs = [r.middle.low for r in results], [r.middle.high for r in results]
    n_negative = sum(cosine < 0 for r in results for *_, cosine in r.opposites)
    if min(lows) > PAPER_FLOOR and not n_negative:
        verdict = Verdict.HOLDS
        reason = f"every interval lies above {PAPER_FLOOR} and no opposite pair is negative"
    elif min(highs) < PAPER_FLOOR or n_negative:
        verdict = Verdict.DOES_NOT
        below = [
            f"{r.states.model}, {r.states.method}" for r in results if r.middle.high < PAPER_FLOOR
        ]
        reason = (
            f"{n_negative} opposite pairs are negative; below {PAPER_FLOOR}: "
            f"{'; '.join(below) or 'none'}"
        )
    else:
        verdict = Verdict.CANNOT_SAY
        reason = f"an interval reaches below {PAPER_FLOOR}"
    return described(
        "separation",
        numbers=dict(n_resamples=N_RESAMPLES, seed=SEED),
        ours="; ".join(f"{r.states.model}, {r.states.method}: {r.middle}" for r in results),
        verdict=verdict,
        reason=reason,
        tables=(
            table(
                "separation",
                (
                    "model",
                    "method",
                    "emotions",
                    "texts a class",
                    "layer",
                    "mean pairwise cosine (neutral)",
                    "low",
                    "high",
                    "the same, centred on emotions",
                    "-1/(n-1)",
                    *(f"{a}/{b}" for a, b in PAPER_OPPOSITES),
                ),
                [_row(r) for r in results],
            ),
            table(
                "separation-layers",
                ("model", "method", "centring", "layer", "mean pairwise cosine"),
                [
                    (r.states.model, r.states.method, centring, layer, float(value))
                    for r in results
                    for centring, curve in r.curves.items()
                    for layer, value in enumerate(curve)
                ],
                is_long=True,
            ),
        ),
        figure=lambda: draw(results),
    )


def _row(r: Separation) -> list[str | int | float | None]:
    opposites: dict[tuple[str, str], float] = {(a, b): cosine for a, b, cosine in r.opposites}
    return [
        r.states.model,
        r.states.method,
        len(r.states.emotions),
        r.states.n_texts,
        r.states.middle,
        r.middle.value,
        r.middle.low,
        r.middle.high,
        float(r.curves["emotions"][r.states.middle]),
        r.centred_floor,
        *(opposites.get(pair) for pair in PAPER_OPPOSITES),
    ]


def draw(results: Sequence[Separation]) -> Figure:
    """Return both centrings over depth, a line for each model and method."""
    figure, axes = figures.panels(len(CENTRINGS))
    for axis, centring in zip(axes, CENTRINGS, strict=True):
        for r in results:
            curve = r.curves[centring]
            depth = np.arange(len(curve)) / (r.states.n_layer - 1)
            axis.plot(depth, curve, **figures.line(r.states.model, r.states.method))
        axis.set(
            title=f"centred on {centring}",
            xlabel="depth (share of layers)",
            ylabel="mean pairwise cosine",
        )
    figures.legend(figure, axes[0])
    return figure
