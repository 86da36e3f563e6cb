"""The tiny models of the families that people steer beside the five of ``tiny_layouts``.

Owns configurations, headers and tensors, with what makes each family special: norms of queries and
keys (qwen3), layers without rotation (smollm3), fused projections and scaled rotation (phi3),
per-layer embeddings, shared keys and values and a scaled stream (gemma4). The families with a
recurrent state are in ``tiny_hybrids``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from tiny_layouts import N_CTX, N_EMBD, SLIDING_WINDOW, Form, Tensor

Array = NDArray[np.float32]
Config = Mapping[str, Any]

N_FF = 128
HEAD = 32  # where n_embd = n_head * head size is a must: two heads
EPS = 1e-6
_SOFTCAP = 10.0
_TURNED = 12  # phi3: pairs of a head that are rotated, of 16


@dataclass(frozen=True)
class Family:
    """How a family's tiny model is made.

    ``config(n_layer, n_vocab)`` is transformers' configuration without the special tokens;
    ``tensors`` and ``write`` say the same again in the words of llama.cpp.
    """

    n_layer: int
    config: Callable[[int, int], dict[str, Any]]
    write: Callable[[gguf.GGUFWriter, Config], None]
    tensors: Callable[[Config], Iterator[Tensor]]
    is_spm: bool = False
    pre: str = "qwen2"
    name: str = ""
    is_hybrid: bool = False
    has_gelu: bool = False


def common(
    model_type: str, n_layer: int, n_vocab: int, n_head: int = 2, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "vocab_size": n_vocab,
        "hidden_size": N_EMBD,
        "intermediate_size": N_FF,
        "num_hidden_layers": n_layer,
        "num_attention_heads": n_head,
        "num_key_value_heads": n_head // 2,
        "max_position_embeddings": N_CTX,
        "rms_norm_eps": EPS,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
        **more,
    }


def write_common(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(N_EMBD)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(EPS)
    rope = config["rope_parameters"]
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])


def write_plain(writer: gguf.GGUFWriter, config: Config) -> None:
    write_common(writer, config)
    writer.add_head_count_kv(config["num_key_value_heads"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])


def matrix(
    gguf_name: str,
    hf_name: str,
    n_out: int,
    n_in: int,
    gain: float = 1.0,
    form: Form = "plain",
    n_head: int = 1,
    stored: Callable[[Array], Array] | None = None,
) -> Tensor:
    names = f"{gguf_name}.weight", hf_name and f"{hf_name}.weight"
    return Tensor(*names, (n_out, n_in), gain / n_in**0.5, 0.0, form, n_head, stored)


def norm(
    gguf_name: str, hf_name: str, size: int = N_EMBD, mean: float = 1.0, form: Form = "plain"
) -> Tensor:
    names = f"{gguf_name}.weight", hf_name and f"{hf_name}.weight"
    return Tensor(*names, (size,), 0.2, mean, form)


def embeddings(
    config: Config,
    std: float = 0.3,
    output_norm: tuple[str, str] = ("output_norm", "model.norm"),
    norm_mean: float = 1.0,
    norm_form: Form = "plain",
) -> Iterator[Tensor]:
    shape = config["vocab_size"], N_EMBD
    yield Tensor("token_embd.weight", "model.embed_tokens.weight", shape, std)
    yield norm(*output_norm, mean=norm_mean, form=norm_form)
    if not config["tie_word_embeddings"]:
        yield Tensor("output.weight", "lm_head.weight", shape, 0.3)


def attention(
    i: int, config: Config, head: int, form: Form = "plain", output: str = "o_proj", scale: int = 1
) -> Iterator[Tensor]:
    """Queries (``scale`` times as many, where they carry a gate), keys, values, output."""
    n_head, n_head_kv = config["num_attention_heads"], config["num_key_value_heads"]
    block, hf = f"blk.{i}.attn", f"model.layers.{i}.self_attn"
    rows, rows_kv = n_head * head, n_head_kv * head
    yield matrix(f"{block}_q", f"{hf}.q_proj", scale * rows, N_EMBD, 1.3, form, n_head)
    yield matrix(f"{block}_k", f"{hf}.k_proj", rows_kv, N_EMBD, 1.3, form, n_head_kv)
    yield matrix(f"{block}_v", f"{hf}.v_proj", rows_kv, N_EMBD)
    yield matrix(f"{block}_output", f"{hf}.{output}", N_EMBD, rows, 0.4)


def feed_forward(
    i: int, hf: str = "mlp", names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
) -> Iterator[Tensor]:
    block, hf = f"blk.{i}.ffn", f"model.layers.{i}.{hf}"
    yield matrix(f"{block}_gate", f"{hf}.{names[0]}", N_FF, N_EMBD, 1.3)
    yield matrix(f"{block}_up", f"{hf}.{names[1]}", N_FF, N_EMBD)
    yield matrix(f"{block}_down", f"{hf}.{names[2]}", N_EMBD, N_FF, 0.4)


def block_norms(i: int, **norms: str) -> Iterator[Tensor]:
    for gguf_name, hf_name in norms.items():
        yield norm(f"blk.{i}.{gguf_name}", f"model.layers.{i}.{hf_name}")


# Norms of a block by their names in the file, as most families call them in transformers.
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


# -- attention alone


def _qwen3_tensors(config: Config) -> Iterator[Tensor]:
    yield from embeddings(config)
    for i in range(config["num_hidden_layers"]):
        yield from attention(i, config, HEAD)
        yield from feed_forward(i)
        yield from block_norms(i, **NORMS)
        for name in "qk":
            names = f"blk.{i}.attn_{name}_norm", f"model.layers.{i}.self_attn.{name}_norm"
            yield norm(*names, HEAD)


def _smollm3_tensors(config: Config) -> Iterator[Tensor]:
    yield from embeddings(config)
    for i in range(config["num_hidden_layers"]):
        yield from attention(i, config, HEAD, "rotary")
        yield from feed_forward(i)
        yield from block_norms(i, **NORMS)


def _write_smollm3(writer: gguf.GGUFWriter, config: Config) -> None:
    write_plain(writer, config)
    writer.add_rope_dimension_count(HEAD)


def _phi3_config(n_layer: int, n_vocab: int) -> dict[str, Any]:
    """Phi-4-mini's kind: three quarters of a head rotated, by factors made for longer texts."""
    factors = {
        "short_factor": [1.0 + 0.1 * i for i in range(_TURNED)],
        "long_factor": [2.0 + 0.5 * i for i in range(_TURNED)],
    }
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75, **factors}
    rope |= {"factor": 4.0}
    return common(
        "phi3",
        n_layer,
        n_vocab,
        rope_parameters=rope,
        max_position_embeddings=4 * N_CTX,
        original_max_position_embeddings=N_CTX,
    )


def _write_phi3(writer: gguf.GGUFWriter, config: Config) -> None:
    write_plain(writer, config)
    writer.add_rope_dimension_count(2 * _TURNED)
    writer.add_rope_scaling_orig_ctx_len(N_CTX)
    longer = config["max_position_embeddings"] / N_CTX
    writer.add_rope_scaling_attn_factors((1 + np.log(longer) / np.log(N_CTX)) ** 0.5)
    writer.add_sliding_window(0)


def _phi3_tensors(config: Config) -> Iterator[Tensor]:
    yield from embeddings(config)
    for kind in ("long", "short"):
        factors = tuple(config["rope_parameters"][f"{kind}_factor"])
        yield Tensor(f"rope_factors_{kind}.weight", "", (_TURNED,), 0.0, factors)
    rows = (config["num_attention_heads"] + 2 * config["num_key_value_heads"]) * HEAD
    for i in range(config["num_hidden_layers"]):
        hf = f"model.layers.{i}"
        yield matrix(f"blk.{i}.attn_qkv", f"{hf}.self_attn.qkv_proj", rows, N_EMBD, 1.3)
        yield matrix(f"blk.{i}.attn_output", f"{hf}.self_attn.o_proj", N_EMBD, N_EMBD, 0.4)
        yield matrix(f"blk.{i}.ffn_up", f"{hf}.mlp.gate_up_proj", 2 * N_FF, N_EMBD)
        yield matrix(f"blk.{i}.ffn_down", f"{hf}.mlp.down_proj", N_EMBD, N_FF, 0.5)
        yield from block_norms(i, **NORMS)


_PER_LAYER = 16  # width of gemma4's per-layer embeddings
_GLOBAL_HEAD = 64  # its heads are wider where they see the whole text
_N_SHARED = 2  # its last layers reuse the keys and values of layers before


def _gemma4_config(n_layer: int, n_vocab: int) -> dict[str, Any]:
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.25,
            "rope_theta": 1e6,
        },
    }
    return common(
        "gemma4_text",
        n_layer,
        n_vocab,
        rope_parameters=rope,
        tie_word_embeddings=True,
        head_dim=HEAD,
        global_head_dim=_GLOBAL_HEAD,
        sliding_window=SLIDING_WINDOW,
        layer_types=["full_attention" if i % 2 else "sliding_attention" for i in range(n_layer)],
        final_logit_softcapping=_SOFTCAP,
        hidden_size_per_layer_input=_PER_LAYER,
        vocab_size_per_layer_input=n_vocab,
        num_kv_shared_layers=_N_SHARED,
        use_double_wide_mlp=True,
    )


def _gemma4_n_ff(config: Config, layer: int) -> int:
    return N_FF * (1 if layer < config["num_hidden_layers"] - _N_SHARED else 2)


def _is_global(config: Config, layer: int) -> bool:
    return bool(config["layer_types"][layer] == "full_attention")


def _write_gemma4(writer: gguf.GGUFWriter, config: Config) -> None:
    layers = range(config["num_hidden_layers"])
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_EMBD)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_block_count(len(layers))
    writer.add_feed_forward_length([_gemma4_n_ff(config, i) for i in layers])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(EPS)
    writer.add_key_length(_GLOBAL_HEAD)
    writer.add_value_length(_GLOBAL_HEAD)
    writer.add_key_length_swa(HEAD)
    writer.add_value_length_swa(HEAD)
    writer.add_rope_freq_base(config["rope_parameters"]["full_attention"]["rope_theta"])
    writer.add_rope_freq_base_swa(config["rope_parameters"]["sliding_attention"]["rope_theta"])
    writer.add_rope_dimension_count(_GLOBAL_HEAD)
    writer.add_rope_dimension_count_swa(HEAD)
    writer.add_sliding_window(SLIDING_WINDOW)
    writer.add_sliding_window_pattern([not _is_global(config, i) for i in layers])
    writer.add_shared_kv_layers(_N_SHARED)
    writer.add_embedding_length_per_layer_input(_PER_LAYER)
    writer.add_final_logit_softcapping(_SOFTCAP)


def _gemma4_tensors(config: Config) -> Iterator[Tensor]:
    n_layer, n_head = config["num_hidden_layers"], config["num_attention_heads"]
    yield from embeddings(config, std=0.1, norm_mean=2.0)
    packed = n_layer * _PER_LAYER
    per_layer = "per_layer_token_embd.weight", "model.embed_tokens_per_layer.weight"
    yield Tensor(*per_layer, (config["vocab_size"], packed), 0.3)
    names = "per_layer_model_proj", "model.per_layer_model_projection"
    yield matrix(*names, packed, N_EMBD, 8.0)
    yield norm("per_layer_proj_norm", "model.per_layer_projection_norm", _PER_LAYER)
    turned = _GLOBAL_HEAD // 8
    still = (1.0,) * turned + (1e30,) * (_GLOBAL_HEAD // 2 - turned)  # no rotation but a quarter's
    yield Tensor("rope_freqs.weight", "", (len(still),), 0.0, still)
    for i in range(n_layer):
        block, hf = f"blk.{i}", f"model.layers.{i}"
        head = _GLOBAL_HEAD if _is_global(config, i) else HEAD
        shapes = {"q": n_head * head}
        if i < n_layer - _N_SHARED:
            shapes |= {"k": n_head // 2 * head, "v": n_head // 2 * head}
        for name, rows in shapes.items():
            yield matrix(f"{block}.attn_{name}", f"{hf}.self_attn.{name}_proj", rows, N_EMBD)
            if name != "v":
                names = f"{block}.attn_{name}_norm", f"{hf}.self_attn.{name}_norm"
                yield norm(*names, head, 0.6)  # no 1 / sqrt(head size) follows
        yield matrix(f"{block}.attn_output", f"{hf}.self_attn.o_proj", N_EMBD, n_head * head)
        n_ff = _gemma4_n_ff(config, i)
        yield matrix(f"{block}.ffn_gate", f"{hf}.mlp.gate_proj", n_ff, N_EMBD, 1.3)
        yield matrix(f"{block}.ffn_up", f"{hf}.mlp.up_proj", n_ff, N_EMBD)
        yield matrix(f"{block}.ffn_down", f"{hf}.mlp.down_proj", N_EMBD, n_ff)
        yield matrix(f"{block}.inp_gate", f"{hf}.per_layer_input_gate", _PER_LAYER, N_EMBD)
        yield matrix(f"{block}.proj", f"{hf}.per_layer_projection", N_EMBD, _PER_LAYER)
        for gguf_name, hf_name, mean in (
            ("attn_norm", "input_layernorm", 1.0),
            ("post_attention_norm", "post_attention_layernorm", 1.0),
            ("ffn_norm", "pre_feedforward_layernorm", 1.0),
            ("post_ffw_norm", "post_feedforward_layernorm", 0.5),
            ("post_norm", "post_per_layer_input_norm", 0.5),
        ):
            yield norm(f"{block}.{gguf_name}", f"{hf}.{hf_name}", mean=mean)
        # The whole stream is scaled at the block's end, and with it what was added before.
        names = f"{block}.layer_output_scale.weight", f"{hf}.layer_scalar"
        yield Tensor(*names, (1,), 0.1, 0.8)


ATTENTION_FAMILIES: dict[str, Family] = {
    "qwen3": Family(
        4,
        functools.partial(common, "qwen3", n_head=4, head_dim=HEAD),
        write_plain,
        _qwen3_tensors,
    ),
    "gemma4": Family(
        6,
        _gemma4_config,
        _write_gemma4,
        _gemma4_tensors,
        is_spm=True,
        pre="default",
        has_gelu=True,
    ),
    "smollm3": Family(
        4, functools.partial(common, "smollm3"), _write_smollm3, _smollm3_tensors, pre="smollm"
    ),
    # llama.cpp looks for tokens of Phi-3 in every file whose name has "phi3" in it.
    "phi3": Family(4, _phi3_config, _write_phi3, _phi3_tensors, name="tiny phi-4"),
}
