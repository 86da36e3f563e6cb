"""Read the tensors of a ``.pt`` file without running what is in it.

A ``.pt`` file is a pickle, which can hold code. torch's own loader for weights takes tensors,
numbers, texts, lists and dicts and nothing else; anything more is refused here before it runs.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyemo.errors import MissingExtraError, VectorFileError
from pyemo.vectors.gguf_header import MAX_TENSORS, refuse, shown

MAX_BYTES = 1 << 29
_DEEPEST = 8

_SAVE_TENSORS = (
    "save the tensors alone, as in torch.save(vector.layer_activations, path), or as safetensors"
)


def read_object(path: Path) -> Any:
    """Return what ``torch.save`` put there, each tensor as a float32 NumPy array.

    Dicts and lists keep their form; numbers and texts stay as they are.

    Raises:
        MissingExtraError: torch is not installed.
        VectorFileError: not of torch, damaged, too large, or it holds more than tensors. The
            message lacks the file's name.
    """
    _check_archive(path)
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            f"to read {path.name} torch is needed and not installed: `pip install 'pyemo[extract]'`"
        ) from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refuse(
            "holds Python objects besides tensors, which can run code, and was not opened "
            f"({_first_line(error)}); {_SAVE_TENSORS}"
        )
    # torch has no base of its own errors, and a damaged archive can raise any
    except Exception as error:
        raise VectorFileError(f"is damaged: torch cannot read it ({_first_line(error)})") from error
    return _plain(loaded, _Budget())


def _check_archive(path: Path) -> None:
    """Refuse what is no archive of torch's, or would be larger in memory than a vector can be."""
    n_bytes = None
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                n_bytes = sum(entry.file_size for entry in archive.infolist())
    # zipfile promises one error of its own and raises others too, in is_zipfile as well
    except Exception as error:
        raise VectorFileError(f"is damaged: {_first_line(error)}") from error
    if n_bytes is None:
        refuse(f"is not a file of torch.save since torch 1.6; {_SAVE_TENSORS}")
    if n_bytes > MAX_BYTES:
        refuse(f"would take {n_bytes} bytes; a vector has at most {MAX_BYTES}")


class _Budget:
    """What may still be taken over: a tensor's shape can claim more than its file holds."""

    def __init__(self) -> None:
        self.n_values = MAX_BYTES // 4
        self.n_parts = 8 * MAX_TENSORS

    def take(self, n_values: int, depth: int) -> None:
        self.n_values -= n_values
        self.n_parts -= 1
        if self.n_values < 0 or self.n_parts < 0 or depth > _DEEPEST:
            refuse(
                f"holds more than a vector: over {MAX_BYTES // 4} numbers, {8 * MAX_TENSORS} parts "
                f"or {_DEEPEST} dicts within each other"
            )


def _plain(value: Any, budget: _Budget, depth: int = 0) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        budget.take(value.numel(), depth)
        return _array(value.detach())
    budget.take(0, depth)
    if isinstance(value, dict):
        return {key: _plain(item, budget, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, budget, depth + 1) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return refuse(f"holds {shown(value)}; a vector is made of tensors")


def _array(tensor: Any) -> npt.NDArray[np.float32]:
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or not tensor.is_floating_point():
        refuse(f"has a tensor of type {tensor.dtype}; a direction is of floating-point numbers")
    array: npt.NDArray[np.float32] = tensor.to(torch.float32).numpy().copy()
    return array


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "Unsupported" in line]
    return shown((lines or str(error).splitlines() or [type(error).__name__])[0], 160)
