"""What the GGUF files of vectors have in common: how one is opened, and how it is written.

Knows nothing of what stands in them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from pyemo.errors import VectorError, VectorFileError, VectorNotFoundError
from pyemo.vectors.gguf_header import (
    ARRAY,
    NUMBERS,
    STRING,
    FieldValue,
    refuse,
    shown,
    shown_path,
)

_BOOL, _UINT32, _INT64, _FLOAT64 = 7, 4, 11, 12

_T = TypeVar("_T")


def read_named(
    path: str | os.PathLike[str], noun: str, kind: str, parse: Callable[[BinaryIO], _T]
) -> _T:
    """Return what ``parse`` makes of the open file; its errors get the file's name in front.

    Args:
        noun: for the file in messages, such as "vector file".
        kind: what its path should name, such as "a GGUF control vector".
    Raises:
        VectorNotFoundError: no such file.
        VectorFileError: no file, or it cannot be read.
        VectorError: what ``parse`` raises.
    """
    try:
        # a named pipe would block open(), a device would never end
        if not stat.S_ISREG(os.stat(path).st_mode):
            refuse(f"is not a file; pass the path of {kind}")
        with open(path, "rb") as file:
            return parse(file)
    except FileNotFoundError:
        raise VectorNotFoundError(f"no {noun} {shown_path(path)}; check the path") from None
    except VectorError as error:
        raise type(error)(f"{noun} {shown_path(path)} {error}") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise VectorFileError(f"{noun} {shown_path(path)} cannot be read: {error}") from error


def write_gguf(
    path: Path,
    architecture: str,
    fields: Iterable[tuple[str, FieldValue]],
    tensors: Iterable[tuple[str, npt.NDArray[np.float32]]],
) -> None:
    """Write a GGUF file of these fields and tensors, in their order.

    Raises:
        VectorFileError: a field that GGUF cannot hold.
    """
    import gguf  # here: only writing needs it, and it takes a tenth of a second to import

    writer = gguf.GGUFWriter(path, architecture)
    try:
        for key, value in fields:
            plain, kind, item_kind = _gguf_value(key, value)
            item_type = None if item_kind is None else gguf.GGUFValueType(item_kind)
            writer.add_key_value(key, plain, gguf.GGUFValueType(kind), item_type)
        for name, rows in tensors:
            writer.add_tensor(name, rows)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _gguf_value(key: str, value: FieldValue) -> tuple[object, int, int | None]:
    """Return a field as plain Python, its GGUF type, and the type of an array's items."""
    if isinstance(value, bool):
        return value, _BOOL, None
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return value, (_UINT32 if 0 <= value < 1 << 32 else _INT64), None
    if isinstance(value, float):
        return value, _FLOAT64, None
    if isinstance(value, str) and value:
        return value, STRING, None
    if isinstance(value, tuple) and value and all(isinstance(item, str) for item in value):
        return list(value), ARRAY, STRING
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.size:
        for kind, dtype in NUMBERS.items():
            if value.dtype == dtype:
                return value.tolist(), ARRAY, kind
    raise VectorFileError(
        f"has the field {shown(key)} of value {shown(value)}; a field is text, a number, a tuple "
        "of texts or a NumPy row of numbers, and not empty"
    )
