"""The judge of scenes: how near a text lies to an emotion's vignettes by sentence embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pyemo.emotions import EMOTIONS, resolve
from pyemo.judges.embedder import Embedder, TextEmbedder, similarity
from pyemo.judges.judge import Scores
from pyemo.measures.arrays import unit_rows
from pyemo.texts import sources


class MiniLMJudge:
    """How near a text lies to an emotion's vignettes, both seen from the mean over emotions.

    With x a text's embedding, m_e the mean embedding of an emotion's *train* vignettes and c the
    mean of m_e over all emotions, a score is cos(x - c, m_e - c). The held-out vignettes are left
    for :func:`accuracy`. The 20 emotions are always the reference, so a score does not depend on
    which others are asked for.

    Args:
        embedder: None for :class:`Embedder`.
        extra: emotions beyond the 20, by name.
    Raises:
        MissingExtraError: see :class:`Embedder`.
    """

    name = "minilm"

    def __init__(
        self,
        embedder: TextEmbedder | None = None,
        *,
        extra: Mapping[str, sources.EmotionSource] | None = None,
    ) -> None:
        self._embedder: TextEmbedder = embedder if embedder is not None else Embedder()
        built_in = {name: _train_texts(sources.emotion_source(name)) for name in EMOTIONS}
        means = {name: self._embedder.embed(texts).mean(axis=0) for name, texts in built_in.items()}
        self._centre = np.mean(list(means.values()), axis=0)
        for name, source in (extra or {}).items():
            means[name] = self._embedder.embed(_train_texts(source)).mean(axis=0)
        self._directions = {name: unit_rows(mean - self._centre) for name, mean in means.items()}

    def scores(self, texts: Sequence[str], emotions: Sequence[str]) -> Scores:
        """Return cosines from -1 to 1; see :class:`Judge`."""
        directions = np.stack([self._directions[self._known(emotion)] for emotion in emotions])
        if not texts:
            return np.zeros((0, len(emotions)))
        return np.asarray(unit_rows(self._embedder.embed(texts) - self._centre) @ directions.T)

    def similarity(self, texts: Sequence[str], others: Sequence[str]) -> Scores:
        """Return the cosine of each text with its other; see :meth:`Embedder.similarity`."""
        return similarity(self._embedder, texts, others)

    def _known(self, emotion: str) -> str:
        return emotion if emotion in self._directions else resolve(emotion)


def _train_texts(source: sources.EmotionSource) -> list[str]:
    return [vignette.text for vignette in source.vignettes if vignette.split == "train"]
