"""What the guard looks at: have the last tokens of a reply left the coherent regime?

Two signs: tokens that stood in the same order before, and a score of the last 16, 32 and 48 tokens
that is fitted to texts which were read (docs/measurements/guard.md; ``tools/fit/watch.py`` fits it
again).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pyemo.measures.repetition import distinct_ngrams, longest_loop
from pyemo.measures.text import UNLIKELY_SURPRISE, is_novel

Trouble: TypeAlias = Literal["repetition", "explosion"]

REPEATED_TOKENS = 16
"""So many last tokens that stood in the same order before are a repetition."""
LOOK_BACK = 160
"""Tokens that are searched for them."""
STRIDE = 8
"""Tokens from one look to the next."""
MARGIN = 0.5
"""Log-odds against coherence: this much or more is trouble."""
MARGIN_AGAIN = 0.0
"""The same in a reply that has been in trouble before, which makes more of it likelier."""


class WatchWeights(NamedTuple):
    """One failure's linear score of some last tokens: log-odds against coherence.

    Attributes:
        bias: the score where all measures are 0.
        loop_share: of the share of the tokens in their longest loop.
        vocabulary: of the share of different tokens.
        entropy, root_entropy: of the mean entropy of their distributions, nats, and of its root.
        unlikely_tokens, novel_surprise: of the measures of that name
            (:class:`pyemo.measures.text.TextMeasures`); they need the unsteered model.
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
        WatchWeights(9.11, 2.51, -7.66, 0.63, -4.21),
        WatchWeights(3.32, -0.83, -9.26, 1.14, -0.02),
    ),
    32: (
        WatchWeights(4.42, 4.68, -12.22, 0.27, -0.1),
        WatchWeights(1.01, -0.21, -11.61, 1.4, 0.87),
    ),
    48: (WatchWeights(2.01, 7.14, -14.04, 0.17, 1.6), WatchWeights(-0.85, -1.32, -13.7, 1.5, 2.0)),
}
"""Number of last tokens -> weights of collapse and of explosion, from what decoding gives."""
EXACT_WEIGHTS: PairByLength = {
    16: (
        WatchWeights(10.45, 2.0, -9.2, 0.39, -2.41, 4.93, -2.63),
        WatchWeights(3.61, -0.33, -8.79, 0.5, -0.22, 7.81, -0.3),
    ),
    32: (
        WatchWeights(5.89, 4.2, -12.78, 0.09, -0.34, 0.63, -0.26),
        WatchWeights(0.99, -0.43, -10.19, 0.41, -0.09, 7.36, 1.14),
    ),
    48: (
        WatchWeights(2.11, 6.09, -13.5, -0.03, 0.78, -2.08, 1.38),
        WatchWeights(-0.8, -1.49, -10.87, 0.44, 0.31, 8.63, 1.12),
    ),
}
"""The same with the surprise of the tokens under the unsteered model."""

LONGEST = max(WEIGHTS)
"""Tokens that a look needs the entropies of."""


def trouble(
    tokens: Sequence[int],
    entropies: Sequence[float],
    surprises: Sequence[float] | None = None,
    *,
    again: bool = False,
) -> Trouble | None:
    """Return what is wrong with the end of a reply, None if nothing is.

    Args:
        tokens: (n,) ids, all of the reply.
        entropies: of the distributions they were drawn from, nats; at least of the last
            :data:`LONGEST`.
        surprises: likewise, negative log-probabilities under the unsteered model, nats, if they
            are known: the score is surer then.
        again: the reply has been in trouble before.
    """
    if repeats(tokens):
        return "repetition"
    margin = MARGIN_AGAIN if again else MARGIN
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
        if max(collapse, explosion) > margin:
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
