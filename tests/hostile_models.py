"""Damaged and hostile model files: five hundred kinds of them, each from a seed.

Owns a GGUF file taken apart (``GgufParts``), the ways to damage it (``MUTATIONS``), and a runner
that uses each file in a process of its own, so that a crash is counted instead of suffered::

    python tests/hostile_models.py --count 500 --show

Knows of pyemo only what a program does with a model: load it, tokenize, generate two tokens.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tiny_models import ARCHITECTURES, build_tiny

STRING, ARRAY = 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
FLOATS = (6, 12)

# Numbers that lengths, counts, types, dimensions and offsets go wrong at.
EDGES = (
    *(0, 1, 2, 3, 5, 7, 8, 9, 16, 31, 32, 33, 63, 64, 65, 127, 128, 256, 512, 513, 1000, 4096),
    *(0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, 1 << 40, 1 << 62, (1 << 63) - 1, (1 << 64) - 1),
)
FLOAT_EDGES = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, float("inf"), float("-inf"), float("nan"))
LONGEST_S = 10  # after which a child counts as hanging


@dataclass
class GgufParts:
    """A GGUF file taken apart, so that it can be put together again wrongly.

    Values are bytes as they stand in the file; an array is (type, elements). ``marks`` says where
    ``serialize`` put what: (what, offset, size).
    """

    version: int
    fields: list[tuple[bytes, int, bytes | tuple[int, list[bytes]]]]
    tensors: list[tuple[bytes, list[int], int, int]]  # name, shape, type, offset
    data: bytes
    marks: list[tuple[str, int, int]] = field(default_factory=list)

    @classmethod
    def parse(cls, content: bytes) -> GgufParts:
        at = 4

        def number(code: str) -> int:
            nonlocal at
            (value,) = struct.unpack_from(f"<{code}", content, at)
            at += struct.calcsize(code)
            return int(value)

        def raw(kind: int) -> bytes:
            nonlocal at
            size = number("Q") if kind == STRING else SIZES[kind]
            at += size
            return content[at - size : at]

        version, n_tensors, n_fields = number("I"), number("Q"), number("Q")
        fields: list[tuple[bytes, int, bytes | tuple[int, list[bytes]]]] = []
        for _ in range(n_fields):
            key, kind = raw(STRING), number("I")
            if kind != ARRAY:
                fields.append((key, kind, raw(kind)))
                continue
            element, count = number("I"), number("Q")
            fields.append((key, kind, (element, [raw(element) for _ in range(count)])))
        tensors = []
        for _ in range(n_tensors):
            name = raw(STRING)
            shape = [number("Q") for _ in range(number("I"))]
            tensors.append((name, shape, number("I"), number("Q")))
        return cls(version, fields, tensors, content[(at + 31) // 32 * 32 :])

    def serialize(self) -> bytearray:
        """Return the file; its data begins at a multiple of 32."""
        out = bytearray(b"GGUF")
        self.marks = []

        def put(what: str, code: str, value: int) -> None:
            self.marks.append((what, len(out), struct.calcsize(code)))
            out.extend(struct.pack(f"<{code}", value))

        def put_text(what: str, text: bytes) -> None:
            put(f"length of {what}", "Q", len(text))
            out.extend(text)

        put("version", "I", self.version)
        put("number of tensors", "Q", len(self.tensors))
        put("number of keys", "Q", len(self.fields))
        for key, kind, value in self.fields:
            put_text("key", key)
            put("value type", "I", kind)
            if isinstance(value, tuple):
                element, elements = value
                put("element type", "I", element)
                put("array length", "Q", len(elements))
                for text in elements:
                    if element == STRING:
                        put_text("element", text)
                    else:
                        out.extend(text)
            elif kind == STRING:
                put_text("value", value)
            else:
                self.marks.append(("value", len(out), len(value)))
                out.extend(value)
        for name, shape, kind, offset in self.tensors:
            put_text("tensor name", name)
            put("dimensions", "I", len(shape))
            for size in shape:
                put("dimension", "Q", size)
            put("tensor type", "I", kind)
            put("offset", "Q", offset)
        out.extend(bytes(-len(out) % 32))
        self.marks.append(("data", len(out), len(self.data)))
        return out + self.data

    def find(self, key: str) -> int:
        """Index of the key, or of the first; a mutation of what is not there is one of
        something.
        """
        return next((i for i, entry in enumerate(self.fields) if entry[0] == key.encode()), 0)

    @property
    def architecture(self) -> str:
        value = self.fields[self.find("general.architecture")][2]
        return value.decode() if isinstance(value, bytes) else ""

    def put_number(self, key: str, kind: int, value: float) -> None:
        """Set the key, in place or at the end."""
        entry = (key.encode(), kind, _packed(kind, value))
        index = self.find(key)
        if self.fields and self.fields[index][0] == key.encode():
            self.fields[index] = entry
        else:
            self.fields.append(entry)


def _packed(kind: int, value: float) -> bytes:
    if kind in FLOATS:
        return struct.pack(f"<{CODES[kind]}", float(value))
    return (int(value) % (1 << 64)).to_bytes(8, "little")[: SIZES[kind]]


# --- the ways to damage a file: (dice, parts) -> content ---


def flip_bits_of_the_header(dice: random.Random, parts: GgufParts) -> bytearray:
    content = parts.serialize()
    end = parts.marks[-1][1]
    for _ in range(dice.randint(1, 8)):
        content[dice.randrange(end)] ^= 1 << dice.randrange(8)
    return content


def set_bytes_of_the_header(dice: random.Random, parts: GgufParts) -> bytearray:
    content = parts.serialize()
    end = parts.marks[-1][1]
    for _ in range(dice.randint(1, 4)):
        content[dice.randrange(end)] = dice.choice((0, 1, 0x7F, 0x80, 0xFF))
    return content


def cut_off(dice: random.Random, parts: GgufParts) -> bytearray:
    content = parts.serialize()
    begin = parts.marks[-1][1]
    del content[dice.randrange(dice.choice((begin, len(content)))) :]
    return content


def overwrite_a_number(dice: random.Random, parts: GgufParts) -> bytearray:
    """Any count, length, type, dimension or offset, whatever it says."""
    content = parts.serialize()
    kinds = sorted({what for what, _, size in parts.marks if size in (4, 8)})
    what = dice.choice(kinds)
    _, at, size = dice.choice(
        [mark for mark in parts.marks if mark[0] == what and mark[2] in (4, 8)]
    )
    now = int.from_bytes(content[at : at + size], "little")
    new = dice.choice((*EDGES, now + 1, now - 1, now * 2, now // 2)) % (1 << 8 * size)
    content[at : at + size] = new.to_bytes(size, "little")
    return content


def change_a_hyperparameter(dice: random.Random, parts: GgufParts) -> bytearray:
    prefix = f"{parts.architecture}.".encode()
    own = [i for i, (key, _, _) in enumerate(parts.fields) if key.startswith(prefix)]
    for index in dice.sample(own, dice.choice((1, 1, 2))):
        key, kind, value = parts.fields[index]
        if kind in FLOATS:
            parts.put_number(key.decode(), kind, dice.choice(FLOAT_EDGES))
        elif isinstance(value, bytes) and kind in SIZES:
            now = int.from_bytes(value, "little")
            new = dice.choice((*EDGES, now + 1, now - 1, now * 2, now // 2))
            parts.put_number(key.decode(), kind, new)
    return parts.serialize()


def make_a_hyperparameter_an_array(dice: random.Random, parts: GgufParts) -> bytearray:
    name = dice.choice(("attention.head_count", "attention.head_count_kv", "feed_forward_length"))
    index = parts.find(f"{parts.architecture}.{name}")
    count = dice.choice((0, 1, 3, 4, 5, 6, 513))
    values = [dice.choice((0, 1, 2, 4, 7, 64, 1 << 31)).to_bytes(4, "little") for _ in range(count)]
    parts.fields[index] = (parts.fields[index][0], ARRAY, (4, values))
    return parts.serialize()


# Keys that some architecture reads: type and name after the architecture's.
_MORE_KEYS = (
    *((4, name) for name in (
        "expert_count", "expert_used_count", "expert_group_count", "expert_group_used_count",
        "nextn_predict_layers", "attention.sliding_window", "attention.sliding_window_pattern",
        "attention.key_length", "attention.value_length", "attention.key_length_swa",
        "attention.value_length_swa", "rope.dimension_count", "rope.dimension_count_swa",
        "rope.scaling.original_context_length", "embedding_length_out", "pooling_type",
        "expert_feed_forward_length", "leading_dense_block_count", "attention.shared_kv_layers",
        "ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.time_step_rank",
        "ssm.group_count", "full_attention_interval", "embedding_length_per_layer_input",
    )),
    *((6, name) for name in (
        "rope.freq_base", "rope.freq_base_swa", "rope.scaling.factor", "rope.scale_linear",
        "rope.scaling.attn_factor", "attention.layer_norm_rms_epsilon",
        "attention.layer_norm_epsilon", "attention.max_alibi_bias", "attention.clamp_kqv",
        "attn_logit_softcapping", "final_logit_softcapping", "logit_scale", "attention.scale",
        "residual_scale", "embedding_scale",
    )),
    *((7, name) for name in ("attention.causal", "use_parallel_residual")),
)  # fmt: skip


def add_a_hyperparameter(dice: random.Random, parts: GgufParts) -> bytearray:
    for kind, name in dice.sample(_MORE_KEYS, dice.choice((1, 2, 3))):
        edges = FLOAT_EDGES if kind in FLOATS else EDGES
        parts.put_number(f"{parts.architecture}.{name}", kind, dice.choice(edges))
    return parts.serialize()


def add_a_word(dice: random.Random, parts: GgufParts) -> bytearray:
    key, words = dice.choice((
        (f"{parts.architecture}.rope.scaling.type", ("", "none", "yarn", "longrope", "spiral")),
        ("tokenizer.ggml.model", ("", "llama", "gpt2", "bert", "t5", "rwkv", "no_vocab", "plamo2",
                                  "none", "test", "gemma4", "whitespace", "hybriddna")),
        ("tokenizer.ggml.pre", ("", "llama3", "gpt-2", "kimi-k2", "jina-v2-de", "tekken", "spam")),
        ("tokenizer.chat_template", ("{{", "{% for", "{{ messages * 10**9 }}", "\xff\xfe")),
        ("general.name", ("", "phi-3", "modern-bert", "x" * 100_000)),
    ))  # fmt: skip
    index = parts.find(key)
    entry = (key.encode(), STRING, dice.choice(words).encode("latin-1"))
    if parts.fields[index][0] == key.encode():
        parts.fields[index] = entry
    else:
        parts.fields.append(entry)
    return parts.serialize()


_OTHER_ARCHITECTURES = (
    "llama", "gpt2", "gemma", "gemma2", "gemma3", "gemma3n", "qwen2", "qwen3", "qwen2moe",
    "qwen3moe", "mamba", "mamba2", "jamba", "phi2", "phi3", "plamo2", "bert", "t5", "t5encoder",
    "falcon", "mpt", "bloom", "rwkv6", "rwkv7", "deepseek2", "olmo2", "granite", "granitehybrid",
    "llama4", "cohere2", "gptneox", "starcoder", "stablelm", "smollm3", "openelm", "lfm2", "dream",
    "clip", "wavtokenizer-dec", "minicpm3", "command-r", "exaone4", "gpt-oss", "apertus", "deci",
    "nemotron", "nemotron_h", "bitnet", "arctic", "dbrx", "grok", "controlvector", "adapter", "",
)  # fmt: skip


def claim_another_architecture(dice: random.Random, parts: GgufParts) -> bytearray:
    old, new = parts.architecture.encode(), dice.choice(_OTHER_ARCHITECTURES).encode()
    renamed = []
    for key, kind, value in parts.fields:
        if key == b"general.architecture":
            value = new
        elif key.startswith(old + b".") and dice.random() < 0.97:
            key = new + key[len(old) :]
        renamed.append((key, kind, value))
    parts.fields = renamed
    for kind, name in dice.sample(_MORE_KEYS, dice.choice((0, 0, 4))):
        parts.put_number(f"{new.decode()}.{name}", kind, dice.choice((0, 1, 2, 4, 16, 32, 64)))
    return parts.serialize()


def drop_or_repeat_a_key(dice: random.Random, parts: GgufParts) -> bytearray:
    index = dice.randrange(len(parts.fields))
    if dice.random() < 0.7:
        del parts.fields[index]
    else:
        parts.fields.append(parts.fields[index])
    return parts.serialize()


def change_a_type(dice: random.Random, parts: GgufParts) -> bytearray:
    """Another type with a value of the right size, so that all after it is read as before."""
    index = dice.randrange(len(parts.fields))
    key, _, _ = parts.fields[index]
    kind = dice.choice((*SIZES, STRING, ARRAY))
    if kind == STRING:
        parts.fields[index] = (key, kind, dice.choice((b"", b"4", b"\xff", b"true")))
    elif kind == ARRAY:
        element = dice.choice((*SIZES, STRING))
        word = b"x" if element == STRING else bytes(SIZES[element])
        parts.fields[index] = (key, kind, (element, [word] * dice.choice((0, 1, 4, 400))))
    else:
        parts.put_number(key.decode(), kind, dice.choice((0, 1, 4, 64)))
    return parts.serialize()


def damage_the_vocabulary(dice: random.Random, parts: GgufParts) -> bytearray:
    lists = [i for i, (key, kind, _) in enumerate(parts.fields)
             if kind == ARRAY and key.startswith(b"tokenizer.")]  # fmt: skip
    index = dice.choice(lists)
    key, kind, value = parts.fields[index]
    assert isinstance(value, tuple)
    element, elements = value[0], list(value[1])
    how = dice.choice(("cut", "lengthen", "repeat", "garbage", "empty", "shuffle"))
    if how == "cut":
        del elements[dice.randrange(len(elements)) :]
    elif how == "lengthen":
        elements += elements[: dice.randint(1, 40)]
    elif how == "repeat":
        elements[dice.randrange(len(elements))] = elements[dice.randrange(len(elements))]
    elif how == "shuffle":
        dice.shuffle(elements)
    else:
        for _ in range(dice.choice((1, 5, len(elements)))):
            at = dice.randrange(len(elements))
            size = 0 if how == "empty" else dice.choice((1, 2, 5, 300))
            garbage = dice.randbytes(size if element == STRING else SIZES[element])
            elements[at] = garbage
    parts.fields[index] = (key, kind, (element, elements))
    return parts.serialize()


def change_a_special_token(dice: random.Random, parts: GgufParts) -> bytearray:
    for name in dice.sample(("bos", "eos", "eot", "unknown", "padding", "seperator", "mask"), 3):
        parts.put_number(f"tokenizer.ggml.{name}_token_id", 4, dice.choice(EDGES))
    for name in dice.sample(("add_bos_token", "add_eos_token", "add_sep_token",
                             "add_space_prefix", "remove_extra_whitespaces"), 2):  # fmt: skip
        parts.put_number(f"tokenizer.ggml.{name}", 7, dice.choice((0, 1, 2, 255)))
    return parts.serialize()


def change_a_tensor(dice: random.Random, parts: GgufParts) -> bytearray:
    index = dice.randrange(len(parts.tensors))
    name, shape, kind, offset = parts.tensors[index]
    how = dice.choice(("shape", "turn", "type", "offset", "name", "swap", "drop", "dimensions"))
    if how == "shape" and shape:
        at = dice.randrange(len(shape))
        now = shape[at]
        shape = [*shape]
        shape[at] = dice.choice((*EDGES, now + 1, now - 1, now * 2, now // 2)) % (1 << 64)
    elif how == "turn":
        shape = shape[::-1]
    elif how == "type":
        kind = dice.choice((*range(45), 1000, 0xFFFFFFFF))
    elif how == "offset":
        offset = dice.choice((*EDGES, offset + 1, offset + 32, offset - 32)) % (1 << 64)
    elif how == "name":
        name = dice.choice((b"", b"x" * 64, b"\xff", b"blk.99.attn_q.weight", b"output.weight",
                            b"rope_freqs.weight", b"token_embd_norm.weight"))  # fmt: skip
    elif how == "swap":
        other = dice.randrange(len(parts.tensors))
        theirs = parts.tensors[other]
        parts.tensors[other] = (name, *theirs[1:])
        name = theirs[0]
    elif how == "dimensions":
        shape = dice.choice(
            ([], [0], [1] * 4, [1] * 5, [2] * 6, [*shape, 1], [*shape, 2], shape[:1])
        )
    parts.tensors[index] = (name, shape, kind, offset)
    if how == "drop":
        del parts.tensors[index]
    return parts.serialize()


def retype_a_tensor_soundly(dice: random.Random, parts: GgufParts) -> bytearray:
    """Another number type with room for its values: right for GGUF, unfit for the graph."""
    # ggml type -> bytes and values of a block
    sizes = {0: (4, 1), 1: (2, 1), 2: (18, 32), 3: (20, 32), 6: (22, 32), 7: (24, 32), 8: (34, 32),
             9: (36, 32), 15: (292, 256), 24: (1, 1), 25: (2, 1), 26: (4, 1), 27: (8, 1),
             28: (8, 1), 30: (2, 1), 34: (54, 256), 35: (66, 256), 39: (17, 32)}  # fmt: skip
    chosen = dice.sample(range(len(parts.tensors)), dice.choice((1, 1, 3)))
    kind = dice.choice(tuple(sizes))
    tensors, data = [], bytearray()
    for index, (name, shape, was, offset) in enumerate(parts.tensors):
        now = kind if index in chosen and shape[0] % sizes[kind][1] == 0 else was
        n_bytes = sizes[now][0] * functools.reduce(int.__mul__, shape, 1) // sizes[now][1]
        piece = parts.data[offset : offset + n_bytes].ljust(n_bytes, b"\x3c")
        tensors.append((name, shape, now, len(data)))
        data += piece + bytes(-n_bytes % 32)
    parts.tensors, parts.data = tensors, bytes(data)
    return parts.serialize()


def set_an_alignment(dice: random.Random, parts: GgufParts) -> bytearray:
    edges = (0, 1, 2, 3, 8, 16, 24, 31, 64, 4096, 1 << 31, 0xFFFFFFFF)
    parts.put_number("general.alignment", dice.choice((4, 4, 4, 5, 10)), dice.choice(edges))
    return parts.serialize()


def claim_to_be_split(dice: random.Random, parts: GgufParts) -> bytearray:
    kind = dice.choice((2, 2, 4))
    parts.put_number("split.count", kind, dice.choice((0, 1, 2, 3, 65535)))
    parts.put_number("split.no", dice.choice((2, 2, 4)), dice.choice((0, 0, 1, 65535)))
    parts.put_number("split.tensors.count", 5, dice.choice((0, 1, len(parts.tensors), -1)))
    return parts.serialize()


def damage_the_weights(dice: random.Random, parts: GgufParts) -> bytearray:
    content = parts.serialize()
    begin = parts.marks[-1][1]
    pattern = dice.choice((b"\xff\xff\xff\x7f", b"\x00\x00\x80\x7f", b"\xff", b"\x00"))
    at = dice.randrange(begin, len(content))
    size = dice.choice((4, 4096, 1 << 20))
    piece = (pattern * (size // len(pattern)))[: len(content) - at]
    content[at : at + len(piece)] = piece
    return content


def version_or_magic(dice: random.Random, parts: GgufParts) -> bytearray:
    parts.version = dice.choice((0, 1, 2, 4, 3 << 24, 0xFFFFFFFF))
    content = parts.serialize()
    if dice.random() < 0.3:
        content[:4] = dice.choice((b"FUGG", b"ggml", b"GGUf", b"\0\0\0\0", b"PK\x03\x04"))
    return content


Mutation = Callable[[random.Random, GgufParts], bytearray]
MUTATIONS: tuple[Mutation, ...] = (
    flip_bits_of_the_header,
    set_bytes_of_the_header,
    cut_off,
    overwrite_a_number,
    change_a_hyperparameter,
    change_a_hyperparameter,
    make_a_hyperparameter_an_array,
    add_a_hyperparameter,
    add_a_word,
    claim_another_architecture,
    drop_or_repeat_a_key,
    change_a_type,
    damage_the_vocabulary,
    change_a_special_token,
    change_a_tensor,
    change_a_tensor,
    retype_a_tensor_soundly,
    set_an_alignment,
    claim_to_be_split,
    damage_the_weights,
    version_or_magic,
)
BASES = (*((name, None) for name in ARCHITECTURES), ("llama", "Q4_0"), ("qwen2", "Q8_0"))


def mutation_of(seed: int) -> tuple[Mutation, str]:
    """The kind of damage of a seed, and the tiny model it is done to."""
    architecture, quant = BASES[seed // len(MUTATIONS) % len(BASES)]
    return MUTATIONS[seed % len(MUTATIONS)], architecture + (f"-{quant}" if quant else "")


# --- using the files, each in a process of its own ---


@dataclass(frozen=True)
class Outcome:
    """How the process that used one file ended.

    ``ending`` is "works", the name of an error of pyemo's, "raises" for any other exception,
    "killed" by a signal, or "hangs".
    """

    seed: int
    mutation: str
    base: str
    ending: str
    message: str
    seconds: float
    peak_bytes: int


def use(path: Path) -> None:
    """What a program does with a model: all that reads the file or depends on what it says."""
    from pyemo import Engine, Model
    from pyemo.errors import InputError

    model = Model.load(path)
    try:
        text = model.tokenize("I was happy, and the day was \N{VULGAR FRACTION ONE HALF} over.")
        model.detokenize(text)
        model.detokenize(range(model.n_vocab), special=True)
    except InputError:
        text = []
    assert model.weights_fingerprint
    with Engine(model, n_ctx=64, n_threads=1) as engine:
        tokens = text[:8] or [0, min(1, model.n_vocab - 1)]
        with engine.sequence(tokens) as sequence:
            sequence.step()
            sequence.step(n_top=3)
        list(engine.generate("Hello", max_tokens=1))


def run(seeds: range, folder: Path) -> Iterator[Outcome]:
    """Yield each seed's outcome. Fork is safe here: this process loads no model itself."""
    # what the children need, imported once for all
    import jinja2.sandbox  # noqa: F401

    from pyemo.engine import chat_template, engine, replies  # noqa: F401

    parts: dict[str, bytes] = {}
    for architecture, quant in BASES:
        name = architecture + (f"-{quant}" if quant else "")
        sound = build_tiny(architecture, folder / f"{name}.gguf", quant=quant).path
        parts[name] = sound.read_bytes()
    path, report = folder / "hostile.gguf", folder / "report"
    for seed in seeds:
        mutation, base = mutation_of(seed)
        path.write_bytes(mutation(random.Random(seed), GgufParts.parse(parts[base])))
        report.write_text("")
        started = time.perf_counter()
        child = os.fork()
        if child == 0:
            _child(path, report)
        _, status, usage = os.wait4(child, 0)
        seconds = time.perf_counter() - started
        ending, _, message = report.read_text().partition("\n")
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            ending = "hangs" if number == signal.SIGALRM else "killed"
            message = f"{signal.Signals(number).name} {message}"
        yield Outcome(
            seed, mutation.__name__, base, ending, message, seconds, usage.ru_maxrss * 1024
        )


def _child(path: Path, report: Path) -> None:
    """Use the file and write how it ended; never returns."""
    from pyemo.errors import PyemoError

    signal.alarm(LONGEST_S)
    os.environ["GGML_NO_BACKTRACE"] = "1"  # it would start a debugger
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    with report.open("w") as out:
        os.dup2(out.fileno(), 2)  # llama.cpp says why it aborts
        try:
            use(path)
        except PyemoError as error:
            ending = f"{type(error).__name__}\n{error}"
        except BaseException as error:  # noqa: BLE001  (counted, whatever it is)
            ending = f"raises\n{type(error).__name__}: {error}"
        else:
            ending = "works\n"
        report.write_text(ending)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Use damaged model files; count how it ends.")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--show", action="store_true", help="print the files that did harm")
    parser.add_argument("--json", action="store_true", help="print every outcome as a line of JSON")
    options = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        for outcome in run(range(options.first, options.first + options.count), Path(folder)):
            counts[outcome.ending] += 1
            if options.json:
                print(json.dumps(outcome.__dict__), flush=True)
            elif options.show and outcome.ending in ("killed", "hangs", "raises"):
                print(outcome.seed, outcome.mutation, outcome.base, outcome.ending, outcome.message)
    if not options.json:
        print(dict(counts.most_common()), file=sys.stderr)


if __name__ == "__main__":
    main()
