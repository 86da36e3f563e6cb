"""How strong a mood is on the texts at hand, in words, before the first token.

A raw vector says nothing of its length, so the residual norms are measured on the prompt itself.
The measure is the largest push: how far the steering has moved the residual stream at a block, over
that stream's norm there, at the block where it is largest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pyemo.engine.engine import Engine
from pyemo.engine.steering import Steering

UNSEEN, WEAK, STRONG, BREAKS = 0.01, 0.02, 0.3, 1.0
"""Ends of what is said. The lower ends of the bundled vectors' 38 calibrated windows are pushes of
1.6% to 10%, the upper ends 2.3% to 29%."""

_MOST_TOKENS = 256


def prompt_norms(engine: Engine, tokens: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return the median residual norm of a prompt's tokens after each block, float64 (n_layer,).

    The first token does not count where there are others: its norm is many times theirs.
    """
    read = list(tokens)[: min(_MOST_TOKENS, engine.n_ctx_seq)]
    rows = engine.read(read, pooling="all").astype(np.float64)
    norms = np.linalg.norm(rows, axis=2)  # (n_tokens, n_layer)
    return np.asarray(np.median(norms[1:] if len(norms) > 1 else norms, axis=0))


def push(steering: Steering, norms: Sequence[float] | npt.NDArray[np.float64]) -> float:
    """Return the largest push of a mood's ``add`` terms, 0.02 for 2%, as if blocks passed it on."""
    steps: dict[int, npt.NDArray[np.float64]] = {}
    for term in steering.terms:
        if term.operator != "add":
            continue
        for layer, row in _steered(term.vector.directions, term.layers).items():
            steps[layer] = steps.get(layer, 0.0) + term.strength * row.astype(np.float64)
    moved: npt.NDArray[np.float64] | float = 0.0
    largest = 0.0
    for layer in sorted(steps):
        moved = moved + steps[layer]
        largest = max(largest, float(np.linalg.norm(moved)) / max(float(norms[layer]), 1e-30))
    return largest


def in_words(share: float) -> str:
    """Return what a largest push means for the text."""
    size = f"{100 * share:.2g}%" if share < 0.1 else f"{100 * share:.0f}%"
    for end, words in (
        (UNSEEN, "nothing will be seen"),
        (WEAK, "little will be seen"),
        (STRONG, "as strong as moods usually are"),
        (BREAKS, "the text may loop or break"),
    ):
        if share < end:
            return f"{size} of the residual norm: {words}"
    return f"{size} of the residual norm: this will not be text"


def _steered(
    directions: Mapping[int, npt.NDArray[np.float32]], layers: range | None
) -> dict[int, npt.NDArray[np.float32]]:
    return {il: row for il, row in directions.items() if layers is None or il in layers}
