"""From typed vectors to a mood: loads them, finds strengths that were not given, says why.

Owns the rule for a missing strength; knows nothing of printing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from pyemo.choices import CONSTANT, OF_UNIT_DIRECTION, OPERATORS, Operator, VectorUse
from pyemo.engine.gauges import Gauge
from pyemo.engine.model import Model
from pyemo.engine.rules import Rule
from pyemo.engine.steering import Steering
from pyemo.engine.terms import SteeringTerm
from pyemo.errors import InputError, VectorError
from pyemo.moods.grammar import VectorSpec, parse_layers, parse_schedule, parse_vector_spec
from pyemo.moods.options import AUTO, MoodOptions
from pyemo.moods.rule_text import parse_rule
from pyemo.vectors.control_vector import Calibration, ControlVector, Recommended
from pyemo.vectors.fit import Fit, FitKind

Load: TypeAlias = "Callable[[str, VectorUse], ControlVector]"
"""Returns the vector that a typed name means."""

MOST_OF_TRAINED = 1.5
"""Times its recommended strength up to which nothing is said of a trained vector. The windows of
SmolLM2's 20 end at 1 to 2 times theirs."""


@dataclass(frozen=True)
class MoodTerm:
    """One vector of a mood, with how it fits the model and where its strength comes from.

    Attributes:
        strength_source: "given", "calibration", "trained" or "default"; "auto" where one is
            found before the reply.
        remark: a sentence on a strength that was not given or is outside its window; else empty.
        calibration: on this model file; None where there is none, or it is for another way to
            steer (all layers, prompt and reply, by ``add``).
        mix_remark: a sentence on the mix that the term completes; else empty.
        schedule: the term's schedule, as it was typed.
        system_line: the system message that goes with it; else empty.
    """

    term: SteeringTerm
    fit: Fit
    strength_source: str
    remark: str
    calibration: Calibration | None = None
    mix_remark: str = ""
    schedule: str = CONSTANT
    system_line: str = ""

    @property
    def notes(self) -> list[str]:
        """What the user should know: a strength that was chosen, a fit that is not certain."""
        fit = [] if self.fit.kind is FitKind.SAME_FILE else [self.fit.sentence]
        line = f"{self.term.vector.name}: system line {self.system_line!r}"
        return [
            *filter(None, [self.remark]),
            *([line] if self.system_line else []),
            *fit,
            *filter(None, [self.mix_remark]),
        ]

    @property
    def share(self) -> float:
        """The strength as a share of its window's upper end; 0 without a calibration."""
        high = 0.0 if self.calibration is None else self.calibration.window[1]
        return abs(self.term.strength) / high if high > 0 else 0.0


class MoodBuilder:
    """Makes moods for one model; a vector named twice is loaded once.

    Args:
        n_tokens: of the reply to come, which a calibration should hold for.
        load: finds a vector by its name; None for :meth:`ControlVector.load`.
        with_lines: let vectors bring their system lines: the caller has no system message, and the
            prompt goes into the chat template.
    """

    def __init__(
        self,
        options: MoodOptions,
        n_tokens: int,
        load: Load | None = None,
        *,
        with_lines: bool = False,
    ) -> None:
        """Check what can be checked without a model.

        Raises:
            InputError: a vector, schedule or range of layers that cannot be read.
        """
        self._options = options
        self._n_tokens = n_tokens
        self._schedule = parse_schedule(options.schedule)
        self._layers = None if options.layers is None else parse_layers(options.layers)
        self._find = load
        self._with_lines = with_lines
        self._loaded: dict[tuple[str, VectorUse], ControlVector] = {}
        self.specs = [parse_vector_spec(text) for text in options.vectors]

    def terms(self, model: Model, specs: Iterable[VectorSpec]) -> list[MoodTerm]:
        """Return the terms that ``specs`` name, in their order.

        Raises:
            VectorError: see :meth:`ControlVector.load`.
            InputError: a strength or layers outside their range, or a raw vector without a
                strength.
        """
        terms = [self._term(model, spec) for spec in specs]
        if remark := mix_remark(terms):
            terms[-1] = replace(terms[-1], mix_remark=remark)
        return terms

    def gauges(
        self, model: Model, texts: Iterable[str], *, may_be_file: bool = True
    ) -> list[Gauge]:
        """Return the gauges that ``NAME_OR_FILE[@LAYER]`` name.

        Args:
            may_be_file: see :func:`pyemo.moods.grammar.parse_vector_spec`.
        Raises:
            InputError: a strength, more than one layer, a name twice, or see :class:`Gauge`.
        """
        gauges: dict[str, Gauge] = {}
        for text in texts:
            spec = parse_vector_spec(text, may_be_file=may_be_file)
            if spec != VectorSpec(spec.source, None, spec.layers) or len(spec.layers or "1") != 1:
                raise InputError(f"gauge {text!r} is not NAME_OR_FILE[@LAYER], such as anger@14")
            vector = self._load(model, spec.source, "reading")
            layer = None if spec.layers is None else spec.layers.start
            name = vector.name if layer is None else f"{vector.name}@{layer}"
            if name in gauges:
                raise InputError(f"two gauges are named {name!r}; give each once, or another layer")
            gauges[name] = Gauge(vector, layer, name)
        return list(gauges.values())

    def _load(self, model: Model, source: str, use: VectorUse = "writing") -> ControlVector:
        if (source, use) not in self._loaded:
            others = self._options.allow_other_weights
            self._loaded[source, use] = (
                ControlVector.load(source, model, use=use, allow_other_weights=others)
                if self._find is None
                else self._find(source, use)
            )
        return self._loaded[source, use]

    def _term(self, model: Model, spec: VectorSpec) -> MoodTerm:
        options = self._options
        vector = self._load(model, spec.source)
        layers = self._layers if spec.layers is None else spec.layers
        operator = spec.operator or options.operator
        has_line = self._with_lines and model.chat_template is not None
        line = vector.metadata.system_line if has_line else ""
        found = self._recommended(model, vector, layers, operator, with_line=bool(line))
        calibration = None if found is None else found.calibration
        strength, source, remark = self._strength(model, vector, spec, found, operator)
        term = SteeringTerm(
            vector,
            strength,
            operator=operator,
            layers=layers,
            scope=options.scope,
            schedule=self._schedule,
            when=self._rule(model, spec.when),
            when_prompt=self._rule(model, spec.when_prompt),
        )
        fit = vector.check(model, allow_other_weights=options.allow_other_weights)
        return MoodTerm(
            term,
            fit,
            source,
            remark,
            calibration,
            schedule=options.schedule,
            system_line=line,
        )

    def _rule(self, model: Model, text: str) -> Rule | None:
        return parse_rule(text, lambda name: self._load(model, name, "reading")) if text else None

    def _recommended(
        self,
        model: Model,
        vector: ControlVector,
        layers: range | None,
        operator: Operator,
        *,
        with_line: bool,
    ) -> Recommended | None:
        """Return what the vector recommends for how it is to be used; None if it says nothing."""
        is_covered = operator == "add" and self._options.scope == "both"
        if not is_covered or layers is not None or not _recommends(model, vector, with_line):
            return None
        return vector.recommended(model, self._n_tokens, with_line=with_line)

    def _strength(
        self,
        model: Model,
        vector: ControlVector,
        spec: VectorSpec,
        found: Recommended | None,
        operator: Operator,
    ) -> tuple[float, str, str]:
        """Return the strength, where it comes from, and a sentence on it."""
        calibration = None if found is None else found.calibration
        given = self._options.strength if spec.strength is None else spec.strength
        if given is not None:
            return given, "given", given_remark(vector.name, given, found)
        if self._options.auto and found is None:
            if operator != "add":
                raise InputError(f"--strength auto is for the operator add, not {operator}")
            return 1.0, AUTO, ""
        if vector.unit == "raw" and operator not in OF_UNIT_DIRECTION:
            raise InputError(
                f"the control vector {vector.name!r} does not say its unit (raw), so it has no "
                f"default strength; write {spec.source}=1, let one be found (pyemo run "
                f"--strength auto), or rescale it once: pyemo rescale {spec.source} "
                f"-m {model.name} -o {vector.name}-rescaled.gguf"
            )
        if calibration is not None:
            low, high = calibration.window
            where = f"from {low:g} (below: no effect) to {high:g} (above: the text may break)"
            if low == high:
                where = f"at {low:g}"
            remark = (
                f"{vector.name}: strength {calibration.strength:g}, as calibrated on this model "
                f"file; on texts of {calibration.n_tokens} tokens it works {where}"
            )
            learned_to_end = vector.metadata.strength is not None
            if calibration.n_tokens < self._n_tokens and not learned_to_end:
                remark += "; longer ones may loop (--guard)"
            return calibration.strength, "calibration", remark
        if found is not None:
            why = "which its training recommends"
            if vector.metadata.strength != found.strength:
                why = "two thirds of what it recommends without its system line"
            remark = f"{vector.name}: strength {found.strength:g}, {why}"
            if vector.metadata.source_sha256 != model.file_sha256:
                remark += "; it is not calibrated on this model file"
            return found.strength, found.source, remark
        default = OPERATORS[operator]
        why = "there is no calibration for this model file"
        if _recommends(model, vector):
            why = "the one it recommends is for all layers, prompt and reply"
        elif operator == "add":
            why = (
                "no strength is known to work on this model file, so the text may not move, or may "
                f"break: see what others do with pyemo sweep -m {model.name} --cvec {spec.source}, "
                "or let pyemo run --strength auto find one"
            )
        return default, "default", f"{vector.name}: strength {default:g}, the default; {why}"


def _recommends(model: Model, vector: ControlVector, with_line: bool = False) -> bool:
    """Return whether the vector itself says a strength for this model file."""
    kinds = {False, with_line}
    found = [vector.calibration_for(model.file_sha256, with_line=kind) for kind in kinds]
    return any(found) or vector.metadata.strength is not None


def window_remark(name: str, strength: float, calibration: Calibration | None) -> str:
    """Return what to say of a strength outside its window; empty within, or without a window."""
    if calibration is None or strength == 0:
        return ""
    low, high = calibration.window
    if low <= strength <= high:
        return ""
    window = f"its window {low:g} to {high:g} on this model file"
    if strength > high:
        return f"{name}: strength {strength:g} is above {window}; the text may loop or break"
    if strength > 0:
        return f"{name}: strength {strength:g} is below {window}; the text may not move"
    return f"{name}: strength {strength:g} turns the vector round, which {window} says nothing of"


def given_remark(name: str, strength: float, found: Recommended | None) -> str:
    """Return what to say of a strength that was given, beside the one that is recommended."""
    if found is None or found.source != "trained":
        return window_remark(name, strength, None if found is None else found.calibration)
    said = f"{name}: strength {strength:g}"
    if strength < 0:
        return f"{said} turns the vector round, which it was not trained for"
    times = strength / found.strength
    if times <= MOST_OF_TRAINED:
        return ""
    return f"{said} is {times:.3g} times the {found.strength:g} it recommends; the text may break"


def mix_remark(terms: Sequence[MoodTerm]) -> str:
    """Return what to say of a mix: vectors given twice, and windows left together; else empty."""
    return "; ".join(filter(None, [*_repeats(terms), _beyond_windows(terms)]))


def _repeats(terms: Sequence[MoodTerm]) -> list[str]:
    """Return a sentence on each vector that is added more than once in the same way."""
    alike: list[list[SteeringTerm]] = []
    for term in (mood_term.term for mood_term in terms):
        if term.operator != "add":
            continue
        group = next((group for group in alike if _adds_up(group[0], term)), None)
        if group is None:
            alike.append([term])
        else:
            group.append(term)
    return [
        f"{group[0].vector.name} is given {_times(len(group))}, so its strengths add to "
        f"{sum(term.strength for term in group):.6g}"
        for group in alike
        if len(group) > 1
    ]


def _times(count: int) -> str:
    return "twice" if count == 2 else f"{count} times"


def _adds_up(one: SteeringTerm, other: SteeringTerm) -> bool:
    """Return whether two terms are one vector, however it was named, that acts in the same way."""
    is_one = one.vector is other.vector or (
        one.vector.layers == other.vector.layers
        and all(
            np.array_equal(one.vector.directions[layer], other.vector.directions[layer])
            for layer in one.vector.layers
        )
    )
    ways = [
        (term.layers, term.scope, str(term.schedule), str(term.when), str(term.when_prompt))
        for term in (one, other)
    ]
    return is_one and ways[0] == ways[1]


def _beyond_windows(terms: Sequence[MoodTerm]) -> str:
    """Return what to say of calibrated vectors that together go beyond their windows.

    Each strength counts as a share of its window's upper end; above 1 in all, the mix is stronger
    than any one of its vectors may be. One vector alone is :func:`window_remark`'s matter.
    """
    counted = [term for term in terms if term.share > 0]
    total = sum(term.share for term in counted)
    if len(counted) < 2 or total <= 1:
        return ""
    shares = " + ".join(f"{term.term.vector.name} {term.share:.2f}" for term in counted)
    return (
        f"the mix is at {total:.2f} of what its vectors' windows allow ({shares}); above 1 the "
        "text may loop or break: lower a strength"
    )


def steering_of(terms: Iterable[MoodTerm]) -> Steering:
    """Return the mood of these terms."""
    return Steering.from_terms(*(term.term for term in terms))


def title_of(terms: Iterable[MoodTerm]) -> str:
    """Return the mood in words, such as ``angry=0.02, calm=-0.01@8:20``."""
    parts = []
    for term in (mood_term.term for mood_term in terms):
        layers = f"@{term.layers.start}:{term.layers.stop}" if term.layers else ""
        how = "" if term.operator == "add" else f" ({term.operator})"
        how += "" if term.when is None else f" when {term.when}"
        how += "" if term.when_prompt is None else f" when the prompt has {term.when_prompt}"
        parts.append(f"{term.vector.name}={term.strength:g}{layers}{how}")
    return ", ".join(parts) or "unsteered"


def system_line_of(terms: Iterable[MoodTerm]) -> str | None:
    """Return the system message that the mood brings, None for none."""
    return " ".join(dict.fromkeys(filter(None, (term.system_line for term in terms)))) or None


def gauges_of(terms: Iterable[MoodTerm]) -> list[Gauge]:
    """Return a gauge for each vector of the mood that says what a gauge needs."""
    vectors = dict.fromkeys(mood_term.term.vector for mood_term in terms)
    return [Gauge(vector) for vector in vectors if can_gauge(vector)]


def can_gauge(vector: ControlVector) -> bool:
    """Return whether the vector says what a gauge needs."""
    layer = vector.layers[len(vector.layers) // 2]
    known = vector.residual_norms, vector.neutral_projections
    return all(layer in rows for rows in known) and bool(vector.directions[layer].any())


def dose_of(steering: Steering, n_layer: int) -> float | None:
    """Return the mood's dose, None where a vector does not say the residual norms."""
    try:
        return steering.dose(n_layer)
    except VectorError:
        return None


def describe_terms(terms: Iterable[MoodTerm], n_layer: int) -> list[dict[str, Any]]:
    """Return a mood's terms for JSON."""
    return [_describe(term, n_layer) for term in terms]


def _describe(mood_term: MoodTerm, n_layer: int) -> dict[str, Any]:
    term = mood_term.term
    steered = [i for i in term.vector.layers if term.layers is None or i in term.layers]
    is_add = term.operator == "add"  # the dose of other operators depends on the row
    return {
        "vector": term.vector.name,
        "emotion": term.vector.metadata.emotion or None,
        "unit": term.vector.unit,
        "strength": term.strength,
        "strength_source": mood_term.strength_source,
        "window": list(mood_term.calibration.window) if mood_term.calibration else None,
        "operator": term.operator,
        "when": None if term.when is None else str(term.when),
        "when_prompt": None if term.when_prompt is None else str(term.when_prompt),
        "layers": [steered[0], steered[-1] + 1],
        "scope": term.scope,
        "schedule": mood_term.schedule,
        "system_line": mood_term.system_line or None,
        "dose": dose_of(Steering.from_terms(term), n_layer) if is_add else None,
        "fit": mood_term.fit.kind.value,
        "fit_sentence": mood_term.fit.sentence,
    }
