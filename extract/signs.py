"""Which way round a vector points: hidden states of texts of both poles, on its own directions.

PCA leaves a direction's sign to chance, layer by layer. Owns the comparison; where the texts come
from is the caller's matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from pyemo.engine.engine import Engine
from pyemo.errors import InputError
from pyemo.extract.neutral import FIRST_POSITION
from pyemo.vectors.control_vector import ControlVector

N_TEXTS = 10
"""Texts of each pole that are read."""

CLEAR = 0.7
"""Share of pairs in one order from which a layer's sign counts as told."""


@dataclass(frozen=True)
class SignCheck:
    """How texts of the two poles lie along each direction.

    Attributes:
        order: layer -> share of all pairs of texts whose positive one lies further along; 1 is the
            right way round, 0 the wrong one, 0.5 says nothing.
        n_texts: of the positive and the negative pole.
    """

    order: Mapping[int, float]
    n_texts: tuple[int, int]

    @property
    def right(self) -> tuple[int, ...]:
        """Layers that point to the positive pole."""
        return tuple(layer for layer, share in self.order.items() if share >= CLEAR)

    @property
    def wrong(self) -> tuple[int, ...]:
        """Layers that point to the negative pole."""
        return tuple(layer for layer, share in self.order.items() if share <= 1 - CLEAR)

    @property
    def unclear(self) -> tuple[int, ...]:
        """Layers that do not tell the poles apart."""
        told = {*self.right, *self.wrong}
        return tuple(layer for layer in self.order if layer not in told)


def check_signs(
    engine: Engine, vector: ControlVector, positive: Sequence[str], negative: Sequence[str]
) -> SignCheck:
    """Return which layers of ``vector`` point to the positive pole, by :data:`N_TEXTS` texts each.

    A text counts as the mean of its tokens' hidden states from position 10 on, unsteered; of a
    shorter text all tokens count.

    Raises:
        InputError: a pole without texts.
        ContextFullError, SteeringUnsupportedError: see :meth:`Engine.read_many`.
    """
    poles = [tuple(texts)[:N_TEXTS] for texts in (positive, negative)]
    if not all(poles):
        raise InputError("a sign is checked with texts of both poles; one has none")
    along = [_along(engine, vector, texts) for texts in poles]
    order = {layer: _order(along[0][layer], along[1][layer]) for layer in vector.layers}
    return SignCheck(MappingProxyType(order), (len(poles[0]), len(poles[1])))


def turned(vector: ControlVector, layers: Sequence[int]) -> ControlVector:
    """Return a raw vector with the directions of ``layers`` turned round.

    Raises:
        InputError: the unit is not "raw".
    """
    if vector.unit != "raw":
        raise InputError(
            f"the control vector {vector.name!r} is in residual units; its sign stands"
        )
    rows = {layer: -row if layer in layers else row for layer, row in vector.directions.items()}
    return ControlVector(rows, name=vector.name, metadata=vector.metadata)


def _order(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    """Return the share of pairs whose first lies further; the same place counts half."""
    return float(np.mean(np.sign(np.subtract.outer(first, second)) + 1) / 2)


def _along(
    engine: Engine, vector: ControlVector, texts: Sequence[str]
) -> dict[int, npt.NDArray[np.float64]]:
    """Return layer -> projections of the texts on its direction, float64 (n_texts,)."""
    tokens = [engine.model.tokenize(text, add_special=True) for text in texts]
    parts = [slice(min(FIRST_POSITION, max(len(text) - 1, 0)), None) for text in tokens]
    means = [
        rows.astype(np.float64).mean(axis=0)  # (n_layer, n_embd)
        for rows in engine.read_many(tokens, pooling="all", tokens=parts)
    ]
    return {
        layer: np.array([mean[layer] @ row.astype(np.float64) for mean in means])
        for layer, row in vector.directions.items()
    }
