"""What a vector file's ``controlvector.model_hint`` says of the architecture it was made for.

llama.cpp writes its own name of an architecture there ("qwen3moe"), repeng, saklas and others the
model type of transformers ("qwen3_moe"), and some write what they like ("qwen2.5", "unknown").
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from pyemo.vectors.model_types import LLAMA_CPP, MODEL_TYPES


def architectures(hint: str) -> frozenset[str]:
    """Return which of llama.cpp's architectures a hint can mean, spelled as :func:`folded` does.

    Empty for text that neither llama.cpp nor transformers lists.
    """
    return _meanings().get(folded(hint), frozenset())


def fits(hint: str, architecture: str) -> bool:
    """Return whether a hint may be about a model of llama.cpp's ``architecture``."""
    return folded(architecture) in architectures(hint) or folded(hint) == folded(architecture)


def folded(name: str) -> str:
    """Return a name without what spellings of one architecture differ in."""
    return "".join(letter for letter in name.casefold() if letter not in "_-. ")


@functools.cache
def _meanings() -> Mapping[str, frozenset[str]]:
    """Return folded name -> folded names of llama.cpp; a name of both sides means all it can."""
    meanings = {folded(name): frozenset({folded(name)}) for name in LLAMA_CPP}
    for model_type, made in MODEL_TYPES.items():
        known = meanings.get(folded(model_type), frozenset())
        meanings[folded(model_type)] = known.union(map(folded, made))
    return meanings
