"""Drawing a token from logits as the engine does (csrc/sampler.cpp), in NumPy.

The random number of a token depends on the sampler's seed and the token's position alone. So a text
does not depend on which others are written beside it, and two back ends with the same logits write
the same story.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pyemo.engine.sampling import SamplerParams

Array = npt.NDArray[np.float32]

_MASK = 2**64 - 1
_LONGEST_MATCH = 50  # as in csrc/sampler.cpp


def uniform(seed: int, position: int) -> float:
    """Return the random number in [0, 1) of a position: SplitMix64 (Steele, Lea, Flood 2014) of a
    counter."""
    z = (seed * 0xD1342543DE82EF95 + (position + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def penalized(logits: Array, tokens: Sequence[int], sampler: SamplerParams) -> Array:
    """Return the logits after the bias, DRY and the penalties for repeating (Keskar 2019, arXiv
    1909.05858; OpenAI's by frequency and presence).

    Args:
        logits: float32 (n_vocab,).
        tokens: all tokens of the text so far.
    Returns:
        the array itself where nothing changes it, else a copy.
    """
    recent = tokens[max(0, len(tokens) - sampler.repeat_last_n) :]
    out = logits
    if sampler.logit_bias:
        out = out.copy()
        for token, bias in sampler.logit_bias:
            out[token] += np.float32(bias)
    by_count = np.float32(sampler.frequency_penalty), np.float32(sampler.presence_penalty)
    if (sampler.repeat_penalty != 1.0 or any(by_count)) and recent:
        out = out.copy()
        ids, counts = np.unique(np.asarray(recent), return_counts=True)
        penalty = np.float32(sampler.repeat_penalty)
        out[ids] = np.where(out[ids] <= 0, out[ids] * penalty, out[ids] / penalty)
        out[ids] -= counts.astype(np.float32) * by_count[0] + by_count[1]
    if sampler.dry_multiplier:
        out = out.copy()
        for token, lost in dry_penalties(tokens, sampler).items():
            out[token] -= lost
    return out


def dry_penalties(tokens: Sequence[int], sampler: SamplerParams) -> dict[int, np.float32]:
    """Return what DRY takes from the logits of tokens that would go on with a repeat."""
    window = list(tokens[max(0, len(tokens) - sampler.dry_last_n) :])
    out: dict[int, np.float32] = {}
    for i in range(1, len(window)):
        length = 0
        while length < min(_LONGEST_MATCH, i) and window[i - 1 - length] == window[-1 - length]:
            length += 1
        if length >= sampler.dry_allowed_length:
            power = np.float32(sampler.dry_base) ** np.float32(length - sampler.dry_allowed_length)
            lost = np.float32(sampler.dry_multiplier) * power
            out[window[i]] = max(lost, out.get(window[i], lost))
    return out


def most_likely(logits: Array, sampler: SamplerParams) -> tuple[npt.NDArray[np.int64], Array]:
    """Return the candidates that top-k leaves, (ids, their logits), the most likely first."""
    n = len(logits)
    k = min(sampler.top_k, n) or n
    ids = np.argpartition(-logits, k - 1)[:k] if k < n else np.arange(n)
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    return ids, logits[ids]


def draw(ids: npt.NDArray[np.int64], logits: Array, sampler: SamplerParams, position: int) -> int:
    """Return the token at ``position`` of a text.

    Args:
        ids, logits: (n,) what top-k left, the most likely first.
        position: how many tokens are before it.
    """
    if sampler.temperature == 0:
        return int(ids[0])
    if sampler.top_p < 1:
        n = int(np.searchsorted(np.cumsum(_softmax(logits)), np.float32(sampler.top_p))) + 1
        ids, logits = ids[:n], logits[:n]
    if sampler.min_p > 0:
        kept = logits >= logits[0] + np.log(np.float32(sampler.min_p))
        ids, logits = ids[kept], logits[kept]
    if sampler.top_k == 0 and sampler.top_p == 1:
        order = np.argsort(ids)  # nothing has sorted llama.cpp's candidates then
        ids, logits = ids[order], logits[order]
    logits = logits / np.float32(sampler.temperature)
    weights = np.cumsum(np.exp(logits - logits.max()), dtype=np.float64)
    chosen = np.searchsorted(weights, uniform(sampler.seed, position) * weights[-1], side="right")
    return int(ids[min(chosen, len(ids) - 1)])


def _softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits[0])
    return np.asarray(weights / weights.sum(), np.float32)
