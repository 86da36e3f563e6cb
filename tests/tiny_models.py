"""Tiny random models, one per architecture, that transformers and llama.cpp compute alike.

Owns the weights (NumPy, seeded by tensor name) and the float32 reference computed by transformers.
Building a file needs NumPy and gguf only; torch and transformers are imported when a reference is
asked for. Knows nothing of pyemo: it is the independent route its engine is tested by.
"""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from tiny_families import ATTENTION_FAMILIES
from tiny_hybrids import HYBRID_FAMILIES
from tiny_layouts import (
    N_EMBD,
    Tensor,
    configuration,
    tensors_of,
    vocabulary_ids,
    write_hyperparameters,
)
from tiny_unsteerable import UNSTEERABLE
from tiny_vocabulary import CHATML, Vocabulary, bpe_vocabulary, gemma4_vocabulary, spm_vocabulary

Array = NDArray[np.float32]
RowFunction = Callable[[Array], Array]
"""What becomes of a block's output, float32 (n_tokens, n_embd), at every token."""

ARCHITECTURES = ("gpt2", "llama", "gemma2", "gemma3", "qwen2")
FAMILIES = {**ATTENTION_FAMILIES, **HYBRID_FAMILIES}
ALL_ARCHITECTURES = (*ARCHITECTURES, *FAMILIES, *UNSTEERABLE)
QUANTIZATIONS = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


@dataclass(frozen=True)
class TinyModel:
    """A tiny model's GGUF file and the same weights for transformers.

    ``weights`` are float32 by transformers' names and in its layout, after the round trip through
    the file's quantization: both sides compute with the same numbers.
    """

    path: Path
    architecture: str
    config: Mapping[str, Any]  # of transformers' AutoConfig.for_model
    vocabulary: Vocabulary
    weights: Mapping[str, Array]
    n_layer: int
    n_embd: int = N_EMBD

    @property
    def n_vocab(self) -> int:
        """The number of tokens, special ones included."""
        return len(self.vocabulary)

    def random_tokens(self, n_tokens: int, seed: int = 0) -> list[int]:
        """Return ``n_tokens`` ids of tokens that stand for text."""
        rng = np.random.default_rng(seed)
        return [int(token) for token in rng.choice(self.vocabulary.normal_ids, n_tokens)]

    def transformers_model(self) -> Any:
        """Return the transformers model: float32, eager attention, in evaluation mode."""
        return self._transformers_model

    def reference_logits(
        self,
        tokens: Sequence[int],
        steer: Mapping[int, Array | RowFunction] | None = None,
        *,
        f16_gelu: bool = False,
    ) -> Array:
        """Return transformers' logits, float32 (n_tokens, n_vocab).

        Args:
            tokens: ids; the first is at position 0.
            steer: layer, from 0, to a float32 (n_embd,) array: added to that block's output at
                every token; or to a function that returns what becomes of it.
            f16_gelu: round GELU to half precision before and after, as ggml's table on the CPU
                does. It is the one difference between transformers and llama.cpp in gpt2, gemma2
                and gemma3 that is larger than float32's rounding; llama and qwen2 have no GELU.
        """
        return self._forward(tokens, steer, f16_gelu)[0]

    def reference_hidden(
        self,
        tokens: Sequence[int],
        steer: Mapping[int, Array | RowFunction] | None = None,
        *,
        f16_gelu: bool = False,
    ) -> Array:
        """Return the residual stream after each block, float32 (n_layer, n_tokens, n_embd).

        Arguments as in ``reference_logits``. Row il is what block il + 1 reads, so it holds what
        was added there; the last row is before the final norm.
        """
        return self._forward(tokens, steer, f16_gelu)[1]

    def _forward(
        self,
        tokens: Sequence[int],
        steer: Mapping[int, Array | RowFunction] | None,
        f16_gelu: bool,
    ) -> tuple[Array, Array]:
        import torch

        model, steer = self.transformers_model(), steer or {}
        if unknown := set(steer) - set(range(self.n_layer)):
            raise ValueError(f"steered layers {sorted(unknown)}; allowed: 0 to {self.n_layer - 1}")
        hidden: list[Array] = []

        def steer_and_record(layer: int) -> Callable[..., Any]:
            def hook(_module: Any, _inputs: Any, output: Any) -> Any:
                stream = output[0] if isinstance(output, tuple) else output
                act = steer.get(layer)
                if callable(act):
                    stream = torch.from_numpy(act(stream[0].numpy()).astype(np.float32))[None]
                elif act is not None:
                    stream = stream + torch.from_numpy(np.asarray(act, np.float32))
                hidden.append(stream[0].numpy().copy())
                return (stream, *output[1:]) if isinstance(output, tuple) else stream

            return hook

        is_gpt2 = self.architecture == "gpt2"
        with ExitStack() as hooks, torch.no_grad():
            # More threads gain nothing at this size and wait for each other on a busy machine.
            hooks.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
            for layer, block in enumerate(model.base_model.h if is_gpt2 else model.model.layers):
                handle = block.register_forward_hook(steer_and_record(layer))
                hooks.callback(handle.remove)
                for activation in self._gelus(block) if f16_gelu else ():
                    hooks.callback(activation.register_forward_hook(_f16_gelu).remove)
            logits = model(torch.tensor([list(tokens)]), use_cache=False).logits[0].numpy()
        return logits, np.stack(hidden)

    def _gelus(self, block: Any) -> list[Any]:
        """The block's GELU modules."""
        if self.architecture == "gpt2":
            return [block.mlp.act]
        if self.architecture == "gemma4":
            return [block.mlp.act_fn, block.act_fn]
        return [block.mlp.act_fn] if self.architecture in ("gemma2", "gemma3") else []

    @functools.cached_property
    def _transformers_model(self) -> Any:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(**self.config)
        from_config: Callable[..., Any] = AutoModelForCausalLM.from_config
        model = from_config(config, attn_implementation="eager", dtype=torch.float32)
        state = {name: torch.from_numpy(array) for name, array in self.weights.items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
        if set(missing) != tied or unexpected:
            raise RuntimeError(f"{self.architecture}: missing {missing}, unexpected {unexpected}")
        return model.eval()


def _f16_gelu(_module: Any, inputs: tuple[Any, ...], _output: Any) -> Any:
    """A forward hook that puts ggml's GELU in an activation's place (ggml_vec_gelu_f32)."""
    import torch

    x = inputs[0]
    table = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
    return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, table))


def build_tiny(
    architecture: str,
    path: Path,
    *,
    seed: int = 0,
    n_layer: int | None = None,
    chat_template: str | None = "default",
    quant: str | None = None,
    vocabulary: Vocabulary | None = None,
    name: str | None = None,
) -> TinyModel:
    """Write a tiny random model of ``architecture`` to ``path`` and return it.

    Args:
        architecture: one of ``ALL_ARCHITECTURES``.
        path: the GGUF file to write; replaced if it exists.
        seed: same seed, same file, byte for byte.
        n_layer: blocks; 4 where not given, 6 for gemma3 (local, local, global, twice) and gemma4.
        chat_template: Jinja text, or None; "default" is ChatML, but None for gpt2 and the gemmas.
        quant: one of ``QUANTIZATIONS`` for the matrices of ``ARCHITECTURES``; None is F32.
        vocabulary: another than the architecture's own.
        name: what the file says it is; None for "tiny" and the architecture.
    Raises:
        ValueError: an architecture or quantization not in those lists.
    """
    family = FAMILIES.get(architecture) or UNSTEERABLE.get(architecture)
    if family is None and architecture not in ARCHITECTURES:
        raise ValueError(f"no tiny model of {architecture!r}; there are {ALL_ARCHITECTURES}")
    if quant is not None and quant not in QUANTIZATIONS:
        raise ValueError(f"quant is {quant!r}; allowed: None, {', '.join(QUANTIZATIONS)}")
    if family is not None and quant is not None:
        raise ValueError(f"{architecture} is made in F32 alone: some of its weights are scaled")
    is_spm = family.is_spm if family else architecture in ("gemma2", "gemma3")
    if chat_template == "default":
        has_chatml = family is not None or architecture in ("llama", "qwen2")
        chat_template = CHATML if has_chatml and not is_spm else None
    if n_layer is None:
        n_layer = family.n_layer if family else 6 if architecture == "gemma3" else 4
    vocabulary = vocabulary or (
        gemma4_vocabulary()
        if architecture == "gemma4"
        else spm_vocabulary()
        if is_spm
        else bpe_vocabulary("<|eos|>" if architecture == "gpt2" else "<|im_end|>")
    )
    if family is None:
        config = configuration(architecture, n_layer, vocabulary)
    else:
        config = {**vocabulary_ids(vocabulary), **family.config(n_layer, len(vocabulary))}

    partial = path.with_name(path.name + ".partial")
    writer = gguf.GGUFWriter(partial, architecture)
    writer.add_name(name or (family and family.name) or f"tiny {architecture}")
    if family is None:
        write_hyperparameters(writer, architecture, config)
        tensors = tensors_of(architecture, config, n_layer)
    else:
        family.write(writer, config)
        tensors = list(family.tensors(config))
    pre = {"gpt2": "gpt-2", "llama": "smollm", "qwen2": "qwen2"}.get(architecture, "default")
    vocabulary.write(
        writer,
        pre=family.pre if family else pre,
        add_bos=is_spm or architecture == "llama",
    )
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    rows: dict[str, list[Array]] = {}
    for tensor in tensors:
        rows.setdefault(tensor.hf_name, []).append(_write_tensor(writer, tensor, seed, quant))
    rows.pop("", None)
    weights = {name: np.concatenate(parts) for name, parts in rows.items()}
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, path)
    return TinyModel(path, architecture, config, vocabulary, weights, n_layer)


def _write_tensor(writer: gguf.GGUFWriter, tensor: Tensor, seed: int, quant: str | None) -> Array:
    """Draw a tensor, add it to the file in llama.cpp's layout, return it in transformers'."""
    # Seeded by name, so that a tensor does not depend on which others the model has.
    rng = np.random.default_rng([seed, zlib.crc32(tensor.gguf_name.encode())])
    noise = tensor.std * rng.standard_normal(tensor.shape)
    values = (np.asarray(tensor.mean) + noise).astype(np.float32)
    # llama.cpp adds position embeddings to others and so wants them, like norms and biases, in F32.
    is_matrix = values.ndim == 2 and tensor.gguf_name != "position_embd.weight"
    kind = gguf.GGMLQuantizationType[quant if quant and is_matrix else "F32"]

    stored = values
    if tensor.form == "plus_one":
        stored = values + np.float32(1)
    elif tensor.form == "rotary":
        n_out, n_in = tensor.shape
        halves = values.reshape(tensor.n_head, 2, n_out // tensor.n_head // 2, n_in)
        stored = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(tensor.shape)
    if tensor.stored is not None:
        stored = np.ascontiguousarray(tensor.stored(stored), np.float32)
    writer.add_tensor(tensor.gguf_name, gguf.quantize(stored, kind), raw_dtype=kind)

    # Blocks of a quantized format lie within a row, so a different order of rows changes nothing.
    values = gguf.dequantize(gguf.quantize(values, kind), kind)
    return np.ascontiguousarray(values.T if tensor.form == "conv1d" and is_matrix else values)
