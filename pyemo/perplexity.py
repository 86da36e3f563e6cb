"""Perplexity of a text from its token log-probabilities. Pure arithmetic; the engine supplies the numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Score:
    """How likely a model finds a text.

    Attributes:
        logprobs: float32 (n,), natural log-probability of each scored token given all before it.
    """

    logprobs: npt.NDArray[np.float32]

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
        return math.exp(-self.mean_logprob)

    @property
    def stderr(self) -> float:
        """Standard error of :attr:`perplexity` by the delta method; nan for fewer than two tokens.

        perplexity * s / sqrt(n), with s the sample standard deviation of the log-probabilities. Tokens
        of a text are not independent, so this is a lower bound of the error between texts.
        """
        if self.n_tokens < 2:
            return math.nan
        return self.perplexity * float(self.logprobs.std(ddof=1, dtype=np.float64)) / math.sqrt(
            self.n_tokens
        )

    def __repr__(self) -> str:
        return f"Score(perplexity={self.perplexity:.2f} ± {self.stderr:.2f}, n_tokens={self.n_tokens})"
