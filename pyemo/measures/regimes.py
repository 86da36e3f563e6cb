"""What steering did to text: the regimes, each with its formula.

docs/strengths.md explains them, docs/measurements/regimes.md says how well they fit.

A *text* is coherent, in repetitive collapse, or explosive; a *strength* (a set of texts beside
their unsteered twins) is inert, surgical, or one of the two failures. The three last names are
those of Jeong 2026 (arXiv 2604.04064), whose thresholds are not public; those below are pyemo's
own, fitted to texts that were read and labelled without knowledge of strength or score.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyemo.choices import REGIMES
from pyemo.errors import InputError
from pyemo.measures.bootstrap import Interval, bootstrap_interval
from pyemo.measures.perplexity import ratio_interval
from pyemo.measures.proportion import Proportion
from pyemo.measures.text import TextMeasures, measure_text

__all__ = [
    "Regime",
    "StrengthReport",
    "TextMeasures",
    "TextRegime",
    "Weights",
    "classify_strength",
    "classify_text",
    "measure_text",
]


class TextRegime(enum.Enum):
    """What a text is: as readable as the model's own, stuck, or broken."""

    COHERENT = "coherent"
    REPETITIVE_COLLAPSE, EXPLOSIVE = REGIMES[2:]


class Regime(enum.Enum):
    """What a strength does: no more than a random direction, what is wanted, or too much."""

    INERT, SURGICAL, REPETITIVE_COLLAPSE, EXPLOSIVE = REGIMES


# --- the regime of a text ---


SHORT = 40
"""Tokens below which a text's vocabulary is rich by its length alone."""
MAX_NEW_SCRIPTS = 0.3
"""Share of letters in new scripts above which more of them say no more."""


class Weights(NamedTuple):
    """One failure's linear score of a text, above 0 where the failure is likelier than coherence.

    Attributes:
        bias: the score where all measures are 0.
        loop_share, vocabulary, unlikely_tokens, novel_surprise: per unit of the measure.
        log_compression: per unit of the natural logarithm of ``worst_compression``.
        new_scripts: per unit of the measure, up to :data:`MAX_NEW_SCRIPTS`.
        short: for a text of fewer than :data:`SHORT` tokens.
    """

    bias: float
    loop_share: float
    vocabulary: float
    log_compression: float
    unlikely_tokens: float
    novel_surprise: float
    new_scripts: float
    short: float

    def score(self, measures: TextMeasures) -> float:
        """Return the score of a text: log-odds against coherence."""
        return (
            self.bias
            + self.loop_share * measures.loop_share
            + self.vocabulary * measures.vocabulary
            + self.log_compression * math.log(max(measures.worst_compression, 0.1))
            + self.unlikely_tokens * measures.unlikely_tokens
            + self.novel_surprise * measures.novel_surprise
            + self.new_scripts * min(measures.new_scripts, MAX_NEW_SCRIPTS)
            + self.short * (measures.n_tokens < SHORT)
        )


# Multinomial logistic regression on texts that were read (docs/measurements/regimes.md;
# tools/fit/regimes.py fits it again). They hold for greedy decoding and for the default
# sampler, for texts of 48 and of 256 tokens, over SmolLM2-135M, Gemma-3-270M and
# Qwen2.5-Coder-0.5B.
COLLAPSE_WEIGHTS = Weights(
    bias=-0.93,
    loop_share=6.29,
    vocabulary=-8.98,
    log_compression=3.82,
    unlikely_tokens=-2.97,
    novel_surprise=1.47,
    new_scripts=-9.88,
    short=-2.16,
)
EXPLOSION_WEIGHTS = Weights(
    bias=0.23,
    loop_share=-1.54,
    vocabulary=-10.77,
    log_compression=-1.75,
    unlikely_tokens=9.44,
    novel_surprise=1.95,
    new_scripts=11.96,
    short=-3.19,
)


def classify_text(measures: TextMeasures) -> TextRegime:
    """Return the regime of a text: the failure with the higher score, coherent if none is above 0.

    The unsteered twin is not asked: its surprise adds no information about these classes
    (docs/measurements/regimes.md). :func:`classify_strength` compares a text with its twin.
    """
    collapse, explosion = COLLAPSE_WEIGHTS.score(measures), EXPLOSION_WEIGHTS.score(measures)
    if max(collapse, explosion) <= 0:
        return TextRegime.COHERENT
    return TextRegime.REPETITIVE_COLLAPSE if collapse >= explosion else TextRegime.EXPLOSIVE


# --- the regime of a strength ---

MIN_COHERENT_SHARE = 0.9
"""A strength is surgical if at least this share of its texts is as coherent as their twins."""


def enough_coherent(n_coherent: int, n_texts: int) -> bool:
    """Return whether so many of a strength's texts are coherent that it counts as coherent.

    At least :data:`MIN_COHERENT_SHARE` of them. Of fewer than 10 texts a single one is more than
    the rest may be: it is not held against a strength while the share's 95% interval still reaches
    that far, as that of 7 of 8 does (53% to 98%), and that of 0 of 1 does not.

    Raises:
        InputError: see :class:`pyemo.measures.proportion.Proportion`.
    """
    share = Proportion(n_coherent, n_texts)
    if share.value >= MIN_COHERENT_SHARE:
        return True
    return n_texts - n_coherent == 1 and share.high >= MIN_COHERENT_SHARE


@dataclass(frozen=True)
class StrengthReport:
    """The regime of a strength, and what it rests on.

    Attributes:
        regime: the verdict.
        failure: the failure that most failing texts show, None if none fails; it stands beside an
            inert verdict too.
        coherent_share: share of texts as coherent as their twins, 0 to 1.
        shares: regime -> share of the texts; texts too short to measure count as explosive.
        ratio: perplexity ratio to the twins with its interval over texts; nan where no pair could
            be measured.
        effect: mean of the judge's paired difference over that of random directions, with its
            interval; None where nothing was judged, and then no strength is called inert.
        n_texts: how many texts.
    """

    regime: Regime
    failure: Regime | None
    coherent_share: float
    shares: Mapping[TextRegime, float]
    ratio: Interval
    effect: Interval | None
    n_texts: int

    @property
    def is_coherent(self) -> bool:
        """True if enough texts are as coherent as their twins, whether they moved or not."""
        return enough_coherent(self.n_coherent, self.n_texts)

    @property
    def n_coherent(self) -> int:
        """How many texts are as coherent as their twins."""
        return round(self.coherent_share * self.n_texts)


def classify_strength(
    texts: Sequence[TextMeasures | None],
    twins: Sequence[TextMeasures | None],
    *,
    effect: npt.ArrayLike | None = None,
    random_effect: npt.ArrayLike | None = None,
    seed: int = 0,
) -> StrengthReport:
    """Return the regime of a strength from its texts and their unsteered twins.

    Inert if the judge's paired difference does not exceed that of a random direction of equal norm
    (the 90% bootstrap interval over texts of the difference's mean reaches down to 0: a one-sided
    test at 5%); else surgical if enough texts are as coherent as their twins
    (:func:`enough_coherent`); else the failure of most failing texts, explosive on a tie. A text is
    as coherent as its twin if it is coherent, or if both fail in the same way.

    Args:
        texts: (n,), n >= 1; None for a text of fewer than two tokens.
        twins: (n,), of the unsteered texts to the same prompts with the same sampler and length.
        effect: (n,), judge's score of each text minus that of its twin, for the vector's emotion.
        random_effect: (n,) or (n_directions, n), the same for random directions of equal norm at
            the same layers.
        seed: of the bootstrap.
    Raises:
        InputError: no texts, numbers that do not match, or one of the two effects alone.
    """
    if not texts or len(texts) != len(twins):
        raise InputError(
            f"{len(texts)} texts and {len(twins)} twins; pass one or more of each, paired"
        )
    regimes = [_regime(text) for text in texts]
    of_twins = [_regime(twin) for twin in twins]
    failing = [
        regime
        for regime, of_twin in zip(regimes, of_twins, strict=True)
        if regime not in (TextRegime.COHERENT, of_twin)
    ]
    n_coherent = len(texts) - len(failing)
    moved = _moved(effect, random_effect, len(texts), seed)
    failure = _majority(failing)
    if moved is not None and moved.low <= 0:
        regime = Regime.INERT
    elif failure is None or enough_coherent(n_coherent, len(texts)):
        regime = Regime.SURGICAL
    else:
        regime = failure
    logs = [t.surprise - u.surprise for t, u in zip(texts, twins, strict=True) if t and u]
    return StrengthReport(
        regime=regime,
        failure=failure,
        coherent_share=n_coherent / len(texts),
        shares={kind: regimes.count(kind) / len(texts) for kind in TextRegime},
        ratio=ratio_interval(logs, seed=seed) if logs else Interval(*[math.nan] * 3),
        effect=moved,
        n_texts=len(texts),
    )


def _regime(text: TextMeasures | None) -> TextRegime:
    return TextRegime.EXPLOSIVE if text is None else classify_text(text)


def _majority(failing: Sequence[TextRegime]) -> Regime | None:
    n_stuck = failing.count(TextRegime.REPETITIVE_COLLAPSE)
    if not failing:
        return None
    return Regime.REPETITIVE_COLLAPSE if n_stuck > len(failing) - n_stuck else Regime.EXPLOSIVE


def _moved(
    effect: npt.ArrayLike | None, random_effect: npt.ArrayLike | None, n_texts: int, seed: int
) -> Interval | None:
    if effect is None and random_effect is None:
        return None
    if effect is None or random_effect is None:
        raise InputError(
            "pass effect and random_effect together: one says nothing without the other"
        )
    steered = np.asarray(effect, np.float64)
    control = np.atleast_2d(np.asarray(random_effect, np.float64))
    if steered.shape != (n_texts,) or control.ndim != 2 or control.shape[1] != n_texts:
        raise InputError(
            f"effects of shape {steered.shape} and {control.shape} for {n_texts} texts; pass one "
            "number for each text, and one for each random direction and text"
        )
    return bootstrap_interval(steered - control.mean(axis=0), confidence=0.9, seed=seed)
