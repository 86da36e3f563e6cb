"""Finding 8: whether models, methods and precisions arrange the emotions alike.

The follow-up's question (Jeong 2026, arXiv 2604.11050).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyemo.emotions import EMOTIONS
from pyemo.study import figures
from pyemo.study.finding import Finding, Value, Verdict, described, table
from pyemo.study.states import METHODS, States, common_emotions
from pyemo.study.statistics import (
    N_PERMUTATIONS,
    Floats,
    MantelTest,
    cosine_matrix,
    mantel,
    upper,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SEED = 8
LEAST_EMOTIONS = 4


@dataclass(frozen=True, eq=False)
class Geometry:
    """How one model arranges the emotions, by one method.

    Attributes:
        layer: where the directions were taken.
        dissimilarity: 1 - cosine of the directions centred on the mean over emotions, (n, n).
        map: the first two principal components, (n, 2), turned so that they rise with valence and
            arousal.
        valence, arousal: Pearson correlation with pyemo's own placement, of the first and second
            component; nan for emotions that have none.
        p_valence, p_arousal: two-sided permutation p of these.
        shares: variance shares of the two components.
    """

    label: str
    model: str
    method: str
    layer: int
    emotions: tuple[str, ...]
    dissimilarity: Floats
    map: Floats
    valence: float
    arousal: float
    p_valence: float
    p_arousal: float
    shares: tuple[float, float]


def arrange(
    states: States, emotions: tuple[str, ...] | None = None, *, layer: int | None = None
) -> Geometry:
    """Return one model's arrangement of ``emotions`` at ``layer``.

    By default of all it has, at n_layer // 2.
    """
    chosen = states if emotions is None else states.only(emotions)
    at = states.middle if layer is None else layer
    directions = chosen.directions("emotions")[:, at]
    _, singular, components = np.linalg.svd(directions, full_matrices=False)
    points = directions @ components[:2].T
    variance = singular**2
    shares = variance[:2] / variance.sum()
    placed = [EMOTIONS.get(name) for name in chosen.emotions]
    known = np.array([place is not None for place in placed])
    axes = np.array([[p.valence, p.arousal] if p is not None else [0.0, 0.0] for p in placed])
    readings = []
    for k in range(2):
        r, p = _correlation(points[known, k], axes[known, k])
        if r < 0:
            points[:, k] *= -1
        readings.append((abs(r) if not math.isnan(r) else r, p))
    (valence, p_valence), (arousal, p_arousal) = readings
    return Geometry(
        f"{states.model}, {states.method}",
        states.model,
        states.method,
        at,
        chosen.emotions,
        1.0 - cosine_matrix(directions),
        points,
        valence,
        arousal,
        p_valence,
        p_arousal,
        (float(shares[0]), float(shares[1])),
    )


def _correlation(a: Floats, b: Floats) -> tuple[float, float]:
    """Return Pearson's r and its two-sided permutation p; nan for fewer than four points."""
    if len(a) < LEAST_EMOTIONS:
        return math.nan, math.nan
    x, y = a - a.mean(), b - b.mean()
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    if scale == 0:
        return math.nan, math.nan
    rng = np.random.default_rng(SEED)
    drawn = np.array([x @ rng.permutation(y) for _ in range(N_PERMUTATIONS)]) / scale
    r = float(x @ y) / scale
    return r, float((1 + np.sum(np.abs(drawn) >= abs(r) - 1e-12)) / (N_PERMUTATIONS + 1))


@dataclass(frozen=True)
class Likeness:
    """Two arrangements compared."""

    a: Geometry
    b: Geometry
    test: MantelTest

    @property
    def kind(self) -> str:
        """What differs: the model, the method, or both."""
        same_model, same_method = self.a.model == self.b.model, self.a.method == self.b.method
        if same_model:
            return "methods"
        return "models" if same_method else "both"


def compare(sets: Sequence[States]) -> list[Likeness]:
    """Return every pair's Mantel test, over the emotions that both have.

    A pair with fewer than :data:`LEAST_EMOTIONS` is left out.
    """
    pairs = []
    for a, b in itertools.combinations(sets, 2):
        emotions = common_emotions([a, b])
        if len(emotions) >= LEAST_EMOTIONS:
            of_a, of_b = arrange(a, emotions), arrange(b, emotions)
            test = mantel(of_a.dissimilarity, of_b.dissimilarity, seed=SEED)
            pairs.append(Likeness(of_a, of_b, test))
    return pairs


def measure(sets: Sequence[States]) -> list[Geometry]:
    """Return the arrangement of each set that has at least :data:`LEAST_EMOTIONS`."""
    return [arrange(s) for s in sets if len(s.emotions) >= LEAST_EMOTIONS]


def finding(sets: Sequence[States]) -> Finding:
    """Return the finding over all models and methods."""
    geometries, pairs = measure(sets), compare(sets)
    models = [pair for pair in pairs if pair.kind == "models"]
    like = [pair for pair in models if pair.test.p < 0.05]
    gaps: tuple[str, ...] = ()
    if not geometries:
        verdict, reason = (
            Verdict.CANNOT_SAY,
            f"no set of at least {LEAST_EMOTIONS} emotions",
        )
    elif not models:
        verdict, reason = Verdict.CANNOT_SAY, "one model only: nothing to compare it with"
        gaps = ("Models are not compared: the study had one.",)
    elif len(like) == len(models):
        verdict, reason = (
            Verdict.HOLDS,
            f"all {len(models)} pairs of models are alike (Mantel p < 0.05)",
        )
    elif not like:
        verdict, reason = (
            Verdict.DOES_NOT,
            f"none of {len(models)} pairs of models is alike (Mantel p < 0.05)",
        )
    else:
        verdict, reason = (
            Verdict.CANNOT_SAY,
            f"{len(like)} of {len(models)} pairs of models are alike (Mantel p < 0.05): "
            + ", ".join(
                f"{sum(p.a.method == method for p in like)} of {len(of)} by {method}"
                for method in METHODS
                if (of := [p for p in models if p.a.method == method])
            ),
        )
    return described(
        "geometry",
        numbers=dict(n_permutations=N_PERMUTATIONS, seed=SEED),
        ours="; ".join(
            f"{p.a.label} and {p.b.label}: {p.test.rho:.2f} (p = {p.test.p:.4f})" for p in models
        )
        or "none",
        verdict=verdict,
        reason=reason,
        tables=(
            table(
                "geometry",
                ("a", "b", "what differs", "emotions", "Spearman rho", "Mantel p"),
                [
                    (p.a.label, p.b.label, p.kind, len(p.a.emotions), p.test.rho, p.test.p)
                    for p in pairs
                ],
            ),
            table(
                "geometry-axes",
                (
                    "model",
                    "method",
                    "layer",
                    "emotions",
                    "share of component 1",
                    "share of component 2",
                    "r valence, component 1",
                    "p",
                    "r arousal, component 2",
                    "p ",
                ),
                [_axes_row(g) for g in geometries],
            ),
            table(
                "geometry-dissimilarity",
                ("model", "method", "emotion", "other", "1 - cosine"),
                [
                    (g.model, g.method, g.emotions[i], g.emotions[j], float(value))
                    for g in geometries
                    for (i, j), value in zip(
                        itertools.combinations(range(len(g.emotions)), 2),
                        upper(g.dissimilarity),
                        strict=True,
                    )
                ],
                is_long=True,
            ),
        ),
        figure=(lambda: draw(geometries)) if geometries else None,
        gaps=gaps,
    )


def _axes_row(g: Geometry) -> list[Value]:
    numbers = (*g.shares, g.valence, g.p_valence, g.arousal, g.p_arousal)
    return [
        g.model,
        g.method,
        g.layer,
        len(g.emotions),
        *(None if math.isnan(x) else x for x in numbers),
    ]


def draw(geometries: Sequence[Geometry]) -> Figure:
    """Return a map, coloured by valence, and a heat map for each model and method."""
    figure, axes = figures.panels(2 * len(geometries), width=5.0, height=4.2, columns=2)
    for axis, beside, g in zip(axes[::2], axes[1::2], geometries, strict=True):
        values = [EMOTIONS[name].valence if name in EMOTIONS else 0.0 for name in g.emotions]
        axis.scatter(g.map[:, 0], g.map[:, 1], c=values, cmap="coolwarm_r", vmin=-1, vmax=1, s=18)
        for name, (x, y) in zip(g.emotions, g.map, strict=True):
            axis.annotate(name, (x, y), fontsize=7, xytext=(3, 2), textcoords="offset points")
        axis.set(title=g.label, xlabel="component 1", ylabel="component 2")
        axis.title.set_fontsize(9)
        axis.margins(0.15)
        _draw_heat_map(figure, beside, g)
    return figure


def _draw_heat_map(figure: Figure, axis: Axes, g: Geometry) -> None:
    """Draw the dissimilarities, emotions sorted along the first component."""
    order = np.argsort(g.map[:, 0])
    image = axis.imshow(g.dissimilarity[np.ix_(order, order)], cmap="viridis", vmin=0, vmax=2)
    names = [g.emotions[i] for i in order]
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set_title(f"1 - cosine, {g.label}", fontsize=9)
    axis.grid(visible=False)
    figure.colorbar(image, ax=axis, shrink=0.8)
