"""Random vectors that know where neutral texts and their own lie, for tests of row methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from engines import random_vector
from numpy.typing import NDArray
from tiny_models import TinyModel

from pyemo import ControlVector
from pyemo.extract.ellipsoids import ellipsoid

Row = NDArray[Any]


def measured(model: TinyModel, tokens: Sequence[int], *, seed: int = 0) -> ControlVector:
    """A random vector as long as the residual, its own texts half a norm from neutral ones.

    Real rows are those of ``tokens``.
    """
    vector = random_vector(model, seed=seed)
    hidden = model.reference_hidden(tokens).astype(np.float64)
    norms = np.median(np.linalg.norm(hidden, axis=2), axis=1)
    units = [vector.directions[il] / np.linalg.norm(vector.directions[il]) for il in vector.layers]
    neutral = [float(rows.mean(axis=0) @ u) for rows, u in zip(hidden, units, strict=True)]
    own = [at + 0.5 * norm for at, norm in zip(neutral, norms, strict=True)]
    rows = hidden.astype(np.float32)
    real = {layer: ellipsoid(rows[layer], rows[layer], 3) for layer in vector.layers}
    return vector.rescaled(norms.tolist()).with_own_projections(neutral, own, real)


def along(vector: ControlVector, layer: int) -> Row:
    """The unit direction."""
    row = vector.directions[layer].astype(np.float64)
    return row / np.linalg.norm(row)
