"""How much memory a job needs and there is: a model file's own numbers, and the system's readings.

Owns the arithmetic of weights and KV cache from a GGUF header, so that a model that does not fit is
refused before it is loaded. Knows nothing of engines.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from pyemo import _core
from pyemo.choices import DEFAULT_KV_TYPE, KV_TYPES, KVType
from pyemo.errors import InputError, ModelLoadError

PYTHON_BYTES = 40_000_000
"""Of the interpreter with what `pyemo run` imports; measured: docs/measurements/device.md."""


@dataclass(frozen=True)
class MemoryNeed:
    """What a job takes, by the model file's header.

    Attributes:
        weights: bytes of all tensors.
        kv_cache: bytes of keys and values of ``n_ctx`` cells in all layers; None where the header
            does not say the heads' size.
        compute: bytes of the largest buffers of one decode: logits of each output row twice, and
            some rows of the widest layers. An estimate.
    """

    weights: int
    kv_cache: int | None
    compute: int

    @property
    def total(self) -> int:
        """All of it, with the interpreter."""
        return self.weights + (self.kv_cache or 0) + self.compute + PYTHON_BYTES


def memory_need(
    path: str | os.PathLike[str],
    *,
    n_ctx: int,
    n_outputs: int = 1,
    n_batch: int = 256,
    kv_type: KVType = DEFAULT_KV_TYPE,
) -> MemoryNeed:
    """Return what a model file says it takes, without loading it.

    Raises:
        ModelLoadError: not a GGUF file, or damaged.
    """
    header = _core.ModelFile(os.fspath(path))
    prefix = f"{header.string('general.architecture') or ''}."
    n_embd = _first(header, f"{prefix}embedding_length") or 0
    n_ff = max(header.integers(f"{prefix}feed_forward_length"), default=4 * n_embd)
    n_vocab = header.length("tokenizer.ggml.tokens")
    per_cell = _kv_values(header, prefix, n_embd)
    kv_cache = None if per_cell is None else round(per_cell * KV_TYPES[kv_type] * n_ctx)
    # Two outputs of a block's widest product and the residual rows, in float32.
    compute = 4 * (2 * n_outputs * n_vocab + n_batch * (2 * n_ff + 4 * n_embd))
    return MemoryNeed(sum(tensor[3] for tensor in header.tensors()), kv_cache, compute)


@dataclass(frozen=True)
class ModelSize:
    """What a model file's header says of the model's size.

    Attributes:
        n_parameters: numbers in all tensors.
        n_layer, n_embd, n_ff, n_vocab: its blocks and widths; n_ff the widest block's.
    """

    n_parameters: int
    n_layer: int
    n_embd: int
    n_ff: int
    n_vocab: int


def model_size(path: str | os.PathLike[str]) -> ModelSize:
    """Return the numbers of a model file's header, without loading it.

    Raises:
        ModelLoadError: not a GGUF file, or damaged.
    """
    header = _core.ModelFile(os.fspath(path))
    prefix = f"{header.string('general.architecture') or ''}."
    n_embd = _first(header, f"{prefix}embedding_length") or 0
    return ModelSize(
        n_parameters=sum(tensor[2] for tensor in header.tensors()),
        n_layer=_first(header, f"{prefix}block_count") or 0,
        n_embd=n_embd,
        n_ff=max(header.integers(f"{prefix}feed_forward_length"), default=4 * n_embd),
        n_vocab=header.length("tokenizer.ggml.tokens"),
    )


def require_room(path: str | os.PathLike[str], need: MemoryNeed) -> None:
    """Refuse a model that the machine has no memory for; do nothing where it shows none.

    Raises:
        ModelLoadError: it takes more than is available.
    """
    free = available_bytes()
    if free is not None and need.total > free:
        raise ModelLoadError(
            f"{os.fspath(path)} does not fit: it takes {need.total / 1e6:.0f} MB (weights "
            f"{need.weights / 1e6:.0f}, KV cache {(need.kv_cache or 0) / 1e6:.0f}), and "
            f"{free / 1e6:.0f} MB are available; take a smaller format (`pyemo models "
            "requantize`), a smaller model, or a smaller --n-ctx"
        )


def require_cache_room(path: str | os.PathLike[str], n_ctx: int, kv_type: KVType) -> None:
    """Refuse a context whose KV cache the machine has no memory for.

    The system would give the memory and end the process when it is used. Does nothing where the
    system shows no reading, or the file does not say the heads' size.

    Raises:
        InputError: it takes more than is available.
    """
    need = memory_need(path, n_ctx=n_ctx, kv_type=kv_type).kv_cache
    free = available_bytes()
    if need is not None and free is not None and need > free:
        most = int(n_ctx * free / need) // 1024 * 1024
        raise InputError(
            f"n_ctx = {n_ctx} takes {need / 1e6:.0f} MB for the KV cache ({kv_type}), and "
            f"{free / 1e6:.0f} MB are available; at most about {most} fit, more with kv_type q8_0"
        )


def available_bytes() -> int | None:
    """Return the memory this process may still take, None where the system does not show it."""
    found = [bytes_ for bytes_ in (_available_on_machine(), _left_in_container()) if bytes_]
    return min(found, default=None)


def resident_bytes() -> int | None:
    """Return the memory this process holds now, None where the system does not show it."""
    return _status("VmRSS:")


def peak_bytes() -> int | None:
    """Return the most memory this process has held, None where the system does not show it."""
    return _status("VmHWM:")


def _kv_values(header: _core.ModelFile, prefix: str, n_embd: int) -> float | None:
    """Return the numbers that one cell of the KV cache holds over all layers."""
    n_layer = _first(header, f"{prefix}block_count")
    heads = header.integers(f"{prefix}attention.head_count")
    if not n_layer or not heads or not heads[0]:
        return None
    heads_kv = header.integers(f"{prefix}attention.head_count_kv") or heads
    width = _first(header, f"{prefix}attention.key_length") or n_embd // heads[0]
    width_v = _first(header, f"{prefix}attention.value_length") or width
    n_heads = heads_kv[0] * n_layer if len(heads_kv) == 1 else sum(heads_kv)
    return n_heads * (width + width_v)


def _first(header: _core.ModelFile, key: str) -> int | None:
    return next(iter(header.integers(key)), None)


def _available_on_machine() -> int | None:
    for line in (_read("/proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _left_in_container() -> int | None:
    limit, used = (_read(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit is None or used is None or not limit.strip().isdigit() or not used.strip().isdigit():
        return None
    # Files in the page cache count as used, and give way when memory is asked for.
    stat = dict(line.split() for line in (_read("/sys/fs/cgroup/memory.stat") or "").splitlines())
    return max(1, int(limit) - int(used) + int(stat.get("inactive_file", 0)))


def _status(field: str) -> int | None:
    for line in (_read("/proc/self/status") or "").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return None


def parse_bytes(text: str) -> int:
    """Return the bytes of ``250 MB``, ``1.5GB`` or ``250``: a plain number is MB, 10^6 bytes.

    Raises:
        ValueError: none of these, or not above 0.
    """
    word = text.strip().upper().removesuffix("B")
    factor = {"K": 1e3, "M": 1e6, "G": 1e9}.get(word[-1:])
    number = float(word if factor is None else word[:-1])
    if not math.isfinite(number) or number <= 0:
        raise ValueError(f"{text!r} is not a size above 0")
    return round(number * (1e6 if factor is None else factor))
