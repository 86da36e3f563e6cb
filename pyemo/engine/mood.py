"""How a mood reaches the core: which terms act on which positions of a sequence.

A mood (:class:`pyemo.Steering`) says what acts on a prompt and on a reply, and how strongly at the
reply's t-th token. The core knows positions only: it takes spans, each a first position and the
terms that act from there on. The core sums the terms into what is added to a row (csrc/mix.cpp).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TypeAlias

from pyemo import _core
from pyemo.engine.gauges import Gauge
from pyemo.engine.model import Model
from pyemo.engine.prompt_rules import Decisions, PromptRange
from pyemo.engine.rules import All, Both, Condition, Not, Rule
from pyemo.engine.scopes import Kind, Rows, Segments, changes, holds, rows_of
from pyemo.engine.steering import Steering
from pyemo.errors import InputError
from pyemo.vectors.control_vector import ControlVector

NativeSpans: TypeAlias = "list[tuple[int, list[_core.Term]]]"
OFF = Steering()
"""No mood."""


class NativeMoods:
    """Turns moods into native terms for one model; each vector is uploaded once."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._uploaded: weakref.WeakKeyDictionary[ControlVector, _core.Directions] = (
            weakref.WeakKeyDictionary()
        )
        self._gates: weakref.WeakKeyDictionary[Rule, _core.Gate] = weakref.WeakKeyDictionary()

    def check(self, steering: Steering) -> None:
        """Raise unless the mood fits the model.

        Raises:
            InputError: no mood.
            VectorError: a vector of another shape.
        """
        if not isinstance(steering, Steering):
            raise InputError(f"not a Steering: {steering!r}; write Steering({{vector: 0.02}})")
        for term in steering.terms:
            self._upload(term.vector)
            for rule in (term.when, term.when_prompt):
                if rule is not None:
                    self._gate(rule)

    def spans(
        self,
        steering: Steering,
        segments: Segments,
        begin: int,
        end: int,
        *,
        next_kind: Kind | None = "answer",
        decisions: Decisions | None = None,
    ) -> NativeSpans:
        """Return the terms of rows ``begin`` to ``end`` - 1, and of those to come.

        Args:
            segments: of a sequence of ``end`` tokens.
            next_kind: of the next reply's first token; None where no reply will come.
            decisions: what prompts decided; rules that are not among them do not hold. None where
                nothing decides.
        Raises:
            InputError: a rule on the prompt, and nothing decides.
        """
        if decisions is None and any(term.when_prompt is not None for term in steering.terms):
            raise InputError(
                "a rule on the prompt is decided in a sequence: Engine.sequence or generate; here "
                "give the mood that it comes to"
            )
        spans: NativeSpans = []
        for rows in rows_of(segments, end, next_kind):
            start = max(rows.begin, begin)
            stop = max(end, start + 1) if rows.end is None else rows.end
            if stop <= start:
                continue
            cuts = {start, *(row for term in steering.terms for row in changes(term.scope, rows))}
            if rows.kind != "prompt" and steering.is_scheduled:
                cuts.update(range(start, stop))
            for row in sorted(cuts):
                if start <= row and (rows.end is None or row < rows.end):
                    spans.append((row, self._terms(steering, rows, row, decisions or {})))
        return spans or [(begin, [])]

    def _terms(
        self, steering: Steering, rows: Rows, row: int, decisions: Decisions
    ) -> list[_core.Term]:
        n_layer = self._model.n_layer
        prompt = PromptRange(rows.prompt, rows.reply)

        def is_decided(rule: Rule | None) -> bool:
            if rule is None:
                return True
            decision = decisions.get((prompt, rule))
            return decision is not None and decision.holds

        return [
            _core.Term(
                self._upload(term.vector),
                term.strength_at(rows.index(row)),
                term.operator,
                min(term.layers.start, n_layer) if term.layers else 0,
                min(term.layers.stop, n_layer) if term.layers else n_layer,
                None if term.when is None else self._gate(term.when),
            )
            for term in steering.terms
            if holds(term.scope, rows, row) and is_decided(term.when_prompt)
        ]

    def _gate(self, rule: Rule) -> _core.Gate:
        gate = self._gates.get(rule)
        if gate is None:
            probes: list[_core.Probe] = []
            for condition in rule.conditions():
                condition.vector.check(self._model, allow_other_weights=True)
                assert condition.threshold is not None
                probes.append(
                    _core.Probe(
                        native_gauge(condition.gauge()),
                        condition.threshold,
                        bool(condition.above),
                        condition.softness,
                    )
                )
            gate = _core.Gate(probes, _program(rule, iter(range(len(probes)))))
            self._gates[rule] = gate
        return gate

    def _upload(self, vector: ControlVector) -> _core.Directions:
        directions = self._uploaded.get(vector)
        if directions is None:
            # That it fits is checked here; whose weights it was made on, where it is loaded.
            vector.check(self._model, allow_other_weights=True)
            neutral, own = vector.neutral_projections, vector.own_projections
            directions = _core.Directions(
                self._model.n_layer,
                self._model.n_embd,
                list(vector.directions.items()),
                {layer: (at, own.get(layer, at)) for layer, at in neutral.items()},
                {
                    layer: (found.components, found.center, found.radius2)
                    for layer, found in vector.ellipsoids.items()
                },
            )
            self._uploaded[vector] = directions
        return directions


def native_gauge(gauge: Gauge) -> _core.Gauge:
    """Return the native value."""
    assert gauge.layer is not None
    norm = gauge.vector.residual_norms[gauge.layer]
    neutral = gauge.vector.neutral_projections[gauge.layer]
    return _core.Gauge(gauge.unit, gauge.layer, neutral, norm)


def _program(rule: Rule, probes: Iterator[int]) -> list[int]:
    """Return the rule in postfix; ``probes`` numbers its conditions from left to right."""
    if isinstance(rule, Condition):
        return [next(probes)]
    if isinstance(rule, Not):
        return [*_program(rule.rule, probes), _core.Gate.NOT]
    assert isinstance(rule, Both)
    left, right = _program(rule.left, probes), _program(rule.right, probes)
    return [*left, *right, _core.Gate.AND if isinstance(rule, All) else _core.Gate.OR]
