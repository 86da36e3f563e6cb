"""A sequence whose cells in the KV cache can be read and edited, and the edits taken back.

Owns where the prompt ends and which cells a cache vector means. How cells are changed is the
core's (``csrc/cache_edits.cpp``).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence as SequenceABC
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pyemo.engine.base_sequence import BaseSequence
from pyemo.engine.gauges import Gauge
from pyemo.engine.prompt_rules import last_prompt
from pyemo.engine.sampling import SamplerParams
from pyemo.engine.steering import Steering
from pyemo.engine.tokens import whole
from pyemo.errors import InputError, all_calls_named
from pyemo.vectors.cache_vector import CacheVector

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class CacheEdit:
    """A cache vector that acts on a sequence, at the positions ``begin`` to ``end - 1``."""

    vector: CacheVector
    strength: float
    begin: int
    end: int


@dataclass(frozen=True, eq=False)
class CacheCells:
    """What the KV cache holds of some cells; float32 copies, the first position first.

    Attributes:
        keys, values: layer -> (n_cells, width), all key-value heads in a row. Keys are rotated by
            their position where the model does.
    """

    keys: dict[int, npt.NDArray[np.float32]]
    values: dict[int, npt.NDArray[np.float32]]


@all_calls_named
class CachedSequence(BaseSequence):
    """What :class:`pyemo.Sequence` is without its replies: a sequence with a cache to edit."""

    _cache_edits: tuple[CacheEdit, ...] = ()

    @property
    def cache_edits(self) -> tuple[CacheEdit, ...]:
        """The edits that act, the newest last."""
        return self._cache_edits

    def edit_cache(
        self,
        vector: CacheVector,
        strength: float | None = None,
        *,
        allow_other_weights: bool = False,
    ) -> None:
        """Add a cache vector to cells of the newest prompt; costs nothing per token.

        It acts at once, or as soon as the cells are decoded. What comes after them sees it; tokens
        that were decoded before the call keep what they were computed with, but for the last one,
        which is decoded again. A fork takes its edits along. Cells that are computed anew are
        edited again: after :meth:`refresh`, and after a :meth:`rollback` behind them; one that
        reaches them takes the edit off.

        Args:
            vector: made for this model; its ``tokens``, if any, are what stands in the cells.
            strength: what it is multiplied by; None for what it recommends. 0 changes no bit.
            allow_other_weights: take a vector that was made on other weights.
        Raises:
            InputError: no such cells, other tokens in them, an edit that covers only some of them,
                a strength that is not finite, or quantized cells (``kv_type``) or cells that are
                not shared (``kv_unified=False``).
            VectorError: made for another model, or of other widths.
            SteeringUnsupportedError: a recurrent model, or a cache that cannot be read.
            ContextFullError: cells that forks share, and none free for those that change.
            DecodeAbortedError: numbers beyond what a cell holds, or llama.cpp fails; the sequence
                is as it was.
        """
        if not isinstance(vector, CacheVector):
            raise InputError(f"not a CacheVector: {vector!r}; CacheVector.load(path) reads one")
        factor = vector.strength if strength is None else strength
        if (
            isinstance(factor, bool)
            or not isinstance(factor, numbers.Real)
            or not math.isfinite(factor)
        ):
            raise InputError(f"strength = {factor!r}; it must be a finite number")
        factor = float(factor)
        vector.check(self._engine.model, allow_other_weights=allow_other_weights)
        with self._engine.turns:
            begin, end = self._positions(vector)
            edit = CacheEdit(vector, factor, begin, end)
            self._native.edit_cache(self.id, begin, end, _deltas(edit))
            self._cache_edits = (*self._cache_edits, edit)

    def undo_cache_edit(self) -> None:
        """Take the newest edit back: the cells hold what they held before, bit for bit.

        Tokens decoded meanwhile keep what they were computed with, but for the last one. If none
        were, the next logits are those from before the edit.

        Raises:
            InputError: there is none.
            DecodeAbortedError: llama.cpp fails; the edit stays.
        """
        with self._engine.turns:
            self._native.undo_cache_edit(self.id)
            self._cache_edits = self._cache_edits[:-1]

    def read_cache(self, begin: int, end: int) -> CacheCells:
        """Return what the cells of the positions ``begin`` to ``end - 1`` hold.

        Decodes what is pending where they are not in the cache yet.

        Raises:
            InputError: positions that the sequence has not, or a cache that cannot be read; see
                :meth:`edit_cache`.
            SteeringUnsupportedError: likewise.
        """
        first = whole("begin", begin, 0)
        last = whole("end", end, first + 1)
        rows = self._native.read_cache(self.id, first, last)
        n_cells = last - first
        return CacheCells(
            keys={layer: keys.reshape(n_cells, -1) for layer, keys, _ in rows},
            values={layer: values.reshape(n_cells, -1) for layer, _, values in rows},
        )

    def fork(self, *, sampler: SamplerParams | None = None) -> Self:
        """Return a twin; see :meth:`BaseSequence.fork`. It has the edits of the cache too."""
        twin = super().fork(sampler=sampler)
        twin._cache_edits = self._cache_edits
        return twin

    def rollback(self, n_tokens: int) -> None:
        """Take tokens off; see :meth:`BaseSequence.rollback`. So are edits of their cells."""
        with self._engine.turns:
            super().rollback(n_tokens)
            n = self.n_tokens
            self._cache_edits = tuple(edit for edit in self._cache_edits if edit.end <= n)

    def restart(
        self,
        tokens: SequenceABC[int],
        steering: Steering,
        sampler: SamplerParams,
        gauges: tuple[Gauge, ...],
    ) -> None:
        """Become what a new sequence would be; see :meth:`BaseSequence.restart`. No edit stays."""
        with self._engine.turns:
            super().restart(tokens, steering, sampler, gauges)
            self._cache_edits = ()

    def prompt_end(self) -> int:
        """Return the position behind the newest prompt: where its reply begins, or will."""
        prompt = last_prompt(self._segments, self.n_tokens)
        return 0 if prompt is None else prompt.end

    def _positions(self, vector: CacheVector) -> tuple[int, int]:
        """Return the positions from the vector's first cell to behind its last."""
        n = self.prompt_end()
        begin, end = n + vector.cells[0], n + vector.cells[-1] + 1
        if begin < 0:
            raise InputError(
                f"the prompt has {n} tokens, and {vector.name!r} edits the cell "
                f"{-vector.cells[0]} before its end; give a longer prompt"
            )
        tokens = self.tokens
        found = tuple(tokens[n + cell] for cell in vector.cells)
        if vector.tokens and found != vector.tokens:
            raise InputError(
                f"{vector.name!r} was made for the tokens {list(vector.tokens)} at the prompt's "
                f"end, and there are {list(found)}; give the prompt in the chat template that it "
                "was made with"
            )
        return begin, end


def _deltas(edit: CacheEdit) -> list[tuple[int, bool, npt.NDArray[np.float32]]]:
    """Return (layer, whether keys, float32 (n_cells, width)) with 0 at cells between."""
    vector, n_cells = edit.vector, edit.end - edit.begin
    at = [cell - vector.cells[0] for cell in vector.cells]
    deltas = []
    for of_keys, layers in ((False, vector.values), (True, vector.keys)):
        for layer, rows in layers.items():
            spread = np.zeros((n_cells, rows.shape[1]), dtype=np.float32)
            with np.errstate(over="ignore", invalid="ignore"):  # the core refuses what overflows
                spread[at] = rows * np.float32(edit.strength)
            deltas.append((layer, of_keys, spread))
    return deltas
