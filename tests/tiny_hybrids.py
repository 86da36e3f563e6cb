"""The tiny models of families with a recurrent state beside, or instead of, keys and values.

Owns configurations, headers and tensors: short convolutions (lfm2), Mamba-2 layers between
attention layers and scaled residuals (granitehybrid), Mamba-2 beside attention in every layer and
factors folded into the weights (falcon-h1), the gated delta rule and gated attention (qwen35).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gguf
import numpy as np
from tiny_families import (
    EPS,
    HEAD,
    N_FF,
    NORMS,
    Array,
    Config,
    Family,
    attention,
    block_norms,
    common,
    embeddings,
    feed_forward,
    matrix,
    norm,
    write_common,
)
from tiny_layouts import N_EMBD, Tensor

_KERNEL = 4  # taps of a convolution
_STATE = 16
_GROUPS = 2
_SSM_HEAD = 16


def _layer_types(n_layer: int, recurrent: str) -> list[str]:
    """Two recurrent layers, one of attention, one recurrent, and again."""
    return ["full_attention" if i % 4 == 2 else recurrent for i in range(n_layer)]


def _is_attention(config: Config, layer: int) -> bool:
    return bool(config["layer_types"][layer] == "full_attention")


def _write_kv_heads(writer: gguf.GGUFWriter, config: Config) -> None:
    """A layer without heads of keys is a recurrent one."""
    heads = config["num_key_value_heads"]
    layers = range(config["num_hidden_layers"])
    writer.add_head_count_kv([heads if _is_attention(config, i) else 0 for i in layers])


def _taps(values: Array) -> Array:
    return values.squeeze(1)  # a convolution's one input channel has no axis in llama.cpp


def _column(values: Array) -> Array:
    return values[:, None]


def _decay(values: Array) -> Array:
    return -np.exp(values)


# -- lfm2


def _lfm2_config(n_layer: int, n_vocab: int) -> dict[str, Any]:
    config = common("lfm2", n_layer, n_vocab, conv_L_cache=3, block_auto_adjust_ff_dim=False)
    config |= {"layer_types": _layer_types(n_layer, "conv"), "norm_eps": EPS}
    config |= {"tie_word_embeddings": True}
    del config["rms_norm_eps"]
    return config


def _write_lfm2(writer: gguf.GGUFWriter, config: Config) -> None:
    write_common(writer, config)
    _write_kv_heads(writer, config)
    writer.add_shortconv_l_cache(config["conv_L_cache"])


def _lfm2_tensors(config: Config) -> Iterator[Tensor]:
    yield from embeddings(config, output_norm=("token_embd_norm", "model.embedding_norm"))
    for i in range(config["num_hidden_layers"]):
        block, hf = f"blk.{i}", f"model.layers.{i}"
        if _is_attention(config, i):
            yield from attention(i, config, HEAD, output="out_proj")
            for name in "qk":
                yield norm(f"{block}.attn_{name}_norm", f"{hf}.self_attn.{name}_layernorm", HEAD)
        else:
            names = f"{block}.shortconv.conv.weight", f"{hf}.conv.conv.weight"
            shape = N_EMBD, 1, config["conv_L_cache"]
            yield Tensor(*names, shape, 0.6, stored=_taps)
            yield matrix(f"{block}.shortconv.in_proj", f"{hf}.conv.in_proj", 3 * N_EMBD, N_EMBD)
            yield matrix(f"{block}.shortconv.out_proj", f"{hf}.conv.out_proj", N_EMBD, N_EMBD)
        yield from feed_forward(i, "feed_forward", ("w1", "w3", "w2"))
        yield from block_norms(i, attn_norm="operator_norm", ffn_norm="ffn_norm")


# -- Mamba-2, as in granitehybrid and falcon-h1


def _mamba_config(d_inner: int) -> dict[str, Any]:
    return {
        "mamba_n_heads": d_inner // _SSM_HEAD,
        "mamba_d_head": _SSM_HEAD,
        "mamba_n_groups": _GROUPS,
        "mamba_d_state": _STATE,
        "mamba_d_conv": _KERNEL,
    }


def _write_mamba(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_ssm_conv_kernel(_KERNEL)
    writer.add_ssm_inner_size(config["mamba_n_heads"] * _SSM_HEAD)
    writer.add_ssm_state_size(_STATE)
    writer.add_ssm_time_step_rank(config["mamba_n_heads"])
    writer.add_ssm_group_count(_GROUPS)


def _mamba(
    i: int,
    config: Config,
    scale_in: Callable[[Array], Array] | None = None,
    scale_out: Callable[[Array], Array] | None = None,
) -> Iterator[Tensor]:
    block, hf = f"blk.{i}", f"model.layers.{i}.mamba"
    n_head = config["mamba_n_heads"]
    d_inner = n_head * _SSM_HEAD
    convolved = d_inner + 2 * _GROUPS * _STATE
    rows = d_inner + convolved + n_head
    yield matrix(f"{block}.ssm_in", f"{hf}.in_proj", rows, N_EMBD, stored=scale_in)
    names = f"{block}.ssm_conv1d", f"{hf}.conv1d"
    taps = f"{names[0]}.weight", f"{names[1]}.weight"
    yield Tensor(*taps, (convolved, 1, _KERNEL), 0.5, stored=_taps)
    yield Tensor(f"{names[0]}.bias", f"{names[1]}.bias", (convolved,), 0.1)
    yield Tensor(f"{block}.ssm_dt.bias", f"{hf}.dt_bias", (n_head,), 0.3, -0.5)
    yield Tensor(
        f"{block}.ssm_a", f"{hf}.A_log", (n_head,), 0.5, stored=lambda a: _column(_decay(a))
    )
    yield Tensor(f"{block}.ssm_d", f"{hf}.D", (n_head,), 0.3, 1.0, stored=_column)
    yield Tensor(
        f"{block}.ssm_norm.weight",
        f"{hf}.norm.weight",
        (d_inner,),
        0.2,
        1.0,
        stored=lambda weights: weights.reshape(_GROUPS, -1),
    )
    out = f"{block}.ssm_out", f"{hf}.out_proj"
    yield matrix(*out, N_EMBD, d_inner, 0.6, stored=scale_out)


def _granite_config(n_layer: int, n_vocab: int) -> dict[str, Any]:
    return common(
        "granitemoehybrid",
        n_layer,
        n_vocab,
        **_mamba_config(2 * N_EMBD),  # the one expansion that llama.cpp takes
        mamba_expand=2,
        layer_types=_layer_types(n_layer, "linear_attention"),
        shared_intermediate_size=N_FF,
        num_local_experts=0,
        num_experts_per_tok=0,
        embedding_multiplier=3.0,
        residual_multiplier=0.6,
        attention_multiplier=0.3,
        logits_scaling=0.5,
    )


def _write_granite(writer: gguf.GGUFWriter, config: Config) -> None:
    write_common(writer, config)
    _write_kv_heads(writer, config)
    _write_mamba(writer, config)
    writer.add_rope_scaling_finetuned(False)  # positions come from the recurrent layers alone
    writer.add_embedding_scale(config["embedding_multiplier"])
    writer.add_residual_scale(config["residual_multiplier"])
    writer.add_attention_scale(config["attention_multiplier"])
    writer.add_logit_scale(config["logits_scaling"])


def _granite_tensors(config: Config) -> Iterator[Tensor]:
    yield from embeddings(config)
    for i in range(config["num_hidden_layers"]):
        hf = f"model.layers.{i}.shared_mlp"
        if _is_attention(config, i):
            yield from attention(i, config, HEAD, "rotary")
        else:
            yield from _mamba(i, config)
        yield matrix(f"blk.{i}.ffn_gate", f"{hf}.input_linear", N_FF, N_EMBD, 1.3)
        yield matrix(f"blk.{i}.ffn_up", f"{hf}.input_linear", N_FF, N_EMBD)
        yield matrix(f"blk.{i}.ffn_down", f"{hf}.output_linear", N_EMBD, N_FF, 0.6)
        yield from block_norms(i, **NORMS)


_FALCON_INNER = 96  # falcon-h1's is free, and not twice the width
_FALCON_SCALES = {
    "attention_in_multiplier": 0.9,
    "attention_out_multiplier": 1.2,
    "key_multiplier": 0.7,
    "ssm_in_multiplier": 1.3,
    "ssm_out_multiplier": 0.8,
    "embedding_multiplier": 2.0,
    "lm_head_multiplier": 0.9,
}
_FALCON_MLP = (0.8, 1.3)
_FALCON_SSM = (0.9, 1.2, 0.8, 1.1, 0.7)


def _falcon_config(n_layer: int, n_vocab: int) -> dict[str, Any]:
    return common(
        "falcon_h1",
        n_layer,
        n_vocab,
        **_mamba_config(_FALCON_INNER),
        **_FALCON_SCALES,
        mamba_d_ssm=_FALCON_INNER,
        mamba_rms_norm=True,
        mamba_norm_before_gate=False,
        mlp_multipliers=list(_FALCON_MLP),
        ssm_multipliers=list(_FALCON_SSM),
    )


def _write_falcon(writer: gguf.GGUFWriter, config: Config) -> None:
    write_common(writer, config)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    _write_mamba(writer, config)


def _scaled(factor: float, stored: Callable[[Array], Array] | None) -> Callable[[Array], Array]:
    return lambda values: np.float32(factor) * (stored(values) if stored else values)


def _falcon_in(values: Array) -> Array:
    sizes = (_FALCON_INNER, _FALCON_INNER, _GROUPS * _STATE, _GROUPS * _STATE)
    rows = np.repeat(np.float32(_FALCON_SSM), [*sizes, len(values) - sum(sizes)])
    return values * rows[:, None] * np.float32(_FALCON_SCALES["ssm_in_multiplier"])


def _falcon_tensors(config: Config) -> Iterator[Tensor]:
    """The factors stand in transformers' configuration; llama.cpp has them in the weights."""
    s = _FALCON_SCALES
    factors = {
        "token_embd": s["embedding_multiplier"],
        "output": s["lm_head_multiplier"],
        "attn_q": s["attention_in_multiplier"],
        "attn_k": s["attention_in_multiplier"] * s["key_multiplier"],
        "attn_v": s["attention_in_multiplier"],
        "attn_output": s["attention_out_multiplier"],
        "ffn_gate": _FALCON_MLP[0],
        "ffn_down": _FALCON_MLP[1],
        "ssm_out": s["ssm_out_multiplier"],
    }
    for tensor in _falcon_unscaled(config):
        factor = factors.get(tensor.gguf_name.removesuffix(".weight").split(".")[-1])
        if factor is None:
            yield tensor
        else:
            yield replace(tensor, stored=_scaled(factor, tensor.stored))


def _falcon_unscaled(config: Config) -> Iterator[Tensor]:
    yield from embeddings(config, output_norm=("output_norm", "model.final_layernorm"))
    for i in range(config["num_hidden_layers"]):
        yield from attention(i, config, HEAD)
        yield from _mamba(i, config, scale_in=_falcon_in)
        yield from feed_forward(i, "feed_forward")
        yield from block_norms(i, attn_norm="input_layernorm")
        # The one norm whose name has no "weight" behind it.
        names = f"blk.{i}.ffn_norm", f"model.layers.{i}.pre_ff_layernorm.weight"
        yield Tensor(*names, (N_EMBD,), 0.2, 1.0)


# -- qwen35

_KEY_HEADS, _VALUE_HEADS = 2, 4
_TURNED = HEAD // 2  # of a head's values, half are rotated
_SECTIONS = (3, 3, 2)


def _qwen35_config(n_layer: int, n_vocab: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e5, "partial_rotary_factor": 0.5}
    rope |= {"mrope_section": list(_SECTIONS), "mrope_interleaved": True}
    return common(
        "qwen3_5_text",
        n_layer,
        n_vocab,
        rope_parameters=rope,
        head_dim=HEAD,
        linear_conv_kernel_dim=_KERNEL,
        linear_key_head_dim=_STATE,
        linear_value_head_dim=_STATE,
        linear_num_key_heads=_KEY_HEADS,
        linear_num_value_heads=_VALUE_HEADS,
        layer_types=[
            "linear_attention" if (i + 1) % 4 else "full_attention" for i in range(n_layer)
        ],
    )


def _write_qwen35(writer: gguf.GGUFWriter, config: Config) -> None:
    write_common(writer, config)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(_TURNED)
    writer.add_rope_dimension_sections([*_SECTIONS, 0])
    writer.add_ssm_conv_kernel(_KERNEL)
    writer.add_ssm_state_size(_STATE)
    writer.add_ssm_group_count(_KEY_HEADS)
    writer.add_ssm_time_step_rank(_VALUE_HEADS)
    writer.add_ssm_inner_size(_VALUE_HEADS * _STATE)
    writer.add_full_attention_interval(4)


def _tiled(values: Array, size: int = 1) -> Array:
    """Rows of the value heads, which transformers sorts by key head, in llama.cpp's order."""
    by_key = values.reshape(_KEY_HEADS, _VALUE_HEADS // _KEY_HEADS, size, *values.shape[1:])
    return by_key.swapaxes(0, 1).reshape(values.shape)


def _tiled_after_keys(values: Array) -> Array:
    keys = 2 * _KEY_HEADS * _STATE
    return np.concatenate([values[:keys], _tiled(values[keys:], _STATE)])


def _qwen35_tensors(config: Config) -> Iterator[Tensor]:
    yield from embeddings(config, norm_mean=0.0, norm_form="plus_one")
    values = _VALUE_HEADS * _STATE
    mixed = 2 * _KEY_HEADS * _STATE + values
    for i in range(config["num_hidden_layers"]):
        block, hf = f"blk.{i}", f"model.layers.{i}"
        if _is_attention(config, i):
            yield from attention(i, config, HEAD, scale=2)
            for name in "qk":
                names = f"{block}.attn_{name}_norm", f"{hf}.self_attn.{name}_norm"
                yield norm(*names, HEAD, 0.0, "plus_one")
        else:
            yield from _delta(block, f"{hf}.linear_attn", mixed, values)
        yield from feed_forward(i)
        for gguf_name, hf_name in (
            ("attn_norm", "input_layernorm"),
            ("post_attention_norm", "post_attention_layernorm"),
        ):
            yield norm(f"{block}.{gguf_name}", f"{hf}.{hf_name}", mean=0.0, form="plus_one")


def _delta(block: str, hf: str, mixed: int, values: int) -> Iterator[Tensor]:
    """One layer of the gated delta rule; ``mixed`` rows of queries, keys and values."""
    heads = functools.partial(_tiled, size=_STATE)
    yield matrix(f"{block}.attn_qkv", f"{hf}.in_proj_qkv", mixed, N_EMBD, stored=_tiled_after_keys)
    yield matrix(f"{block}.attn_gate", f"{hf}.in_proj_z", values, N_EMBD, stored=heads)
    yield matrix(f"{block}.ssm_beta", f"{hf}.in_proj_b", _VALUE_HEADS, N_EMBD, stored=_tiled)
    yield matrix(f"{block}.ssm_alpha", f"{hf}.in_proj_a", _VALUE_HEADS, N_EMBD, stored=_tiled)
    yield Tensor(
        f"{block}.ssm_conv1d.weight",
        f"{hf}.conv1d.weight",
        (mixed, 1, _KERNEL),
        0.5,
        stored=lambda taps: _tiled_after_keys(_taps(taps)),
    )
    yield Tensor(f"{block}.ssm_dt.bias", f"{hf}.dt_bias", (_VALUE_HEADS,), 0.3, stored=_tiled)
    yield Tensor(
        f"{block}.ssm_a",
        f"{hf}.A_log",
        (_VALUE_HEADS,),
        0.5,
        stored=lambda a: _decay(_tiled(a)),
    )
    yield norm(f"{block}.ssm_norm", f"{hf}.norm", _STATE)
    yield matrix(
        f"{block}.ssm_out", f"{hf}.out_proj", N_EMBD, values, stored=lambda out: heads(out.T).T
    )


HYBRID_FAMILIES: dict[str, Family] = {
    "qwen35": Family(4, _qwen35_config, _write_qwen35, _qwen35_tensors, is_hybrid=True),
    "lfm2": Family(4, _lfm2_config, _write_lfm2, _lfm2_tensors, is_hybrid=True, pre="llama-bpe"),
    "granitehybrid": Family(4, _granite_config, _write_granite, _granite_tensors, is_hybrid=True),
    "falcon-h1": Family(4, _falcon_config, _write_falcon, _falcon_tensors, is_hybrid=True),
}
