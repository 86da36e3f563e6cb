"""Conditions: a direction that tells two kinds of prompts apart, with where it does so best.

Owns how the direction, its layer and its threshold are found and how well they do on texts that
were held out. What a prompt reads at run time is ``engine.prompt_rules``' matter; it is the same
mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pyemo.engine.engine import Engine
from pyemo.engine.prompt_rules import PromptRange
from pyemo.engine.rules import Condition
from pyemo.errors import InputError
from pyemo.extract.neutral import neutral_statistics
from pyemo.texts.sources import neutral_texts
from pyemo.vectors.control_vector import ControlVector
from pyemo.vectors.metadata import FittedCondition

Rows = npt.NDArray[np.float64]
Progress = Callable[[int], None]
"""Told how many texts were read since the last call."""

N_FOLDS = 4
MIN_TEXTS = 8
"""Of each kind: two of each are held out at a time."""

_N_CURVE = 11
_READ_TOGETHER = 8


@dataclass(frozen=True)
class Quality:
    """How well a threshold tells two kinds of text apart; 0 to 1 each."""

    threshold: float
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 where both are."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


@dataclass(frozen=True, eq=False)
class ConditionFit:
    """A fitted condition, and what the texts that were held out say of it.

    Attributes:
        vector: one direction, with ``metadata.condition``.
        quality: at the fitted threshold.
        margin: between the means of both kinds, in standard deviations.
        curve: other thresholds, ascending.
        by_layer: layer -> F1 at its best threshold.
    """

    vector: ControlVector
    quality: Quality
    margin: float
    curve: tuple[Quality, ...]
    by_layer: dict[int, float]


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A layer's best threshold, in raw units from the middle between both kinds."""

    layer: int
    quality: Quality
    above: bool
    margin: float
    scores: tuple[Rows, Rows]


def fit_condition(
    engine: Engine,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    name: str = "condition",
    layers: range | None = None,
    raw: bool = False,
    on_progress: Progress | None = None,
) -> ConditionFit:
    """Return the condition that holds on prompts like ``positive``, not on ones like ``negative``.

    The direction of a layer is the difference of both kinds' mean rows. Its texts are scored by
    directions of other texts (4 folds), and the layer and the side with the best F1 is taken, of
    equal ones that with the larger margin. The vector is that of all texts.

    Args:
        positive, negative: prompts, at least 8 of each, none in both.
        layers: layers to choose from; None for all but the first and the last.
        raw: take the prompts as they are, without the chat template.
    Raises:
        InputError: too few texts, one of both kinds, or layers that the model has not.
    """
    _check(positive, negative)
    chosen = _layers(engine, layers)
    own, other = (
        mean_rows(engine, texts, chosen, raw=raw, on_progress=on_progress)
        for texts in (positive, negative)
    )
    candidates = [
        _candidate(layer, own[:, i], other[:, i], above)
        for i, layer in enumerate(chosen)
        for above in (True, False)
    ]
    best = max(candidates, key=lambda found: (found.quality.f1, found.margin))
    return _fit(engine, name, best, own, other, chosen, candidates, on_progress)


def quality_of(
    engine: Engine,
    vector: ControlVector,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    raw: bool = False,
    on_progress: Progress | None = None,
) -> Quality:
    """Return how well a fitted condition tells other prompts apart.

    Raises:
        InputError: no prompts of one kind.
        VectorError: the vector is no fitted condition.
    """
    if not positive or not negative:
        raise InputError("no prompts of one kind; a condition is tried on one of each at least")
    condition = Condition(vector)
    assert condition.layer is not None
    assert condition.threshold is not None
    readings = []
    for texts in (positive, negative):
        rows = mean_rows(engine, texts, [condition.layer], raw=raw, on_progress=on_progress)
        readings.append(condition.gauge().of_rows(rows[:, 0]))
    return _quality(readings[0], readings[1], condition.threshold, bool(condition.above))


def mean_rows(
    engine: Engine,
    prompts: Sequence[str],
    layers: Sequence[int],
    *,
    raw: bool = False,
    on_progress: Progress | None = None,
) -> Rows:
    """Return the mean row of each prompt as a rule reads it, float64 (n, n_layers, n_embd)."""
    tokens = [engine.model.prompt_tokens(prompt, raw=raw) for prompt in prompts]
    means: list[npt.NDArray[np.float32]] = []
    for first in range(0, len(tokens), _READ_TOGETHER):
        batch = tokens[first : first + _READ_TOGETHER]
        parts = [slice(PromptRange(0, len(ids)).read_begin, None) for ids in batch]
        means += engine.read_many(batch, layers=layers, pooling="mean", tokens=parts)
        if on_progress is not None:
            on_progress(len(batch))
    return np.stack(means).astype(np.float64)


def _check(positive: Sequence[str], negative: Sequence[str]) -> None:
    for texts, kind in ((positive, "positive"), (negative, "negative")):
        if len(set(texts)) < MIN_TEXTS:
            raise InputError(
                f"{len(set(texts))} different {kind} texts; a condition needs {MIN_TEXTS} of each "
                "kind, and 40 are better"
            )
        if not all(text.strip() for text in texts):
            raise InputError(f"a {kind} text is empty; give one a line")
    if both := sorted(set(positive) & set(negative)):
        raise InputError(f"the text {both[0][:60]!r} is of both kinds; give it once")


def _layers(engine: Engine, layers: range | None) -> list[int]:
    inner = range(1, engine.model.n_layer - 1)
    chosen = [layer for layer in inner if layers is None or layer in layers]
    if not chosen:
        raise InputError(
            f"no layer to choose from in {layers}; a condition reads one of {inner.start} to "
            f"{inner.stop - 1} of this model"
        )
    return chosen


def _candidate(layer: int, own: Rows, other: Rows, above: bool) -> _Candidate:
    scores = _held_out_scores(own, other)
    threshold = _best_threshold(*scores, above)
    spread = np.sqrt((scores[0].var() + scores[1].var()) / 2)
    gap = (scores[0].mean() - scores[1].mean()) * (1 if above else -1)
    margin = float(gap / spread) if spread > 0 else 0.0
    return _Candidate(layer, _quality(*scores, threshold, above), above, margin, scores)


def _held_out_scores(own: Rows, other: Rows) -> tuple[Rows, Rows]:
    """Return each text's coordinate on the direction of texts of other folds, from their middle."""
    found = np.zeros(len(own)), np.zeros(len(other))
    for fold in range(N_FOLDS):
        held = [np.arange(len(rows)) % N_FOLDS == fold for rows in (own, other)]
        unit, middle = _direction(own[~held[0]], other[~held[1]])
        for scores, rows, out in zip(found, (own, other), held, strict=True):
            scores[out] = rows[out] @ unit - middle
    return found


def _direction(own: Rows, other: Rows) -> tuple[Rows, float]:
    """Return the unit difference of the means, and the coordinate halfway between them."""
    difference = own.mean(axis=0) - other.mean(axis=0)
    length = float(np.linalg.norm(difference))
    if length == 0:
        raise InputError("both kinds of text read the same; give texts that differ")
    unit = difference / length
    return unit, float((own.mean(axis=0) + other.mean(axis=0)) @ unit / 2)


def _best_threshold(own: Rows, other: Rows, above: bool) -> float:
    """Return the middle of the widest gap between scores at which F1 is best."""
    scores = np.unique(np.concatenate([own, other]))
    if len(scores) < 2:
        return float(scores[0])
    gaps, middles = np.diff(scores), (scores[1:] + scores[:-1]) / 2
    f1 = [_quality(own, other, float(at), above).f1 for at in middles]
    best = max(range(len(middles)), key=lambda i: (f1[i], gaps[i]))
    return float(middles[best])


def _quality(own: Rows, other: Rows, threshold: float, above: bool) -> Quality:
    hits, false = (
        int(((scores > threshold) if above else (scores < threshold)).sum())
        for scores in (own, other)
    )
    return Quality(threshold, hits / (hits + false) if hits else 0.0, hits / len(own))


def _fit(
    engine: Engine,
    name: str,
    best: _Candidate,
    own: Rows,
    other: Rows,
    chosen: Sequence[int],
    candidates: Sequence[_Candidate],
    on_progress: Progress | None,
) -> ConditionFit:
    at = list(chosen).index(best.layer)
    unit, middle = _direction(own[:, at], other[:, at])
    bare = ControlVector({best.layer: unit}, name=name)
    neutral = neutral_statistics(engine, neutral_texts(), bare, on_progress=on_progress)
    norm = neutral.residual_norms[best.layer]
    shift = middle - neutral.neutral_projections[best.layer]

    def in_norms(quality: Quality) -> Quality:
        return replace(quality, threshold=(quality.threshold + shift) / norm)

    everything = np.concatenate(best.scores)
    curve = tuple(
        in_norms(_quality(*best.scores, float(threshold), best.above))
        for threshold in np.quantile(everything, np.linspace(0, 1, _N_CURVE + 2)[1:-1])
    )
    by_layer: dict[int, float] = {}
    for candidate in candidates:
        by_layer[candidate.layer] = max(by_layer.get(candidate.layer, 0), candidate.quality.f1)
    quality = in_norms(best.quality)
    evidence = {
        "n_positive": len(own),
        "n_negative": len(other),
        "folds": N_FOLDS,
        "precision": quality.precision,
        "recall": quality.recall,
        "f1": quality.f1,
        "margin": best.margin,
        "curve": [[point.threshold, point.precision, point.recall] for point in curve],
        "f1_by_layer": [[layer, f1] for layer, f1 in by_layer.items()],
    }
    vector = bare.rescaled(neutral.residual_norms, neutral.neutral_projections, source=engine.model)
    found = FittedCondition(
        best.layer, quality.threshold, "above" if best.above else "below", json.dumps(evidence)
    )
    vector = vector.with_metadata(replace(vector.metadata, condition=found))
    return ConditionFit(vector, quality, best.margin, curve, by_layer)
