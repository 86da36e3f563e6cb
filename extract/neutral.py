"""How neutral texts lie in a model's residual stream: the ruler of strengths and gauges.

Owns the two numbers per layer that a vector in residual units carries: the residual norm and the
neutral projection. Knows nothing of where texts come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyemo.engine.engine import Engine
from pyemo.errors import InputError, VectorShapeError
from pyemo.vectors.control_vector import ControlVector

FIRST_POSITION = 10
"""The first position that counts: a text's first tokens have many times the others' norms."""

_BATCH_BYTES = 1 << 26  # hidden states held at a time, where a single text is not larger


@dataclass(frozen=True)
class NeutralStatistics:
    """What was measured on neutral texts, layer 0 first.

    Attributes:
        residual_norms: median of ||h|| over the tokens, for all layers of the model.
        neutral_projections: mean of h.u over the tokens, with u the vector's unit direction; 0 at
            layers without a direction. Empty if no vector was given.
        n_tokens: tokens that were counted.
    """

    residual_norms: tuple[float, ...]
    neutral_projections: tuple[float, ...]
    n_tokens: int


def neutral_statistics(
    engine: Engine,
    texts: Sequence[str],
    vector: ControlVector | None = None,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> NeutralStatistics:
    """Return residual norms, and a vector's neutral projections, over the tokens of ``texts``.

    Tokens before :data:`FIRST_POSITION` do not count, nor does steering act. Special tokens are
    expected at a text's beginning only. Memory is bounded, whatever the number of texts.

    Args:
        texts: each longer than FIRST_POSITION tokens, and not longer than the engine's context.
        vector: must fit the engine's model (:meth:`ControlVector.check`); no direction may be zero.
        on_progress: called with the number of texts that were read since the last call.
    Raises:
        InputError: no text, or one that is too short.
        VectorShapeError: a zero direction, which points nowhere.
        ContextFullError, SteeringUnsupportedError: see :meth:`Engine.read_many`.
    """
    if not texts:
        raise InputError("no neutral texts; give at least one")
    units = _unit_directions(vector, engine.model.n_layer, engine.model.n_embd)
    norms: list[npt.NDArray[np.float64]] = []
    sums = np.zeros(engine.model.n_layer)
    for batch in _batches(engine, texts):
        parts = [slice(FIRST_POSITION, None)] * len(batch)
        for rows in engine.read_many(batch, pooling="all", tokens=parts):
            hidden = rows.astype(np.float64)  # (n_tokens, n_layer, n_embd)
            norms.append(np.linalg.norm(hidden, axis=2))
            sums += np.einsum("tle,le->l", hidden, units)
        if on_progress is not None:
            on_progress(len(batch))
    all_norms = np.concatenate(norms)
    n_tokens = len(all_norms)
    return NeutralStatistics(
        residual_norms=tuple(np.median(all_norms, axis=0).tolist()),
        neutral_projections=() if vector is None else tuple((sums / n_tokens).tolist()),
        n_tokens=n_tokens,
    )


def _unit_directions(
    vector: ControlVector | None, n_layer: int, n_embd: int
) -> npt.NDArray[np.float64]:
    """Return the unit directions, float64 (n_layer, n_embd), zeros at layers without one."""
    units = np.zeros((n_layer, n_embd))
    for layer, direction in (vector.directions if vector is not None else {}).items():
        row = direction.astype(np.float64)
        length = np.linalg.norm(row)
        if length == 0:
            raise VectorShapeError(
                f"the control vector {vector.name if vector else ''!r} has a zero direction at "
                f"layer {layer}, which points nowhere; leave that layer out"
            )
        units[layer] = row / length
    return units


def _batches(engine: Engine, texts: Sequence[str]) -> Iterator[list[list[int]]]:
    """Yield the texts' tokens in groups whose hidden states fit into the bound."""
    row_bytes = 4 * engine.model.n_layer * engine.model.n_embd
    batch: list[list[int]] = []
    n_bytes = 0
    for text in texts:
        tokens = engine.model.tokenize(text, add_special=True)
        n_counted = len(tokens) - FIRST_POSITION
        if n_counted < 1:
            raise InputError(
                f"the neutral text {text[:60]!r} has {len(tokens)} tokens, and only those from "
                f"position {FIRST_POSITION} on count; give a longer one"
            )
        if batch and n_bytes + n_counted * row_bytes > _BATCH_BYTES:
            yield batch
            batch, n_bytes = [], 0
        batch.append(tokens)
        n_bytes += n_counted * row_bytes
    yield batch
