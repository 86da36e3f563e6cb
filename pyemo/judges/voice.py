"""The judge of voices: which emotion a reply is written in, learned from written replies.

A logistic classifier on sentence embeddings. It learns from the judge split of the replies alone,
which no vector is trained on, chosen by or tested with; so its score of a vector is no echo of the
vector's own texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pyemo.emotions import resolve
from pyemo.errors import MissingExtraError
from pyemo.judges.embedder import Embedder, TextEmbedder, similarity
from pyemo.judges.judge import Scores
from pyemo.texts.replies import VOICES, reply_prompts

_INVERSE_PENALTY = 3.0
"""The best of 1 to 300 in 7 folds by prompt of the judge split; 1 to 10 differ by two points."""


class VoiceJudge:
    """How likely a text is written in an emotion's voice, of the 20 and a plain one.

    A score is the natural log of the probability that multinomial logistic regression gives, so 0
    is certain. Scores of one text add up to certainty over all voices; asking for fewer changes
    none.

    Args:
        embedder: None for :class:`Embedder`.
    Raises:
        MissingExtraError: scikit-learn is not installed, or see :class:`Embedder`.
    """

    name = "voice"

    def __init__(self, embedder: TextEmbedder | None = None) -> None:
        regression, one_thread = _scikit_learn()
        self._embedder: TextEmbedder = embedder if embedder is not None else Embedder()
        prompts = reply_prompts("judge")
        texts = [prompt.replies[voice] for prompt in prompts for voice in VOICES]
        voices = [voice for _ in prompts for voice in VOICES]
        self._fitted = regression(C=_INVERSE_PENALTY, max_iter=2000)
        rows = self._embedder.embed(texts)
        with one_thread(limits=1):  # faster at this size, and the same on any number of cores
            self._fitted.fit(rows, voices)
        self._columns = {voice: i for i, voice in enumerate(self._fitted.classes_)}

    def scores(self, texts: Sequence[str], emotions: Sequence[str]) -> Scores:
        """Return log-probabilities, at most 0; see :class:`Judge`."""
        columns = [self._columns[resolve(emotion)] for emotion in emotions]
        if not texts:
            return np.zeros((0, len(emotions)))
        found: Scores = self._fitted.predict_log_proba(self._embedder.embed(texts))
        return found[:, columns]

    def similarity(self, texts: Sequence[str], others: Sequence[str]) -> Scores:
        """Return the cosine of each text with its other; see :meth:`Embedder.similarity`."""
        return similarity(self._embedder, texts, others)


def _scikit_learn() -> tuple[Any, Any]:
    """Return the regression, and threadpoolctl's limit, which scikit-learn itself requires."""
    try:
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise MissingExtraError(
            "the voice judge needs scikit-learn, which is not installed: pip install 'pyemo[judge]'"
        ) from error
    return LogisticRegression, threadpool_limits
