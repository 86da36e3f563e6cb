"""Small operations on rows of numbers that several rooms share. Pure NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float64]


def unit_rows(rows: Rows) -> Rows:
    """Return the rows scaled to unit length, float64, same shape; a row of zeros stays zeros."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1.0))
