"""What transformers leaves out of a GGUF file's header when it makes a configuration of it.

Weights load without a word under a wrong configuration, and then compute something else: Gemma's
query scale, soft caps, window pattern and local rotary base, GPT-2's context length. The keys are
llama.cpp's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_N_LAYER_27B = (46, 62)  # gemma2-27b, gemma3-27b: llama.cpp scales queries by another number there
_GEMMA3_PATTERN = 6  # llama.cpp's, where the file does not say


def corrections(architecture: str, header: Mapping[str, str]) -> dict[str, Any]:
    """Return attributes for transformers' configuration, by name.

    Args:
        architecture: llama.cpp's name of it.
        header: the file's scalar metadata as text.
    """

    def number(key: str) -> float | None:
        value = header.get(f"{architecture}.{key}")
        return None if value is None else float(value)

    if architecture == "gpt2":
        wanted = {"n_positions": number("context_length"), "n_inner": number("feed_forward_length")}
        return {name: int(value) for name, value in wanted.items() if value is not None}
    if architecture not in ("gemma2", "gemma3"):
        return {}
    out: dict[str, Any] = {}
    head_dim, n_layer = number("attention.key_length"), number("block_count")
    width, n_head = number("embedding_length"), number("attention.head_count")
    if head_dim and n_layer and width and n_head:
        out["query_pre_attn_scalar"] = int(width / n_head if n_layer in _N_LAYER_27B else head_dim)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        cap = number(name)
        if cap is not None:
            out[name] = cap
    if architecture == "gemma3" and n_layer:
        pattern = int(number("attention.sliding_window_pattern") or _GEMMA3_PATTERN)
        out["layer_types"] = [
            "sliding_attention" if (layer + 1) % pattern else "full_attention"
            for layer in range(int(n_layer))
        ]
        rope: dict[str, Any] = {
            "rope_type": "default",
            "rope_theta": number("rope.freq_base") or 1e6,
        }
        factor = number("rope.scaling.factor")
        if factor and header.get("gemma3.rope.scaling.type") == "linear":
            rope |= {"rope_type": "linear", "factor": factor}
        local = {"rope_type": "default", "rope_theta": number("rope.freq_base_swa") or 1e4}
        out["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
    return out
