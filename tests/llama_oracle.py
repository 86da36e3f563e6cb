"""llama.cpp by itself, through llama-cpp-python's C bindings: the oracle of the core tests.

Owns one model and one context, with F32 keys and values unless told otherwise, and steers by
``llama_set_adapter_cvec``. Shares no code with pyemo.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal

import llama_cpp
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# Importing llama_cpp makes its Python callback llama.cpp's log, at every level. Errors will do.
logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)


class LlamaOracle:
    """A GGUF model in llama.cpp; a context manager.

    ``flash_attention`` is off by default: only without it are keys and values read as plain F32
    matrix products. With ``kv_type`` "f16" they are what llama.cpp chooses by itself.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int = 512,
        n_threads: int = 1,
        flash_attention: bool = False,
        kv_type: Literal["f32", "f16"] = "f32",
    ) -> None:
        llama_cpp.llama_backend_init()
        with ExitStack() as opened:
            model_params = llama_cpp.llama_model_default_params()
            model_params.n_gpu_layers = 0
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
            if not self._model:
                raise RuntimeError(f"llama.cpp could not load {path}")
            opened.callback(llama_cpp.llama_model_free, self._model)
            params = llama_cpp.llama_context_default_params()
            params.n_ctx = params.n_batch = params.n_ubatch = n_ctx
            params.n_threads = params.n_threads_batch = n_threads
            if kv_type == "f32":
                params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
                params.flash_attn_type = (
                    llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
                    if flash_attention
                    else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
                )
            params.swa_full = True
            self._context = llama_cpp.llama_init_from_model(self._model, params)
            if not self._context:
                raise RuntimeError(f"llama.cpp could not make a context of {n_ctx} for {path}")
            opened.callback(llama_cpp.llama_free, self._context)
            self._opened = opened.pop_all()
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocabulary)
        self.n_embd: int = llama_cpp.llama_model_n_embd(self._model)
        self.n_layer: int = llama_cpp.llama_model_n_layer(self._model)

    def __enter__(self) -> LlamaOracle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()

    def logits(self, tokens: Sequence[int], steer: Mapping[int, Array] | None = None) -> Array:
        """Decode ``tokens`` from an empty KV cache; return logits, float32 (n_tokens, n_vocab).

        ``steer`` maps a layer, 1 or later, to a float32 (n_embd,) array added to its output.
        """
        self._set_control_vector(steer or {})
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._decode(tokens, 0, [True] * len(tokens))
        found = llama_cpp.llama_get_logits(self._context)
        return np.array(np.ctypeslib.as_array(found, (len(tokens), self.n_vocab)), np.float32)

    def logits_after_each(
        self, tokens: Sequence[int], steer: Mapping[int, Array] | None = None, *, n_prompt: int
    ) -> Array:
        """Return the logits after token n_prompt - 1 and after each later one.

        The first ``n_prompt`` tokens are one decode with logits for its last, as of a prompt; the
        others are decoded one at a time. float32 (n_tokens - n_prompt + 1, n_vocab).
        """
        self._set_control_vector(steer or {})
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        rows = []
        for begin, end in [(0, n_prompt), *((i, i + 1) for i in range(n_prompt, len(tokens)))]:
            self._decode(tokens[begin:end], begin, [i == end - 1 for i in range(begin, end)])
            found = llama_cpp.llama_get_logits_ith(self._context, -1)
            rows.append(np.array(np.ctypeslib.as_array(found, (self.n_vocab,)), np.float32))
        return np.stack(rows)

    def allowed(self, grammar: str, tokens: Sequence[int]) -> NDArray[np.bool_]:
        """Return which tokens may follow these by llama.cpp's grammar sampler; bool (n_vocab,)."""
        sampler = llama_cpp.llama_sampler_init_grammar(self._vocabulary, grammar.encode(), b"root")
        assert sampler, grammar
        try:
            for token in tokens:
                llama_cpp.llama_sampler_accept(sampler, token)
            data = (llama_cpp.llama_token_data * self.n_vocab)()
            for i in range(self.n_vocab):
                data[i].id = i
            array = llama_cpp.llama_token_data_array(data, self.n_vocab, -1, False)
            llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
            return np.array([np.isfinite(one.logit) for one in data])
        finally:
            llama_cpp.llama_sampler_free(sampler)

    def greedy(
        self, tokens: Sequence[int], n_tokens: int, steer: Mapping[int, Array] | None = None
    ) -> list[int]:
        """Return the most likely continuation of ``tokens``, ``n_tokens`` long, token by token."""
        self._set_control_vector(steer or {})
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        found: list[int] = []
        begin, pending = 0, list(tokens)
        while len(found) < n_tokens:
            self._decode(pending, begin, [i == len(pending) - 1 for i in range(len(pending))])
            row = llama_cpp.llama_get_logits_ith(self._context, -1)
            found.append(int(np.ctypeslib.as_array(row, (self.n_vocab,)).argmax()))
            begin, pending = begin + len(pending), found[-1:]
        return found

    def _decode(self, tokens: Sequence[int], begin: int, outputs: Sequence[bool]) -> None:
        n_tokens = len(tokens)
        batch = llama_cpp.llama_batch_init(n_tokens, 0, 1)
        try:
            batch.n_tokens = n_tokens
            for i, (token, output) in enumerate(zip(tokens, outputs, strict=True)):
                batch.token[i], batch.pos[i], batch.logits[i] = token, begin + i, output
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            status = llama_cpp.llama_decode(self._context, batch)
        finally:
            llama_cpp.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status} for {n_tokens} tokens")

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Return the tokens of ``text``, with BOS where the model asks for it."""
        raw = text.encode()
        found = (ctypes.c_int32 * (len(raw) + 2))()
        n = llama_cpp.llama_tokenize(
            self._vocabulary, raw, len(raw), found, len(found), True, special
        )
        return list(found[:n])

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """Return the text of ``tokens``, special tokens spelled out."""
        pieces = []
        for token in tokens:
            buffer = ctypes.create_string_buffer(64)
            n = llama_cpp.llama_token_to_piece(self._vocabulary, token, buffer, 64, 0, True)
            pieces.append(buffer.raw[:n])
        return b"".join(pieces)

    def _set_control_vector(self, steer: Mapping[int, Array]) -> None:
        if unreachable := set(steer) - set(range(1, self.n_layer)):
            raise ValueError(f"llama.cpp steers layers 1 to {self.n_layer - 1}, not {unreachable}")
        # Complete, zeros included: layers that a shorter buffer lacks would keep former contents.
        # The buffer starts at layer 1; the range's end is inclusive.
        rows = np.zeros((self.n_layer - 1, self.n_embd), np.float32)
        for layer, direction in steer.items():
            rows[layer - 1] = direction
        status = llama_cpp.llama_set_adapter_cvec(
            self._context,
            rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            rows.size,
            self.n_embd,
            1,
            self.n_layer - 1,
        )
        if status != 0:
            raise RuntimeError(f"llama_set_adapter_cvec returned {status}")


def biased_logits(logits: Array, biases: Sequence[tuple[int, float]]) -> Array:
    """Return the logits after llama.cpp's own sampler of biases, float32 (n_vocab,)."""
    data = (llama_cpp.llama_token_data * len(logits))()
    for i, logit in enumerate(logits):
        data[i].id, data[i].logit = i, float(logit)
    array = llama_cpp.llama_token_data_array(data, len(logits), -1, False)
    given = (llama_cpp.llama_logit_bias * len(biases))(*biases)
    sampler = llama_cpp.llama_sampler_init_logit_bias(len(logits), len(biases), given)
    try:
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
    finally:
        llama_cpp.llama_sampler_free(sampler)
    return np.array([data[i].logit for i in range(len(logits))], dtype=np.float32)


def penalized_logits(
    logits: Array,
    tokens: Sequence[int],
    *,
    last_n: int,
    repeat: float,
    frequency: float,
    presence: float,
) -> Array:
    """Return the logits after llama.cpp's own sampler of penalties, float32 (n_vocab,)."""
    data = (llama_cpp.llama_token_data * len(logits))()
    for i, logit in enumerate(logits):
        data[i].id, data[i].logit = i, float(logit)
    array = llama_cpp.llama_token_data_array(data, len(logits), -1, False)
    sampler = llama_cpp.llama_sampler_init_penalties(
        len(logits), last_n, repeat, frequency, presence
    )
    try:
        for token in tokens:
            llama_cpp.llama_sampler_accept(sampler, token)
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
    finally:
        llama_cpp.llama_sampler_free(sampler)
    return np.array([data[i].logit for i in range(len(logits))], dtype=np.float32)
