"""Finding 3: at which depth the emotions are furthest apart, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyemo.study import figures
from pyemo.study.finding import Finding, Verdict, described, table
from pyemo.study.states import States
from pyemo.study.statistics import Floats, mean_pairwise_cosine, units

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEED = 3
N_RESAMPLES = 500
_CHUNK = 20  # resamples held at a time
SURE = 0.95


@dataclass(frozen=True, eq=False)
class Localization:
    """Where the minimum of one model's curve lies.

    Attributes:
        curve: neutral-centred mean pairwise cosine by layer, (n_layers,).
        best: layer of its minimum.
        share_in_middle: share of bootstrap resamples, over emotions and texts, whose minimum lies
            in the middle third.
        best_low, best_high: 95% interval of the best layer over those resamples.
        accuracy: share of held-out texts whose nearest emotion is their own, by layer; None
            without held-out texts.
    """

    states: States
    curve: Floats
    best: int
    share_in_middle: float
    best_low: int
    best_high: int
    accuracy: Floats | None

    @property
    def depth(self) -> float:
        """The best layer's depth: layer / n_layer."""
        return self.best / self.states.n_layer


def middle_third(n_layer: int) -> range:
    """Return the layers of the middle third of the depth."""
    return range(-(-n_layer // 3), -(-2 * n_layer // 3))


def localize(states: States, *, n_resamples: int = N_RESAMPLES) -> Localization:
    """Return where one model's emotions are furthest apart."""
    curve = mean_pairwise_cosine(states.directions("neutral"))
    minima = _resampled_minima(states, n_resamples)
    middle = middle_third(states.n_layer)
    low, high = np.quantile(minima, [0.025, 0.975], method="nearest")
    return Localization(
        states,
        curve,
        int(np.argmin(curve)),
        float(np.mean([m in middle for m in minima])),
        int(low),
        int(high),
        held_out_accuracy(states),
    )


def _resampled_minima(states: States, n_resamples: int) -> list[int]:
    """Return the best layer of each resample.

    An emotion that is drawn twice does not pair with itself.
    """
    rng = np.random.default_rng(SEED)
    n = len(states.emotions)
    minima: list[int] = []
    while len(minima) < n_resamples:
        size = min(_CHUNK, n_resamples - len(minima))
        drawn = units(
            states.resampled_directions("neutral", states.n_texts, size, SEED + 1 + len(minima))
        )
        cosines = np.einsum("irle,jrle->rlij", drawn, drawn, optimize=True)
        for matrix in cosines:
            counts = rng.multinomial(n, [1 / n] * n).astype(np.float64)
            weights = np.outer(counts, counts)
            np.fill_diagonal(weights, 0.0)
            if weights.sum() == 0:  # one emotion drawn n times
                continue
            minima.append(int(np.argmin((matrix * weights).sum(axis=(1, 2)))))
    return minima


def held_out_accuracy(states: States) -> Floats | None:
    """Return the share of held-out texts nearest to their own emotion, by layer.

    None without such texts.

    Nearest by cosine, everything centred on the mean over the emotions' train means.
    """
    if not states.held_out:
        return None
    train = np.stack(
        [np.asarray(states.by_class[e], np.float64).mean(axis=0) for e in states.emotions]
    )
    base = train.mean(axis=0)
    directions = units(train - base)
    right, total = np.zeros(states.n_layers), 0
    for emotion, rows in states.held_out.items():
        cosines = np.einsum("tle,cle->tlc", np.asarray(rows, np.float64) - base, directions)
        right += (cosines.argmax(axis=2) == states.emotions.index(emotion)).sum(axis=0)
        total += len(rows)
    return np.asarray(right / total)


def finding(results: Sequence[Localization]) -> Finding:
    """Return the finding over all models and methods."""
    sure = [r.share_in_middle >= SURE for r in results]
    against = [r for r in results if r.share_in_middle <= 1 - SURE]
    if all(sure):
        verdict, reason = (
            Verdict.HOLDS,
            "the minimum lies in the middle third in at least 95% of resamples, everywhere",
        )
    elif against:
        verdict = Verdict.DOES_NOT
        where = ", ".join(f"{r.states.model} ({r.states.method}) at {r.depth:.0%}" for r in against)
        reason = f"the minimum surely lies elsewhere for {where}"
    else:
        verdict = Verdict.CANNOT_SAY
        reason = f"the resamples agree for {sum(sure)} of {len(results)} curves only"
    return described(
        "layers",
        numbers=dict(n_resamples=N_RESAMPLES, seed=SEED),
        ours="; ".join(
            f"{r.states.model}, {r.states.method}: layer {r.best} ({r.depth:.0%}), "
            f"{r.share_in_middle:.0%} in the middle third"
            for r in results
        ),
        verdict=verdict,
        reason=reason,
        tables=(
            table(
                "layers",
                (
                    "model",
                    "method",
                    "best layer",
                    "depth",
                    "best layer, low",
                    "best layer, high",
                    "share of resamples in the middle third",
                    "best held-out accuracy",
                    "at layer",
                ),
                [_row(r) for r in results],
            ),
            table(
                "layers-curves",
                ("model", "method", "layer", "mean pairwise cosine", "held-out accuracy"),
                [
                    (
                        r.states.model,
                        r.states.method,
                        layer,
                        float(value),
                        None if r.accuracy is None else float(r.accuracy[layer]),
                    )
                    for r in results
                    for layer, value in enumerate(r.curve)
                ],
                is_long=True,
            ),
        ),
        figure=lambda: draw(results),
    )


def _row(r: Localization) -> list[str | int | float | None]:
    accuracy = None if r.accuracy is None else float(r.accuracy.max())
    at = None if r.accuracy is None else int(r.accuracy.argmax())
    return [
        r.states.model,
        r.states.method,
        r.best,
        r.depth,
        r.best_low,
        r.best_high,
        r.share_in_middle,
        accuracy,
        at,
    ]


def draw(results: Sequence[Localization]) -> Figure:
    """Return both curves over depth, the middle third shaded."""
    figure, axes = figures.panels(2)
    for axis in axes:
        axis.axvspan(1 / 3, 2 / 3, color="0.93", zorder=0)
        axis.set(xlabel="depth (share of layers)")
    for r in results:
        depth = np.arange(len(r.curve)) / r.states.n_layer
        style = figures.line(r.states.model, r.states.method)
        axes[0].plot(depth, r.curve, **style)
        axes[0].plot([r.depth], [r.curve[r.best]], "o", color=style["color"], markersize=4)
        if r.accuracy is not None:
            axes[1].plot(depth, r.accuracy, **style)
    axes[0].set(title="separation", ylabel="mean pairwise cosine")
    axes[1].set(title="held-out texts", ylabel="accuracy")
    figures.legend(figure, axes[0])
    return figure
