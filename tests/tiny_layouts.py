"""What each architecture's tiny model consists of: configuration, header of the file, tensors.

Owns every name and number that transformers and llama.cpp must agree on; draws no weights and
writes no file.

The numbers are chosen so that faults show: attention is peaked enough for positions to matter,
biases and norms differ from 0 and 1, the soft caps bend, the head size is not n_embd / n_head where
the architecture allows it, and the logits' standard deviation is above 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import gguf
import numpy as np
from numpy.typing import NDArray
from tiny_vocabulary import Vocabulary

Array = NDArray[np.float32]

N_CTX = 512
N_EMBD = 64
SLIDING_WINDOW = 32  # gemma2, gemma3

_N_FF = 128  # gpt2: 4 * n_embd, as all of its kind
_HEAD_DIM = 32
_GEMMA3_PATTERN = 3  # every third layer is global, the others see SLIDING_WINDOW tokens
_ATTENTION_SOFTCAP = 5.0  # gemma2; both are low enough to bend scores and logits of this size
_LOGIT_SOFTCAP = 10.0

# How a tensor drawn as (out, in) is stored.
#   rotary:   llama.cpp's `llama` rotates neighbours (2i, 2i+1), transformers halves (i, i+d/2)
#   conv1d:   GPT-2 in transformers keeps (in, out)
#   plus_one: Gemma in transformers multiplies by 1 + weight, llama.cpp by what the file holds
Form = Literal["plain", "rotary", "conv1d", "plus_one"]


@dataclass(frozen=True)
class Tensor:
    """One tensor: both its names, its shape as transformers has it, and how its values are drawn.

    A tensor without ``hf_name`` is in the file alone. Several of one ``hf_name`` are its rows, one
    after the other. ``stored`` makes of transformers' values what the file holds, after ``form``.
    """

    gguf_name: str
    hf_name: str
    shape: tuple[int, ...]
    std: float
    mean: float | tuple[float, ...] = 0.0
    form: Form = "plain"
    n_head: int = 1
    stored: Callable[[Array], Array] | None = None


def vocabulary_ids(vocabulary: Vocabulary) -> dict[str, Any]:
    """What the configuration says of the vocabulary, in transformers' names."""
    ids = {f"{name}_token_id": vocabulary.special.get(name) for name in ("bos", "eos", "pad")}
    return {"vocab_size": len(vocabulary), **ids}


def configuration(architecture: str, n_layer: int, vocabulary: Vocabulary) -> dict[str, Any]:
    """The configuration in transformers' names; ``write_hyperparameters`` says the same again."""
    common: dict[str, Any] = {"tie_word_embeddings": True, **vocabulary_ids(vocabulary)}
    if architecture == "gpt2":
        shape = {"n_embd": N_EMBD, "n_layer": n_layer, "n_head": 2, "n_positions": N_CTX}
        return {"model_type": "gpt2", **common, **shape, "n_inner": 4 * N_EMBD}
    # qwen2 in llama.cpp insists on n_head * head_dim == n_embd; the others may differ.
    n_head = 2 if architecture == "qwen2" else 4
    common |= {
        "model_type": architecture,
        "hidden_size": N_EMBD,
        "intermediate_size": _N_FF,
        "num_hidden_layers": n_layer,
        "num_attention_heads": n_head,
        "num_key_value_heads": n_head // 2,
        "max_position_embeddings": N_CTX,
        "rms_norm_eps": 1e-6,
    }
    if architecture == "qwen2":
        return {**common, "rope_parameters": _rope(1e6)}
    common["head_dim"] = _HEAD_DIM
    if architecture == "llama":
        llama = {"tie_word_embeddings": False, "rms_norm_eps": 1e-5}
        return {**common, **llama, "rope_parameters": _rope(1e5)}
    # llama.cpp fixes Gemma's query scale to the head size (but for the 27B models).
    common |= {"query_pre_attn_scalar": _HEAD_DIM, "sliding_window": SLIDING_WINDOW}
    if architecture == "gemma2":
        caps = {
            "attn_logit_softcapping": _ATTENTION_SOFTCAP,
            "final_logit_softcapping": _LOGIT_SOFTCAP,
        }
        return {**common, **caps, "rope_parameters": _rope(1e4)}
    is_global = [(layer + 1) % _GEMMA3_PATTERN == 0 for layer in range(n_layer)]
    return {
        **common,
        "model_type": "gemma3_text",
        "layer_types": ["full_attention" if g else "sliding_attention" for g in is_global],
        "rope_parameters": {"full_attention": _rope(1e6), "sliding_attention": _rope(1e4)},
    }


def _rope(base: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": base}


def write_hyperparameters(
    writer: gguf.GGUFWriter, architecture: str, config: Mapping[str, Any]
) -> None:
    """Add the configuration's keys to ``writer``, in llama.cpp's names."""
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_EMBD)
    writer.add_vocab_size(config["vocab_size"])
    if architecture == "gpt2":
        writer.add_feed_forward_length(config["n_inner"])
        writer.add_block_count(config["n_layer"])
        writer.add_head_count(config["n_head"])
        writer.add_layer_norm_eps(1e-5)
        return
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config["rope_parameters"]
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if architecture == "qwen2":
        return
    writer.add_key_length(_HEAD_DIM)
    writer.add_value_length(_HEAD_DIM)
    if architecture == "llama":
        writer.add_rope_dimension_count(_HEAD_DIM)
        return
    writer.add_sliding_window(SLIDING_WINDOW)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(_ATTENTION_SOFTCAP)
        writer.add_final_logit_softcapping(_LOGIT_SOFTCAP)
    else:
        writer.add_sliding_window_pattern(_GEMMA3_PATTERN)
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])


def tensors_of(architecture: str, config: Mapping[str, Any], n_layer: int) -> list[Tensor]:
    """Return the model's tensors, in the order of the file."""
    return _TABLES[architecture](config, n_layer, config["vocab_size"])


def _gpt2_tensors(config: Mapping[str, Any], n_layer: int, n_vocab: int) -> list[Tensor]:
    n_ff = config["n_inner"]

    def linear(gguf_name: str, hf_name: str, n_out: int, n_in: int, gain: float) -> list[Tensor]:
        std = gain / n_in**0.5
        return [
            Tensor(f"{gguf_name}.weight", f"{hf_name}.weight", (n_out, n_in), std, 0, "conv1d"),
            Tensor(f"{gguf_name}.bias", f"{hf_name}.bias", (n_out,), 0.1),
        ]

    def norm(gguf_name: str, hf_name: str) -> list[Tensor]:
        return [
            Tensor(f"{gguf_name}.weight", f"{hf_name}.weight", (N_EMBD,), 0.2, 1.0),
            Tensor(f"{gguf_name}.bias", f"{hf_name}.bias", (N_EMBD,), 0.1),
        ]

    tensors = [
        Tensor("token_embd.weight", "transformer.wte.weight", (n_vocab, N_EMBD), 0.3),
        Tensor("position_embd.weight", "transformer.wpe.weight", (N_CTX, N_EMBD), 0.2),
        *norm("output_norm", "transformer.ln_f"),
    ]
    for i in range(n_layer):
        block, hf = f"blk.{i}", f"transformer.h.{i}"
        tensors += norm(f"{block}.attn_norm", f"{hf}.ln_1")
        tensors += linear(f"{block}.attn_qkv", f"{hf}.attn.c_attn", 3 * N_EMBD, N_EMBD, 1.3)
        tensors += linear(f"{block}.attn_output", f"{hf}.attn.c_proj", N_EMBD, N_EMBD, 0.4)
        tensors += norm(f"{block}.ffn_norm", f"{hf}.ln_2")
        tensors += linear(f"{block}.ffn_up", f"{hf}.mlp.c_fc", n_ff, N_EMBD, 1.3)
        tensors += linear(f"{block}.ffn_down", f"{hf}.mlp.c_proj", N_EMBD, n_ff, 0.3)
    return tensors


def _gated_tensors(
    config: Mapping[str, Any],
    n_layer: int,
    n_vocab: int,
    *,
    norms: Mapping[str, tuple[str, float]],
    embedding_std: float = 0.3,
    output_norm_mean: float = 1.0,
    norm_form: Form = "plain",
    qk_form: Form = "plain",
    qkv_bias: bool = False,
    qk_norm: bool = False,
) -> list[Tensor]:
    """The tensors of a block of grouped-query attention and a gated feed-forward network."""
    n_head, n_head_kv = config["num_attention_heads"], config["num_key_value_heads"]
    attention, keys = n_head * _HEAD_DIM, n_head_kv * _HEAD_DIM

    def norm(gguf_name: str, hf_name: str, mean: float, size: int = N_EMBD) -> Tensor:
        return Tensor(f"{gguf_name}.weight", f"{hf_name}.weight", (size,), 0.2, mean, norm_form)

    embedding = "token_embd.weight", "model.embed_tokens.weight"
    tensors = [
        Tensor(*embedding, (n_vocab, N_EMBD), embedding_std),
        norm("output_norm", "model.norm", output_norm_mean),
    ]
    if not config["tie_word_embeddings"]:
        tensors.append(Tensor("output.weight", "lm_head.weight", (n_vocab, N_EMBD), 0.3))
    for i in range(n_layer):
        block, hf = f"blk.{i}", f"model.layers.{i}"
        attention_shapes: tuple[tuple[str, int, int, float, Form, int], ...] = (
            ("q", attention, N_EMBD, 1.3, qk_form, n_head),
            ("k", keys, N_EMBD, 1.3, qk_form, n_head_kv),
            ("v", keys, N_EMBD, 1.0, "plain", 1),
            ("o", N_EMBD, attention, 0.4, "plain", 1),
        )
        for name, n_out, n_in, gain, form, heads in attention_shapes:
            gguf_name = f"{block}.attn_{'output' if name == 'o' else name}"
            hf_name = f"{hf}.self_attn.{name}_proj"
            names, std = (f"{gguf_name}.weight", f"{hf_name}.weight"), gain / n_in**0.5
            tensors.append(Tensor(*names, (n_out, n_in), std, 0.0, form, heads))
            if qkv_bias and name != "o":
                tensors.append(Tensor(f"{gguf_name}.bias", f"{hf_name}.bias", (n_out,), 0.4))
        for name, n_out, n_in, gain in (
            ("gate", _N_FF, N_EMBD, 1.3),
            ("up", _N_FF, N_EMBD, 1.0),
            ("down", N_EMBD, _N_FF, 0.4),
        ):
            names = f"{block}.ffn_{name}.weight", f"{hf}.mlp.{name}_proj.weight"
            tensors.append(Tensor(*names, (n_out, n_in), gain / n_in**0.5))
        for gguf_name, (hf_name, mean) in norms.items():
            tensors.append(norm(f"{block}.{gguf_name}", f"{hf}.{hf_name}", mean))
        if qk_norm:
            for name in "qk":
                names = f"{block}.attn_{name}_norm", f"{hf}.self_attn.{name}_norm"
                tensors.append(norm(*names, 0.0, _HEAD_DIM))
    return tensors


# Norms of a block: name in transformers, mean of the weights there.
_NORMS = {"attn_norm": ("input_layernorm", 1.0), "ffn_norm": ("post_attention_layernorm", 1.0)}
_GEMMA_NORMS = {
    "attn_norm": ("input_layernorm", 0.0),
    "post_attention_norm": ("post_attention_layernorm", 0.0),
    "ffn_norm": ("pre_feedforward_layernorm", 0.0),
    "post_ffw_norm": ("post_feedforward_layernorm", -0.5),
}
# Gemma multiplies its embeddings by sqrt(n_embd). Small ones, made up for by the output norm, keep
# the blocks' share of the residual large: with tied weights a token would else predict itself.
_gemma_tensors = functools.partial(
    _gated_tensors,
    norms=_GEMMA_NORMS,
    embedding_std=0.1,
    output_norm_mean=2.0,
    norm_form="plus_one",
)
_TABLES: dict[str, Callable[[Mapping[str, Any], int, int], list[Tensor]]] = {
    "gpt2": _gpt2_tensors,
    "llama": functools.partial(_gated_tensors, norms=_NORMS, qk_form="rotary"),
    "gemma2": _gemma_tensors,
    "gemma3": functools.partial(_gemma_tensors, qk_norm=True),
    "qwen2": functools.partial(_gated_tensors, norms=_NORMS, qkv_bias=True),
}
