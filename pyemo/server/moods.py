"""Terms by name become a mood that runs, and a mood is described for who asked for it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyemo.choices import VectorUse
from pyemo.engine.gauges import Gauge
from pyemo.engine.model import Model
from pyemo.engine.steering import Steering
from pyemo.errors import PyemoError
from pyemo.moods.builder import (
    MoodBuilder,
    MoodTerm,
    can_gauge,
    describe_terms,
    dose_of,
    mix_remark,
    steering_of,
)
from pyemo.moods.grammar import VectorSpec
from pyemo.moods.options import MoodOptions
from pyemo.server.steering_field import TermSpec, spelled
from pyemo.server.vectors import Offer, Shelf
from pyemo.vectors.control_vector import ControlVector


@dataclass(frozen=True)
class Applied:
    """A mood that can run.

    Attributes:
        specs: as they were asked for.
        terms: with vectors and strengths found.
    """

    specs: tuple[TermSpec, ...] = ()
    terms: tuple[MoodTerm, ...] = ()

    @functools.cached_property
    def steering(self) -> Steering:
        """The mood, the same object each time."""
        return steering_of(self.terms)

    @property
    def text(self) -> str:
        """The mood as a text that :func:`steering_field.parsed` reads; "" for unsteered."""
        return spelled(
            [
                replace(spec, name=found.term.vector.name, strength=found.term.strength)
                for spec, found in zip(self.specs, self.terms, strict=True)
            ]
        )

    def describe(self, n_layer: int) -> dict[str, Any]:
        """Return the mood for JSON; its ``steering`` and its ``terms`` can be sent as a request's.

        ``fit``, ``window`` and ``strength_source`` have a value for each term.
        """
        found = describe_terms(self.terms, n_layer)
        asked = ("strength", "layers", "operator", "scope", "schedule")
        said = ("fit", "window", "strength_source")
        return {
            "steering": self.text,
            "terms": [
                {
                    "name": one["vector"],
                    **{key: one[key] for key in asked},
                    "when": spec.when,
                    "when_prompt": spec.when_prompt,
                }
                for one, spec in zip(found, self.specs, strict=True)
            ],
            "dose": dose_of(self.steering, n_layer),
            **{key: [one[key] for one in found] for key in said},
            "notes": [note for term in self.terms for note in term.notes],
        }


class MoodDesk:
    """Makes moods of terms, from one shelf of vectors, for one model."""

    def __init__(self, model: Model, shelf: Shelf, *, allow_other_weights: bool = False) -> None:
        self.model = model
        self.shelf = shelf
        self._allow_other_weights = allow_other_weights

    def mood(self, specs: Sequence[TermSpec], n_tokens: int) -> Applied:
        """Return the mood of these terms.

        Args:
            n_tokens: of the reply, which a recommended strength should hold for.
        Raises:
            VectorError, InputError: a name that is not offered, or a term that does not fit.
        """
        terms = [self._term(spec, n_tokens) for spec in specs]
        if remark := mix_remark(terms):
            terms[-1] = replace(terms[-1], mix_remark=remark)
        return Applied(tuple(specs), tuple(terms))

    def gauges(self, names: Sequence[str]) -> list[Gauge]:
        """Return the gauges that ``NAME[@LAYER]`` name.

        Raises:
            VectorError, InputError: a name that is not offered, or that is no gauge.
        """
        builder = MoodBuilder(MoodOptions(), 1, self._load)
        return builder.gauges(self.model, names, may_be_file=False)

    def describe(self, offer: Offer) -> dict[str, Any]:
        """Return for JSON what a vector is and how strong it may be; why, if it cannot be used."""
        described: dict[str, Any] = {"name": offer.name, "kind": offer.use}
        try:
            vector = self.shelf.load(offer.name, offer.use)
            fit = vector.check(self.model, allow_other_weights=self._allow_other_weights)
        except PyemoError as error:
            return {**described, "error": str(error)}
        calibration = vector.calibration_for(self.model.file_sha256)
        try:
            recommended = vector.recommended(self.model).strength
        except PyemoError:
            recommended = None
        return {
            **described,
            "emotion": vector.metadata.emotion or None,
            "recommended": recommended,
            "window": None if calibration is None else list(calibration.window),
            "unit": vector.unit,
            "layers": [vector.layers[0], vector.layers[-1] + 1],
            "fit": fit.kind.value,
            "gauge": can_gauge(vector),
        }

    def _load(self, name: str, use: VectorUse) -> ControlVector:
        return self.shelf.load(name, use)

    def _term(self, spec: TermSpec, n_tokens: int) -> MoodTerm:
        options = MoodOptions(
            schedule=spec.schedule,
            scope=spec.scope,
            allow_other_weights=self._allow_other_weights,
        )
        typed = VectorSpec(
            spec.name, spec.strength, spec.layers, spec.operator, spec.when, spec.when_prompt
        )
        return MoodBuilder(options, n_tokens, self._load).terms(self.model, [typed])[0]
