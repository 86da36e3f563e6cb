"""Read and write the GGUF control-vector file: directions and fields, as plain data.

Owns the file of docs/vector-format.md and the checks of its directions. Knows nothing of what the
fields mean, except that a later ``pyemo.format_version`` is refused. What it accepts, llama.cpp
accepts, but for ``direction.0``: other tools write it for block 0, which llama.cpp cannot steer.
What llama.cpp would load wrongly or not at all is refused here by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from pyemo.errors import (
    InputError,
    VectorError,
    VectorFileError,
    VectorShapeError,
)
from pyemo.files.targets import checked_target, written_beside
from pyemo.vectors.gguf_file import read_named, write_gguf
from pyemo.vectors.gguf_header import (
    ALIGNMENT_KEY,
    ARCHITECTURE_KEY,
    FieldValue,
    Header,
    TensorInfo,
    read_header,
    refuse,
    round_up,
    shown,
    shown_path,
)

FORMAT_VERSION = 1
VERSION_KEY = "pyemo.format_version"
PYEMO, EASYSTEER, CVECTOR_GENERATOR = "pyemo", "EasySteer", "llama.cpp's cvector-generator"
"""Writers that can be told by their files."""

MAX_LAYER = 4095
MAX_FILE_BYTES = 1 << 29

Float32Array: TypeAlias = npt.NDArray[np.float32]

_ARCHITECTURE = "controlvector"
_MODEL_HINT_KEY = "controlvector.model_hint"
_LAYER_COUNT_KEY = "controlvector.layer_count"
_METHOD_KEY = "controlvector.method"
_STRUCTURE_KEYS = {ARCHITECTURE_KEY, ALIGNMENT_KEY, _MODEL_HINT_KEY, _LAYER_COUNT_KEY}

_KEY = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)+")
# one spelling for each layer: llama.cpp takes "direction.01" and "direction.1x" for layer 1 too
_DIRECTION = re.compile(r"direction\.(0|[1-9][0-9]{0,9})")
_GGML_F32 = 0
_INT32 = 5


@dataclass(frozen=True, eq=False)
class VectorFile:
    """What a control-vector file holds.

    Attributes:
        directions: layer (0 to 4095) -> float32 (n_embd,), the same n_embd for all. Layer 0 is
            read and never written.
        fields: every key but the four that make the file a GGUF control vector. Numbers are Python
            numbers, arrays of numbers NumPy arrays, arrays of strings tuples.
        model_hint: the architecture it was made for ("llama"), "" where a file names none.
        writer: the program that writes files with these marks; "" where there are none. For
            reading only.
    """

    directions: Mapping[int, Float32Array]
    fields: Mapping[str, FieldValue] = field(default_factory=dict)
    model_hint: str = ""
    writer: str = ""


def read(path: str | os.PathLike[str]) -> VectorFile:
    """Return the directions and fields of the control-vector file at ``path``.

    Takes the memory of the file's directions and a few megabytes, whatever the file claims.

    Raises:
        VectorNotFoundError: no such file.
        VectorFileError: not a control-vector file, damaged, or of a later format version.
        VectorShapeError: a direction is not float32, not one row, not finite, or of another width.
    """
    return read_named(path, "vector file", "a GGUF control vector", _read_open)


def check_target(path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Return the file that :func:`write` would make or replace; for before the work.

    Only nothing and a vector of pyemo's are replaced; with ``force`` any other control vector too,
    but never a model or another file.

    Raises:
        VectorFileError: what is there stays, or the folder is missing or cannot be written to.
    """

    def refusal(target: Path) -> str | None:
        try:
            found = read(target)
        except VectorError:
            return "is not a control vector"
        if VERSION_KEY in found.fields or force:
            return None
        return "is a control vector of another make (--force replaces it)"

    try:
        return checked_target(path, "a control vector", refusal)
    except InputError as error:
        raise VectorFileError(
            f"vector file {shown_path(path)} cannot be written: {error}"
        ) from error


def write(path: str | os.PathLike[str], vector_file: VectorFile, *, force: bool = False) -> None:
    """Write ``vector_file`` to ``path``, which is replaced whole or not at all.

    Equal content gives equal bytes. The file is read back before it takes its place. What may be
    replaced, :func:`check_target` says; a link stays, and the file it leads to is replaced.

    Raises:
        VectorFileError: no direction, a layer below 1, a field GGUF cannot hold, something there
            that is no vector of pyemo's, or a disk error.
        VectorShapeError: a direction is not float32, not one row, not finite, or of another width.
    """
    target = check_target(path, force=force)
    try:
        check_directions(vector_file.directions)
        _check_writable(vector_file)
        with written_beside(target, "a control vector") as temporary:
            _write_gguf(temporary, vector_file)
            with open(temporary, "rb") as file:
                _read_open(file)
    except VectorError as error:
        raise type(error)(f"vector file {shown_path(path)} was not written: it {error}") from None
    except (OSError, ValueError) as error:
        raise VectorFileError(
            f"vector file {shown_path(path)} cannot be written: {error}; choose a folder that "
            "exists and can be written to"
        ) from error


def check_directions(directions: Mapping[int, Float32Array]) -> None:
    """Raise unless every direction is one finite float32 row and all are equally wide.

    Raises:
        VectorShapeError: names the layer and what is wrong with its direction.
        VectorFileError: there is no direction.
    """
    if not directions:
        refuse("holds no direction; a control vector has one for each layer it steers")
    width = 0
    for layer, direction in directions.items():
        if not isinstance(direction, np.ndarray) or direction.dtype != np.float32:
            kind = getattr(direction, "dtype", type(direction).__name__)
            raise VectorShapeError(f"has direction {layer} of type {kind}; it must be float32")
        if direction.ndim != 1 or direction.size == 0:
            raise VectorShapeError(
                f"has direction {layer} of shape {direction.shape}; it must be one row (n_embd,)"
            )
        width = width or direction.size
        if direction.size != width:
            raise VectorShapeError(
                f"has direction {layer} of width {direction.size} where another is {width} wide; "
                "all must be n_embd wide"
            )
        if not np.isfinite(direction).all():
            raise VectorShapeError(f"has NaN or infinity in direction {layer}; extract it again")


# --- reading ---------------------------------------------------------------------------------


def _read_open(file: BinaryIO) -> VectorFile:
    """Return what an open file holds; messages lack its name, the caller puts it before them."""
    header = read_header(file, _ARCHITECTURE)
    check_version(header.fields)
    layers = [_layer_of(tensor) for tensor in header.tensors]
    n_data = _check_layout(header.tensors, header.alignment)
    _check_size(os.fstat(file.fileno()).st_size, header.data_start + n_data)
    directions: dict[int, Float32Array] = {}
    for layer, tensor in sorted(zip(layers, header.tensors, strict=True)):
        file.seek(header.data_start + tensor.offset)
        row = np.fromfile(file, "<f4", tensor.shape[0])
        if row.size < tensor.shape[0]:
            refuse("became shorter while it was read; read it again")
        directions[layer] = row.astype(np.float32, copy=False)
    check_directions(directions)
    hint = header.fields.get(_MODEL_HINT_KEY, "")
    if not isinstance(hint, str):
        refuse(f"has {_MODEL_HINT_KEY} {shown(hint)}; it must be text")
    fields = {key: value for key, value in header.fields.items() if key not in _STRUCTURE_KEYS}
    return VectorFile(directions, fields, hint, _writer(header))


def _writer(header: Header) -> str:
    """Return whose files bear these marks: a field of its own, or the number type of the count."""
    if VERSION_KEY in header.fields:
        return PYEMO
    if _METHOD_KEY in header.fields:
        return EASYSTEER
    return CVECTOR_GENERATOR if header.kinds.get(_LAYER_COUNT_KEY) == _INT32 else ""


def _layer_of(tensor: TensorInfo) -> int:
    """Return the layer of ``direction.N``, or refuse a tensor that is none or no float32 row."""
    match = _DIRECTION.fullmatch(tensor.name)
    if match is None:
        refuse(
            f"holds the tensor {shown(tensor.name)}; a control vector holds direction.1, "
            "direction.2 and so on and nothing else, llama.cpp refuses it too"
        )
    layer = int(match[1])
    if layer > MAX_LAYER:
        refuse(f"holds {tensor.name}; layers in a file run from 0 to {MAX_LAYER}")
    if tensor.ggml_type != _GGML_F32:
        raise VectorShapeError(
            f"has {tensor.name} of ggml type {tensor.ggml_type}; it must be 0, float32, as "
            "llama.cpp asks: convert it"
        )
    if len(tensor.shape) != 1 or tensor.shape[0] == 0:
        raise VectorShapeError(
            f"has {tensor.name} of shape {tensor.shape}; it must be one row (n_embd,)"
        )
    return layer


def _check_layout(tensors: tuple[TensorInfo, ...], alignment: int) -> int:
    """Return the bytes all directions take, or refuse a repeat, another width, a gap or overlap."""
    if not tensors:
        refuse("holds no direction; a control vector has one for each layer it steers")
    expected = 0
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            refuse(f"is damaged: it has {tensor.name} twice")
        seen.add(tensor.name)
        if tensor.shape != tensors[0].shape:
            raise VectorShapeError(
                f"has {tensor.name} {tensor.shape[0]} wide and {tensors[0].name} "
                f"{tensors[0].shape[0]}; all must be n_embd wide"
            )
        if tensor.offset != expected:
            refuse(f"is damaged: {tensor.name} is said to lie at {tensor.offset}, not {expected}")
        expected += round_up(4 * tensor.shape[0], alignment)
    return expected


def _check_size(size: int, needed: int) -> None:
    if size < needed:
        refuse(f"is cut off: it has {size} bytes where its header needs {needed}")
    if size > needed:
        refuse(f"has {size - needed} bytes after its last direction; it was altered")
    if size > MAX_FILE_BYTES:
        refuse(f"has {size} bytes; a control vector has at most {MAX_FILE_BYTES}")


def check_version(fields: Mapping[str, FieldValue]) -> None:
    """Refuse a later format version, and fields of pyemo without a version."""
    if VERSION_KEY not in fields:
        if any(key.startswith("pyemo.") for key in fields):
            refuse(f"has fields of pyemo but no {VERSION_KEY}; it was altered, fetch it again")
        return
    version = fields[VERSION_KEY]
    if type(version) is not int or version < 1:
        refuse(f"has {VERSION_KEY} {shown(version)}; it must be a whole number from 1")
    if version > FORMAT_VERSION:
        refuse(f"has {VERSION_KEY} {version}; this pyemo reads {FORMAT_VERSION}: upgrade pyemo")


# --- writing ---------------------------------------------------------------------------------


def _check_writable(vector_file: VectorFile) -> None:
    """Refuse layers, a hint and fields the format has no place for."""
    for layer in vector_file.directions:
        if type(layer) is not int or not 1 <= layer <= MAX_LAYER:
            refuse(
                f"has a direction for layer {shown(layer)}; layers in a file run from 1 to "
                f"{MAX_LAYER}, llama.cpp has none for layer 0: leave it out"
            )
    if not isinstance(vector_file.model_hint, str) or not vector_file.model_hint:
        refuse("has no model hint; name the model's architecture, such as 'llama'")
    for key in vector_file.fields:
        if not _KEY.fullmatch(key) or key in _STRUCTURE_KEYS:
            refuse(f"has the field {shown(key)}; a key is lower-case words joined by dots")
    check_version(vector_file.fields)


def _write_gguf(path: Path, vector_file: VectorFile) -> None:
    structure: list[tuple[str, FieldValue]] = [
        (_MODEL_HINT_KEY, vector_file.model_hint),
        (_LAYER_COUNT_KEY, len(vector_file.directions)),
    ]
    directions = sorted(vector_file.directions.items())
    write_gguf(
        path,
        _ARCHITECTURE,
        [*structure, *sorted(vector_file.fields.items())],
        [(f"direction.{layer}", direction) for layer, direction in directions],
    )
