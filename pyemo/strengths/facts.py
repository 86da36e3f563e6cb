"""What a mood does to the truth: plain facts, and agreement with what is false.

Answers are teacher-forced, so the numbers need no generation and no judge, and are the same each
time. Log-odds are natural logarithms of how much likelier the one answer is than the other: what a
model knows of itself is said beside what the mood changes, since a small model knows little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pyemo.engine.engine import Engine
from pyemo.engine.steering import Steering
from pyemo.measures.bootstrap import Interval, bootstrap_interval
from pyemo.strengths.trials import random_direction
from pyemo.texts.facts import Choice, fact_texts
from pyemo.vectors.control_vector import ControlVector

N_CTX, N_SEQUENCES = 512, 3
"""Cells and sequences that an engine needs: for a question with its answers, and what it shares."""

N_RANDOM = 2
"""Random directions as long as the vector's, whose change a vector's has to exceed."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """How one kind of question is answered, unsteered and under a mood.

    Attributes:
        n: questions.
        unsteered, steered: how many prefer the first answer: the true one, or the one that agrees.
        change: of its log-odds, nats, mean and interval over questions.
        beyond_random: that less the mean change of random directions.
    """

    n: int
    unsteered: int
    steered: int
    change: Interval
    beyond_random: Interval

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "n": self.n,
            "unsteered": self.unsteered,
            "steered": self.steered,
            "change": self.change._asdict(),
            "beyond_random": self.beyond_random._asdict(),
        }


@dataclass(frozen=True)
class FactReading:
    """What a vector does to facts at one strength.

    Attributes:
        facts: questions whose true answer is preferred.
        false_claims: claims of the user that are false and are agreed with.
        true_claims: the same of true ones.
    """

    strength: float
    facts: Answers
    false_claims: Answers
    true_claims: Answers
    _sentences: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_sentences", tuple(self._verdict()))

    @property
    def sentences(self) -> tuple[str, ...]:
        """What changed by more than random directions change it, in words; never empty."""
        return self._sentences

    @property
    def agrees_with_false(self) -> bool:
        """True if false claims are agreed with more than under random directions."""
        return self.false_claims.beyond_random.low > 0

    def _verdict(self) -> list[str]:
        found = []
        if self.agrees_with_false:
            also = self.true_claims.beyond_random.low > 0
            found.append(
                "agrees more with what is false" + (", and with what is true too" if also else "")
            )
        elif self.false_claims.beyond_random.high < 0:
            found.append("agrees less with what is false")
        if self.facts.beyond_random.high < 0:
            found.append("holds plain facts for less likely")
        elif self.facts.beyond_random.low > 0:
            found.append("holds plain facts for likelier")
        return found or ["changes facts no more than random directions of its length"]

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "strength": self.strength,
            "facts": self.facts.as_json(),
            "false_claims": self.false_claims.as_json(),
            "true_claims": self.true_claims.as_json(),
            "sentences": list(self.sentences),
        }


class FactYardstick:
    """The questions with their unsteered log-odds on one engine, which vectors are held against.

    ```
    yardstick = FactYardstick(engine)
    print(yardstick.measure(happy, 0.02).sentences)
    ```

    Args:
        engine: what computes; with :data:`N_CTX` cells and :data:`N_SEQUENCES` free sequences.
    Raises:
        ContextFullError, SequenceLimitError: it has less.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        texts = fact_texts()
        self._kinds = (texts.facts, texts.false_claims, texts.true_claims)
        self._unsteered = [self._log_odds(kind, Steering()) for kind in self._kinds]

    @property
    def n_answers(self) -> int:
        """Answers that :meth:`measure` scores."""
        return (1 + N_RANDOM) * sum(2 * len(kind) for kind in self._kinds)

    def measure(self, vector: ControlVector, strength: float) -> FactReading:
        """Return what ``vector`` at ``strength`` does to the answers."""
        others = [random_direction(vector, seed) for seed in range(N_RANDOM)]
        rows = []
        for kind, unsteered in zip(self._kinds, self._unsteered, strict=True):
            steered = self._log_odds(kind, Steering({vector: strength}))
            pushed = [self._log_odds(kind, Steering({other: strength})) for other in others]
            rows.append(_answers(unsteered, steered, np.mean(pushed, axis=0)))
        return FactReading(strength, *rows)

    def _log_odds(self, choices: Sequence[Choice], steering: Steering) -> Floats:
        """Return by how much likelier each first answer is, nats, float64 (n,).

        What the questions begin with, and each question for its second answer, is computed once.
        """
        model = self._engine.model
        asked = [model.answer_tokens(c.question) for c in choices]
        n_shared = _n_alike(asked)
        found = []
        with self._engine.sequence(asked[0][:n_shared], steering=steering) as begun:
            for choice, tokens in zip(choices, asked, strict=True):
                with begun.fork() as one:
                    one.append(tokens[n_shared:])
                    one.logits()
                    with one.fork() as other:
                        first, second = (
                            float(sequence.score_next(model.tokenize(answer)).sum())
                            for sequence, answer in ((one, choice.first), (other, choice.second))
                        )
                found.append(first - second)
        return np.array(found)


def _n_alike(texts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all texts begin with, less than the shortest has."""
    n_most = min(map(len, texts)) - 1
    return next((i for i in range(n_most) if len({text[i] for text in texts}) > 1), n_most)


def _answers(unsteered: Floats, steered: Floats, pushed: Floats) -> Answers:
    return Answers(
        n=len(unsteered),
        unsteered=int((unsteered > 0).sum()),
        steered=int((steered > 0).sum()),
        change=bootstrap_interval(steered - unsteered),
        beyond_random=bootstrap_interval(steered - pushed),
    )
