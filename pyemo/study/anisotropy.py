"""Finding 4: how alike unrelated texts look to the model, the ground that separation stands on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pyemo.measures.bootstrap import Interval
from pyemo.study import figures
from pyemo.study.finding import Finding, Verdict, described, table
from pyemo.study.separation import Separation
from pyemo.study.statistics import (
    N_RESAMPLES,
    Floats,
    mean_pairwise_cosine,
    percentile_interval,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEED = 4


@dataclass(frozen=True, eq=False)
class Anisotropy:
    """Anisotropy of one model.

    Attributes:
        curve: mean pairwise cosine of raw last-token hidden states of unrelated neutral texts,
            (n_layers,).
        at_middle: the same at layer n_layer // 2, with its interval over texts.
        grouped: what directions of emotions are without emotion: neutral texts in random groups of
            the emotions' number and size, less the mean of one more group; mean pairwise cosine,
            (n_layers,).
    """

    model: str
    n_layer: int
    n_texts: int
    curve: Floats
    at_middle: Interval
    grouped: Floats


def measure(
    model: str,
    n_layer: int,
    last_tokens: npt.NDArray[np.float32],
    pooled: npt.NDArray[np.float32],
    *,
    n_groups: int = 20,
) -> Anisotropy:
    """Return the anisotropy from neutral texts' hidden states.

    Args:
        last_tokens: (n_texts, n_layers, n_embd), of each text's last token.
        pooled: (n_texts, n_layers, n_embd), pooled as the directions' texts are.
        n_groups: as many as there are emotions; reduced where there are too few texts.
    """
    layer = n_layer // 2
    curve = mean_pairwise_cosine(last_tokens)
    rng = np.random.default_rng(SEED)
    n = len(last_tokens)
    rows = np.asarray(last_tokens[:, layer], np.float64)
    # A text drawn twice would pair with itself, so halves are drawn instead: theirs scatter around
    # the whole as the whole does around the population's (Shao and Wu 1989, the delete-half
    # jackknife).
    drawn = [
        float(mean_pairwise_cosine(rows[rng.permutation(n)[: n // 2]])) for _ in range(N_RESAMPLES)
    ]
    scatter = np.asarray(drawn) - np.mean(drawn)
    interval = percentile_interval(float(curve[layer]), float(curve[layer]) + scatter)
    return Anisotropy(model, n_layer, n, curve, interval, _grouped(pooled, n_groups, rng))


def _grouped(pooled: npt.NDArray[np.float32], n_groups: int, rng: np.random.Generator) -> Floats:
    states = np.asarray(pooled, np.float64)
    n_groups = max(2, min(n_groups, len(states) // 2 - 1))
    size = len(states) // (n_groups + 1)
    curves = []
    for _ in range(50):
        order = rng.permutation(len(states))[: (n_groups + 1) * size].reshape(n_groups + 1, size)
        means = np.stack([states[group].mean(axis=0) for group in order])
        curves.append(mean_pairwise_cosine(means[:-1] - means[-1]))
    return np.asarray(np.mean(curves, axis=0))


def finding(results: Sequence[Anisotropy], separations: Sequence[Separation]) -> Finding:
    """Return the finding: separation beside both baselines."""
    by_model = {r.model: r for r in results}
    rows: list[tuple[str | int | float, ...]] = []
    excesses = []
    for s in separations:
        r = by_model.get(s.states.model)
        if r is None:
            continue
        grouped = float(r.grouped[s.states.middle])
        excesses.append(s.middle.high < grouped)
        rows.append(
            (
                r.model,
                s.states.method,
                r.n_texts,
                r.at_middle.value,
                r.at_middle.low,
                r.at_middle.high,
                s.middle.value,
                s.middle.value - r.at_middle.value,
                grouped,
                s.middle.value - grouped,
            )
        )
    if not rows:
        verdict, reason = Verdict.CANNOT_SAY, "no separation to hold against it"
    elif all(excesses):
        verdict = Verdict.HOLDS
        reason = (
            "emotions lie further apart than random groups of neutral texts do, on every model and "
            "by both methods"
        )
    elif not any(excesses):
        verdict = Verdict.DOES_NOT
        reason = "no set of emotions lies further apart than random groups of neutral texts do"
    else:
        verdict = Verdict.CANNOT_SAY
        reason = (
            f"{sum(excesses)} of {len(excesses)} sets lie further apart than random groups of "
            "neutral texts"
        )
    return described(
        "anisotropy",
        ours="; ".join(f"{r.model}: {r.at_middle}" for r in results),
        verdict=verdict,
        reason=reason,
        tables=(
            table(
                "anisotropy",
                (
                    "model",
                    "method",
                    "neutral texts",
                    "anisotropy",
                    "low",
                    "high",
                    "separation",
                    "separation less anisotropy",
                    "random groups",
                    "separation less random groups",
                ),
                rows,
            ),
            table(
                "anisotropy-layers",
                ("model", "layer", "anisotropy", "random groups"),
                [
                    (r.model, layer, float(a), float(b))
                    for r in results
                    for layer, (a, b) in enumerate(zip(r.curve, r.grouped, strict=True))
                ],
                is_long=True,
            ),
        ),
        figure=lambda: draw(results),
    )


def draw(results: Sequence[Anisotropy]) -> Figure:
    """Return both baselines over depth."""
    figure, axes = figures.panels(2)
    for axis, what, title in zip(
        axes,
        ("curve", "grouped"),
        ("unrelated texts", "random groups, neutral-centred"),
        strict=True,
    ):
        for r in results:
            values = getattr(r, what)
            axis.plot(np.arange(len(values)) / (r.n_layer - 1), values, **figures.line(r.model))
        axis.set(title=title, xlabel="depth (share of layers)", ylabel="mean pairwise cosine")
    figures.legend(figure, axes[0])
    return figure
