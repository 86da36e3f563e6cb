"""What to apply to a sequence: vectors with strengths, operators, layers, scope and schedule.

Immutable values; the engine turns them into native terms. Knows nothing of tokens or models.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pyemo.choices import OF_OWN_TEXTS, OF_REAL_ROWS, OPERATORS, Operator, Scope
from pyemo.engine.rules import Rule, at_layer, check_order
from pyemo.engine.schedules import Schedule
from pyemo.engine.scopes import check_scope
from pyemo.errors import InputError, VectorError, all_calls_named
from pyemo.vectors.control_vector import ControlVector


@all_calls_named
@dataclass(frozen=True)
class SteeringTerm:
    """One control vector at one strength. See :class:`Steering` for the fields."""

    vector: ControlVector
    strength: float
    operator: Operator = "add"
    layers: range | None = None
    scope: Scope = "both"
    schedule: Schedule | None = None
    when: Rule | None = None
    when_prompt: Rule | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.vector, ControlVector):
            raise InputError(
                f"not a ControlVector: {self.vector!r}; load one with ControlVector.load"
            )
        if not isinstance(self.strength, numbers.Real) or not math.isfinite(self.strength):
            raise InputError(f"strength {self.strength!r} is not a finite number")
        object.__setattr__(self, "strength", float(self.strength))  # NumPy's scalars are welcome
        if abs(self.strength) > 1e6:
            raise InputError(f"strength {self.strength!r} is outside -1e6 to 1e6")
        if self.operator not in OPERATORS:
            raise InputError(
                f"operator {self.operator!r} is unknown; use one of {', '.join(OPERATORS)}"
            )
        check_scope(self.scope)
        if self.schedule is not None and not callable(self.schedule):
            raise InputError("schedule must be None or a function of the token's index")
        if self.layers is not None:
            check_layers(self.layers)
            if not any(layer in self.layers for layer in self.vector.layers):
                raise InputError(
                    f"{self.vector.name!r} has no direction in layers {self.layers.start}:"
                    f"{self.layers.stop}; it has {self.vector.layers[0]} to "
                    f"{self.vector.layers[-1]}"
                )
        if self.operator in OF_OWN_TEXTS:
            self._check_own_texts()
        known = self.vector.ellipsoids
        if self.operator in OF_REAL_ROWS and not set(self.steered_layers) <= set(known):
            raise VectorError(
                f"{self.vector.name!r} does not say where real rows lie at all layers steered, "
                f"which the operator {self.operator} needs; measure it: pyemo rescale FILE "
                "--own-texts EMOTION_OR_FILE --components 32 -o NEW.gguf"
            )
        if self.when is not None:
            first = self.steered_layers[0]
            object.__setattr__(self, "when", at_layer(_rule(self.when), first))
            check_order(self.when, first)
        if self.when_prompt is not None:
            object.__setattr__(self, "when_prompt", at_layer(_rule(self.when_prompt), None))

    @property
    def steered_layers(self) -> tuple[int, ...]:
        """The layers it acts at, sorted."""
        wanted = self.layers
        return tuple(il for il in self.vector.layers if wanted is None or il in wanted)

    def _check_own_texts(self) -> None:
        """Refuse a vector that does not say where its own texts lie, or whose are no way off."""
        vector, own = self.vector, self.vector.own_projections
        if not own:
            raise VectorError(
                f"{vector.name!r} does not say how far its own texts point along it, which the "
                f"operator {self.operator} needs; measure it: pyemo rescale FILE --own-texts "
                "EMOTION_OR_FILE -o NEW.gguf"
            )
        neutral = vector.neutral_projections
        if all(own[layer] <= neutral[layer] for layer in self.steered_layers):
            raise VectorError(
                f"the own texts of {vector.name!r} point no further along it than neutral ones at "
                f"any layer steered, so the operator {self.operator} has no target; measure other "
                "texts: pyemo rescale FILE --own-texts EMOTION_OR_FILE -o NEW.gguf"
            )

    def strength_at(self, t: int) -> float:
        """Return the strength at the reply's token ``t``.

        Raises:
            InputError: the schedule gives no finite number.
        """
        if self.schedule is None:
            return self.strength
        factor = self.schedule(t)
        if not isinstance(factor, numbers.Real) or not math.isfinite(factor):
            raise InputError(
                f"the schedule gave {factor!r} for token {t}; it must give a finite number"
            )
        return self.strength * float(factor)


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


MOST_LAYERS = 1 << 20
"""More than any model has; what is past it overflows in the core."""


def check_layers(layers: range) -> range:
    # bool(range), not its length: a length past 2**63 overflows
    is_range = isinstance(layers, range) and layers.step == 1 and layers.start >= 0 and bool(layers)
    if not is_range or layers.stop > MOST_LAYERS:
        raise InputError(f"layers {layers!r} are not a range; pass range(8, 20), from 0, not empty")
    return layers


def _rule(rule: object) -> Rule:
    if not isinstance(rule, Rule):
        raise InputError(f"not a rule: {rule!r}; write Condition(vector, 0.1)")
    return rule
