"""How a mood reaches the core: which terms act on which positions of a sequence.

A mood (:class:`pyemo.Steering`) says what acts on a prompt and on a reply, and how strongly at the
reply's t-th token. The core knows positions only: it takes spans, each a first position and the
terms that act from there on. The core sums the terms into what is added to a row (csrc/mix.cpp).
"""

from __future__ import annotations

import weakref
from typing import TypeAlias

from pyemo import _core
from pyemo.engine.model import Model
from pyemo.engine.steering import Steering
from pyemo.vectors.control_vector import ControlVector

NativeSpans: TypeAlias = "list[tuple[int, list[_core.Term]]]"
Segments: TypeAlias = "list[tuple[int, bool]]"
"""Where prompts and replies begin: (first position, is_reply), ascending from 0."""

OFF = Steering()
"""No mood."""


class NativeMoods:
    """Turns moods into native terms for one model; each vector is uploaded once."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._uploaded: weakref.WeakKeyDictionary[ControlVector, _core.Directions] = (
            weakref.WeakKeyDictionary()
        )

    def spans(self, steering: Steering, segments: Segments, begin: int, end: int) -> NativeSpans:
        """Return the terms from position ``begin`` on; the last also hold after ``end``."""
        spans: NativeSpans = []
        for index, (first, is_reply) in enumerate(segments):
            is_last = index + 1 == len(segments)
            start = max(first, begin)
            stop = max(end, start + 1) if is_last else segments[index + 1][0]
            scheduled = is_reply and steering.is_scheduled
            for position in range(start, stop if scheduled else min(stop, start + 1)):
                t = position - first if is_reply else 0
                spans.append((position, self._terms(steering, is_reply=is_reply, t=t)))
        return spans or [(begin, [])]

    def _terms(self, steering: Steering, *, is_reply: bool, t: int) -> list[_core.Term]:
        n_layer = self._model.n_layer
        return [
            _core.Term(
                self._upload(term.vector),
                term.strength_at(t),
                term.operator,
                min(term.layers.start, n_layer) if term.layers else 0,
                min(term.layers.stop, n_layer) if term.layers else n_layer,
            )
            for term in steering.terms
            if term.scope == "both" or (term.scope == "reply") == is_reply
        ]

    def _upload(self, vector: ControlVector) -> _core.Directions:
        directions = self._uploaded.get(vector)
        if directions is None:
            # That it fits is checked here; whose weights it was made on, where it is loaded.
            vector.check(self._model, allow_other_weights=True)
            directions = _core.Directions(
                self._model.n_layer, self._model.n_embd, list(vector.directions.items())
            )
            self._uploaded[vector] = directions
        return directions
