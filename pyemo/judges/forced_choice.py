"""Another language model as judge: which of two texts sounds more like an emotion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyemo.errors import InputError
from pyemo.judges.judge import Scores, check_pairs
from pyemo.texts import sources

if TYPE_CHECKING:
    from pyemo.engine.engine import Engine

NEUTRAL_REFERENCES = 3
"""Neutral vignettes that :meth:`ForcedChoiceJudge.scores` compares a text with."""


class ForcedChoiceJudge:
    """Asks another language model which of two texts sounds more like an emotion.

    Nothing is generated: the answer is the difference of the probabilities of "A" and "B" as the
    next token, given that it is one of them, averaged over both orders, so that a preference for a
    place cancels out.

    Args:
        engine: another model than the steered one, or it judges itself; one free sequence is used.
    Raises:
        InputError: the model's vocabulary has no tokens for the answers.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name = f"forced-choice:{engine.model.name}"
        self._is_chat = engine.model.chat_template is not None
        answers = ("A", "B") if self._is_chat else (" A", " B")
        tokens = [engine.model.tokenize(answer, add_special=False) for answer in answers]
        if tokens[0][-1] == tokens[1][-1] or any(len(found) != 1 for found in tokens):
            raise InputError(
                f"{engine.model.name} has no single tokens for the answers A and B; take another "
                "judge"
            )
        self._a, self._b = tokens[0][0], tokens[1][0]

    def prefers(self, texts_a: Sequence[str], texts_b: Sequence[str], emotion: str) -> Scores:
        """Return float64 (n_pairs,); see :class:`PairJudge`."""
        check_pairs(texts_a, texts_b)
        return np.array(
            [
                (self._ask(a, b, emotion) - self._ask(b, a, emotion)) / 2
                for a, b in zip(texts_a, texts_b, strict=True)
            ]
        )

    def scores(self, texts: Sequence[str], emotions: Sequence[str]) -> Scores:
        """Return the mean preference for a text over neutral ones, -1 to 1; see :class:`Judge`.

        It takes six prompts for each score: where two texts are compared, :meth:`prefers` is faster
        and more exact.
        """
        neutral = [vignette.text for vignette in sources.vignettes(sources.NEUTRAL, "train")][
            :NEUTRAL_REFERENCES
        ]
        return np.array(
            [
                [
                    self.prefers([text] * len(neutral), neutral, emotion).mean()
                    for emotion in emotions
                ]
                for text in texts
            ]
        ).reshape(len(texts), len(emotions))

    def _ask(self, first: str, second: str, emotion: str) -> float:
        """Return P(A) - P(B), where A is the first text."""
        question = (
            f"Text A: {first.strip()}\n\nText B: {second.strip()}\n\n"
            f"Which text sounds more {emotion}, A or B?"
        )
        if self._is_chat:
            tokens = self._engine.model.answer_tokens(question + " Answer with the letter only.")
        else:
            tokens = self._engine.prompt_tokens(question + "\nAnswer: Text", raw=True)
        with self._engine.sequence(tokens) as sequence:
            logits = sequence.logits()
        return float(np.tanh((float(logits[self._a]) - float(logits[self._b])) / 2))
