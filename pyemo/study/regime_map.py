"""Finding 6: which regimes each model shows over strength, and where its cliff is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyemo.measures.regimes import MIN_COHERENT_SHARE, TextRegime
from pyemo.study import figures
from pyemo.study.finding import Finding, Verdict, described, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANDOM = "random"
LEAST_MODELS = 6
"""With this many models architecture and size could be told apart."""


@dataclass(frozen=True)
class Point:
    """One batch of texts: a model, a direction and a strength.

    Attributes:
        emotion: whose direction, or "random".
        dose: displacement of the last block's residual over its norm.
        regimes: of each text.
        as_twin: for each text, whether it is as coherent as its unsteered twin.
        ratio: perplexity ratio to the twins, geometric mean.
    """

    model: str
    architecture: str
    emotion: str
    strength: float
    dose: float
    regimes: tuple[TextRegime, ...]
    as_twin: tuple[bool, ...]
    ratio: float

    def share(self, regime: TextRegime) -> float:
        """Share of the texts in ``regime``."""
        return self.regimes.count(regime) / len(self.regimes)

    @property
    def coherent_share(self) -> float:
        """Share of texts as coherent as their twins."""
        return sum(self.as_twin) / len(self.as_twin)


def cliff(points: Sequence[Point]) -> Point | None:
    """Return the first point, by strength, with too few coherent texts; None if all hold."""
    for point in sorted(points, key=lambda p: p.strength):
        if point.coherent_share < MIN_COHERENT_SHARE:
            return point
    return None


def best(points: Sequence[Point], effects: Sequence[float]) -> int | None:
    """Return the index of the strongest effect among points before the cliff.

    None if there is none.
    """
    edge = cliff(points)
    within = [
        i
        for i, point in enumerate(points)
        if point.strength > 0 and (edge is None or point.strength < edge.strength)
    ]
    return max(within, key=lambda i: effects[i], default=None)


def failure(points: Sequence[Point]) -> TextRegime | None:
    """Return what most of the failing texts beyond the cliff are; None if none fails."""
    texts = [
        regime
        for point in points
        for regime, holds in zip(point.regimes, point.as_twin, strict=True)
        if not holds
    ]
    kinds = (TextRegime.REPETITIVE_COLLAPSE, TextRegime.EXPLOSIVE)
    return max(kinds, key=texts.count) if texts else None


def finding(points: Sequence[Point]) -> Finding:
    """Return the finding over all models."""
    models = {point.model: point.architecture for point in points}
    seen = {r for point in points for r in point.regimes}
    fails = {name: failure([p for p in points if p.model == name]) for name in models}
    words = [f"{name} ({models[name]}): {_word(fails[name])}" for name in models]
    if len(models) < LEAST_MODELS:
        verdict = Verdict.CANNOT_SAY
        reason = (
            f"{len(seen)} of 3 kinds of text appear; architecture and size cannot be told apart "
            f"with {len(models)} models, each of its own family and size"
        )
    else:
        by_family: dict[str, set[TextRegime | None]] = {}
        for name, family in models.items():
            by_family.setdefault(family, set()).add(fails[name])
        agree = (
            all(len(kinds) == 1 for kinds in by_family.values())
            and len(set().union(*by_family.values())) > 1
        )
        verdict = Verdict.HOLDS if agree else Verdict.DOES_NOT
        reason = "models of one family fail alike" if agree else "families do not fail alike"
    return described(
        "regimes",
        numbers=dict(min_share=MIN_COHERENT_SHARE),
        ours="; ".join(words),
        verdict=verdict,
        reason=reason,
        tables=(
            table(
                "regimes-cliffs",
                (
                    "model",
                    "architecture",
                    "direction",
                    "cliff at strength",
                    "dose there",
                    "what most failing texts are",
                ),
                [_cliff_row(points, name, emotion) for name, emotion in _series(points)],
            ),
            table(
                "regimes",
                (
                    "model",
                    "direction",
                    "strength",
                    "dose",
                    "texts",
                    "coherent",
                    "repetitive collapse",
                    "explosive",
                    "as coherent as twin",
                    "perplexity ratio",
                ),
                [
                    (
                        p.model,
                        p.emotion,
                        p.strength,
                        p.dose,
                        len(p.regimes),
                        *(p.share(regime) for regime in TextRegime),
                        p.coherent_share,
                        p.ratio,
                    )
                    for p in points
                ],
                is_long=True,
            ),
        ),
        figure=(lambda: draw(points)) if points else None,
    )


def _word(regime: TextRegime | None) -> str:
    return "no failure" if regime is None else f"mostly {regime.value}"


def _series(points: Sequence[Point]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((point.model, point.emotion) for point in points))


def _cliff_row(
    points: Sequence[Point], model: str, emotion: str
) -> tuple[str, str, str, float | None, float | None, str]:
    mine = [p for p in points if (p.model, p.emotion) == (model, emotion)]
    edge = cliff(mine)
    where = (None, None) if edge is None else (edge.strength, edge.dose)
    return (model, mine[0].architecture, emotion, *where, _word(failure(mine)))


def draw(points: Sequence[Point]) -> Figure:
    """Return each model's shares over strength, all emotions together."""
    models = list(dict.fromkeys(point.model for point in points))
    figure, axes = figures.panels(len(models))
    colors = dict(zip(TextRegime, ("#009e73", "#d55e00", "#0072b2"), strict=True))
    for axis, model in zip(axes, models, strict=True):
        mine = [p for p in points if p.model == model and p.emotion != RANDOM]
        strengths = sorted({p.strength for p in mine})
        for regime in TextRegime:
            shares = []
            for strength in strengths:
                texts = [r for p in mine if p.strength == strength for r in p.regimes]
                shares.append(texts.count(regime) / len(texts))
            axis.plot(
                strengths, shares, "o-", color=colors[regime], label=regime.value, markersize=3
            )
        axis.axhline(MIN_COHERENT_SHARE, color="black", linewidth=0.7, linestyle=":")
        axis.set(title=model, xlabel="strength", ylabel="share of texts", ylim=(-0.03, 1.03))
    figures.legend(figure, axes[0])
    return figure
