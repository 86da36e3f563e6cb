"""Conditions on what a row reads, and rules made of them: when a term of a mood acts.

A condition compares a reading, (h.u - neutral) / residual norm at one layer, with a threshold.
Rules are immutable and made of others, so none can refer to itself. Knows nothing of the core, of
sequences and of who reads the row.
"""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from pyemo.engine.gauges import Gauge
from pyemo.errors import InputError, VectorError, all_calls_named
from pyemo.vectors.control_vector import ControlVector


class Rule(ABC):
    """When a term acts: conditions, and what ``&``, ``|`` and ``~`` make of them.

    ```
    loud = Condition(angry, 0.1)
    Steering({calm: 0.02}, when=loud & ~Condition(happy, 0.1))
    ```
    """

    def __and__(self, other: object) -> Rule:
        return All(self, other) if isinstance(other, Rule) else NotImplemented

    def __or__(self, other: object) -> Rule:
        return Either(self, other) if isinstance(other, Rule) else NotImplemented

    def __invert__(self) -> Rule:
        return Not(self)

    @abstractmethod
    def conditions(self) -> Iterator[Condition]:
        """Yield the conditions that it is made of, from left to right."""

    @abstractmethod
    def mapped(self, change: Callable[[Condition], Condition]) -> Rule:
        """Return the same rule with each condition changed."""

    @abstractmethod
    def holds(self, reads: Callable[[Condition], float]) -> bool:
        """Return whether it holds where the conditions read what ``reads`` says."""


@all_calls_named
@dataclass(frozen=True)
class Condition(Rule):
    """Whether a row reads more, or less, than a threshold along a vector.

    ```
    Condition(refusal, 0.4)              # more than 0.4 residual norms above neutral text
    Condition(refusal, 0.4, above=False)
    Condition(fitted)                    # as `pyemo condition fit` found
    ```

    Args:
        vector: must know the model's residual norms and neutral projections.
        threshold: a finite reading; None for the fitted one.
        above: the side on which it holds; None for the fitted one, or above.
        layer: where to read; None for the fitted one, else for the first layer that the term
            steers, or the middle one of the vector's where a prompt is read.
        softness: 0 is a step; else residual norms over which a sigmoid goes from 0.5 to 0.73. A
            prompt is decided by the step always.
    Raises:
        InputError: a value outside its range, or no direction at the layer.
        VectorError: a value left to a vector that was not fitted.
    """

    vector: ControlVector
    threshold: float | None = None
    above: bool | None = None
    layer: int | None = None
    softness: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.vector, ControlVector):
            raise InputError(f"not a ControlVector: {self.vector!r}; a condition reads one")
        found = self.vector.metadata.condition
        if self.threshold is None and found is None:
            raise VectorError(
                f"{self.vector.name!r} is no fitted condition, so it needs a threshold, such as "
                f"{self.vector.name}>0.1; or fit one: pyemo condition fit"
            )
        if found is not None:
            if self.threshold is None:
                object.__setattr__(self, "threshold", found.threshold)
            if self.above is None:
                object.__setattr__(self, "above", found.above)
            if self.layer is None:
                object.__setattr__(self, "layer", found.layer)
        object.__setattr__(self, "above", self.above is None or bool(self.above))
        for name, low in (("threshold", -math.inf), ("softness", 0.0)):
            value = getattr(self, name)
            if not isinstance(value, numbers.Real) or not math.isfinite(value) or value < low:
                allowed = "a finite number" if low else "a finite number of at least 0"
                raise InputError(
                    f"the {name} of a condition on {self.vector.name!r} is {value!r}; it must be "
                    f"{allowed}"
                )
            object.__setattr__(self, name, float(value))
        if self.layer is not None:
            self.gauge()

    def gauge(self) -> Gauge:
        """Return what it reads.

        Raises:
            InputError: the vector says no norms or no neutral projections, or has no such layer.
        """
        return Gauge(self.vector, self.layer)

    def conditions(self) -> Iterator[Condition]:
        """Yield itself."""
        yield self

    def mapped(self, change: Callable[[Condition], Condition]) -> Rule:
        """Return what ``change`` makes of it."""
        return change(self)

    def holds(self, reads: Callable[[Condition], float]) -> bool:
        """Return whether what it reads is on its side of the threshold."""
        assert self.threshold is not None
        value = reads(self)
        return value > self.threshold if self.above else value < self.threshold

    def __str__(self) -> str:
        at = "" if self.layer is None else f"@{self.layer}"
        soft = f":{self.softness:g}" if self.softness else ""
        return f"{self.vector.name}{at}{'>' if self.above else '<'}{self.threshold:g}{soft}"


@dataclass(frozen=True)
class Not(Rule):
    """Holds where another does not."""

    rule: Rule

    def conditions(self) -> Iterator[Condition]:
        """Yield those of the other."""
        yield from self.rule.conditions()

    def mapped(self, change: Callable[[Condition], Condition]) -> Rule:
        """Return the same rule with each condition changed."""
        return Not(self.rule.mapped(change))

    def holds(self, reads: Callable[[Condition], float]) -> bool:
        """Return whether the other does not hold."""
        return not self.rule.holds(reads)

    def __str__(self) -> str:
        return f"not {self.rule}"


@dataclass(frozen=True)
class Both(Rule):
    """What two rules are joined to."""

    left: Rule
    right: Rule

    def conditions(self) -> Iterator[Condition]:
        """Yield those of both."""
        yield from self.left.conditions()
        yield from self.right.conditions()

    def mapped(self, change: Callable[[Condition], Condition]) -> Rule:
        """Return the same rule with each condition changed."""
        return type(self)(self.left.mapped(change), self.right.mapped(change))


@dataclass(frozen=True)
class All(Both):
    """Holds where both do."""

    def holds(self, reads: Callable[[Condition], float]) -> bool:
        """Return whether both hold."""
        return self.left.holds(reads) and self.right.holds(reads)

    def __str__(self) -> str:
        return f"({self.left} and {self.right})"


@dataclass(frozen=True)
class Either(Both):  # typing has the plain name
    """Holds where one of two does."""

    def holds(self, reads: Callable[[Condition], float]) -> bool:
        """Return whether one of them holds."""
        return self.left.holds(reads) or self.right.holds(reads)

    def __str__(self) -> str:
        return f"({self.left} or {self.right})"


def at_layer(rule: Rule, layer: int | None) -> Rule:
    """Return the rule with ``layer`` where a condition has none; None for its vector's middle.

    Raises:
        InputError: a condition's vector has no direction there.
    """

    def placed(condition: Condition) -> Condition:
        if condition.layer is not None:
            return condition
        vector = condition.vector
        if layer is not None and layer not in vector.directions:
            raise InputError(
                f"the condition {condition} reads no layer {layer}, where its term begins to "
                f"steer: {vector.name!r} has {vector.layers[0]} to {vector.layers[-1]}; steer from "
                f"there on (@{vector.layers[0]}:)"
            )
        return replace(condition, layer=Gauge(vector, layer).layer)

    return rule.mapped(placed)


def check_order(rule: Rule, first: int) -> None:
    """Refuse a rule on a row that reads a layer after ``first``, the first one steered.

    Raises:
        InputError: such a layer.
    """
    for condition in rule.conditions():
        if condition.layer is not None and condition.layer > first:
            raise InputError(
                f"the condition {condition} reads layer {condition.layer}, but its term steers "
                f"from layer {first} on; a row is read before it is steered: steer from there on "
                f"(@{condition.layer}:), or read an earlier layer"
            )
