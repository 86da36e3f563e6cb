"""Perplexity of texts from token log-probabilities; pure arithmetic on the engine's numbers.

:meth:`pyemo.Engine.score_many` scores texts and continuations, steered or not, many at once.

Definition, everywhere in pyemo: exp of the mean negative natural log-probability per scored token,
every token given all before it, from a clean KV cache. A model file's low bits depend on how rows
are grouped and how keys and values are stored, so the chunk and the KV type belong to the number:
compare scores of the same :attr:`Score.chunk` and :attr:`Score.kv_type` only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyemo.errors import InputError
from pyemo.measures.bootstrap import CONFIDENCE, Interval, bootstrap_interval


@dataclass(frozen=True, eq=False)
class Score:
    """How likely a model finds a text.

    Attributes:
        logprobs: float32 (n,), natural log-probability of each scored token given all before it.
        chunk: rows of a decode at most while it was computed; 0 if unknown.
        kv_type: number type of the KV cache it was computed with; "" if unknown.
    """

    logprobs: npt.NDArray[np.float32]
    chunk: int = 0
    kv_type: str = ""

    @property
    def n_tokens(self) -> int:
        """Number of scored tokens."""
        return len(self.logprobs)

    @property
    def mean_logprob(self) -> float:
        """Mean natural log-probability per scored token; nan without tokens."""
        return float(self.logprobs.mean(dtype=np.float64)) if self.n_tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(-mean log-probability), per predicted token; nan without tokens."""
        with np.errstate(over="ignore"):
            return float(np.exp(-np.float64(self.mean_logprob)))

    @property
    def stderr(self) -> float:
        """Standard error of :attr:`perplexity` by the delta method; nan for fewer than two tokens.

        perplexity * s / sqrt(n), with s the sample standard deviation of the log-probabilities.
        Tokens of a text are not independent, so this is a lower bound of the error between texts.
        """
        if self.n_tokens < 2:
            return math.nan
        spread = float(self.logprobs.std(ddof=1, dtype=np.float64))
        return self.perplexity * spread / math.sqrt(self.n_tokens)

    def __repr__(self) -> str:
        return (
            f"Score(perplexity={self.perplexity:.2f} ± {self.stderr:.2f}, n_tokens={self.n_tokens})"
        )


def perplexity_ratio(
    steered: Sequence[Score],
    unsteered: Sequence[Score],
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Return the perplexity ratio of steered texts to their unsteered twins, with its interval.

    The geometric mean over prompts of perplexity(steered text) / perplexity(twin), both scored by
    the *unsteered* model given the same prompt: exp(mean(twin's mean logprob - text's mean
    logprob)). The interval is a percentile bootstrap over prompts. It is not monotone in strength:
    loops are predictable, so a collapsed text's ratio may be below 1 (Jeong 2026, arXiv 2604.04064,
    speaks of perplexity ratios without a formula; docs/strengths.md).

    Args:
        steered, unsteered: (n_prompts,) scores, paired by prompt; n_prompts >= 1.
        confidence: 0 < confidence < 1.
        seed: of the bootstrap.
    Raises:
        InputError: no pair, unequal numbers, a score without tokens or with log-probabilities that
            are not finite, or scores of different chunks or KV types.
    """
    if len(steered) != len(unsteered):
        raise InputError(
            f"{len(steered)} steered and {len(unsteered)} unsteered scores; pass them in pairs"
        )
    if len({(s.chunk, s.kv_type) for s in (*steered, *unsteered)}) > 1:
        raise InputError(
            "scores of different chunks or KV types do not compare; score both with one engine"
        )
    logs = [
        mean_surprise(score_s, i, "steered") - mean_surprise(score_u, i, "unsteered")
        for i, (score_s, score_u) in enumerate(zip(steered, unsteered, strict=True))
    ]
    return ratio_interval(logs, confidence=confidence, seed=seed)


def ratio_of(logs: Sequence[float]) -> float:
    """Return the perplexity ratio of texts whose surprise exceeds their twins' by ``logs``.

    The geometric mean, exp(mean(logs)), as in :func:`perplexity_ratio`; nan where there are none.

    Args:
        logs: (n_texts,) differences of mean surprise, nats per token.
    """
    return _exp(float(np.mean(logs))) if len(logs) else math.nan


def ratio_interval(
    logs: Sequence[float], *, confidence: float = CONFIDENCE, seed: int = 0
) -> Interval:
    """Return :func:`ratio_of` with its bootstrap interval over texts.

    Raises:
        InputError: no text.
    """
    ends = bootstrap_interval(logs, confidence=confidence, seed=seed)
    return Interval(*(_exp(end) for end in ends))


def _exp(log: float) -> float:
    """Return e to the power of ``log``; what is past float64's range becomes its end, 1e304."""
    return math.exp(min(log, 700.0))


def mean_surprise(score: Score, index: int = 0, side: str = "scored") -> float:
    """Return -mean log-probability, nats per token.

    Raises:
        InputError: no token, or log-probabilities that are not finite; the message names the text.
    """
    if not score.n_tokens:
        raise InputError(f"{side} text {index} has no token; leave empty continuations out")
    if not np.isfinite(score.logprobs).all():
        raise InputError(
            f"{side} text {index} has log-probabilities that are not finite: the model, steered "
            "like this, gives no probabilities; lower the strength"
        )
    return -score.mean_logprob
