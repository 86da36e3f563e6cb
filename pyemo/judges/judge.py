"""What a judge is: one method; and what comparing two texts asks of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pyemo.errors import InputError

Scores = npt.NDArray[np.float64]


class Judge(Protocol):
    """Says how much texts sound like emotions."""

    name: str

    def scores(self, texts: Sequence[str], emotions: Sequence[str]) -> Scores:
        """Return float64 (n_texts, n_emotions); higher sounds more like that emotion.

        Scores of one emotion are comparable between texts, those of one text between emotions only
        as far as the judge's published accuracy goes.

        Raises:
            InputError: an emotion that the judge does not know.
        """
        ...


class PairJudge(Protocol):
    """Says which of two texts sounds more like an emotion; more exact than two scores."""

    name: str

    def prefers(self, texts_a: Sequence[str], texts_b: Sequence[str], emotion: str) -> Scores:
        """Return float64 (n_pairs,) from -1 (surely B) over 0 (no difference) to 1 (surely A)."""
        ...


def nearer(
    judge: Judge | PairJudge, texts: Sequence[str], others: Sequence[str], emotion: str
) -> npt.NDArray[np.bool_]:
    """Return for each pair whether the text sounds more like ``emotion`` than the other.

    Bool (n_pairs,); the same text twice is never nearer.

    Raises:
        InputError: not as many others as texts, or an emotion that the judge does not know.
    """
    check_pairs(texts, others)
    if not texts:
        return np.zeros(0, dtype=bool)
    if hasattr(judge, "prefers"):
        margin = judge.prefers(texts, others, emotion)
    else:
        scores = judge.scores([*texts, *others], [emotion])[:, 0]
        margin = scores[: len(texts)] - scores[len(texts) :]
    different = np.array([a != b for a, b in zip(texts, others, strict=True)])
    is_nearer: npt.NDArray[np.bool_] = (margin > 0) & different
    return is_nearer


def check_pairs(texts: Sequence[str], others: Sequence[str]) -> None:
    """Raise InputError unless there is one other for each text."""
    if len(texts) != len(others):
        raise InputError(f"{len(texts)} texts and {len(others)} others; they are compared in pairs")
