"""How far a judge can be trusted: its accuracy on the held-out vignettes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pyemo.emotions import EMOTIONS
from pyemo.judges.judge import Judge, PairJudge, nearer
from pyemo.measures.proportion import Proportion
from pyemo.texts import sources


@dataclass(frozen=True)
class JudgeAccuracy:
    """How often a judge gives a held-out vignette its own emotion.

    Attributes:
        n: vignettes judged.
        n_emotions: emotions to choose from; chance is 1 / n_emotions.
        n_first: vignettes whose own emotion scored highest.
        mean_rank: of the own emotion, 1 is first; chance is (n_emotions + 1) / 2.
    """

    n: int
    n_emotions: int
    n_first: int
    mean_rank: float

    @property
    def top1(self) -> Proportion:
        """Vignettes whose own emotion scored highest, with its Wilson interval."""
        return Proportion(self.n_first, self.n)


def accuracy(judge: Judge, emotions: Sequence[str] = tuple(EMOTIONS)) -> JudgeAccuracy:
    """Return the judge's accuracy on the held-out vignettes of ``emotions``.

    A tie counts against the judge.
    """
    texts = {name: [v.text for v in sources.vignettes(name, "held_out")] for name in emotions}
    scores = judge.scores([text for group in texts.values() for text in group], emotions)
    own = np.repeat(np.arange(len(emotions)), [len(group) for group in texts.values()])
    own_scores = scores[np.arange(len(own)), own]
    ranks = (scores >= own_scores[:, None]).sum(axis=1)
    return JudgeAccuracy(len(own), len(emotions), int((ranks == 1).sum()), float(ranks.mean()))


def pair_accuracy(
    judge: Judge | PairJudge, emotions: Sequence[str] = tuple(EMOTIONS)
) -> Proportion:
    """Return how often a held-out vignette sounds more like its emotion than one of another does.

    Each is compared with one other, of another emotion each time; chance is 50%. This is what
    judging an effect asks of a judge, so it says more of it than :func:`accuracy`.
    """
    n = len(emotions)
    texts = [[v.text for v in sources.vignettes(name, "held_out")] for name in emotions]
    hits = []
    for index, emotion in enumerate(emotions):
        others = [
            texts[(index + 1 + i % (n - 1)) % n][i % len(texts[0])]
            for i in range(len(texts[index]))
        ]
        hits += nearer(judge, texts[index], others, emotion).tolist()
    return Proportion(sum(hits), len(hits))
