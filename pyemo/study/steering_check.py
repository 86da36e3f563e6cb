"""Finding 5: does steering reach the text, by outside judges, beside two controls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from pyemo.measures.proportion import Proportion
from pyemo.study import figures
from pyemo.study.finding import Finding, Value, Verdict, described, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Condition: TypeAlias = Literal["vector", "random", "system"]
CONDITIONS: tuple[Condition, ...] = ("vector", "random", "system")

PAPER_SHARE = 37 / 40
RANDOM_AT_MOST = 26
"""Successes of 40 that chance reaches: the 97.5th percentile of a fair coin."""
SAME_SUBJECT = 0.9
"""A text is on its prompt's subject if it is more like it than this share of answers to others."""


@dataclass(frozen=True)
class Case:
    """One scenario under one condition.

    Attributes:
        nearer: whether the text is nearer its emotion than the unsteered one, by MiniLM.
        nearer_second: the same by the second judge; None where there is none.
        is_coherent: see :func:`pyemo.measures.regimes.classify_text`.
        on_subject: see :func:`subject_threshold`.
    """

    model: str
    condition: Condition
    emotion: str
    prompt: str
    strength: float
    unsteered: str
    text: str
    nearer: bool
    nearer_second: bool | None
    is_coherent: bool
    on_subject: bool

    @property
    def success(self) -> bool:
        """Nearer by every judge there is, coherent, and on the subject."""
        return self.nearer and self.nearer_second is not False and self._is_sound

    @property
    def by_minilm(self) -> bool:
        """Nearer by MiniLM, coherent, and on the subject."""
        return self.nearer and self._is_sound

    @property
    def by_second(self) -> bool:
        """Nearer by the second judge, coherent, and on the subject."""
        return bool(self.nearer_second) and self._is_sound

    @property
    def _is_sound(self) -> bool:
        return self.is_coherent and self.on_subject


def subject_threshold(answers: npt.NDArray[np.float64], prompts: npt.NDArray[np.float64]) -> float:
    """Return how like a prompt a text must be to be on its subject.

    The 90th percentile of the cosines between unsteered answers and the prompts of the others: of
    answers to another prompt one in ten would pass.

    Args:
        answers: (n_prompts, width), unit rows, of the unsteered answers; n_prompts >= 2.
        prompts: (n_prompts, width), unit rows.
    """
    cosines = answers @ prompts.T
    return float(np.quantile(cosines[~np.eye(len(cosines), dtype=bool)], SAME_SUBJECT))


def count(cases: Iterable[Case], what: str = "success") -> Proportion | None:
    """Return how many of the cases show ``what``; None for no cases."""
    shown = [bool(getattr(case, what)) for case in cases]
    return Proportion(sum(shown), len(shown)) if shown else None


def finding(cases: Sequence[Case], second_judge: str | None) -> Finding:
    """Return the finding over all models and conditions."""
    models = tuple(dict.fromkeys(case.model for case in cases))
    rows = [
        _row(model, condition, [c for c in cases if (c.model, c.condition) == (model, condition)])
        for model in models
        for condition in CONDITIONS
    ]
    verdict, reason = _verdict(cases, models)
    gaps = (
        () if second_judge else ("No second judge: MiniLM alone decides (name one with --judge).",)
    )
    return described(
        "steering",
        numbers=dict(second_judge=second_judge or "none"),
        ours="; ".join(
            f"{model}, {condition}: {shown}"
            for model in models
            for condition in CONDITIONS
            if (shown := count(_of(cases, model, condition), "by_minilm")) is not None
        ),
        verdict=verdict,
        reason=reason,
        tables=(
            table(
                "steering",
                (
                    "model",
                    "condition",
                    "cases",
                    "success by MiniLM",
                    "low",
                    "high",
                    "success by the second judge",
                    "by both",
                    "nearer by MiniLM",
                    "nearer by the second",
                    "coherent",
                    "on the subject",
                ),
                rows,
            ),
            table(
                "steering-emotions",
                (
                    "model",
                    "condition",
                    "emotion",
                    "strength",
                    "cases",
                    "success by MiniLM",
                    "by the second judge",
                    "by both",
                ),
                _by_emotion(cases),
            ),
            table(
                "steering-texts",
                (
                    "model",
                    "condition",
                    "emotion",
                    "strength",
                    "prompt",
                    "unsteered",
                    "text",
                    "nearer by MiniLM",
                    "nearer by the second",
                    "coherent",
                    "on the subject",
                    "success",
                ),
                [
                    (
                        c.model,
                        c.condition,
                        c.emotion,
                        c.strength,
                        c.prompt,
                        c.unsteered,
                        c.text,
                        c.nearer,
                        c.nearer_second,
                        c.is_coherent,
                        c.on_subject,
                        c.success,
                    )
                    for c in cases
                ],
                is_long=True,
            ),
        ),
        figure=(lambda: draw(cases)) if cases else None,
        gaps=gaps,
    )


def _of(cases: Sequence[Case], model: str, condition: Condition) -> list[Case]:
    return [case for case in cases if case.model == model and case.condition == condition]


def _verdict(cases: Sequence[Case], models: Sequence[str]) -> tuple[Verdict, str]:
    held, failed, words = 0, 0, []
    for model in models:
        steered = count(_of(cases, model, "vector"), "by_minilm")
        chance = count(_of(cases, model, "random"), "by_minilm")
        if steered is None or chance is None:
            continue
        above = steered.low > chance.high
        held += above and steered.high >= PAPER_SHARE
        failed += steered.high < PAPER_SHARE
        words.append(
            f"{model} {steered.k} of {steered.n}, random "
            f"{chance.k}{'' if above else ' (not apart)'}"
        )
    reason = "; ".join(words) or "no scenario was computed"
    if words and held == len(words):
        return Verdict.HOLDS, f"{reason}: apart from random, and 92.5% lies within reach"
    if failed:
        return Verdict.DOES_NOT, f"{reason}: below 92.5% on {failed} of {len(words)} models"
    return Verdict.CANNOT_SAY, reason


def _row(model: str, condition: Condition, cases: Sequence[Case]) -> list[Value]:
    share = count(cases, "by_minilm")
    if share is None:
        return [model, condition, 0, *[None] * 9]
    has_second = all(case.nearer_second is not None for case in cases)
    return [
        model,
        condition,
        share.n,
        share.k,
        share.low,
        share.high,
        sum(c.by_second for c in cases) if has_second else None,
        sum(c.success for c in cases) if has_second else None,
        sum(c.nearer for c in cases),
        sum(bool(c.nearer_second) for c in cases) if has_second else None,
        sum(c.is_coherent for c in cases),
        sum(c.on_subject for c in cases),
    ]


def _by_emotion(cases: Sequence[Case]) -> list[list[Value]]:
    groups: dict[tuple[str, str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.model, case.condition, case.emotion), []).append(case)
    return [
        [
            *key,
            group[0].strength,
            len(group),
            sum(c.by_minilm for c in group),
            sum(c.by_second for c in group),
            sum(c.success for c in group),
        ]
        for key, group in groups.items()
    ]


def draw(cases: Sequence[Case]) -> Figure:
    """Return the shares by model and condition with their intervals."""
    models = tuple(dict.fromkeys(case.model for case in cases))
    figure, (axis,) = figures.panels(1, width=7.0, height=3.4)
    for k, condition in enumerate(CONDITIONS):
        for x, model in enumerate(models):
            share = count(_of(cases, model, condition), "by_minilm")
            if share is None:
                continue
            at = x + (k - 1) * 0.25
            axis.bar(at, share.value, width=0.22, color=figures.COLORS[k], label=condition)
            axis.plot([at, at], [share.low, share.high], color="black", linewidth=1)
    axis.axhline(PAPER_SHARE, color="black", linestyle=":", linewidth=1)
    axis.text(len(models) - 0.52, PAPER_SHARE - 0.02, "paper", ha="right", va="top", fontsize=8)
    axis.set_xticks(range(len(models)), models)
    axis.set(ylabel="share of scenarios", ylim=(0, 1.15), xlim=(-0.5, len(models) - 0.5))
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axis.legend(unique.values(), unique.keys(), fontsize=8, ncols=3, loc="upper left")
    return figure
