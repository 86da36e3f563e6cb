"""The control vector: one direction for each steered layer, with what is known of it.

Owns the noun and its arithmetic. Knows nothing of how a direction is applied (``steering``,
``engine``) or found (``extract``).
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyemo.choices import OPERATORS, VectorUse
from pyemo.errors import (
    InputError,
    VectorError,
    VectorFileError,
    VectorNotFoundError,
    VectorShapeError,
    all_calls_named,
)
from pyemo.files import catalog, hub_vectors
from pyemo.vectors import file as vector_file
from pyemo.vectors.file import Float32Array, VectorFile
from pyemo.vectors.fit import Fit, FitKind, compare
from pyemo.vectors.gguf_header import shown, shown_path
from pyemo.vectors.metadata import Calibration, Ellipsoid, Recommended, Unit, VectorMetadata

if TYPE_CHECKING:
    from pyemo.vectors.identity import Identified

LINE_SHARE = 2 / 3
"""Of a strength, beside a system line that was not calibrated (docs/measurements/voices.md)."""

__all__ = ["Calibration", "ControlVector", "Fit", "FitKind", "Recommended", "VectorMetadata"]


@all_calls_named
class ControlVector:
    """One direction for each steered layer, for one emotion.

    Also called steering vector or CAA vector; what multiplies it, our ``strength``, is ``coeff`` in
    repeng and the number of ``--control-vector-scaled`` in llama.cpp.

    Immutable; two vectors are equal only if they are the same object, so a vector can be a key:
    ``Steering({angry: 0.02})``. Layers count from 0 and name the block whose output a direction is
    added to; a layer without a direction is not steered. Layer 0 can be steered but not saved,
    because llama.cpp's file format has no place for it.

    Args:
        directions: layer -> (n_embd,) finite numbers; copied as float32.
        name: what tables and messages call it.
        metadata: what is known of it; by default nothing, and its unit is "raw".
    Raises:
        VectorShapeError: no direction, or one that is not a finite row as wide as the others.
    """

    __slots__ = (
        "__weakref__",
        "_directions",
        "_metadata",
        "_name",
        "_neutral_projections",
        "_own_projections",
        "_residual_norms",
        "_zero_layers",
    )
    __array_ufunc__ = None  # numpy.float64(2) * vector is left to __rmul__

    def __init__(
        self,
        directions: Mapping[int, npt.ArrayLike],
        *,
        name: str = "vector",
        metadata: VectorMetadata | None = None,
    ) -> None:
        if not isinstance(name, str):
            raise InputError(f"name = {shown(name)}; it must be a text")
        self._name = name
        self._metadata = metadata = metadata or VectorMetadata()
        rows = {_layer(layer): _row(layer, row) for layer, row in directions.items()}
        self._directions: Mapping[int, Float32Array] = MappingProxyType(dict(sorted(rows.items())))
        try:
            vector_file.check_directions(self._directions)
        except VectorError as error:
            raise VectorShapeError(f"the control vector {name!r} {error}") from None
        self._zero_layers = tuple(il for il, row in self._directions.items() if not row.any())
        for row in (metadata.residual_norms, metadata.neutral_projections):
            if row and len(row) <= self.layers[-1]:
                raise VectorShapeError(
                    f"the control vector {name!r} has a direction for layer {self.layers[-1]}, but "
                    f"norms or projections for {len(row)} layers only"
                )
        self._check_ellipsoids()
        self._residual_norms = MappingProxyType(dict(enumerate(metadata.residual_norms)))
        self._neutral_projections = self._at_layers(metadata.neutral_projections)
        self._own_projections = self._at_layers(metadata.own_projections)

    def _check_ellipsoids(self) -> None:
        for layer, found in self._metadata.ellipsoids:
            width = found.components.shape[1]
            if layer not in self._directions or width != self.n_embd:
                raise VectorShapeError(
                    f"the control vector {self._name!r} says where rows of width {width} lie at "
                    f"layer {layer}; its directions are {self.n_embd} wide, of layers "
                    f"{_ranges(self.layers)}"
                )

    def _at_layers(self, row: tuple[float, ...]) -> Mapping[int, float]:
        """Return what a row over all layers says at those that have a direction."""
        return MappingProxyType({il: at for il, at in enumerate(row) if il in self._directions})

    # --- what it holds ---

    @property
    def name(self) -> str:
        """What tables and messages call it."""
        return self._name

    @property
    def directions(self) -> Mapping[int, Float32Array]:
        """Layer -> float32 (n_embd,), sorted by layer; read-only views."""
        return self._directions

    @property
    def metadata(self) -> VectorMetadata:
        """Where it comes from and what its numbers mean."""
        return self._metadata

    @property
    def unit(self) -> Unit:
        """ "residual": a strength is a fraction of the residual norm; "raw": of unknown length."""
        return self._metadata.unit

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that have a direction, sorted."""
        return tuple(self._directions)

    @property
    def zero_layers(self) -> tuple[int, ...]:
        """The layers whose direction is all zeros, which steers nothing there; sorted."""
        return self._zero_layers

    @property
    def n_embd(self) -> int:
        """The width of every direction."""
        return next(iter(self._directions.values())).size

    @property
    def residual_norms(self) -> Mapping[int, float]:
        """Layer -> median residual norm of neutral texts; all layers of the source, or empty."""
        return self._residual_norms

    @property
    def neutral_projections(self) -> Mapping[int, float]:
        """Layer -> mean projection of neutral texts on the unit direction; empty if unknown."""
        return self._neutral_projections

    @property
    def own_projections(self) -> Mapping[int, float]:
        """Layer -> mean projection of its own texts on the unit direction; empty if unknown."""
        return self._own_projections

    @property
    def ellipsoids(self) -> Mapping[int, Ellipsoid]:
        """Layer -> where real rows lie; empty if unknown."""
        return MappingProxyType(dict(self._metadata.ellipsoids))

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how a copy is made elsewhere: vectors go to other processes by value."""
        return _rebuilt, (dict(self._directions), self._name, self._metadata)

    def __repr__(self) -> str:
        emotion = f", emotion={self._metadata.emotion!r}" if self._metadata.emotion else ""
        return (
            f"<ControlVector {self._name!r}{emotion}, n_embd={self.n_embd}, "
            f"layers={_ranges(self.layers)}, unit={self.unit!r}>"
        )

    # --- files ---

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike[str],
        model: Identified | None = None,
        *,
        use: VectorUse = "writing",
        allow_other_weights: bool = False,
    ) -> ControlVector:
        """Return the vector of a file, or the bundled one of an emotion for ``model``.

        A file that exists wins; ``hf:org/repo/file.gguf`` is fetched from Hugging Face. With a
        model the vector is checked against it, see ``check``.
        ``use`` tells bundled ones apart: "writing" steers texts, "reading" is for gauges.

        Files of repeng and llama.cpp's cvector-generator load with the unit "raw". The latter
        writes the output of block N-1 as ``direction.N``, llama.cpp adds it to the output of block
        N, and so does pyemo; ``shifted(-1)`` puts it back where it was measured.

        Raises:
            VectorNotFoundError: neither a file nor a bundled vector for this model.
            VectorFileError: the file is not a control vector, damaged, or holds zeros only.
            VectorShapeError: a direction is not float32, not one row or not finite.
            VectorModelMismatchError: it was made for other weights, or does not fit.
        """
        if model is not None:
            _check_is_model(model)
        path = find_vector(name_or_path, None if model is None else model.name, use)
        file = vector_file.read(path)
        try:
            vector = cls(file.directions, name=path.stem, metadata=VectorMetadata.from_file(file))
        except VectorError as error:
            raise type(error)(f"vector file {shown_path(path)}: {error}") from None
        if vector.zero_layers == vector.layers:
            raise VectorFileError(
                f"vector file {shown_path(path)} holds nothing but zeros, so it steers nothing; "
                "make it again"
            )
        if model is not None:
            vector.check(model, allow_other_weights=allow_other_weights)
        return vector

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write it as a GGUF control vector, which llama.cpp and repeng read.

        The same vector gives the same bytes, and the file is replaced whole or not at all. Nothing
        but a vector of pyemo's is replaced.

        Args:
            force: replace a control vector of another make too; never a model or another file.
        Raises:
            VectorFileError: it is all zeros, has a direction for layer 0, its architecture is not
                known, what is at ``path`` is no vector of pyemo's, or the disk refuses.
        """
        meta = self._metadata
        if not meta.architecture:
            raise VectorFileError(
                f"the control vector {self._name!r} does not say its model's architecture, which a "
                "file must: name it (pyemo convert --hint ARCH, or -m MODEL; with_metadata in "
                "Python), or rescale it on its model"
            )
        if self.zero_layers == self.layers:
            raise VectorFileError(
                f"the control vector {self._name!r} is all zeros and would steer nothing, so no "
                "file is made of it"
            )
        content = VectorFile(self._directions, meta.to_fields(), meta.architecture)
        vector_file.write(path, content, force=force)

    # --- the model ---

    def check(self, model: Identified, *, allow_other_weights: bool = False) -> Fit:
        """Return how the vector relates to ``model``, or raise if it must not be added to it.

        Only width, layers and architecture can be checked for a vector that does not say which
        weights it was made on; the answer then is UNKNOWN_SOURCE.

        Args:
            allow_other_weights: accept other weights, and another architecture, of this shape.
        Raises:
            VectorModelMismatchError: it does not fit this model, or was made on other weights.
        """
        return compare(self, model, allow_other_weights=allow_other_weights)

    def calibration_for(
        self, model_sha256: str, n_tokens: int = 1, *, with_line: bool = False
    ) -> Calibration | None:
        """Return the calibration on the model file with that SHA-256, None if there is none.

        Of several, the one of the shortest texts that are as long as ``n_tokens``, else that of
        the longest: a strength that lasts for a text lasts for its beginning.

        Args:
            with_line: that of the vector together with its system line.
        """
        own = [e for e in self._calibrations(with_line) if e.model_sha256 == model_sha256]
        own.sort(key=lambda entry: entry.n_tokens)
        long_enough = [entry for entry in own if entry.n_tokens >= n_tokens]
        return next(iter(long_enough or own[::-1]), None)

    def recommended(
        self, model: Identified, n_tokens: int = 1, *, with_line: bool = False
    ) -> Recommended:
        """Return the strength to take on ``model`` for replies of ``n_tokens``.

        That of a calibration on the model's file, else the one its training recommends, else the
        default, 0.02. ``Steering({angry: angry.recommended(engine.model).strength})``

        Args:
            with_line: together with the system line; where it is not calibrated so, two thirds of
                the strength without it.
        Raises:
            InputError: a raw vector without a calibration: a number says nothing of it.
        """
        calibration = self.calibration_for(model.file_sha256, n_tokens, with_line=with_line)
        if calibration is not None:
            return Recommended(calibration.strength, "calibration", calibration)
        if with_line:
            alone = self.recommended(model, n_tokens)
            return Recommended(float(f"{alone.strength * LINE_SHARE:.3g}"), alone.source)
        if self._metadata.strength is not None:
            return Recommended(self._metadata.strength, "trained")
        if self.unit == "raw":
            raise InputError(
                f"the control vector {self._name!r} does not say its unit (raw), so it has no "
                "default strength; give one, or rescale it once with `pyemo rescale`"
            )
        return Recommended(OPERATORS["add"], "default")

    def with_calibration(
        self, calibration: Calibration, *, with_line: bool = False
    ) -> ControlVector:
        """Return the vector with a calibration, which replaces one of the same file and length."""
        others = self.without_calibrations(
            calibration.model_sha256, [calibration.n_tokens], with_line=with_line
        )
        kept = (*others._calibrations(with_line), calibration)
        return others._with_calibrations(kept, with_line)

    def without_calibrations(
        self, model_sha256: str, lengths: Iterable[int], *, with_line: bool = False
    ) -> ControlVector:
        """Return the vector without what it says of that model file and texts of these lengths."""
        dropped = {(model_sha256, n_tokens) for n_tokens in lengths}
        entries = self._calibrations(with_line)
        kept = tuple(e for e in entries if (e.model_sha256, e.n_tokens) not in dropped)
        return self._with_calibrations(kept, with_line)

    def with_system_line(self, line: str) -> ControlVector:
        """Return the vector with that system line; what was measured with another one goes.

        Raises:
            InputError: it is no line of text.
        """
        if line == self._metadata.system_line:
            return self
        metadata = replace(self._metadata, system_line=line, line_calibrations=())
        return self.with_metadata(metadata)

    def _calibrations(self, with_line: bool) -> tuple[Calibration, ...]:
        meta = self._metadata
        return meta.line_calibrations if with_line else meta.calibrations

    def _with_calibrations(
        self, entries: tuple[Calibration, ...], with_line: bool
    ) -> ControlVector:
        name = "line_calibrations" if with_line else "calibrations"
        changed: dict[str, Any] = {name: entries}
        return self.with_metadata(replace(self._metadata, **changed))

    def with_metadata(self, metadata: VectorMetadata, *, name: str | None = None) -> ControlVector:
        """Return the same directions with other metadata, and another name if one is given."""
        return ControlVector(self._directions, name=name or self._name, metadata=metadata)

    # --- arithmetic ---

    def __add__(self, other: object) -> ControlVector:
        if not isinstance(other, ControlVector):
            return NotImplemented
        return self._combined(other, 1.0, "{} + {}")

    def __sub__(self, other: object) -> ControlVector:
        if not isinstance(other, ControlVector):
            return NotImplemented
        return self._combined(other, -1.0, "{} - {}")

    def __neg__(self) -> ControlVector:
        return self._scaled(-1.0, "-{}")

    def __mul__(self, factor: object) -> ControlVector:
        if not isinstance(factor, numbers.Real):
            return NotImplemented
        return self._scaled(_factor(factor), f"{float(factor):g} * {{}}")

    __rmul__ = __mul__

    def __truediv__(self, divisor: object) -> ControlVector:
        if not isinstance(divisor, numbers.Real):
            return NotImplemented
        if divisor == 0:
            raise InputError(f"cannot divide the control vector {self._name!r} by 0")
        return self._scaled(_factor(1 / divisor), f"{{}} / {float(divisor):g}")

    # --- other vectors from this one ---

    def only_layers(self, layers: Iterable[int]) -> ControlVector:
        """Return the vector with just the directions of ``layers``, such as ``range(8, 20)``.

        Recommended strengths go, unless all layers stay: on fewer layers they are another dose.

        Raises:
            InputError: the vector has no direction in ``layers``.
        """
        wanted = layers if isinstance(layers, range) else sorted({_layer(il) for il in layers})
        kept = {layer: row for layer, row in self._directions.items() if layer in wanted}
        if not kept:
            raise InputError(
                f"the control vector {self._name!r} has no direction in layers "
                f"{_ranges(wanted)}; it has layers {_ranges(self.layers)}"
            )
        if len(kept) == len(self._directions):
            return self
        found = self._metadata.condition
        neutral, own = (
            tuple(value if layer in kept else 0.0 for layer, value in enumerate(row))
            for row in (self._metadata.neutral_projections, self._metadata.own_projections)
        )
        metadata = self._metadata.unmeasured(
            neutral_projections=neutral,
            own_projections=own,
            condition=found if found is not None and found.layer in kept else None,
            ellipsoids=tuple(pair for pair in self._metadata.ellipsoids if pair[0] in kept),
        )
        return ControlVector(kept, name=self._name, metadata=metadata)

    def shifted(self, by: int) -> ControlVector:
        """Return a raw vector with each direction moved ``by`` layers.

        For files of other layer conventions: ``shifted(-1)`` moves what llama.cpp's
        cvector-generator calls ``direction.N`` to the block N-1 it was measured at.

        Raises:
            VectorError: the unit is not "raw"; such directions belong to their layers.
            InputError: a direction would come to lie before layer 0.
        """
        if self.unit != "raw":
            raise VectorError(
                f"the control vector {self._name!r} has the unit {self.unit!r}: its directions are "
                "as long as the residual of their own layers; only raw vectors can be shifted"
            )
        if self.layers[0] + by < 0:
            raise InputError(
                f"cannot shift the control vector {self._name!r} by {by}: its first direction is "
                f"layer {self.layers[0]}; leave layers out with only_layers first"
            )
        moved = {layer + by: row for layer, row in self._directions.items()}
        return ControlVector(moved, name=self._name, metadata=self._metadata.unmeasured())

    def rescaled(
        self,
        residual_norms: Sequence[float],
        neutral_projections: Sequence[float] = (),
        *,
        own_projections: Sequence[float] = (),
        source: Identified | None = None,
        keep_profile: bool = False,
    ) -> ControlVector:
        """Return the vector in the unit "residual": each direction as long as its layer's norm.

        What the lengths of the directions said before is lost, their sense is kept. With
        ``keep_profile`` their proportions are kept too: one factor for all, by which a strength is
        the share of the residual norm in the root mean square over the layers.
        Recommended strengths go, since a strength now means something else.

        Args:
            residual_norms: for all layers of the model, layer 0 first; above 0.
            neutral_projections: for all layers, or nothing where they were not measured.
            own_projections: likewise, of the vector's own texts.
            source: the model they were measured on; recorded as the vector's source.
            keep_profile: take the lengths as part of the method, as where a tool's own scale is
                one number for all layers.
        Raises:
            InputError: a norm is not above 0 or a number not finite, or the rows differ in length.
            VectorShapeError: a direction is zero, or lies past the last norm.
        """
        known = self._metadata if source is None else self._metadata.with_source(source)
        metadata = known.unmeasured(
            unit="residual",
            residual_norms=tuple(residual_norms),
            neutral_projections=tuple(neutral_projections),
            own_projections=tuple(own_projections),
            ellipsoids=known.ellipsoids,
        )
        if self.layers[-1] >= len(metadata.residual_norms):
            raise VectorShapeError(
                f"the control vector {self._name!r} has a direction for layer {self.layers[-1]}, "
                f"but {len(metadata.residual_norms)} residual norms were given"
            )
        shares: dict[int, float] = {}
        for layer, row in self._directions.items():
            length = float(np.linalg.norm(row.astype(np.float64)))
            if length == 0:
                raise VectorShapeError(
                    f"the control vector {self._name!r} has a zero direction at layer {layer}, "
                    "which has no sense to keep; leave it out with only_layers"
                )
            shares[layer] = length / metadata.residual_norms[layer]
        if keep_profile:
            common = math.sqrt(sum(share * share for share in shares.values()) / len(shares))
            shares = dict.fromkeys(shares, common)
        scaled = {
            layer: row.astype(np.float64) / shares[layer] for layer, row in self._directions.items()
        }
        return ControlVector(scaled, name=self._name, metadata=metadata)

    def with_own_projections(
        self,
        neutral_projections: Sequence[float],
        own_projections: Sequence[float],
        ellipsoids: Mapping[int, Ellipsoid] | None = None,
    ) -> ControlVector:
        """Return the same directions with where neutral texts and their own lie along them.

        Args:
            neutral_projections, own_projections: for all layers of the model, layer 0 first.
            ellipsoids: where real rows lie, by layer; None keeps what is known.
        Raises:
            InputError: a number is not finite, or the rows differ in length.
        """
        metadata = replace(
            self._metadata,
            neutral_projections=tuple(neutral_projections),
            own_projections=tuple(own_projections),
            ellipsoids=self._metadata.ellipsoids
            if ellipsoids is None
            else tuple(ellipsoids.items()),
        )
        return self.with_metadata(metadata)

    # --- readings ---

    def dose(self, strength: float, layers: Iterable[int] | None = None) -> float:
        """Return how far a strength moves the last block's residual, over that residual's norm.

        The length of the sum of strength times direction over the steered layers, as if each block
        passed the displacement on unchanged, divided by the residual norm of the last block.
        So 2% on 29 layers can be told from 2% on one.

        Args:
            layers: those steered; by default all that have a direction.
        Raises:
            InputError: the strength is not finite, or no direction lies in ``layers``.
            VectorError: the vector says nothing of residual norms.
        """
        if not isinstance(strength, numbers.Real) or not math.isfinite(strength):
            raise InputError(f"a strength is a finite number, got {shown(strength)}")
        if not self._residual_norms:
            raise VectorError(
                f"the control vector {self._name!r} (unit {self.unit!r}) has no residual norms, so "
                "its dose is not known; rescale it on its model first (`pyemo rescale`)"
            )
        steered = self if layers is None else self.only_layers(layers)
        rows = [row.astype(np.float64) for row in steered.directions.values()]
        moved = abs(float(strength)) * float(np.linalg.norm(np.sum(rows, axis=0)))
        return moved / self._residual_norms[len(self._residual_norms) - 1]

    # --- helpers ---

    def _combined(self, other: ControlVector, sign: float, pattern: str) -> ControlVector:
        if self.unit != other.unit:
            raise VectorError(
                f"cannot combine {self._name!r} (unit {self.unit!r}) with {other._name!r} (unit "
                f"{other.unit!r}); rescale the raw one on its model first"
            )
        if self.n_embd != other.n_embd:
            raise VectorShapeError(
                f"cannot combine {self._name!r} ({self.n_embd} wide) with {other._name!r} "
                f"({other.n_embd} wide); both must be made for the same model"
            )
        directions: dict[int, Any] = dict(self._directions)
        with np.errstate(over="ignore"):  # infinity is refused by name in the constructor
            for layer, row in other._directions.items():
                directions[layer] = directions.get(layer, np.float32(0)) + np.float32(sign) * row
        metadata = _shared(self._metadata, other._metadata)
        name = _named(pattern, self._name, other._name)
        return ControlVector(directions, name=name, metadata=metadata)

    def _scaled(self, factor: float, pattern: str) -> ControlVector:
        with np.errstate(over="ignore"):  # infinity is refused by name in the constructor
            directions = {
                layer: row.astype(np.float64) * factor for layer, row in self._directions.items()
            }
        # the unit direction stays for a factor above 0, turns round below, and is none at 0
        neutral, own = (
            tuple(math.copysign(1.0, factor) * value for value in row) if factor else ()
            for row in (self._metadata.neutral_projections, self._metadata.own_projections)
        )
        metadata = self._metadata.unmeasured(
            emotion="",
            recipe="",
            neutral_projections=neutral,
            own_projections=own,
            ellipsoids=self._metadata.ellipsoids,
        )
        return ControlVector(directions, name=_named(pattern, self._name), metadata=metadata)


_MOST_LAYERS = 1 << 20  # more than any model has


def check_is_vector(value: object) -> None:
    """Raise unless it is a control vector.

    Raises:
        InputError: it is something else, such as a vector's name.
    """
    if not isinstance(value, ControlVector):
        call = "ControlVector.load"
        if isinstance(value, str):
            call += f"({shown(value)}, model=engine.model)"
        raise InputError(f"not a ControlVector: {shown(value)}; load one with {call}")


def _check_is_model(model: object) -> None:
    if isinstance(model, str | os.PathLike):
        name = shown(model)
        raise InputError(
            f"model is {name}, a name or path, and a loaded model is wanted; pass engine.model, or "
            f"Model.load({name})"
        )
    if not hasattr(model, "architecture"):
        raise InputError(f"model is {shown(model)}, which is no loaded model; pass engine.model")


def find_vector(
    name_or_path: str | os.PathLike[str],
    model_name: str | None = None,
    use: VectorUse = "writing",
) -> Path:
    """Return the file that is meant: an existing path wins, else the vector bundled for a model.

    ``hf:org/repo/file.gguf`` is fetched from Hugging Face the first time.

    Raises:
        VectorNotFoundError: a name without a model's, or no vector of that name for the model.
    """
    text = os.fspath(name_or_path)
    remote = hub_vectors.parse(text) if isinstance(text, str) else None
    if remote is not None and not os.path.exists(text):
        return hub_vectors.fetch(remote)
    path = Path(os.path.expanduser(text))
    if os.path.isfile(path) or not isinstance(name_or_path, str) or _is_path(text):
        return path  # what is not a file after all is refused by name when it is read
    if model_name is None:
        own = catalog.file_of_that_name(text)
        raise VectorNotFoundError(
            f"no vector file {shown(text)}; {own}a bundled vector is taken by its emotion's name "
            "together with a model: ControlVector.load(name, model=engine.model)"
        )
    return catalog.vector_path(text, model_name, use)


def _rebuilt(
    directions: Mapping[int, npt.ArrayLike], name: str, metadata: VectorMetadata
) -> ControlVector:
    return ControlVector(directions, name=name, metadata=metadata)


def _is_path(text: str) -> bool:
    return text.endswith(".gguf") or os.sep in text or (os.altsep or os.sep) in text


def _layer(layer: object) -> int:
    is_whole = isinstance(layer, numbers.Integral) and not isinstance(layer, bool)
    if not is_whole or not 0 <= layer < _MOST_LAYERS:  # type: ignore[operator]
        raise InputError(f"a layer is a whole number from 0, got {shown(layer)}")
    return int(layer)  # type: ignore[call-overload, no-any-return]


def _row(layer: int, values: npt.ArrayLike) -> Float32Array:
    """Return a read-only float32 copy; what is too large for float32 becomes infinite."""
    try:
        if np.iscomplexobj(np.asarray(values)):
            raise TypeError("it is complex")
        with np.errstate(over="ignore"):
            row: Float32Array = np.array(values, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise VectorShapeError(f"direction {layer} is not a row of numbers: {error}") from error
    row.flags.writeable = False
    return row


def _shared(mine: VectorMetadata, its: VectorMetadata) -> VectorMetadata:
    """Return what two vectors agree on, for their sum.

    Neutral projections go: a sum's cannot be computed from its parts'.
    """
    agreed = {
        name: getattr(mine, name)
        for name in (
            "architecture",
            "source_model",
            "source_sha256",
            "weights_fingerprint",
            "chat_template_sha256",
            "residual_norms",
        )
        if getattr(mine, name) == getattr(its, name)
    }
    return VectorMetadata(unit=mine.unit, **agreed)


def _factor(number: Any) -> float:
    try:
        factor = float(number)
    except OverflowError:  # a whole number beyond float
        factor = math.inf
    if not math.isfinite(factor):
        raise InputError(f"a control vector is multiplied by finite numbers, got {factor}")
    return factor


def _named(pattern: str, *names: str) -> str:
    """Return a computed vector's name: its parts in brackets where need be, and not endless."""
    name = pattern.format(*(f"({name})" if " " in name else name for name in names))
    return name if len(name) <= 80 else f"{name[:77]}..."


def _ranges(layers: Sequence[int]) -> str:
    """Return sorted layers as half-open ranges, such as "1:10, 12:13"."""
    if isinstance(layers, range) and layers.step == 1:
        return f"{layers.start}:{layers.stop}"
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer + 1 for layer in layers if layer + 1 not in layers]
    return ", ".join(f"{start}:{end}" for start, end in zip(starts, ends, strict=True)) or "none"
