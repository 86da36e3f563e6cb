"""Where real rows lie: the ellipsoid that the operator ``add_within`` keeps a row in.

After in-distribution steering (2510.13285): principal components of neutral and own rows, and the
radius that holds 95% of the own ones. Knows nothing of where texts come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from pyemo.engine.engine import Engine
from pyemo.errors import InputError
from pyemo.extract.neutral import FIRST_POSITION
from pyemo.vectors.control_vector import ControlVector
from pyemo.vectors.metadata import Ellipsoid

SHARE_WITHIN = 0.95

Rows = npt.NDArray[np.float32]


def ellipsoids(
    engine: Engine,
    neutral: Sequence[str],
    own: Sequence[str],
    vector: ControlVector,
    n_components: int,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> dict[int, Ellipsoid]:
    """Return layer -> ellipsoid for the layers of a vector.

    Tokens before position 10 do not count. All rows are held in memory: texts of some thousand
    tokens.

    Args:
        neutral, own: texts, each longer than 10 tokens.
        n_components: principal components, k; as many dot products for each row that is steered.
    Raises:
        InputError: fewer rows than twice the components, or none at all.
    """
    if n_components < 1:
        raise InputError(f"{n_components} components; an ellipsoid needs at least 1")
    plain, mine = (_rows(engine, texts, vector, on_progress) for texts in (neutral, own))
    if len(plain) + len(mine) < 2 * n_components or n_components > vector.n_embd or not len(mine):
        raise InputError(
            f"{len(plain) + len(mine)} rows of width {vector.n_embd} do not give {n_components} "
            "components; give more texts, or fewer components"
        )
    return {
        layer: ellipsoid(plain[:, i], mine[:, i], n_components)
        for i, layer in enumerate(vector.layers)
    }


def ellipsoid(plain: Rows, own: Rows, n_components: int) -> Ellipsoid:
    """Return the ellipsoid of one layer.

    Args:
        plain, own: float32 (n_rows, n_embd).
    Raises:
        InputError: the rows vary in fewer directions than there are components.
    """
    rows = np.concatenate([plain, own]).astype(np.float64)
    mean = rows.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(rows - mean, rowvar=False, bias=True))
    variances, directions = variances[::-1][:n_components], directions[:, ::-1][:, :n_components]
    if variances[-1] <= 1e-12 * variances[0]:
        raise InputError(
            f"the rows vary in fewer than {n_components} directions; give more texts, or fewer "
            "components"
        )
    whitening = (directions / np.sqrt(variances)).T  # (k, n_embd)
    inside = np.square((own.astype(np.float64) - mean) @ whitening.T).sum(axis=1)
    radius2 = float(np.quantile(inside, SHARE_WITHIN))
    return Ellipsoid(whitening, whitening @ mean, radius2)


def _rows(
    engine: Engine,
    texts: Sequence[str],
    vector: ControlVector,
    on_progress: Callable[[int], None] | None,
) -> Rows:
    """Return the rows of all tokens that count, float32 (n_rows, n_layers, n_embd)."""
    found = []
    for text in texts:
        part = slice(FIRST_POSITION, None)
        found.append(engine.read(text, layers=vector.layers, pooling="all", tokens=part))
        if on_progress is not None:
            on_progress(1)
    return np.concatenate(found)
