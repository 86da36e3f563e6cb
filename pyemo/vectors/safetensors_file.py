"""Read a small safetensors file: named tensors of floating-point numbers, in bounded memory.

Owns the layout (eight bytes of length, a JSON header, the data) and believes no length, shape or
offset before comparing it with the file's own size. Knows nothing of what the names mean. Needs
neither torch nor the package of that name.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pyemo.vectors.gguf_header import MAX_HEADER_BYTES, MAX_TENSORS, refuse, shown

Float32Array = npt.NDArray[np.float32]

_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_NO_TENSOR = "__metadata__"


def read_tensors(file: BinaryIO) -> dict[str, Float32Array]:
    """Return name -> float32 array of the declared shape, in the order of the data.

    Raises:
        VectorFileError: not safetensors, cut off, damaged, beyond the limits, or not of
            floating-point numbers. The message lacks the file's name.
    """
    size = os.fstat(file.fileno()).st_size
    entries, start = _header(file, size)
    tensors: dict[str, Float32Array] = {}
    expected = 0
    for name, dtype, shape, begin, end in sorted(entries, key=lambda entry: entry[3:]):
        if begin != expected:
            kind = "overlaps another" if begin < expected else "leaves a gap"
            refuse(f"is damaged: {shown(name)} begins at {begin}, not {expected}: it {kind}")
        if end - begin != _WIDTHS[dtype] * math.prod(shape):
            refuse(f"is damaged: {shown(name)} of shape {shown(shape)} does not take {end - begin}")
        if start + end > size:
            refuse(f"is cut off or damaged: {shown(name)} would end past its {size} bytes")
        file.seek(start + begin)
        tensors[name] = _numbers(file.read(end - begin), dtype).reshape(shape)
        expected = end
    if start + expected != size:
        refuse(f"has {size - start - expected} bytes after its last tensor; it was altered")
    return tensors


def _header(
    file: BinaryIO, size: int
) -> tuple[list[tuple[str, str, tuple[int, ...], int, int]], int]:
    """Return (name, dtype, shape, begin, end) of each tensor, and where the data starts."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
        refuse("is no safetensors file, or damaged: its header would end past its end")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        refuse(f"is no safetensors file, or damaged: its header is not JSON ({error})")
    if not isinstance(header, dict):
        refuse("is damaged: its header is not an object of tensors")
    named = {name: entry for name, entry in header.items() if name != _NO_TENSOR}
    if not 1 <= len(named) <= MAX_TENSORS:
        refuse(f"holds {len(named)} tensors; a vector has 1 to {MAX_TENSORS}")
    return [_entry(name, entry) for name, entry in named.items()], 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name twice")
    return dict(pairs)


def _entry(name: str, entry: object) -> tuple[str, str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict):
        refuse(f"is damaged: {shown(name)} is described by {shown(entry)}")
    dtype = entry.get("dtype")
    shape, offsets = _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in _WIDTHS:
        refuse(f"has {shown(name)} of type {shown(dtype)}; a direction is one of {list(_WIDTHS)}")
    if shape is None or offsets is None or len(offsets) != 2:
        refuse(
            f"is damaged: {shown(name)} has shape {shown(entry.get('shape'))} and offsets "
            f"{shown(entry.get('data_offsets'))}; they must be whole numbers from 0"
        )
    begin, end = offsets
    if begin >= end:
        refuse(f"is damaged: {shown(name)} begins at {begin} and ends at {end}")
    return name, dtype, shape, begin, end


def _counts(values: object) -> tuple[int, ...] | None:
    """Return a list of whole numbers from 0 as a tuple; None for anything else."""
    if not isinstance(values, list):
        return None
    return tuple(values) if all(type(n) is int and 0 <= n < 1 << 40 for n in values) else None


def _numbers(data: bytes, dtype: str) -> Float32Array:
    """Return the numbers as float32; what is too large for it becomes infinite."""
    if dtype == "BF16":  # the upper half of a float32
        wide = np.frombuffer(data, "<u2").astype("<u4") << np.uint32(16)
        return np.frombuffer(wide.tobytes(), np.dtype("<f4")).astype(np.float32)
    with np.errstate(over="ignore"):
        kind = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]
        numbers: Float32Array = np.frombuffer(data, np.dtype(kind)).astype(np.float32)
        return numbers
