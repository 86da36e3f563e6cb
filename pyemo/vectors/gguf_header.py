"""Walk a small GGUF file's header in bounded memory and time.

Owns the GGUF layout up to the tensor data (its specification, versions 2 and 3, little-endian) and
believes no length or count before comparing it with the file's own size and the limits below. The
`gguf` package's reader believes them all. Knows nothing of what the fields mean.

Messages lack the file's name ("is cut off ..."); the caller puts it before them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from pyemo.errors import VectorFileError

# Limits. A control vector has some 30 tensors, 10 fields and a few kilobytes of header.
MAX_HEADER_BYTES = 1 << 22
MAX_FIELDS = 1024
MAX_TENSORS = 4096
MAX_ARRAY_LENGTH = 1 << 16
MAX_DIMS = 4

ARCHITECTURE_KEY = "general.architecture"
ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32

# GGUF value type -> dtype
NUMBERS: Mapping[int, np.dtype[Any]] = {
    0: np.dtype("<u1"), 1: np.dtype("<i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"),
    4: np.dtype("<u4"), 5: np.dtype("<i4"), 6: np.dtype("<f4"), 7: np.dtype("?"),
    10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8"),
}  # fmt: skip
STRING, ARRAY = 8, 9

FieldValue: TypeAlias = str | int | float | bool | tuple[str, ...] | npt.NDArray[Any]


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor: ``offset`` counts bytes from the start of the data."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int


@dataclass(frozen=True)
class Header:
    """Fields and tensors of a GGUF file, and where its tensor data starts.

    ``kinds`` has the GGUF value type of each field, which tells one writer from another. Numbers
    are Python numbers, arrays of numbers read-only NumPy arrays, arrays of strings tuples.
    """

    fields: Mapping[str, FieldValue]
    kinds: Mapping[str, int]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_start: int


def read_header(file: BinaryIO, architecture: str, kind: str = "a control vector") -> Header:
    """Return the header of an open GGUF file of that ``general.architecture``.

    Args:
        kind: what such a file is called in messages.
    Raises:
        VectorFileError: not GGUF, cut off, damaged, beyond the limits, or of another architecture.
    """
    size = os.fstat(file.fileno()).st_size
    cursor = _Cursor(file.read(min(size, MAX_HEADER_BYTES)), size)
    n_tensors, n_fields = _read_preamble(cursor)
    fields, kinds = _read_fields(cursor, n_fields, architecture, kind)
    # compared only now: a model has many tensors, and its architecture makes the better message
    if n_tensors > MAX_TENSORS:
        refuse(f"claims {n_tensors} tensors; {kind} has at most {MAX_TENSORS}")
    tensors = tuple(_read_tensor_info(cursor, index) for index in range(n_tensors))
    alignment = _alignment(fields)
    return Header(fields, kinds, tensors, alignment, round_up(cursor.position, alignment))


def refuse(reason: str) -> NoReturn:
    """Raise VectorFileError with a reason that lacks the file's name."""
    raise VectorFileError(reason)


def round_up(n_bytes: int, alignment: int) -> int:
    """Return the next multiple of ``alignment``, where GGUF puts the next tensor."""
    return (n_bytes + alignment - 1) // alignment * alignment


def shown(value: object, longest: int = 120) -> str:
    """Return a stranger's value as a short printable literal."""
    plain = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(plain, str | bytes):
        plain = plain[:longest]
    text = repr(plain)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def shown_path(path: str | os.PathLike[str]) -> str:
    """Return a path as a printable literal, whole as far as a file system would take it."""
    return shown(path, 4096)


class _Cursor:
    """Takes bytes from the head of the file in order, never past its end or the limit."""

    def __init__(self, head: bytes, file_size: int) -> None:
        self.head = head
        self.file_size = file_size
        self.position = 0

    def take(self, n_bytes: int, what: str) -> bytes:
        end = self.position + n_bytes
        if end > self.file_size:
            refuse(f"is cut off or damaged: {what} would end past its {self.file_size} bytes")
        if end > len(self.head):
            refuse(f"is damaged: {what} ends past the {MAX_HEADER_BYTES} bytes a header may have")
        taken = self.head[self.position : end]
        self.position = end
        return taken

    def number(self, dtype: str, what: str) -> int:
        kind = np.dtype(dtype)
        return int(np.frombuffer(self.take(kind.itemsize, what), kind)[0])

    def text(self, what: str) -> str:
        taken = self.take(self.number("<u8", f"the length of {what}"), what)
        try:
            return taken.decode("utf-8")
        except UnicodeDecodeError:
            refuse(f"is damaged: {what} is not UTF-8 text")


def _read_preamble(cursor: _Cursor) -> tuple[int, int]:
    """Return the counts of tensors and fields, after the magic bytes and the version."""
    if cursor.file_size == 0:
        refuse("is empty; fetch or extract it again")
    magic = cursor.take(min(4, cursor.file_size), "the first four bytes")
    if magic != b"GGUF":
        refuse(
            f"is not a GGUF file: it begins with {magic!r}; pass a GGUF control vector, "
            "or make one of a .safetensors or .pt file: pyemo convert"
        )
    version = cursor.number("<u4", "the GGUF version")
    if version & 0xFFFF == 0:
        refuse("is a big-endian GGUF file; convert it to little-endian")
    if version not in (2, 3):
        refuse(f"is GGUF version {version}; versions 2 and 3 can be read: convert it")
    n_tensors = cursor.number("<u8", "the number of tensors")
    n_fields = cursor.number("<u8", "the number of fields")
    if n_fields > MAX_FIELDS:
        refuse(f"claims {n_fields} fields; a control vector has at most {MAX_FIELDS}")
    return n_tensors, n_fields


def _read_fields(
    cursor: _Cursor, n_fields: int, architecture: str, kind: str
) -> tuple[dict[str, FieldValue], dict[str, int]]:
    fields: dict[str, FieldValue] = {}
    kinds: dict[str, int] = {}
    for index in range(n_fields):
        key = cursor.text(f"the name of field {index}")
        if key in fields:
            refuse(f"is damaged: it has the field {shown(key)} twice")
        kinds[key] = value_type = cursor.number("<u4", f"the type of field {shown(key)}")
        fields[key] = value = _read_value(cursor, value_type, f"the field {shown(key)}")
        # compared at once: a model's remaining fields can be large
        if key == ARCHITECTURE_KEY and not (isinstance(value, str) and value == architecture):
            refuse(
                f"has {ARCHITECTURE_KEY} {shown(value)}, not {architecture!r}: "
                f"it is a model or another kind of file; pass {kind}"
            )
    if ARCHITECTURE_KEY not in fields:
        refuse(
            f"does not say what it is: {ARCHITECTURE_KEY} is missing; it must be {architecture!r}"
        )
    return fields, kinds


def _read_value(cursor: _Cursor, kind: int, what: str) -> FieldValue:
    if kind == STRING:
        return cursor.text(what)
    if kind == ARRAY:
        return _read_array(cursor, what)
    if kind not in NUMBERS:
        refuse(f"is damaged: {what} has type {kind}, which GGUF does not have")
    value: int | float | bool = _read_numbers(cursor, kind, 1, what)[0].item()
    return value


def _read_array(cursor: _Cursor, what: str) -> FieldValue:
    kind = cursor.number("<u4", f"the type of {what}")
    count = cursor.number("<u8", f"the length of {what}")
    if count > MAX_ARRAY_LENGTH:
        refuse(f"is damaged: {what} claims {count} values; at most {MAX_ARRAY_LENGTH} are read")
    if kind == STRING:
        return tuple(cursor.text(what) for _ in range(count))
    if kind not in NUMBERS:
        refuse(f"is damaged: {what} is an array of type {kind}; only numbers and text are read")
    return _read_numbers(cursor, kind, count, what)


def _read_numbers(cursor: _Cursor, kind: int, count: int, what: str) -> npt.NDArray[Any]:
    """Return ``count`` numbers, a read-only copy in the machine's byte order."""
    dtype = NUMBERS[kind]
    taken = cursor.take(count * dtype.itemsize, what)
    if dtype.kind == "b" and not set(taken) <= {0, 1}:
        refuse(f"is damaged: {what} has a truth value other than 0 and 1")
    values = np.frombuffer(taken, dtype).astype(dtype.newbyteorder("="))
    if dtype.kind == "f" and not np.isfinite(values).all():
        refuse(f"is damaged: {what} holds NaN or infinity")
    values.flags.writeable = False
    return values


def _read_tensor_info(cursor: _Cursor, index: int) -> TensorInfo:
    name = cursor.text(f"the name of tensor {index}")
    what = f"the tensor {shown(name)}"
    n_dims = cursor.number("<u4", f"the dimensions of {what}")
    if n_dims > MAX_DIMS:
        refuse(f"is damaged: {what} claims {n_dims} dimensions; GGUF has at most {MAX_DIMS}")
    shape = tuple(cursor.number("<u8", f"the shape of {what}") for _ in range(n_dims))
    ggml_type = cursor.number("<u4", f"the type of {what}")
    return TensorInfo(name, shape, ggml_type, cursor.number("<u8", f"the offset of {what}"))


def _alignment(fields: Mapping[str, FieldValue]) -> int:
    alignment = fields.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        refuse(f"has {ALIGNMENT_KEY} {shown(alignment)}; it must be a power of two")
    return alignment
