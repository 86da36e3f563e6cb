"""Cache vectors as somebody typed them: ``FILE[=STRENGTH]``, loaded for a model."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from pyemo.engine.cached_sequence import CachedSequence
from pyemo.errors import InputError
from pyemo.moods.grammar import parse_vector_spec
from pyemo.vectors.cache_vector import CacheVector
from pyemo.vectors.identity import Identified


class CacheTerm(NamedTuple):
    """A cache vector at a strength."""

    vector: CacheVector
    strength: float

    def __str__(self) -> str:
        return f"{self.vector.name}={self.strength:g} in the cache"

    def describe(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "name": self.vector.name,
            "strength": self.strength,
            "cells": list(self.vector.cells),
            "layers": list(self.vector.layers),
        }


def cache_terms(
    typed: Iterable[str], model: Identified, *, allow_other_weights: bool = False
) -> list[CacheTerm]:
    """Return what was typed, checked against a model.

    Raises:
        InputError: not of the form FILE[=STRENGTH].
        VectorError: no such file, no cache vector, or one of another model.
    """
    terms = []
    for text in typed:
        spec = parse_vector_spec(os.path.expanduser(text))
        if spec.layers is not None or spec.operator is not None or spec.when or spec.when_prompt:
            raise InputError(
                f"{text!r} names layers, an operator or a rule, which a cache vector has not; "
                "write FILE[=STRENGTH]"
            )
        vector = CacheVector.load(spec.source, model, allow_other_weights=allow_other_weights)
        strength = vector.strength if spec.strength is None else spec.strength
        terms.append(CacheTerm(vector, strength))
    return terms


def edit(
    sequence: CachedSequence, terms: Iterable[CacheTerm], *, allow_other_weights: bool = False
) -> None:
    """Let cache vectors act on a sequence.

    Raises:
        as :meth:`pyemo.Sequence.edit_cache`.
    """
    for vector, strength in terms:
        sequence.edit_cache(vector, strength, allow_other_weights=allow_other_weights)
