"""Builds raw_decode.cpp against the installed libllama and calls it."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import llama_cpp

_SOURCE = Path(__file__).with_suffix(".cpp")


def _build() -> ctypes.CDLL:
    package = Path(llama_cpp.__file__).parent
    target = Path(tempfile.mkdtemp()) / "raw_decode.so"
    command = ["c++", "-O3", "-std=c++17", "-shared", "-fPIC", str(_SOURCE), "-o", str(target)]
    command += [f"-I{package.parent / 'include'}", f"-L{package / 'lib'}", "-lllama", "-lggml"]
    command += [f"-Wl,-rpath,{package / 'lib'}"]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(target))
    library.raw_open.restype = ctypes.c_void_p
    library.raw_open.argtypes = [ctypes.c_char_p, *[ctypes.c_int] * 4]
    library.raw_close.argtypes = [ctypes.c_void_p]
    library.raw_prompt.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int32), ctypes.c_int]
    library.raw_decode.argtypes = [ctypes.c_void_p, *[ctypes.c_int] * 3]
    return library


class RawLoop:
    """A bare C decode loop over its own context of the same file."""

    def __init__(
        self, path: Path, *, n_ctx: int, n_ubatch: int, n_threads: int, hook: bool = False
    ) -> None:
        self._library = _build()
        self._handle = self._library.raw_open(str(path).encode(), n_ctx, n_ubatch, n_threads, hook)
        self._n_prompt = 0

    def prompt(self, tokens: Sequence[int]) -> None:
        """Compute a prompt; decode() starts after it."""
        self._n_prompt = len(tokens)
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        if self._library.raw_prompt(self._handle, array, len(tokens)) != 0:
            raise RuntimeError("the raw loop could not decode its prompt")

    def decode(self, first: int, n: int) -> int:
        """Decode n tokens greedily from ``first`` on; return the last."""
        return int(self._library.raw_decode(self._handle, first, self._n_prompt, n))

    def close(self) -> None:
        """Free context and model."""
        self._library.raw_close(self._handle)
