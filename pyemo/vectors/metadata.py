"""What a vector file says beside its directions: the ``pyemo.*`` fields, checked and typed.

Owns the meaning of those fields (docs/vector-format.md lists them) and turns them into values and
back. Knows nothing of directions.
"""

from __future__ import annotations

import json
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from pyemo.errors import InputError, VectorFileError
from pyemo.vectors.file import FORMAT_VERSION, VERSION_KEY, VectorFile
from pyemo.vectors.gguf_header import FieldValue, shown

if TYPE_CHECKING:
    from pyemo.vectors.identity import Identified

Unit: TypeAlias = Literal["residual", "raw"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST_NAME = 200

# text fields: key -> attribute
_TEXTS = {
    "pyemo.emotion": "emotion",
    "pyemo.recipe": "recipe",
    "pyemo.system_line": "system_line",
    "pyemo.unit": "unit",
    "pyemo.source.name": "source_model",
    "pyemo.source.sha256": "source_sha256",
    "pyemo.source.weights_fingerprint": "weights_fingerprint",
    "pyemo.source.chat_template_sha256": "chat_template_sha256",
}
# float32 rows over all layers of the source model: key -> attribute
_ROWS = {
    "pyemo.residual_norms": "residual_norms",
    "pyemo.neutral_projections": "neutral_projections",
    "pyemo.own_projections": "own_projections",
}
# JSON arrays of calibrations: key -> attribute
_CALIBRATIONS = {
    "pyemo.calibrations": "calibrations",
    "pyemo.line_calibrations": "line_calibrations",
}
_STRENGTH = "pyemo.strength"
_ELLIPSOID = "pyemo.ellipsoid."
_CONDITION = {
    "pyemo.condition.layer": "layer",
    "pyemo.condition.threshold": "threshold",
    "pyemo.condition.side": "side",
    "pyemo.condition.evidence": "evidence",
}


@dataclass(frozen=True)
class Calibration:
    """Which strengths of a vector keep one model file's texts of one length surgical: measured.

    It holds for the operator ``add`` on all layers of the vector, over prompt and reply.

    Attributes:
        model_sha256: the model file it was measured on.
        model_name: that file's name in the catalog, or its stem.
        sampler: the sampler in words, such as "greedy" or "temperature=0.7 top_p=0.9".
        n_tokens: tokens generated for each text.
        window: (lowest, highest) strength that is surgical.
        strength: the recommended one, within the window.
        evidence: what was measured, as JSON text of any shape; kept in canonical form.
    """

    model_sha256: str
    model_name: str
    sampler: str
    n_tokens: int
    window: tuple[float, float]
    strength: float
    evidence: str = "{}"

    def __post_init__(self) -> None:
        _check_hash("model_sha256", self.model_sha256)
        _check_name("model_name", self.model_name)
        _check_name("sampler", self.sampler)
        if type(self.n_tokens) is not int or self.n_tokens < 1:
            _refuse("n_tokens", self.n_tokens, "a whole number from 1")
        numbers = (*_pair(self.window), self.strength)
        if not all(_is_finite(number) for number in numbers):
            _refuse("window and strength", numbers, "finite numbers")
        low, high, strength = map(float, numbers)
        if not low <= strength <= high:
            _refuse("strength", strength, f"within the window [{low}, {high}]")
        object.__setattr__(self, "window", (low, high))
        object.__setattr__(self, "strength", strength)
        object.__setattr__(self, "evidence", _dump(_parse("evidence", self.evidence)))


@dataclass(frozen=True, eq=False)
class Ellipsoid:
    """Where real rows of one layer lie: ``|components @ h - center| ** 2 <= radius2``.

    Attributes:
        components: float32 (k, n_embd), principal components over their standard deviations;
            read-only.
        center: float32 (k,), those of the mean row; read-only.
        radius2: above 0.
    """

    components: npt.NDArray[np.float32]
    center: npt.NDArray[np.float32]
    radius2: float

    def __post_init__(self) -> None:
        for name, n_dims in (("components", 2), ("center", 1)):
            row = np.array(getattr(self, name), dtype=np.float32)
            if row.ndim != n_dims or not row.size or not np.isfinite(row).all():
                _refuse(f"ellipsoid, {name}", row.shape, f"finite numbers in {n_dims} dimensions")
            row.flags.writeable = False
            object.__setattr__(self, name, row)
        if len(self.components) != len(self.center):
            _refuse("ellipsoid, center", len(self.center), f"{len(self.components)} numbers")
        if not self.components.any(axis=1).all():
            _refuse("ellipsoid, components", "a row of zeros", "of full rank")
        if not _is_finite(self.radius2) or self.radius2 <= 0:
            _refuse("ellipsoid, radius2", self.radius2, "a finite number above 0")
        object.__setattr__(self, "radius2", np.float32(self.radius2).item())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ellipsoid):
            return NotImplemented
        return (
            np.array_equal(self.components, other.components)
            and np.array_equal(self.center, other.center)
            and self.radius2 == other.radius2
        )

    def __hash__(self) -> int:
        return hash((self.components.tobytes(), self.radius2))


@dataclass(frozen=True)
class FittedCondition:
    """Where a vector tells two kinds of text apart: found on texts of both.

    Attributes:
        layer: where to read.
        threshold: in residual norms above neutral text.
        side: "above" or "below" the threshold, where texts of the first kind read.
        evidence: what was measured, as JSON text of any shape; kept in canonical form.
    """

    layer: int
    threshold: float
    side: Literal["above", "below"] = "above"
    evidence: str = "{}"

    def __post_init__(self) -> None:
        if type(self.layer) is not int or self.layer < 0:
            _refuse("condition.layer", self.layer, "a whole number from 0")
        if not _is_finite(self.threshold):
            _refuse("condition.threshold", self.threshold, "a finite number")
        object.__setattr__(self, "threshold", float(self.threshold))
        if not isinstance(self.side, str) or self.side not in ("above", "below"):
            _refuse("condition.side", self.side, "'above' or 'below'")
        evidence = _dump(_parse("condition.evidence", self.evidence))
        object.__setattr__(self, "evidence", evidence)

    @property
    def above(self) -> bool:
        """Whether texts of the first kind read more than the threshold."""
        return self.side == "above"


@dataclass(frozen=True)
class Recommended:
    """The strength to take where none is given, and where it comes from.

    Attributes:
        strength: for the operator ``add`` on all layers of the vector, over prompt and reply.
        source: "calibration": found on this model file; "trained": the one that the vector was
            trained at; "default": neither, so that it says nothing of this vector.
        calibration: None for another source.
    """

    strength: float
    source: Literal["calibration", "trained", "default"]
    calibration: Calibration | None = None


@dataclass(frozen=True)
class VectorMetadata:
    """Where a control vector comes from and what its numbers mean.

    A text that is not known is "", a row that is not known is (). Rows run over all layers of the
    source model, layer 0 first, and hold float32 values.

    Attributes:
        unit: "residual": each direction was extracted as long as the model's residual norm at its
            layer, so a strength is a fraction of it; "raw": nothing is known of the length.
        emotion: the emotion's adjective.
        recipe: how it was extracted, every choice, as TOML text.
        architecture: the source model's, such as "llama"; the file's ``controlvector.model_hint``.
        source_model: the source model's name.
        source_sha256: the source model file's SHA-256, 64 lower-case hexadecimal digits.
        weights_fingerprint: SHA-256 that all quantizations of the source's weights share.
        chat_template_sha256: of the chat template the vector was extracted with.
        residual_norms: median residual norm of neutral texts at each layer's output, above 0.
        neutral_projections: mean projection of neutral hidden states on each layer's unit
            direction; 0 at layers without a direction.
        own_projections: the same mean over the texts that the vector was made of; only beside
            ``neutral_projections``.
        calibrations: at most one for each model file and length of text.
        system_line: a system message that goes with the vector where the caller has none, such as
            "You are furious."
        line_calibrations: as ``calibrations``, of the vector together with its system line.
        strength: the one that its training recommends, above 0; None where it was not trained.
        ellipsoids: (layer, where real rows lie), by layer; at layers with a direction only.
        condition: of a vector that was fitted to tell two kinds of text apart; else None.
        format_version: of the file it was read from; 0 for a file of another tool.
    """

    unit: Unit = "raw"
    emotion: str = ""
    recipe: str = ""
    architecture: str = ""
    source_model: str = ""
    source_sha256: str = ""
    weights_fingerprint: str = ""
    chat_template_sha256: str = ""
    residual_norms: tuple[float, ...] = ()
    neutral_projections: tuple[float, ...] = ()
    own_projections: tuple[float, ...] = ()
    calibrations: tuple[Calibration, ...] = ()
    system_line: str = ""
    line_calibrations: tuple[Calibration, ...] = ()
    strength: float | None = None
    condition: FittedCondition | None = None
    ellipsoids: tuple[tuple[int, Ellipsoid], ...] = ()
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if not isinstance(self.unit, str) or self.unit not in ("residual", "raw"):
            _refuse("unit", self.unit, "'residual' or 'raw'")
        for name in ("emotion", "architecture", "source_model", "system_line"):
            _check_name(name, getattr(self, name), may_be_empty=True)
        if not isinstance(self.recipe, str) or not _is_printable(self.recipe):
            _refuse("recipe", self.recipe, "TOML text without control characters")
        for name in ("source_sha256", "weights_fingerprint", "chat_template_sha256"):
            _check_hash(name, getattr(self, name), may_be_empty=True)
        for name in _ROWS.values():
            object.__setattr__(self, name, _row(name, getattr(self, name)))
        self._check_rows()
        for name in _CALIBRATIONS.values():
            object.__setattr__(self, name, _calibrations(name, getattr(self, name)))
        if self.line_calibrations and not self.system_line:
            _refuse("line_calibrations", self.line_calibrations, "beside a system_line")
        if self.strength is not None:
            if not _is_finite(self.strength) or self.strength <= 0:
                _refuse("strength", self.strength, "a finite number above 0")
            object.__setattr__(self, "strength", float(self.strength))
        if not isinstance(self.condition, FittedCondition | None):
            _refuse("condition", self.condition, "a FittedCondition")
        self._check_ellipsoids()

    def _check_ellipsoids(self) -> None:
        for layer, found in self.ellipsoids:
            if type(layer) is not int or layer < 0 or not isinstance(found, Ellipsoid):
                _refuse("ellipsoids", {layer: found}, "layers with an Ellipsoid each")
        ordered = sorted(dict(self.ellipsoids).items())
        object.__setattr__(self, "ellipsoids", tuple(ordered))

    def _check_rows(self) -> None:
        if any(norm <= 0 for norm in self.residual_norms):
            _refuse("residual_norms", min(self.residual_norms), "above 0 at every layer")
        if self.own_projections and not self.neutral_projections:
            _refuse("own_projections", self.own_projections, "beside neutral_projections")
        lengths = {len(row) for row in (getattr(self, name) for name in _ROWS.values()) if row}
        if len(lengths) > 1:
            _refuse("the rows' lengths", sorted(lengths), "one value for each layer of the model")

    @classmethod
    def from_file(cls, file: VectorFile) -> VectorMetadata:
        """Return what a vector file's fields say; fields that are not known are left aside.

        Raises:
            VectorFileError: a field has the wrong type or a value outside its range.
        """
        fields = file.fields
        values: dict[str, Any] = {
            attribute: fields[key] for key, attribute in _TEXTS.items() if key in fields
        }
        try:
            for key, attribute in _ROWS.items():
                if key in fields:
                    values[attribute] = _float32_row(key, fields[key])
            for key, attribute in _CALIBRATIONS.items():
                values[attribute] = _from_json(attribute, fields.get(key, "[]"))
            values["strength"] = fields.get(_STRENGTH)
            values["format_version"] = fields.get(VERSION_KEY, 0)
            values["condition"] = _condition(fields)
            values["ellipsoids"] = _ellipsoids(fields)
            return cls(architecture=file.model_hint, **values)
        except InputError as error:
            raise VectorFileError(f"a field is wrong: {error}") from None

    def with_source(self, model: Identified) -> VectorMetadata:
        """Return it with ``model`` recorded as what the vector was made on."""
        return replace(
            self,
            architecture=model.architecture,
            source_model=model.name,
            source_sha256=model.file_sha256,
            weights_fingerprint=model.weights_fingerprint,
            chat_template_sha256=model.chat_template_sha256 or "",
        )

    def unmeasured(self, **known: Any) -> VectorMetadata:
        """Return it without what was measured of the directions, for others than those.

        Args:
            known: values of fields that hold for the others.
        """
        cleared: dict[str, Any] = {
            "neutral_projections": (),
            "own_projections": (),
            "ellipsoids": (),
            "calibrations": (),
            "line_calibrations": (),
            "strength": None,
            "condition": None,
        }
        return replace(self, **(cleared | known))

    def to_fields(self) -> dict[str, FieldValue]:
        """Return the ``pyemo.*`` fields to write; what is not known is left out."""
        fields: dict[str, FieldValue] = {VERSION_KEY: FORMAT_VERSION}
        for key, attribute in _TEXTS.items():
            if text := getattr(self, attribute):
                fields[key] = text
        for key, attribute in _ROWS.items():
            if row := getattr(self, attribute):
                fields[key] = np.array(row, dtype=np.float32)
        for key, attribute in _CALIBRATIONS.items():
            if entries := getattr(self, attribute):
                fields[key] = _dump([_to_json(entry) for entry in entries])
        if self.strength is not None:
            fields[_STRENGTH] = self.strength
        for layer, found in self.ellipsoids:
            rows = [found.components.ravel(), found.center]
            fields[f"{_ELLIPSOID}{layer}"] = np.concatenate(rows)
            fields[f"{_ELLIPSOID}{layer}.radius2"] = found.radius2
            fields[f"{_ELLIPSOID}{layer}.k"] = len(found.center)
        if self.condition is not None:
            for key, attribute in _CONDITION.items():
                fields[key] = getattr(self.condition, attribute)
        return fields


def _to_json(calibration: Calibration) -> dict[str, Any]:
    return {
        "model_sha256": calibration.model_sha256,
        "model_name": calibration.model_name,
        "sampler": calibration.sampler,
        "n_tokens": calibration.n_tokens,
        "window": list(calibration.window),
        "strength": calibration.strength,
        "evidence": json.loads(calibration.evidence),
    }


def _from_json(name: str, text: object) -> tuple[Calibration, ...]:
    entries = _parse(name, text)
    if not isinstance(entries, list):
        _refuse(name, entries, "a JSON array of objects")
    return tuple(_calibration(entry) for entry in entries)


def _calibration(entry: object) -> Calibration:
    if not isinstance(entry, dict):
        _refuse("a calibration", entry, "a JSON object")
    names = ("model_sha256", "model_name", "sampler", "n_tokens", "window", "strength")
    missing = [name for name in names if name not in entry]
    if missing:
        _refuse("a calibration", entry, f"an object with {', '.join(missing)}")
    values = {name: entry[name] for name in names}
    return Calibration(**values, evidence=_dump(entry.get("evidence", {})))


def _ellipsoids(fields: Mapping[str, FieldValue]) -> tuple[tuple[int, Ellipsoid], ...]:
    found: dict[int, Ellipsoid] = {}
    for key, values in fields.items():
        if not (match := re.fullmatch(re.escape(_ELLIPSOID) + "([0-9]{1,7})", key)):
            continue
        k, radius2 = (fields.get(f"{key}.{name}") for name in ("k", "radius2"))
        if not isinstance(values, np.ndarray) or values.dtype != np.float32:
            _refuse(key, values, "an array of float32")
        if not isinstance(k, int) or k < 1 or values.size % k or values.size // k < 2:
            _refuse(key, values, "float32 numbers, with how many components they are in .k")
        if not isinstance(radius2, float):
            _refuse(f"{key}.radius2", radius2, "a number")
        n_embd = values.size // k - 1
        components = values[: k * n_embd].reshape(k, n_embd)
        found[int(match[1])] = Ellipsoid(components, values[k * n_embd :], radius2)
    return tuple(found.items())


def _condition(fields: Mapping[str, FieldValue]) -> FittedCondition | None:
    values: dict[str, Any] = {
        name: fields[key] for key, name in _CONDITION.items() if key in fields
    }
    if not values:
        return None
    if missing := sorted({"layer", "threshold", "side"} - set(values)):
        _refuse("a condition", sorted(values), f"one with {', '.join(missing)} too")
    return FittedCondition(**values)


def _calibrations(name: str, entries: object) -> tuple[Calibration, ...]:
    if not isinstance(entries, Sequence) or not all(isinstance(e, Calibration) for e in entries):
        _refuse(name, entries, "a tuple of Calibration")
    keys = [(entry.model_sha256, entry.n_tokens) for entry in entries]
    if len(set(keys)) < len(keys):
        _refuse(name, keys, "at most one for each model file and n_tokens")
    return tuple(entries)


def _parse(name: str, text: object) -> Any:
    """Return JSON text's value; NaN, infinity and endless nesting are refused."""
    if not isinstance(text, str):
        _refuse(name, text, "JSON text")
    try:
        value = json.loads(text)
        _dump(value).encode()  # half a surrogate pair cannot be written
    except (ValueError, RecursionError):
        _refuse(name, text, "JSON text without NaN or infinity")
    return value


def _dump(value: object) -> str:
    """Return canonical JSON: one text for one value."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _float32_row(key: str, value: FieldValue) -> tuple[float, ...]:
    if not isinstance(value, np.ndarray) or value.dtype != np.float32:
        _refuse(key, value, "an array of float32")
    return _row(key, value.tolist())


def _row(name: str, values: object) -> tuple[float, ...]:
    """Return numbers rounded to float32, so that a file keeps them exactly."""
    try:
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused below
            row = np.asarray(values, dtype=np.float64).astype(np.float32)
    except (TypeError, ValueError):
        _refuse(name, values, "one number for each layer")
    if row.ndim != 1 or not np.isfinite(row).all():
        _refuse(name, values, "one finite number for each layer")
    return tuple(row.tolist())


def _pair(window: object) -> Sequence[Any]:
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        _refuse("window", window, "a pair (lowest, highest)")
    return window


def _is_finite(number: object) -> bool:
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        return False
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond float
        return False


def _is_printable(text: str) -> bool:
    """Whether text can be printed to a terminal without moving its cursor or changing colours."""
    return all(line.isprintable() for line in text.replace("\t", " ").split("\n"))


def _check_name(name: str, value: object, may_be_empty: bool = False) -> None:
    is_right = isinstance(value, str) and value.isprintable() and len(value) <= _LONGEST_NAME
    if not is_right or not (value or may_be_empty):
        _refuse(name, value, f"printable text of at most {_LONGEST_NAME} characters")


def _check_hash(name: str, value: object, may_be_empty: bool = False) -> None:
    is_missing = may_be_empty and isinstance(value, str) and not value
    if not is_missing and not (isinstance(value, str) and _SHA256.fullmatch(value)):
        _refuse(name, value, "64 lower-case hexadecimal digits")


def _refuse(name: str, value: object, allowed: str) -> NoReturn:
    raise InputError(f"{name} is {shown(value)}; it must be {allowed}")
