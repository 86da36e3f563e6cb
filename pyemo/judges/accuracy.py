"""How far a judge can be trusted: its accuracy on held-out vignettes, and on test replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pyemo.emotions import EMOTIONS
from pyemo.judges.judge import Judge, PairJudge, nearer
from pyemo.measures.proportion import Proportion
from pyemo.texts import sources
from pyemo.texts.replies import reply_prompts


@dataclass(frozen=True)
class JudgeAccuracy:
    """How often a judge gives a text its own emotion.

    Attributes:
        n: texts judged.
        n_emotions: emotions to choose from; chance is 1 / n_emotions.
        n_first: texts whose own emotion scored highest.
        mean_rank: of the own emotion, 1 is first; chance is (n_emotions + 1) / 2.
    """

    n: int
    n_emotions: int
    n_first: int
    mean_rank: float

    @property
    def top1(self) -> Proportion:
        """Texts whose own emotion scored highest, with its Wilson interval."""
        return Proportion(self.n_first, self.n)


def accuracy(judge: Judge, emotions: Sequence[str] = tuple(EMOTIONS)) -> JudgeAccuracy:
    """Return the judge's accuracy on the held-out vignettes of ``emotions``.

    A tie counts against the judge.
    """
    return _accuracy(judge, _vignettes(emotions))


def voice_accuracy(judge: Judge, emotions: Sequence[str] = tuple(EMOTIONS)) -> JudgeAccuracy:
    """Return the judge's accuracy on the test replies of ``emotions``: a voice, not a scene.

    A tie counts against the judge.
    """
    return _accuracy(judge, _replies(emotions))


def _vignettes(emotions: Sequence[str]) -> dict[str, list[str]]:
    return {name: [v.text for v in sources.vignettes(name, "held_out")] for name in emotions}


def _replies(emotions: Sequence[str]) -> dict[str, list[str]]:
    prompts = reply_prompts("test")
    return {name: [prompt.replies[name] for prompt in prompts] for name in emotions}


def _accuracy(judge: Judge, texts: Mapping[str, Sequence[str]]) -> JudgeAccuracy:
    emotions = tuple(texts)
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
    return _pair_accuracy(judge, _vignettes(emotions))


def voice_pair_accuracy(
    judge: Judge | PairJudge, emotions: Sequence[str] = tuple(EMOTIONS)
) -> Proportion:
    """Return how often a test reply sounds more like its emotion than one of another does; see
    :func:`pair_accuracy`."""
    return _pair_accuracy(judge, _replies(emotions))


def _pair_accuracy(judge: Judge | PairJudge, by_emotion: Mapping[str, list[str]]) -> Proportion:
    emotions, texts, n = tuple(by_emotion), list(by_emotion.values()), len(by_emotion)
    hits = []
    for index, emotion in enumerate(emotions):
        others = [
            texts[(index + 1 + i % (n - 1)) % n][i % len(texts[0])]
            for i in range(len(texts[index]))
        ]
        hits += nearer(judge, texts[index], others, emotion).tolist()
    return Proportion(sum(hits), len(hits))
