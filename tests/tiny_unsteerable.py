"""Tiny models whose blocks the hook cannot find: they run, and are refused for steering by name.

The stream of gemma3n has four copies beside each other, so a block's output has three dimensions;
plamo2's graph names no block output. transformers' side is left out: what llama.cpp computes by
itself is the reference for running unsteered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gguf
from tiny_families import HEAD, N_FF, Config, Family, common, matrix, norm, write_common
from tiny_layouts import N_EMBD, SLIDING_WINDOW, Tensor

_COPIES = 4  # gemma3n's, as llama.cpp fixes them, with the next two
_PER_LAYER = 256
_RANK = 64
_INNER, _STATE, _KERNEL, _HEADS = 128, 16, 4, 4  # plamo2's Mamba layers
_STEP = 64  # width of their time step, as llama.cpp fixes it


def _config(n_layer: int, n_vocab: int) -> dict[str, Any]:
    return common("", n_layer, n_vocab)


def _embeddings(config: Config) -> Iterator[Tensor]:
    yield Tensor("token_embd.weight", "", (config["vocab_size"], N_EMBD), 0.3)
    yield norm("output_norm", "")


def _write_gemma3n(writer: gguf.GGUFWriter, config: Config) -> None:
    write_common(writer, config)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_sliding_window(SLIDING_WINDOW)


def _gemma3n_tensors(config: Config) -> Iterator[Tensor]:
    n_layer = config["num_hidden_layers"]
    yield from _embeddings(config)
    for name in ("altup_proj", "altup_unembd_proj"):
        yield Tensor(f"{name}.weight", "", (_COPIES - 1, N_EMBD, N_EMBD), 0.12)
    yield Tensor(
        "per_layer_token_embd.weight", "", (config["vocab_size"], n_layer * _PER_LAYER), 0.3
    )
    yield matrix("per_layer_model_proj", "", n_layer * _PER_LAYER, N_EMBD)
    yield norm("per_layer_proj_norm", "", _PER_LAYER)
    for i in range(n_layer):
        block = f"blk.{i}"
        for name, n_out, n_in in (
            ("attn_q", config["num_attention_heads"] * HEAD, N_EMBD),
            ("attn_k", config["num_key_value_heads"] * HEAD, N_EMBD),
            ("attn_v", config["num_key_value_heads"] * HEAD, N_EMBD),
            ("attn_output", N_EMBD, config["num_attention_heads"] * HEAD),
            ("ffn_gate", N_FF, N_EMBD),
            ("ffn_up", N_FF, N_EMBD),
            ("ffn_down", N_EMBD, N_FF),
            ("inp_gate", _PER_LAYER, N_EMBD),
            ("proj", N_EMBD, _PER_LAYER),
            ("altup_correct_coef", _COPIES, _COPIES),
            ("altup_predict_coef", _COPIES * _COPIES, _COPIES),
            ("altup_router", _COPIES, N_EMBD),
            ("laurel_l", _RANK, N_EMBD),
            ("laurel_r", N_EMBD, _RANK),
        ):
            yield matrix(f"{block}.{name}", "", n_out, n_in)
        for name, size in (
            ("attn_norm", N_EMBD),
            ("attn_q_norm", HEAD),
            ("attn_k_norm", HEAD),
            ("post_attention_norm", N_EMBD),
            ("ffn_norm", N_EMBD),
            ("post_ffw_norm", N_EMBD),
            ("post_norm", N_EMBD),
            ("altup_correct_scale", N_EMBD),
            ("altup_router_norm", N_EMBD),
            ("laurel_post_norm", N_EMBD),
        ):
            yield norm(f"{block}.{name}", "", size)


def _write_plamo2(writer: gguf.GGUFWriter, config: Config) -> None:
    write_common(writer, config)
    heads = config["num_key_value_heads"]
    layers = range(config["num_hidden_layers"])
    writer.add_head_count_kv([heads if i % 2 else 0 for i in layers])
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_ssm_conv_kernel(_KERNEL)
    writer.add_ssm_inner_size(_INNER)
    writer.add_ssm_state_size(_STATE)
    writer.add_ssm_time_step_rank(_HEADS)
    writer.add_ssm_group_count(0)


def _plamo2_tensors(config: Config) -> Iterator[Tensor]:
    n_head, n_head_kv = config["num_attention_heads"], config["num_key_value_heads"]
    yield from _embeddings(config)
    for i in range(config["num_hidden_layers"]):
        block = f"blk.{i}"
        yield norm(f"{block}.attn_norm", "")
        if i % 2:
            rows = (n_head + 2 * n_head_kv) * HEAD
            yield matrix(f"{block}.attn_qkv", "", rows, N_EMBD)
            yield Tensor(f"{block}.attn_q_norm.weight", "", (n_head, HEAD), 0.2, 1.0)
            yield Tensor(f"{block}.attn_k_norm.weight", "", (n_head_kv, HEAD), 0.2, 1.0)
            yield matrix(f"{block}.attn_output", "", N_EMBD, n_head * HEAD)
        else:
            yield matrix(f"{block}.ssm_in", "", 2 * _INNER, N_EMBD)
            yield Tensor(f"{block}.ssm_conv1d.weight", "", (_INNER, _KERNEL), 0.5)
            yield matrix(f"{block}.ssm_x", "", _STEP + 2 * _STATE, _INNER)
            yield matrix(f"{block}.ssm_dt", "", _HEADS, _STEP)
            yield Tensor(f"{block}.ssm_dt.bias", "", (_HEADS,), 0.3)
            yield Tensor(f"{block}.ssm_a", "", (_HEADS,), 0.1, -1.0)
            yield Tensor(f"{block}.ssm_d", "", (_HEADS,), 0.3, 1.0)
            yield matrix(f"{block}.ssm_out", "", N_EMBD, _INNER)
            for name, size in (("dt", _STEP), ("b", _STATE), ("c", _STATE)):
                yield Tensor(f"{block}.ssm_{name}_norm", "", (size,), 0.2, 1.0)
        yield norm(f"{block}.ffn_norm", "")
        for name in ("post_attention_norm", "post_ffw_norm"):
            yield Tensor(f"{block}.{name}", "", (N_EMBD,), 0.2, 1.0)
        yield matrix(f"{block}.ffn_up", "", 2 * N_FF, N_EMBD)
        yield matrix(f"{block}.ffn_down", "", N_EMBD, N_FF)


UNSTEERABLE: dict[str, Family] = {
    "gemma3n": Family(2, _config, _write_gemma3n, _gemma3n_tensors, is_spm=True, pre="default"),
    "plamo2": Family(2, _config, _write_plamo2, _plamo2_tensors),
}
