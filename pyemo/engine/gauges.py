"""Live readings: how far the residual stream points along a direction, at each token.

reading = (h.u - c) / r with h the block's output, u the unit direction, c the mean projection of
neutral texts and r the residual norm at that layer. What the steering itself added is taken off and
shown as the dose, so a gauge shows what the model makes of a mood, not the mood. It is still no
proof of an effect on the text: judges read text for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyemo.errors import InputError, all_calls_named
from pyemo.vectors.control_vector import ControlVector, check_is_vector


class GaugeReading(NamedTuple):
    """One gauge at one token, in residual norms of its layer.

    Attributes:
        value: the reading without the direct dose of the steering.
        dose: what the steering added along the direction up to this layer.
    """

    value: float
    dose: float


@all_calls_named
@dataclass(frozen=True, eq=False)
class Gauge:
    """Where to read: one direction at one layer.

    ```
    Gauge(angry)              # at the middle one of the vector's layers
    Gauge(angry, layer=14)
    ```

    Args:
        vector: must know the model's residual norms and neutral projections.
        layer: a layer of the vector; None for the middle one of its layers.
        name: key of the reading; None for the vector's name.
    Raises:
        InputError: no direction at that layer, or a vector without norms or projections.
    """

    vector: ControlVector
    layer: int | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        check_is_vector(self.vector)
        layers = self.vector.layers
        if self.layer is None:
            object.__setattr__(self, "layer", layers[len(layers) // 2])
        if self.name is None:
            object.__setattr__(self, "name", self.vector.name)
        if self.layer not in self.vector.directions:
            raise InputError(
                f"{self.vector.name!r} has no direction at layer {self.layer}; "
                f"it has {layers[0]} to {layers[-1]}"
            )
        known = self.vector.residual_norms, self.vector.neutral_projections
        if any(self.layer not in rows for rows in known):
            raise InputError(
                f"{self.vector.name!r} does not say the model's residual norms and neutral "
                "projections, which a gauge needs; rescale it: pyemo rescale"
            )

    def of_rows(self, rows: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """Return what rows that nothing steered read, float64 (...,).

        Args:
            rows: the layer's output, (..., n_embd).
        """
        assert self.layer is not None
        along = rows.astype(np.float64) @ self.unit.astype(np.float64)
        neutral = self.vector.neutral_projections[self.layer]
        found: npt.NDArray[np.float64] = (along - neutral) / self.vector.residual_norms[self.layer]
        return found

    @property
    def unit(self) -> npt.NDArray[np.float32]:
        """The unit direction, float32 (n_embd,), a copy."""
        assert self.layer is not None
        row = self.vector.directions[self.layer].astype(np.float64)
        length = float(np.linalg.norm(row))
        if length == 0.0:
            raise InputError(
                f"{self.vector.name!r} has length 0 at layer {self.layer}; it points nowhere"
            )
        return (row / length).astype(np.float32)
