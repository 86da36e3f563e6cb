"""What the guard looks at: have the last tokens of a reply left the coherent regime?

Two signs: tokens that stood in the same order before, and a score of the last 16, 32 and 48 tokens
that is fitted to texts which were read (docs/guard.md; ``tests/fit_watch.py`` fits it again).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pyemo.repetition import distinct_ngrams, longest_loop
from pyemo.text_measures import UNLIKELY_SURPRISE, is_novel

Trouble: TypeAlias = Literal["repetition", "explosion"]

REPEATED_TOKENS = 16
"""So many last tokens that stood in the same order before are a repetition."""
LOOK_BACK = 160
"""Tokens that are searched for them."""
STRIDE = 8
"""Tokens from one look to the next."""
MARGIN = 0.5
"""Log-odds against coherence from which on it is trouble."""


class WatchWeights(NamedTuple):
    """One failure's linear score of some last tokens: log-odds against coherence.

    Attributes:
        bias: the score where all measures are 0.
        loop_share: of the share of the tokens in their longest loop.
        vocabulary: of the share of different tokens.
        entropy, root_entropy: of the mean entropy of their distributions, nats, and of its root.
        unlikely_tokens, novel_surprise: of the measures of that name
            (:class:`pyemo.text_measures.TextMeasures`); they need the unsteered model.
    """

    bias: float
    loop_share: float
    vocabulary: float
    entropy: float
    root_entropy: float
    unlikely_tokens: float = 0.0
    novel_surprise: float = 0.0


PairByLength: TypeAlias = "dict[int, tuple[WatchWeights, WatchWeights]]"

WEIGHTS: PairByLength = {
    16: (
        WatchWeights(8.88, 2.58, -7.5, 0.66, -4.19),
        WatchWeights(3.69, -0.83, -9.15, 1.24, -0.45),
    ),
    32: (
        WatchWeights(3.87, 4.7, -12.11, 0.33, 0.11),
        WatchWeights(1.44, -0.29, -11.8, 1.53, 0.46),
    ),
    48: (
        WatchWeights(1.26, 7.1, -14.18, 0.26, 1.94),
        WatchWeights(-0.55, -1.39, -14.03, 1.64, 1.7),
    ),
}
"""Number of last tokens -> weights of collapse and of explosion, from what decoding gives."""
EXACT_WEIGHTS: PairByLength = {
    16: (
        WatchWeights(10.18, 2.12, -9.0, 0.43, -2.39, 5.18, -2.67),
        WatchWeights(4.17, -0.28, -8.77, 0.61, -0.56, 8.12, -0.53),
    ),
    32: (
        WatchWeights(5.46, 4.21, -12.65, 0.16, -0.19, 1.19, -0.36),
        WatchWeights(1.67, -0.51, -10.56, 0.54, -0.43, 7.66, 0.95),
    ),
    48: (
        WatchWeights(1.21, 5.96, -13.38, 0.06, 1.04, -1.88, 1.46),
        WatchWeights(0.13, -1.39, -11.71, 0.59, 0.05, 8.79, 0.84),
    ),
}
"""The same with the surprise of the tokens under the unsteered model."""

LONGEST = max(WEIGHTS)
"""Tokens that a look needs the entropies of."""


def trouble(
    tokens: Sequence[int],
    entropies: Sequence[float],
    surprises: Sequence[float] | None = None,
) -> Trouble | None:
    """Return what is wrong with the end of a reply, None if nothing is.

    Args:
        tokens: (n,) ids, all of the reply.
        entropies: of the distributions they were drawn from, nats; at least of the last
            :data:`LONGEST`.
        surprises: likewise, negative log-probabilities under the unsteered model, nats, if they
            are known: the score is surer then.
    """
    if repeats(tokens):
        return "repetition"
    weights = WEIGHTS if surprises is None else EXACT_WEIGHTS
    for length, pair in weights.items():
        if len(tokens) < length:
            continue
        row = measures(
            tokens[-length:],
            entropies[-length:],
            None if surprises is None else surprises[-length:],
        )
        collapse, explosion = (one[0] + float(np.dot(one[1 : 1 + len(row)], row)) for one in pair)
        if max(collapse, explosion) > MARGIN:
            return "repetition" if collapse >= explosion else "explosion"
    return None


def measures(
    tokens: Sequence[int], entropies: Sequence[float], surprises: Sequence[float] | None
) -> npt.NDArray[np.float64]:
    """Return what :class:`WatchWeights` weighs, in its order, without the bias.

    Returns:
        (4,), or (6,) with surprises.
    """
    entropy = float(np.mean(entropies))
    row = [
        longest_loop(tokens).length / len(tokens),
        distinct_ngrams(tokens, 1),
        entropy,
        math.sqrt(max(entropy, 0.0)),
    ]
    if surprises is not None:
        surprise = np.maximum(surprises, 0.0)
        row.append(float((surprise > UNLIKELY_SURPRISE).mean()))
        row.append(float(np.sqrt(surprise[is_novel(tokens)]).mean()))
    return np.array(row)


def repeats(tokens: Sequence[int]) -> bool:
    """Whether the last :data:`REPEATED_TOKENS` tokens stood in the same order before.

    The last :data:`LOOK_BACK` are searched.
    """
    recent = list(tokens[-LOOK_BACK:])
    end = recent[-REPEATED_TOKENS:]
    if len(recent) > REPEATED_TOKENS:
        last = end[-1]
        for stop in range(len(recent) - 1, REPEATED_TOKENS - 1, -1):
            if recent[stop - 1] == last and recent[stop - REPEATED_TOKENS : stop] == end:
                return True
    return False
