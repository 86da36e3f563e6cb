"""The mood of a sequence as a user writes it: a mix of control vectors with strengths.

Immutable values; the engine turns them into native terms. Knows nothing of tokens or models.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import replace

from pyemo.choices import Operator, Scope
from pyemo.engine.rules import Rule
from pyemo.engine.schedules import Schedule
from pyemo.engine.terms import SteeringTerm
from pyemo.errors import InputError, VectorError, all_calls_named
from pyemo.vectors.control_vector import ControlVector


@all_calls_named
class Steering:
    """The mood of a sequence: a mix of control vectors with strengths. Immutable.

    ```
    Steering({angry: 0.02})                             # 2% of the residual norm at each layer
    Steering({angry: 0.02, calm: -0.01}, layers=range(8, 20))
    Steering({angry: 0.04}, schedule=HalfLife(40), scope="reply")
    Steering({calm: 0.02}, when=Condition(angry, 0.1))   # on rows that read angry
    mood + Steering({sad: 1.0}, operator="project_out")  # terms of both
    mood * 0.5                                           # half of every strength
    ```

    Args:
        strengths: vector -> strength. For a vector in residual units the strength is a fraction of
            the residual norm at each steered layer; for a raw one a factor of the direction as it
            is. The sign turns it round; 0 is off. Some operators count otherwise, see
            :data:`Operator`.
        operator: how the direction changes a row, see :data:`Operator`. All ``add`` terms of a mix
            are summed into one; the others follow in the order given.
        layers: half-open range of layers to steer, of those the vector has; None for all of them.
        scope: rows of the prompt, of the reply, or both (as llama.cpp and the paper do); see
            :data:`Scope`.
        schedule: strength over the reply's tokens, see :data:`Schedule`; None for constant.
        when: rows that it acts on, of those in the scope: what the row itself reads in the same
            pass, at a layer no later than the first steered one. A soft rule scales the
            displacement. None for all of them.
        when_prompt: prompts whose replies it acts on, and the prompts themselves where the scope
            holds them: what the prompt's rows read on average without it, at any layer. Decided
            once for each prompt. None for all of them.
    Raises:
        InputError: anything outside these ranges.
    """

    __slots__ = ("_terms",)

    def __init__(
        self,
        strengths: Mapping[ControlVector, float] | None = None,
        *,
        operator: Operator = "add",
        layers: range | None = None,
        scope: Scope = "both",
        schedule: Schedule | None = None,
        when: Rule | None = None,
        when_prompt: Rule | None = None,
    ) -> None:
        self._terms = tuple(
            SteeringTerm(vector, strength, operator, layers, scope, schedule, when, when_prompt)
            for vector, strength in (strengths or {}).items()
        )

    @classmethod
    def from_terms(cls, *terms: SteeringTerm) -> Steering:
        """Return the mix of these terms, in this order."""
        if wrong := [term for term in terms if not isinstance(term, SteeringTerm)]:
            raise InputError(f"not a SteeringTerm: {wrong[0]!r}")
        mix = cls()
        mix._terms = terms
        return mix

    @property
    def terms(self) -> tuple[SteeringTerm, ...]:
        """The terms, in the order they apply."""
        return self._terms

    @property
    def is_scheduled(self) -> bool:
        """True if any strength changes over the reply's tokens."""
        return any(term.schedule is not None for term in self._terms)

    def dose(self, n_layer: int) -> float:
        """Return |sum of all added directions times strengths| / residual norm of the last block.

        The direct displacement of the last block's output in its own norms, before what later
        blocks make of it; it makes strengths on different layer ranges comparable. Only ``add``
        terms count.

        Raises:
            VectorError: a vector without residual norms; rescale it.
        """
        total = None
        norm = 0.0
        for term in self._terms:
            if term.operator != "add":
                continue
            if n_layer - 1 not in term.vector.residual_norms:
                raise VectorError(
                    f"{term.vector.name!r} does not say the model's residual norms, so its dose is "
                    "unknown; rescale it: pyemo rescale"
                )
            norm = term.vector.residual_norms[n_layer - 1]
            for layer, direction in term.vector.directions.items():
                if term.layers is None or layer in term.layers:
                    step = term.strength * direction.astype("float64")
                    total = step if total is None else total + step
        return 0.0 if total is None else float((total @ total) ** 0.5) / norm

    def __add__(self, other: object) -> Steering:
        if not isinstance(other, Steering):
            return NotImplemented
        return self.from_terms(*self._terms, *other._terms)

    def __mul__(self, factor: object) -> Steering:
        if not isinstance(factor, numbers.Real):
            return NotImplemented
        return self.from_terms(
            *(replace(term, strength=term.strength * float(factor)) for term in self._terms)
        )

    __rmul__ = __mul__

    def __neg__(self) -> Steering:
        return self * -1.0

    def __bool__(self) -> bool:
        return bool(self._terms)

    def __eq__(self, other: object) -> bool:
        return self._terms == other._terms if isinstance(other, Steering) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._terms)

    def __repr__(self) -> str:
        parts = []
        for term in self._terms:
            layers = "" if term.layers is None else f"@{term.layers.start}:{term.layers.stop}"
            extra = "" if term.operator == "add" else f" {term.operator}"
            extra += "" if term.when is None else f" when {term.when}"
            extra += "" if term.when_prompt is None else f" when the prompt has {term.when_prompt}"
            parts.append(f"{term.vector.name}={term.strength:g}{layers}{extra}")
        return f"<Steering {', '.join(parts) or 'off'}>"
