"""What is measured of a text to tell its regime: numbers only; ``regimes`` has the verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyemo.errors import InputError
from pyemo.measures.repetition import (
    compression_ratio,
    distinct_ngrams,
    longest_loop,
    most_repeated_ngram,
    new_script_share,
    words,
)

WINDOW = 48
"""Tokens a measure looks at at a time, so that texts of 48 and of 256 tokens compare."""
STRIDE = 16
"""Tokens from one window to the next."""
UNLIKELY_SURPRISE = 4.0
"""Nats above which a token is unlikely: a probability below 2%."""
MIN_TOKENS = 2
"""A text of fewer tokens has nothing to measure."""


@dataclass(frozen=True)
class TextMeasures:
    """What is measured of a text.

    "Worst" is over windows of :data:`WINDOW` tokens, one every :data:`STRIDE` tokens.

    Attributes:
        n_tokens: its length.
        n_words: its words.
        distinct_tokens: worst share of different token trigrams (:func:`distinct_ngrams`), 0 to 1.
        vocabulary: worst share of different tokens, 0 to 1.
        distinct_words: the same of word bigrams of the whole text.
        repeated_words: how often its most frequent word trigram comes.
        loop_share: share of the worst window inside its longest loop (:func:`longest_loop`, 2
            cycles or more), 0 to 1.
        compression: :func:`compression_ratio` of the whole text.
        worst_compression: the highest of a window's part of the text.
        surprise: mean negative log-probability per token under the unsteered model, nats.
        worst_surprise: highest mean surprise of a window, nats.
        unlikely_tokens: highest share of a window's tokens that surprise by more than
            :data:`UNLIKELY_SURPRISE`, 0 to 1.
        novel_surprise: mean square root of the surprise of tokens that make a token bigram not yet
            seen in the text, nats to the 1/2: what a broken text's loops do not hide.
        late_surprise: mean surprise of the text's second half, nats.
        new_scripts: share of letters in scripts that neither prompt nor twin has, 0 to 1.
        entropy: mean entropy of the distributions the tokens were drawn from, nats; nan if unknown.
    """

    n_tokens: int
    n_words: int
    distinct_tokens: float
    vocabulary: float
    distinct_words: float
    repeated_words: int
    loop_share: float
    compression: float
    worst_compression: float
    surprise: float
    worst_surprise: float
    unlikely_tokens: float
    novel_surprise: float
    late_surprise: float
    new_scripts: float
    entropy: float = math.nan


def measure_text(
    tokens: Sequence[int],
    text: str,
    logprobs: npt.ArrayLike,
    *,
    known: Sequence[str] = (),
    entropies: npt.ArrayLike | None = None,
) -> TextMeasures:
    """Return the measures of a generated text.

    Args:
        tokens: (n,) ids, without an end-of-generation token; n >= 2.
        text: the tokens' text.
        logprobs: (n,), natural log-probabilities under the *unsteered* model given the prompt
            (:meth:`pyemo.Engine.score_many` with ``given``).
        known: prompt and unsteered twin: their scripts are expected.
        entropies: (n,), :attr:`pyemo.Token.entropy` of each token, if they were kept.
    Raises:
        InputError: fewer than two tokens, lengths that differ, or log-probabilities not finite.
    """
    surprise = -np.asarray(logprobs, np.float64)
    n = len(tokens)
    if n < MIN_TOKENS:
        raise InputError(
            f"a text of {n} tokens cannot be classified; it takes at least {MIN_TOKENS}"
        )
    if surprise.shape != (n,):
        raise InputError(
            f"{n} tokens, but log-probabilities of shape {surprise.shape}; pass one each"
        )
    if not np.isfinite(surprise).all():
        raise InputError(
            "log-probabilities that are not finite; score the text with the unsteered model"
        )
    surprise = np.maximum(surprise, 0.0)  # float32 may round a probability above 1
    ids = np.asarray(tokens, np.int64)
    windows = [slice(begin, begin + WINDOW) for begin in window_begins(n)]
    written = words(text)
    return TextMeasures(
        n_tokens=n,
        n_words=len(written),
        distinct_tokens=min(distinct_ngrams(ids[window].tolist(), 3) for window in windows),
        vocabulary=min(distinct_ngrams(ids[window].tolist(), 1) for window in windows),
        distinct_words=distinct_ngrams(written, 2),
        repeated_words=most_repeated_ngram(written, 3),
        loop_share=max(longest_loop(ids[window]).length / len(ids[window]) for window in windows),
        compression=compression_ratio(text),
        worst_compression=max(compression_ratio(part(text, window, n)) for window in windows),
        surprise=float(surprise.mean()),
        worst_surprise=max(float(surprise[window].mean()) for window in windows),
        unlikely_tokens=max(
            float((surprise[window] > UNLIKELY_SURPRISE).mean()) for window in windows
        ),
        novel_surprise=float(np.sqrt(surprise[is_novel(ids.tolist())]).mean()),
        late_surprise=float(surprise[n // 2 :].mean()),
        new_scripts=new_script_share(text, *known),
        entropy=math.nan
        if entropies is None
        else float(np.mean(np.asarray(entropies, np.float64))),
    )


def is_novel(tokens: Sequence[int]) -> list[bool]:
    """Return for each token whether it and the one before it have not come together before."""
    seen: set[tuple[int, ...]] = set()
    novel = []
    for i in range(len(tokens)):
        pair = tuple(tokens[max(0, i - 1) : i + 1])
        novel.append(pair not in seen)
        seen.add(pair)
    return novel


def part(text: str, window: slice, n_tokens: int) -> str:
    """Return the characters of a window of tokens, as if all tokens were equally long."""
    stop = min(window.stop, n_tokens)
    return text[window.start * len(text) // n_tokens : stop * len(text) // n_tokens]


def window_begins(n_tokens: int) -> list[int]:
    """Return where windows begin: every :data:`STRIDE` tokens, and one that ends with the text."""
    last = max(0, n_tokens - WINDOW)
    return sorted({*range(0, last, STRIDE), last})
