"""What the fuzzers feed with hostile bytes, and what must come of them: a named error, or a value.

Each target is ``try_one(data)``, which returns whatever happens by right and raises what does not.
``run.py`` feeds them with what a fuzzer makes up, ``test_found.py`` with what one once found.
The two targets in C++ stand beside it and are tried through Python here.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import seeds

MESSAGES = [
    {"role": "system", "content": "Be <|im_start|>brief."},
    {"role": "user", "content": "Hé {{ 7 * 7 }}\n"},
    {"role": "assistant", "content": "No"},
    {"role": "user", "content": ""},
]
MARK = "\ufdd0"  # no character: templates cannot write it by chance
_JINJA = """
    {{ }} {% %} {# #} {%- -%} if elif else endif for in endfor set endset macro endmacro filter
    endfilter call endcall loop.index0 loop.first recursive namespace range dict messages role
    content bos_token eos_token add_generation_prompt tools is defined not | join replace tojson
    indent center batch slice map select groupby format ** // ~ break continue generation
    endgeneration raise_exception strftime_now self caller '%999999d' [:-1] .split('') autoescape
    __class__ 999999999999
"""
_GGUF = """
    GGUF general.architecture general.alignment llama gpt2 tokenizer.ggml.tokens
    tokenizer.ggml.model tokenizer.ggml.token_type tokenizer.ggml.scores tokenizer.ggml.merges
    split.count llama.block_count llama.embedding_length llama.attention.head_count_kv
    llama.rope.dimension_count llama.context_length controlvector direction.1 token_embd.weight
    blk.0.attn_q.weight output.weight rope_freqs.weight
"""
JINJA_WORDS, GGUF_WORDS = tuple(_JINJA.split()), tuple(_GGUF.split())


@dataclass(frozen=True)
class Target:
    """Something that reads what strangers write.

    Attributes:
        seeds: returns what fuzzing begins with.
        try_one: raises if the bytes end otherwise than they may.
        instrumented: packages whose branches lead an Atheris fuzzer; none for those in C++.
        words: what its inputs are made of.
        max_len: bytes of the longest input that is tried.
    """

    seeds: Callable[[], Iterable[bytes]]
    try_one: Callable[[bytes], None]
    instrumented: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    max_len: int = 1 << 14


@contextlib.contextmanager
def file_of(data: bytes, suffix: str) -> Iterator[Path]:
    """Give a file with these bytes, in memory where the machine has such a place."""
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    descriptor, name = tempfile.mkstemp(suffix, dir=shared)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        yield Path(name)
    finally:
        os.unlink(name)


def try_vector_file(data: bytes) -> None:
    """Load a control vector; what loads has to be sound, and the same when it is saved."""
    from pyemo import ControlVector, Steering
    from pyemo.errors import PyemoError

    with file_of(data, ".gguf") as path, file_of(b"", ".gguf") as copy:
        try:
            vector = ControlVector.load(path)
            repr((vector, vector.metadata))
            vector.save(copy, force=True)
        except PyemoError:
            return
        assert ControlVector.load(copy).directions.keys() == vector.directions.keys()
        with contextlib.suppress(PyemoError):  # the model's norms may not be known
            Steering({vector: 0.5}).dose(4096)


def try_foreign_file(data: bytes) -> None:
    """Read a vector of another tool; the first byte says its suffix and the layer base."""
    from pyemo.errors import PyemoError
    from pyemo.vectors.foreign import read_foreign

    kind = data[0] if data else 0
    with file_of(data[1:], (".pt", ".safetensors", ".gguf")[kind % 3]) as path:
        try:
            found = read_foreign(path, layer_base=(None, 0, 1)[kind // 3 % 3])
        except PyemoError:
            return
        repr((found.vector, found.notes))


def try_chat_template(data: bytes) -> None:
    """Render a conversation by a template, and ask what variables it has."""
    from pyemo.engine import chat_template
    from pyemo.errors import PyemoError

    template = data.decode("utf-8", "replace")
    chat_template.variables(template)
    try:
        text = chat_template.render_messages(
            template, MESSAGES, MARK, {"enable_thinking": False}, bos_token="<s>", eos_token="</s>"
        )
    except PyemoError:
        return
    assert isinstance(text, str)


def try_model(data: bytes) -> None:
    """Load a model, tokenize, and write a few tokens."""
    from pyemo import Engine, Model, SamplerParams
    from pyemo.errors import PyemoError

    with file_of(data, ".gguf") as path:
        try:
            model = Model.load(path)
            repr((model, model.metadata, model.chat_template))
            with Engine(model, n_ctx=32, n_threads=1) as engine:
                greedy = SamplerParams(temperature=0)
                list(engine.generate("a b", raw=True, max_tokens=3, sampler=greedy))
        except PyemoError:
            return


TARGETS = {
    "vector_file": Target(seeds.vector_files, try_vector_file, ("pyemo",), GGUF_WORDS, 1 << 12),
    "foreign_file": Target(seeds.foreign_files, try_foreign_file, ("pyemo", "zipfile")),
    "chat_template": Target(
        seeds.chat_templates, try_chat_template, ("pyemo", "jinja2"), JINJA_WORDS, 1 << 11
    ),
    "gguf_header": Target(seeds.models, try_model, (), GGUF_WORDS, 1 << 15),
    "model_open": Target(seeds.models, try_model, (), GGUF_WORDS, 1 << 15),
}
