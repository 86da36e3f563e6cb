"""Read and write the GGUF file of a cache vector: rows of values and keys, and fields.

Owns the layout that docs/cache-steering.md lists and the checks of its rows. Knows nothing of what
the fields mean.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pyemo.errors import (
    InputError,
    VectorError,
    VectorFileError,
    VectorShapeError,
)
from pyemo.files.targets import checked_target, written_beside
from pyemo.vectors.file import MAX_FILE_BYTES, MAX_LAYER, Float32Array, check_version
from pyemo.vectors.gguf_file import read_named, write_gguf
from pyemo.vectors.gguf_header import (
    ALIGNMENT_KEY,
    ARCHITECTURE_KEY,
    FieldValue,
    TensorInfo,
    read_header,
    refuse,
    round_up,
    shown,
    shown_path,
)

KIND = "a cache vector"
CELLS_KEY = "pyemo.cache.cells"
HINT_KEY = "pyemo.cache.architecture"

_ARCHITECTURE = "pyemo-cache"
_TENSOR = re.compile(r"(value|key)\.(0|[1-9][0-9]{0,9})")
_GGML_F32 = 0


@dataclass(frozen=True, eq=False)
class CacheFile:
    """What a cache vector's file holds.

    Attributes:
        values, keys: layer (0 to 4095) -> float32 (n_cells, width).
        fields: every other key than ``general.architecture`` and the architecture's.
        architecture: of the model it was made for; "" where it is not known.
    """

    values: Mapping[int, Float32Array]
    keys: Mapping[int, Float32Array]
    fields: Mapping[str, FieldValue] = field(default_factory=dict)
    architecture: str = ""


def read(path: str | os.PathLike[str]) -> CacheFile:
    """Return what the file at ``path`` holds, in the memory of its rows and a few megabytes.

    Raises:
        VectorNotFoundError: no such file.
        VectorFileError: not a cache vector's file, damaged, or of a later format version.
        VectorShapeError: rows that are not finite float32 numbers.
    """
    return read_named(path, "cache vector", KIND, _read_open)


def write(path: str | os.PathLike[str], cache_file: CacheFile) -> None:
    """Write the file, which is replaced whole or not at all; only cache vectors are replaced.

    Equal content gives equal bytes.

    Raises:
        VectorFileError: something there that is no cache vector, or a disk error.
    """
    with _named_refusals(path):
        target = checked_target(path, KIND, _refusal)
        with written_beside(target, KIND) as temporary:
            _write_gguf(temporary, cache_file)
            with open(temporary, "rb") as file:
                _read_open(file)


def check_target(path: str | os.PathLike[str]) -> Path:
    """Return the file that :func:`write` would make or replace; for before the work.

    Raises:
        VectorFileError: what is there stays, or the folder is missing or cannot be written to.
    """
    with _named_refusals(path):
        return checked_target(path, KIND, _refusal)


@contextlib.contextmanager
def _named_refusals(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise VectorFileError(
            f"cache vector {shown_path(path)} cannot be written: {error}"
        ) from error
    except OSError as error:
        raise VectorFileError(
            f"cache vector {shown_path(path)} cannot be written: {error}; choose a folder that "
            "exists and can be written to"
        ) from error


def _refusal(target: Path) -> str | None:
    try:
        read(target)
    except VectorError:
        return "is not a cache vector"
    return None


def _read_open(file: BinaryIO) -> CacheFile:
    """Return what an open file holds; messages lack its name, the caller puts it before them."""
    header = read_header(file, _ARCHITECTURE, KIND)
    check_version(header.fields)
    if not header.tensors:
        refuse("holds no values; a cache vector has some for each layer that it edits")
    found: dict[str, dict[int, Float32Array]] = {"value": {}, "key": {}}
    expected, size = 0, os.fstat(file.fileno()).st_size
    places = []
    for tensor in header.tensors:
        part, layer = _place(tensor)
        if layer in found[part]:
            refuse(f"is damaged: it has {tensor.name} twice")
        if tensor.offset != expected:
            refuse(f"is damaged: {tensor.name} is said to lie at {tensor.offset}, not {expected}")
        found[part][layer] = np.empty(0, np.float32)
        places.append((part, layer, tensor))
        expected += round_up(4 * math.prod(tensor.shape), header.alignment)
        if header.data_start + expected > min(size, MAX_FILE_BYTES):
            refuse(f"is cut off, or too large: {tensor.name} would end past its {size} bytes")
    if size > header.data_start + expected:
        refuse(
            f"has {size - header.data_start - expected} bytes after its last row; it was altered"
        )
    for part, layer, tensor in places:
        file.seek(header.data_start + tensor.offset)
        rows = np.fromfile(file, "<f4", math.prod(tensor.shape)).astype(np.float32, copy=False)
        if rows.size < math.prod(tensor.shape):
            refuse("became shorter while it was read; read it again")
        if not np.isfinite(rows).all():
            raise VectorShapeError(f"has NaN or infinity in {tensor.name}; make it again")
        found[part][layer] = rows.reshape(tensor.shape[::-1])
    hint = header.fields.get(HINT_KEY, "")
    if not isinstance(hint, str):
        refuse(f"has {HINT_KEY} {shown(hint)}; it must be text")
    structure = {ARCHITECTURE_KEY, ALIGNMENT_KEY, HINT_KEY}
    fields = {key: value for key, value in header.fields.items() if key not in structure}
    return CacheFile(found["value"], found["key"], fields, hint)


def _place(tensor: TensorInfo) -> tuple[str, int]:
    """Return ("value" or "key", layer) of a tensor, or refuse one that is no float32 rows."""
    match = _TENSOR.fullmatch(tensor.name)
    if match is None:
        refuse(
            f"holds the tensor {shown(tensor.name)}; a cache vector holds value.0, key.0 and so "
            "on and nothing else"
        )
    if int(match[2]) > MAX_LAYER:
        refuse(f"holds {tensor.name}; layers in a file run from 0 to {MAX_LAYER}")
    if tensor.ggml_type != _GGML_F32 or len(tensor.shape) != 2 or 0 in tensor.shape:
        raise VectorShapeError(
            f"has {tensor.name} of ggml type {tensor.ggml_type} and shape {tensor.shape}; it must "
            "be float32 (type 0), a row for each cell"
        )
    return match[1], int(match[2])


def _write_gguf(path: Path, cache_file: CacheFile) -> None:
    fields = dict(cache_file.fields)
    if cache_file.architecture:
        fields[HINT_KEY] = cache_file.architecture
    parts = (("value", cache_file.values), ("key", cache_file.keys))
    write_gguf(
        path,
        _ARCHITECTURE,
        sorted(fields.items()),
        [
            (f"{part}.{layer}", np.ascontiguousarray(rows))
            for part, layers in parts
            for layer, rows in sorted(layers.items())
        ],
    )
