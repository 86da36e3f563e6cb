"""llama.cpp's own graph, watched from its evaluation callback: what pyemo's residual hook stands
on.

Owns one model and one context in llama.cpp, opened with any settings, and reports of each decode
the block outputs, the token lookup's input and the rows that the last block keeps. Shares no code
with
pyemo: the callback here is Python, through llama-cpp-python's C bindings.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import llama_cpp
import llama_oracle  # noqa: F401  (quiets llama.cpp's log)
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

F32 = 0  # GGML_TYPE_F32
_LIBRARIES = Path(llama_cpp.__file__).parent / "lib"


def _library(name: str) -> ctypes.CDLL:
    """One of ggml's libraries that llama_cpp has loaded already."""
    suffix = next(path.suffix for path in _LIBRARIES.iterdir() if path.stem == "libllama")
    return ctypes.CDLL(str(_LIBRARIES / f"lib{name}{suffix}"))


_ggml = _library("ggml-base")
_ggml.ggml_op_name.restype = ctypes.c_char_p
_ggml.ggml_get_name.restype = ctypes.c_char_p
_ggml.ggml_get_name.argtypes = [ctypes.c_void_p]
_ggml.ggml_is_contiguous.restype = ctypes.c_bool
_ggml.ggml_is_contiguous.argtypes = [ctypes.c_void_p]
_ggml.ggml_backend_buffer_is_host.restype = ctypes.c_bool
_ggml.ggml_backend_buffer_is_host.argtypes = [ctypes.c_void_p]


class _Tensor(ctypes.Structure):
    """struct ggml_tensor of ggml.h; test_engine_facts.py checks it against ggml's own accessors."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.POINTER(_Tensor)),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]


class Row(NamedTuple):
    """One row of a batch."""

    token: int
    pos: int
    seq: int = 0
    output: bool = True


class BlockOutput(NamedTuple):
    """A node called ``l_out-<layer>`` as it was computed."""

    layer: int
    type: int
    shape: tuple[int, ...]  # ggml's order: (n_embd, rows, 1, 1)
    is_contiguous: bool
    is_host: bool
    values: Array  # (rows, n_embd), a copy


@dataclass
class Seen:
    """What the callback was shown in one decode.

    ``asked`` are the names of all nodes llama.cpp asked about; the others are in order of
    computation. ``tokens`` is the input of the token lookup, ``output_rows`` that of the last
    block's row selection (None if the graph has none).
    """

    status: int = 0
    asked: list[str] = field(default_factory=list)
    blocks: list[BlockOutput] = field(default_factory=list)
    tokens: list[int] | None = None
    output_rows: list[int] | None = None


class LlamaWatch:
    """A GGUF model in llama.cpp, watched; a context manager.

    Args:
        settings: fields of ``llama_context_params``; the others stay llama.cpp's defaults, but for
            one thread and n_ubatch = n_batch.
        change: called with layer and rows, float32 (rows, n_embd), a view: what it writes stays.
        stop_after: the layer whose output ends the graph.
    """

    def __init__(
        self,
        path: Path,
        *,
        change: Callable[[int, Array], None] | None = None,
        stop_after: int | None = None,
        **settings: Any,
    ) -> None:
        self._change, self._stop_after = change, stop_after
        self._seen = Seen()
        self.n_layer = self.n_embd = 0
        llama_cpp.llama_backend_init()
        with ExitStack() as opened:
            model_params = llama_cpp.llama_model_default_params()
            model_params.n_gpu_layers = 0
            self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
            opened.callback(llama_cpp.llama_model_free, self.model)
            params = llama_cpp.llama_context_default_params()
            chosen = {
                "n_ctx": 512,
                "n_batch": 512,
                "n_threads": 1,
                "n_threads_batch": 1,
                **settings,
            }
            for name, value in {"n_ubatch": chosen["n_batch"], **chosen}.items():
                setattr(params, name, value)
            self._callback = llama_cpp.ggml_backend_sched_eval_callback(self._on_node)
            params.cb_eval = self._callback
            self.context = llama_cpp.llama_init_from_model(self.model, params)
            opened.callback(llama_cpp.llama_free, self.context)
            self.memory = llama_cpp.llama_get_memory(self.context)
            self._opened = opened.pop_all()
        self.n_layer = llama_cpp.llama_model_n_layer(self.model)
        self.n_embd = llama_cpp.llama_model_n_embd(self.model)
        self.n_swa: int = llama_cpp.llama_model_n_swa(self.model)
        self._n_vocab: int = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self.model)
        )

    def __enter__(self) -> LlamaWatch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()

    def decode(self, rows: Sequence[Row]) -> Seen:
        """Decode one batch; return what the callback was shown."""
        self._seen = Seen()
        batch = llama_cpp.llama_batch_init(len(rows), 0, 1)
        try:
            batch.n_tokens = len(rows)
            for i, row in enumerate(rows):
                batch.token[i], batch.pos[i], batch.logits[i] = row.token, row.pos, row.output
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, row.seq
            self._seen.status = llama_cpp.llama_decode(self.context, batch)
        finally:
            llama_cpp.llama_batch_free(batch)
        return self._seen

    def decode_text(self, tokens: Sequence[int], *, begin: int = 0, seq: int = 0) -> Seen:
        """Decode one sequence's tokens from position ``begin`` on, with logits for the last."""
        last = len(tokens) - 1
        return self.decode(
            [Row(token, begin + i, seq, i == last) for i, token in enumerate(tokens)]
        )

    def logits(self, row: int = -1) -> Array:
        """Return the logits of a row of the last decode, float32 (n_vocab,), a copy."""
        found = llama_cpp.llama_get_logits_ith(self.context, row)
        return np.array(np.ctypeslib.as_array(found, (self._n_vocab,)), np.float32)

    def remove(self, seq: int, begin: int, end: int = -1) -> bool:
        """Forget positions of a sequence; return whether llama.cpp says that it did."""
        return bool(llama_cpp.llama_memory_seq_rm(self.memory, seq, begin, end))

    def pos_min(self, seq: int = 0) -> int:
        """The first position that is still in every part of the cache."""
        return int(llama_cpp.llama_memory_seq_pos_min(self.memory, seq))

    def _on_node(self, address: int, ask: bool, _user_data: object) -> bool:
        tensor = ctypes.cast(address, ctypes.POINTER(_Tensor)).contents
        name = tensor.name.decode()
        if ask:
            assert _ggml.ggml_get_name(address).decode() == name
            self._seen.asked.append(name)
            self._note_rows(tensor)
            return name.startswith("l_out-")
        layer = int(name.removeprefix("l_out-"))
        n_rows = tensor.ne[1]
        rows = np.empty((0, self.n_embd), np.float32)
        if n_rows:
            data = ctypes.cast(tensor.data, ctypes.POINTER(ctypes.c_float))
            rows = np.ctypeslib.as_array(data, (n_rows, tensor.ne[0]))
        if self._change is not None:
            self._change(layer, rows)
        buffer = tensor.view_src.contents.buffer if tensor.view_src else tensor.buffer
        self._seen.blocks.append(
            BlockOutput(
                layer,
                tensor.type,
                tuple(tensor.ne),
                bool(_ggml.ggml_is_contiguous(address)),
                bool(_ggml.ggml_backend_buffer_is_host(buffer)),
                rows.copy(),
            )
        )
        return layer != self._stop_after

    def _note_rows(self, tensor: _Tensor) -> None:
        if _ggml.ggml_op_name(tensor.op) != b"GET_ROWS" or not tensor.src[1]:
            return
        source = tensor.src[1].contents
        n = source.ne[0]
        values = list((ctypes.c_int32 * n).from_address(source.data)) if n else []
        if source.name == b"inp_tokens":
            self._seen.tokens = values
        elif source.name == b"out_ids":
            self._seen.output_rows = values
