"""From pooled hidden states to directions. Pure NumPy, in float64.

Shapes are (n_texts, n_layers, n_embd) where nothing else is said.

The functions are checked on planted directions in tests/extract/test_directions.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pyemo.errors import InputError

States = npt.NDArray[np.floating]
Rows = npt.NDArray[np.float64]


def class_means(states: Mapping[str, States]) -> dict[str, Rows]:
    """Return the mean over the texts of each class, (n_layers, n_embd)."""
    return {name: np.asarray(rows, np.float64).mean(axis=0) for name, rows in states.items()}


def mean_of_classes(means: Mapping[str, Rows]) -> Rows:
    """Return the mean over class means, every class counting the same."""
    return np.asarray(np.mean(list(means.values()), axis=0))


def pair_direction(differences: States) -> Rows:
    """Return the first principal component of pair differences, with the sign of their mean.

    Not centred, as repeng's ``pca_diff`` on symmetric pairs: a constant difference is the signal.
    PCA leaves the sign open; it is chosen so that most of the mean difference points along it.

    Args:
        differences: (n_pairs, n_layers, n_embd), n_pairs >= 2.
    Returns:
        (n_layers, n_embd), unit length.
    """
    rows = np.asarray(differences, np.float64)
    out = np.empty(rows.shape[1:])
    for layer in range(rows.shape[1]):
        _, _, components = np.linalg.svd(rows[:, layer], full_matrices=False)
        direction = components[0]
        out[layer] = direction * (1.0 if rows[:, layer].mean(axis=0) @ direction >= 0 else -1.0)
    return out


def principal_components(states: States, share: float) -> list[Rows]:
    """Return, for each layer, the fewest principal components that hold ``share`` of the variance.

    Args:
        states: (n_texts, n_layers, n_embd) of neutral texts.
        share: 0 (none) up to, not including, 1.
    Returns:
        per layer (n_components, n_embd), orthonormal rows; n_components may be 0.
    """
    rows = np.asarray(states, np.float64)
    rows = rows - rows.mean(axis=0)
    bases = []
    for layer in range(rows.shape[1]):
        _, singular, components = np.linalg.svd(rows[:, layer], full_matrices=False)
        variance = singular**2
        total = variance.sum()
        if share <= 0 or total == 0:
            bases.append(components[:0])
            continue
        n = int(np.searchsorted(np.cumsum(variance) / total, share - 1e-12)) + 1
        bases.append(components[:n])
    return bases


def project_out(directions: Rows, bases: list[Rows]) -> Rows:
    """Return ``directions`` (n_layers, n_embd) without their parts in each layer's basis."""
    return np.stack(
        [row - basis.T @ (basis @ row) for row, basis in zip(directions, bases, strict=True)]
    )


def unit(directions: Rows, name: str) -> Rows:
    """Return the rows at unit length.

    Raises:
        InputError: a row without length: the class does not differ from its baseline at that layer.
    """
    lengths = np.linalg.norm(directions, axis=-1, keepdims=True)
    if not np.all(np.isfinite(lengths)) or np.any(lengths <= 1e-12):
        layer = int(np.argmin(lengths[:, 0]))
        raise InputError(
            f"the texts of {name!r} do not differ from the baseline at layer {layer} (zero "
            "variance); give other texts"
        )
    return np.asarray(directions / lengths)
