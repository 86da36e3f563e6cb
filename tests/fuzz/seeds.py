"""What the fuzzers begin with: small sound files of every kind, made here or kept in git."""

from __future__ import annotations

import itertools
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden"
FOUND = Path(__file__).parent / "found"
"""A folder for each target, of inputs that once ended otherwise than they should."""
N_EMBD, N_FF = 8, 8

# Templates of the constructs that models' own templates are made of.
TEMPLATES = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{{ bos_token }}{% set ns = namespace(n=0) %}{% for m in messages if m.role != 'system' %}"
    "{% set ns.n = ns.n + 1 %}{{ loop.index0 ~ m.content[:5] }}{% endfor %}{{ ns.n * 2 }}",
    "{% macro say(m) %}[INST] {{ m['content'] | upper | replace('A', 'b') }} [/INST]{% endmacro %}"
    "{% for m in messages %}{{ say(m) }}{% endfor %}{{ eos_token }}",
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system ' + bos_token) }}"
    "{% else %}{{ messages | tojson(indent=2) }}{% endif %}{{ strftime_now('%Y') }}",
    "{% for a in range(9) %}{% if a is divisibleby 2 %}{% continue %}{% endif %}"
    "{{ 'x' * a ** 2 % 7 }}{{ '%s' % a }}{% break %}{% endfor %}"
    "{% generation %}b{% endgeneration %}",
    "{{ messages | map(attribute='content') | join(', ') | default('a', true) }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{# c #}"
    "{%- filter indent(2) -%}a\nb{%- endfilter %}{{ x.split('\n')[-1] if x is defined }}",
)


def vector_files() -> Iterator[bytes]:
    """Yield control vectors of every writer that is kept."""
    for path in sorted([*GOLDEN.glob("*.gguf"), *(GOLDEN / "tools").glob("*.gguf")]):
        yield path.read_bytes()


def foreign_files() -> Iterator[bytes]:
    """Yield vectors of other tools, each behind a byte that says its suffix."""
    for path in sorted((GOLDEN / "tools").rglob("*")):
        if path.suffix in (".pt", ".safetensors", ".gguf"):
            kind = {".pt": 0, ".safetensors": 1, ".gguf": 2}[path.suffix]
            yield bytes([kind]) + path.read_bytes()
    header = (
        b'{"layer_1": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, '
        b'"layer_2": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [8, 12]}, '
        b'"__metadata__": {"method": "x"}}'
    )
    yield b"\x01" + struct.pack("<Q", len(header)) + header + np.arange(3, dtype="<f4").tobytes()


def chat_templates() -> Iterator[bytes]:
    """Yield templates."""
    yield from (template.encode() for template in TEMPLATES)


def models() -> Iterator[bytes]:
    """Yield models of a few kilobytes that llama.cpp loads and computes."""
    with tempfile.TemporaryDirectory() as folder:
        for i, (kind, quantization) in enumerate(
            itertools.product(("llama", "gpt2"), (np.float32, np.float16))
        ):
            path = Path(folder) / f"{i}.gguf"
            write_model(path, kind, quantization)
            yield path.read_bytes()


def write_model(path: Path, tokenizer: str, dtype: type[np.floating]) -> None:
    """Write a llama of one block with a vocabulary of bytes.

    Args:
        tokenizer: "llama" (SentencePiece) or "gpt2" (byte-level BPE).
        dtype: of the weights.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(1)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(tokenizer)
    n_vocab = _add_vocabulary(writer, tokenizer)
    writer.add_chat_template(TEMPLATES[0])
    rng = np.random.default_rng(0)
    narrow = N_EMBD // 2
    shapes = {
        "token_embd": (n_vocab, N_EMBD),
        "output_norm": (N_EMBD,),
        "blk.0.attn_norm": (N_EMBD,),
        "blk.0.attn_q": (N_EMBD, N_EMBD),
        "blk.0.attn_k": (narrow, N_EMBD),
        "blk.0.attn_v": (narrow, N_EMBD),
        "blk.0.attn_output": (N_EMBD, N_EMBD),
        "blk.0.ffn_norm": (N_EMBD,),
        "blk.0.ffn_gate": (N_FF, N_EMBD),
        "blk.0.ffn_up": (N_FF, N_EMBD),
        "blk.0.ffn_down": (N_EMBD, N_FF),
    }
    for name, shape in shapes.items():
        row = rng.standard_normal(shape).astype(np.float32 if len(shape) == 1 else dtype)
        writer.add_tensor(f"{name}.weight", row)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter, tokenizer: str) -> int:
    if tokenizer == "llama":
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        types = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2]
        types += [gguf.TokenType.BYTE] * 256
        writer.add_token_scores([0.0] * len(tokens))
    else:
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        letters = {byte: chr(byte) for byte in printable}
        letters |= {byte: chr(256 + i) for i, byte in enumerate(others)}
        tokens = ["<unk>", "<s>", "</s>", *(letters[byte] for byte in range(256)), "th", "he"]
        types = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 258
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges(["t h", "h e"])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    return len(tokens)
