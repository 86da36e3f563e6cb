"""What another format of a model costs: in perplexity, in hidden states, in what steering does.

Owns the comparison of two files of the same weights, the one at hand and the one it was made from.
Knows nothing of how they were made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyemo.engine.engine import Engine
from pyemo.engine.model import Model
from pyemo.engine.mood import OFF
from pyemo.engine.steering import Steering
from pyemo.errors import VectorModelMismatchError
from pyemo.extract.neutral import FIRST_POSITION
from pyemo.vectors.control_vector import ControlVector

_N_BATCH = 128
_Rows = list[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class FormatCost:
    """How a model file differs from the one it was made from, over the same texts.

    Attributes:
        perplexity, source_perplexity: of all texts' tokens.
        ratio: perplexity over the source's; ``ratio_stderr`` is that of its paired difference
            between texts, so it does not hold the texts' own spread.
        hidden_cosine: for each layer the mean cosine of the two files' hidden states at the same
            token, unsteered.
        steering_cosine: the same of what steering changed (steered minus unsteered), for the layers
            from the first steered one on; () without a vector.
        vector: the vector's name, "" without one.
        windows: (model name, low, high) for the files that the vector is calibrated on.
    """

    n_texts: int
    n_tokens: int
    perplexity: float
    source_perplexity: float
    ratio: float
    ratio_stderr: float
    hidden_cosine: tuple[float, ...]
    steering_cosine: tuple[float, ...]
    vector: str
    windows: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class _Measured:
    """One file's log-probabilities by text, hidden states and steered hidden states."""

    logprobs: _Rows
    hidden: _Rows
    steered: _Rows


def measure_cost(
    model: Model,
    source: Model,
    texts: Sequence[str],
    *,
    vector: ControlVector | None = None,
    strength: float = 0.02,
    n_threads: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> FormatCost:
    """Compare two files of the same weights over ``texts``.

    Args:
        texts: each longer than 10 tokens; the first positions of a text do not count.
        vector: a control vector for these weights, to see whether it does the same in both.
        on_progress: called with the texts done since the last call; there are twice as many as
            ``texts``.
    Raises:
        VectorModelMismatchError: the two files hold different weights, or the vector others.
    """
    if model.weights_fingerprint != source.weights_fingerprint:
        raise VectorModelMismatchError(
            f"{model.name!r} and {source.name!r} hold different weights, so their formats cannot "
            "be compared; give the file it was made from"
        )
    mood = OFF if vector is None else Steering({vector: strength})
    advance = on_progress or (lambda _n: None)
    new, old = (_measure(each, texts, mood, n_threads, advance) for each in (model, source))
    nll = [np.array([-row.sum(dtype=np.float64) for row in m.logprobs]) for m in (new, old)]
    counts = np.array([len(row) for row in new.logprobs], dtype=np.float64)
    difference = (nll[0].sum() - nll[1].sum()) / counts.sum()
    return FormatCost(
        n_texts=len(texts),
        n_tokens=int(counts.sum()),
        perplexity=math.exp(nll[0].sum() / counts.sum()),
        source_perplexity=math.exp(nll[1].sum() / counts.sum()),
        ratio=math.exp(difference),
        ratio_stderr=math.exp(difference) * _stderr(nll[0] - nll[1], counts),
        hidden_cosine=_mean_cosine(new.hidden, old.hidden),
        steering_cosine=() if vector is None else _shift_cosine(new, old, min(vector.layers)),
        vector="" if vector is None else vector.name,
        windows=_windows(vector, (source, model)),
    )


def _measure(
    model: Model,
    texts: Sequence[str],
    mood: Steering,
    n_threads: int | None,
    advance: Callable[[int], None],
) -> _Measured:
    tokens = [model.tokenize(text, add_special=True) for text in texts]
    n_ctx = max(len(ids) for ids in tokens) + 8
    out = _Measured([], [], [])
    with Engine(model, n_ctx=n_ctx, n_batch=min(_N_BATCH, n_ctx), n_threads=n_threads) as engine:
        for text, ids in zip(texts, tokens, strict=True):
            out.logprobs.append(engine.score(text).logprobs)
            part = slice(FIRST_POSITION, None)
            out.hidden.append(engine.read(ids, pooling="all", tokens=part))
            if mood.terms:
                out.steered.append(engine.read(ids, pooling="all", tokens=part, steering=mood))
            advance(1)
    return out


def _mean_cosine(left: _Rows, right: _Rows) -> tuple[float, ...]:
    """Return the mean over positions of the cosine, by layer; rows are (n, n_layer, n_embd)."""
    a, b = np.concatenate(left).astype(np.float64), np.concatenate(right).astype(np.float64)
    norms = np.linalg.norm(a, axis=2) * np.linalg.norm(b, axis=2)
    cosine = np.einsum("tle,tle->tl", a, b) / np.maximum(norms, np.finfo(np.float64).tiny)
    return tuple(cosine.mean(axis=0).tolist())


def _shift_cosine(new: _Measured, old: _Measured, first: int) -> tuple[float, ...]:
    """Return the cosine of what steering changed, for the layers from ``first`` on."""
    shifts = [
        [
            steered[:, first:] - plain[:, first:]
            for steered, plain in zip(m.steered, m.hidden, strict=True)
        ]
        for m in (new, old)
    ]
    return _mean_cosine(*shifts)


def _stderr(differences: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]) -> float:
    """Return the standard error of a ratio of sums over texts, sum(differences) / sum(counts)."""
    if len(counts) < 2:
        return math.nan
    residuals = differences - differences.sum() / counts.sum() * counts
    variance = residuals.var(ddof=1) * len(counts) / counts.sum() ** 2
    return float(math.sqrt(variance))


def _windows(
    vector: ControlVector | None, models: Sequence[Model]
) -> tuple[tuple[str, float, float], ...]:
    if vector is None or not vector.metadata.calibrations:
        return ()
    found = ((model, vector.calibration_for(model.file_sha256)) for model in models)
    return tuple((model.name, *c.window) for model, c in found if c is not None)
