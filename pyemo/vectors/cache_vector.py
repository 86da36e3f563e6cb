"""The cache vector: what is added to values and keys of a few prompt cells in the KV cache.

Owns the noun and what it says of itself. Knows nothing of how a cache is edited (``engine``) or how
a vector is made (``extract``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pyemo.errors import (
    InputError,
    VectorError,
    VectorFileError,
    VectorModelMismatchError,
    VectorShapeError,
    all_calls_named,
)
from pyemo.vectors import cache_file, hints
from pyemo.vectors.cache_file import CELLS_KEY, CacheFile
from pyemo.vectors.file import MAX_LAYER, Float32Array, VectorFile
from pyemo.vectors.gguf_header import shown, shown_path
from pyemo.vectors.metadata import VectorMetadata

if TYPE_CHECKING:
    from pyemo.vectors.identity import Identified

MOST_CELLS = 256
_TOKENS_KEY = "pyemo.cache.tokens"


@all_calls_named
class CacheVector:
    """Rows that are added to the values (and keys) of the prompt's last cells.

    Immutable. A strength of 1 adds them as they are.

    Args:
        values: layer -> (n_cells, width) finite numbers; the width is that of the layer's values,
            all key-value heads in a row. Copied as float32.
        cells: which cells, counted from the prompt's end: -1 is its last token. Ascending. An edit
            of the last one does not reach the reply's first token, whose row is already computed.
        keys: likewise, as keys lie in the cache: rotated by their position where the model does.
        tokens: the token ids that stand in these cells; empty where any may.
        name: what messages call it.
        metadata: what is known of it.
    Raises:
        VectorShapeError: no rows, or rows that do not fit the cells.
        InputError: cells or tokens that are none.
    """

    def __init__(
        self,
        values: Mapping[int, npt.ArrayLike],
        *,
        cells: Sequence[int],
        keys: Mapping[int, npt.ArrayLike] | None = None,
        tokens: Sequence[int] = (),
        name: str = "cache vector",
        metadata: VectorMetadata | None = None,
    ) -> None:
        self.cells = _cells(cells)
        self.tokens = _tokens(tokens, len(self.cells))
        self.name = name
        self.metadata = metadata or VectorMetadata()
        self.values = self._rows(values, "value")
        self.keys = self._rows(keys or {}, "key")
        if not self.values and not self.keys:
            raise VectorShapeError(f"the cache vector {name!r} has no values; give some")

    def _rows(self, layers: Mapping[int, npt.ArrayLike], part: str) -> Mapping[int, Float32Array]:
        found = {}
        for layer, given in sorted(layers.items()):
            if type(layer) is not int or not 0 <= layer <= MAX_LAYER:
                raise InputError(f"a layer is a whole number from 0, got {shown(layer)}")
            try:
                with np.errstate(over="ignore"):  # what overflows is infinite, and refused below
                    rows = np.array(given, dtype=np.float64).astype(np.float32)
            except (TypeError, ValueError):
                rows = np.empty(0, np.float32)
            if rows.ndim != 2 or rows.shape[0] != len(self.cells) or not rows.shape[1]:
                raise VectorShapeError(
                    f"the cache vector {self.name!r} has {part}s of shape {rows.shape} at layer "
                    f"{layer}; it must be a row of numbers for each of its {len(self.cells)} cells"
                )
            if not np.isfinite(rows).all():
                raise VectorShapeError(
                    f"the cache vector {self.name!r} has NaN or infinity in its {part}s at layer "
                    f"{layer}; make it again"
                )
            rows.flags.writeable = False
            found[layer] = rows
        return MappingProxyType(found)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that it edits, sorted."""
        return tuple(sorted({*self.values, *self.keys}))

    @property
    def strength(self) -> float:
        """What to multiply it by where nothing is said: what its making recommends, or 1."""
        return 1.0 if self.metadata.strength is None else self.metadata.strength

    def __repr__(self) -> str:
        return f"<CacheVector {self.name}, cells {list(self.cells)}, {len(self.layers)} layers>"

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: Identified | None = None,
        *,
        allow_other_weights: bool = False,
    ) -> CacheVector:
        """Return the vector of a file; with a model it is checked against it.

        Raises:
            VectorNotFoundError: no such file.
            VectorFileError, VectorShapeError: not a cache vector's file, or damaged.
            VectorModelMismatchError: it was made for other weights.
        """
        target = os.path.expanduser(path)
        file = cache_file.read(target)
        try:
            cells = _whole_numbers(CELLS_KEY, file.fields.get(CELLS_KEY))
            tokens: list[int] = []
            if _TOKENS_KEY in file.fields:
                tokens = _whole_numbers(_TOKENS_KEY, file.fields[_TOKENS_KEY])
            about = VectorFile({}, file.fields, file.architecture)
            vector = cls(
                file.values,
                cells=cells,
                keys=file.keys,
                tokens=tokens,
                name=Path(os.fspath(target)).stem,
                metadata=VectorMetadata.from_file(about),
            )
        except VectorError as error:
            raise type(error)(f"cache vector {shown_path(target)}: {error}") from None
        except InputError as error:
            raise VectorFileError(f"cache vector {shown_path(target)}: {error}") from None
        if model is not None:
            vector.check(model, allow_other_weights=allow_other_weights)
        return vector

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it; equal vectors give equal bytes, and only a cache vector is replaced.

        Raises:
            VectorFileError: what is there is none, or the disk refuses.
        """
        fields = self.metadata.to_fields()
        fields[CELLS_KEY] = np.array(self.cells, dtype=np.int32)
        if self.tokens:
            fields[_TOKENS_KEY] = np.array(self.tokens, dtype=np.int32)
        cache_file.write(
            path, CacheFile(self.values, self.keys, fields, self.metadata.architecture)
        )

    def check(self, model: Identified, *, allow_other_weights: bool = False) -> None:
        """Raise if it was made for another model; what it does not say is not compared.

        Widths are the engine's to compare.

        Raises:
            VectorModelMismatchError: layers that the model has not, another architecture or other
                weights.
        """
        meta = self.metadata
        difference = ""
        if self.layers[-1] >= model.n_layer:
            raise VectorModelMismatchError(
                f"the cache vector {self.name!r} edits layer {self.layers[-1]}, and {model.name!r} "
                f"has layers 0 to {model.n_layer - 1}; use one made for this model"
            )
        if meta.architecture and not hints.fits(meta.architecture, model.architecture):
            difference = (
                f"was made for the architecture {meta.architecture!r}, and {model.name!r} is "
                f"{model.architecture!r}"
            )
        elif meta.weights_fingerprint and meta.weights_fingerprint != model.weights_fingerprint:
            source = repr(meta.source_model) if meta.source_model else "a model"
            difference = f"was made on {source}, whose weights are not those of {model.name!r}"
        if difference and not allow_other_weights:
            raise VectorModelMismatchError(
                f"the cache vector {self.name!r} {difference}; use one made for this model, or "
                "allow other weights (--allow-other-weights, allow_other_weights=True)"
            )

    def with_metadata(self, metadata: VectorMetadata) -> CacheVector:
        """Return it with other facts."""
        return CacheVector(
            self.values,
            cells=self.cells,
            keys=self.keys,
            tokens=self.tokens,
            name=self.name,
            metadata=metadata,
        )

    def with_source(self, model: Identified, *, strength: float | None = None) -> CacheVector:
        """Return it with ``model`` recorded as what it was made on, and a strength."""
        return self.with_metadata(replace(self.metadata, strength=strength).with_source(model))


def _cells(cells: Sequence[int]) -> tuple[int, ...]:
    found = tuple(cells)
    is_right = (
        0 < len(found) <= MOST_CELLS
        and all(type(cell) is int and -MOST_CELLS <= cell < 0 for cell in found)
        and sorted(set(found)) == list(found)
    )
    if not is_right:
        raise InputError(
            f"cells = {shown(found)}; they are counted from the prompt's end, ascending, from "
            f"-{MOST_CELLS} to -1, such as (-3, -2)"
        )
    return found


def _tokens(tokens: Sequence[int], n_cells: int) -> tuple[int, ...]:
    found = tuple(tokens)
    if found and (
        len(found) != n_cells or not all(type(token) is int and token >= 0 for token in found)
    ):
        raise InputError(f"tokens = {shown(found)}; give a token id for each of {n_cells} cells")
    return found


def _whole_numbers(key: str, value: object) -> list[int]:
    if not isinstance(value, np.ndarray) or value.dtype != np.int32:
        raise InputError(f"{key} is {shown(value)}; it must be an array of int32")
    return [int(number) for number in value]
