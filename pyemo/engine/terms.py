"""One term of a mood: a vector at one strength, and where and when it acts.

Checks what a user may ask of a vector. Knows nothing of tokens or models.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

from pyemo.choices import OF_OWN_TEXTS, OF_REAL_ROWS, OPERATORS, Operator, Scope
from pyemo.engine.rules import Rule, at_layer, check_order
from pyemo.engine.schedules import Schedule
from pyemo.engine.scopes import check_scope
from pyemo.errors import InputError, VectorError, all_calls_named
from pyemo.vectors.control_vector import ControlVector, check_is_vector


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
        check_is_vector(self.vector)
        if isinstance(self.strength, str):
            raise InputError(
                f"strength {self.strength[:40]!r} is text, and a number is wanted, such as 0.02"
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
        if self.strength:
            self._check_zeros()
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

    def _check_zeros(self) -> None:
        """Refuse layers at which a vector that has a direction elsewhere is all zeros.

        A sum of vectors may cancel to zeros everywhere; as a mood that is as good as none.
        """
        zeros, steered = self.vector.zero_layers, self.steered_layers
        if zeros != self.vector.layers and set(steered) <= set(zeros):
            raise VectorError(
                f"{self.vector.name!r} is all zeros at the layers steered, {steered[0]} to "
                f"{steered[-1]}, so it would steer nothing; choose layers at which it is not "
                "(pyemo inspect)"
            )

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
