"""Which arguments of llama-cpp-python's class mean something here, and which mean nothing.

A value that asks for nothing is accepted, since many programs pass all of them. One that asks for
what is not built is refused by name: a reply that ignored it would be another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyemo.choices import DEFAULT_KV_TYPE, KVType
from pyemo.engine.grammar import Grammar
from pyemo.errors import InputError, NotBuiltError

# argument -> the values that ask for nothing; None always does
_CALL: dict[str, tuple[Any, ...]] = {
    "typical_p": (1.0,),
    "tfs_z": (1.0,),
    "mirostat_mode": (0,),
    "stopping_criteria": ([],),
    "logits_processor": ([],),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
}
_OPEN: dict[str, tuple[Any, ...]] = {
    "split_mode": (1,),
    "main_gpu": (0,),
    "tensor_split": (),
    "vocab_only": (False,),
    "kv_overrides": ({},),
    "rope_scaling_type": (-1,),
    "pooling_type": (-1,),
    "attention_type": (-1,),
    "rope_freq_base": (0.0,),
    "rope_freq_scale": (0.0,),
    "yarn_ext_factor": (-1.0,),
    "yarn_attn_factor": (1.0,),
    "yarn_beta_fast": (32.0,),
    "yarn_beta_slow": (1.0,),
    "yarn_orig_ctx": (0,),
    "embedding": (False,),
    "lora_base": (),
    "lora_path": (),
    "chat_format": (),
    "chat_handler": (),
    "draft_model": (),
    "tokenizer": (),
    "spm_infill": (False,),
}
# They change how fast something is, what is printed, or what is off anyway.
_WITHOUT_EFFECT = {
    *("mirostat_tau", "mirostat_eta"),
    *("n_ubatch", "n_threads_batch", "logits_all", "offload_kqv", "flash_attn", "op_offload"),
    *("swa_full", "no_perf", "lora_scale", "numa", "verbose", "n_parts", "f16_kv"),
}
_INSTEAD = {
    "chat_format": "leave it out: the model's own chat template is used",
    "lora_path": "merge the adapter into the model file first",
    "embedding": "read hidden states with pyemo.Engine.read",
}

_GGML_TYPES: dict[int, KVType] = {0: "f32", 1: "f16", 2: "q4_0", 8: "q8_0", 30: "bf16"}


def check_call(others: Mapping[str, Any]) -> None:
    """Check the arguments of a reply that are not used.

    Raises:
        NotBuiltError: one that asks for something.
        TypeError: one that llama-cpp-python's class does not have.
    """
    _check(others, _CALL)


def check_opening(others: Mapping[str, Any]) -> None:
    """Check the arguments of the class that are not used; raises as :func:`check_call`."""
    _check(others, _OPEN)


def _check(others: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> None:
    for name, value in others.items():
        if name in _WITHOUT_EFFECT:
            continue
        if name not in neutral:
            raise TypeError(f"pyemo.compat.Llama got an unexpected keyword argument {name!r}")
        if value is not None and value not in neutral[name]:
            instead = _INSTEAD.get(name, "leave it out, or use llama_cpp.Llama unsteered")
            raise NotBuiltError(f"{name} = {value!r} is not built in pyemo; {instead}")


def cache_type(type_k: int | None, type_v: int | None) -> KVType:
    """Return the number type of the KV cache that llama.cpp's numbers name.

    Raises:
        NotBuiltError: two types, or one that the engine does not offer.
    """
    if type_k != type_v:
        raise NotBuiltError(
            f"type_k = {type_k!r} and type_v = {type_v!r}: keys and values of different types are "
            "not built in pyemo; give both the same"
        )
    if type_k is None:
        return DEFAULT_KV_TYPE
    if type_k not in _GGML_TYPES:
        raise NotBuiltError(
            f"type_k = {type_k!r}: pyemo's KV cache has the types "
            f"{', '.join(f'{number} ({name})' for number, name in _GGML_TYPES.items())}"
        )
    return _GGML_TYPES[type_k]


def stop_list(stop: object) -> tuple[str, ...]:
    """Return the stop strings: one text, a list of them, or none; empty ones are left out."""
    if stop is None:
        return ()
    if isinstance(stop, str):
        stop = [stop]
    if not isinstance(stop, list | tuple) or not all(isinstance(text, str) for text in stop):
        raise InputError(f"stop = {stop!r}; pass a text or a list of texts")
    return tuple(text for text in stop if text)


def grammar_of(grammar: object, response_format: object) -> Grammar | None:
    """Return what a reply may be; None for anything.

    Args:
        grammar: GBNF as a text, a :class:`pyemo.Grammar`, or a ``llama_cpp.LlamaGrammar``.
        response_format: ``{"type": "text"}``, or ``{"type": "json_object", "schema": ...}``, where
            the schema may be left out; there, too, it goes before ``grammar``.
    Raises:
        InputError: neither of these, or a fault in it.
    """
    if response_format not in (None, {"type": "text"}):
        if not isinstance(response_format, Mapping) or response_format.get("type") != "json_object":
            raise InputError(
                f"response_format = {response_format!r}; its type is text or json_object, and "
                "json_object may have a schema beside it"
            )
        schema = response_format.get("schema")
        return Grammar.of_json() if schema is None else Grammar.of_json_schema(schema)
    if grammar is None or isinstance(grammar, Grammar):
        return grammar
    text = getattr(grammar, "_grammar", grammar)  # where llama-cpp-python's class has its text
    if not isinstance(text, str):
        raise InputError(f"grammar = {grammar!r}; pass GBNF as a text, a Grammar or a LlamaGrammar")
    return Grammar(text)


def bias_of(given: Mapping[Any, Any] | None) -> tuple[tuple[int, float], ...]:
    """Return a call's ``logit_bias`` as the sampler has it; ids may be texts, as in JSON.

    Raises:
        InputError: anything but a dict of ids and numbers.
    """
    try:
        return tuple((int(token), float(bias)) for token, bias in (given or {}).items())
    except (AttributeError, TypeError, ValueError):
        raise InputError(
            f"logit_bias = {str(given)[:60]}; it must be a dict of token ids and numbers: "
            "{5: -100.0}"
        ) from None
