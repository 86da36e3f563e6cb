"""The two tokenizers of the tiny models: byte-level BPE and SentencePiece, a few hundred tokens.

Owns token texts, scores, types, merges and the special tokens' ids, as llama.cpp reads them from
a GGUF file. Knows nothing of weights. Any text can be written in either: every byte has a token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import gguf

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Words that get a token of their own, together with each of their beginnings. `_` is a space.
_WORDS = (
    "_the _and _you _was _that _with _for _are _this _not _have _feel _felt _angry _happy _sad"
    " _calm _afraid _I _a _of _to _in _is _it _my _me _be _he _she _on _day _story _write about"
    " ing ed er ly user assistant system"
)


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their ids, and what llama.cpp has to know about them."""

    model: str  # tokenizer.ggml.model: "gpt2" or "llama"
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] | None
    merges: tuple[str, ...] | None
    special: dict[str, int]  # "bos", "eos", ...: token id
    add_space_prefix: bool = False  # SentencePiece alone: a space before a text's first word

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def normal_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that stand for text: prompts are drawn from these."""
        return tuple(i for i, kind in enumerate(self.types) if kind == gguf.TokenType.NORMAL)

    def write(self, writer: gguf.GGUFWriter, pre: str, add_bos: bool) -> None:
        """Add the tokenizer's keys to ``writer``; ``pre`` names llama.cpp's pre-tokenizer."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(list(self.tokens))
        writer.add_token_types(list(self.types))
        if self.scores is not None:
            writer.add_token_scores(list(self.scores))
        if self.merges is not None:
            writer.add_token_merges(list(self.merges))
        for name, token_id in self.special.items():
            getattr(writer, f"add_{name}_token_id")(token_id)
        writer.add_add_bos_token(add_bos)
        writer.add_add_space_prefix(self.add_space_prefix)


def bpe_vocabulary(eos: str) -> Vocabulary:
    """Return the byte-level BPE vocabulary; ``eos`` names one of its special tokens."""
    special = ["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"]
    letters = _byte_letters()
    words = [word.replace("_", letters[ord(" ")]) for word in _WORDS.split()]
    pairs = {beginning: f"{beginning[:-1]} {beginning[-1]}" for beginning in _beginnings(words)}
    tokens = (*special, *letters, *pairs)
    normal = len(tokens) - len(special)
    return Vocabulary(
        model="gpt2",
        tokens=tokens,
        types=(gguf.TokenType.CONTROL,) * len(special) + (gguf.TokenType.NORMAL,) * normal,
        scores=None,
        merges=tuple(pairs.values()),
        special={"bos": tokens.index("<|bos|>"), "eos": tokens.index(eos)},
    )


def spm_vocabulary() -> Vocabulary:
    """Return the SentencePiece vocabulary, with Gemma's special tokens and one token per byte."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    single_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    space = "\N{LOWER ONE EIGHTH BLOCK}"
    pieces = [*_beginnings(word.replace("_", space) for word in _WORDS.split())]
    pieces += [space, *map(chr, range(33, 127))]
    types = [gguf.TokenType.CONTROL] * len(special)
    types[special.index("<unk>")] = gguf.TokenType.UNKNOWN
    types += [gguf.TokenType.BYTE] * len(single_bytes) + [gguf.TokenType.NORMAL] * len(pieces)
    without_score = len(special) + len(single_bytes)
    return Vocabulary(
        model="llama",
        tokens=(*special, *single_bytes, *pieces),
        types=tuple(types),
        # llama.cpp joins the pair with the highest score first: earlier pieces before later ones.
        scores=(0.0,) * without_score + tuple(-1.0 - i for i in range(len(pieces))),
        merges=None,
        special={"bos": 2, "eos": 1, "unk": 3, "pad": 0, "eot": 5},
    )


def gemma4_vocabulary() -> Vocabulary:
    """Return the same tokens joined by merges, as Gemma 4 has them: bytes where none fits."""
    vocabulary = spm_vocabulary()
    texts = (vocabulary.tokens[token] for token in vocabulary.normal_ids)
    merges = tuple(f"{text[:-1]} {text[-1]}" for text in texts if len(text) > 1)
    return replace(vocabulary, model="gemma4", merges=merges)


def _beginnings(words: Iterable[str]) -> dict[str, None]:
    """Every beginning of two letters or more of every word, once, shorter before longer."""
    return dict.fromkeys(word[:n] for word in words for n in range(2, len(word) + 1))


def _byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in byte-level BPE, by byte.

    Printable bytes stand for themselves, the others for the code points from 256 on (Radford et
    al. 2019, GPT-2's encoder).
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
