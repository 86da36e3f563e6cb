"""The model card of a folder of vectors: README.md, as Hugging Face shows it, from what files say.

Owns its words. Everything in it comes from the vector files and from what the caller states; what
neither says is said to be unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pyemo.errors import InputError
from pyemo.vectors.control_vector import ControlVector

MARK = "<!-- made by pyemo card -->"
"""A README with this line may be made anew."""

UNKNOWN = "not known"
_TRAINED = re.compile(r'^source = "replies"', re.MULTILINE)
_TAGS = ("gguf", "control-vector", "steering-vector", "llama.cpp", "pyemo")


@dataclass(frozen=True)
class CardFacts:
    """What the files of a folder cannot say of themselves.

    Attributes:
        licence: of the vectors, an identifier such as "apache-2.0".
        base_model: the Hugging Face repository of the model, such as "org/name".
        texts_licence: of the texts the vectors were made from, and where they are, in words.
    """

    licence: str = ""
    base_model: str = ""
    texts_licence: str = ""


def card(title: str, vectors: Mapping[str, ControlVector], facts: CardFacts) -> str:
    """Return the card of a folder whose files are the keys of ``vectors``.

    Raises:
        InputError: no vector, a vector for block 0, or vectors of different models.
    """
    if not vectors:
        raise InputError("a card needs vectors; the folder has no .gguf file that is one")
    _check_one_model(vectors)
    blocks = [
        _front_matter(vectors, facts),
        f"{MARK}\n# {_plain(title)}",
        "Control vectors (steering vectors): each is added to the output of a model's blocks while "
        "it writes, and moves the text towards an emotion. Plain GGUF files, one for each vector.",
        _table(vectors),
        _source(vectors, facts),
        _voices(vectors),
        _use(vectors),
        _strengths(vectors),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _check_one_model(vectors: Mapping[str, ControlVector]) -> None:
    known = {
        (vector.n_embd, vector.metadata.weights_fingerprint or UNKNOWN)
        for vector in vectors.values()
    }
    if len(known) > 1:
        raise InputError(
            f"the folder has vectors of {len(known)} models; put those of each model in a folder "
            "of its own and make a card for each"
        )


def _front_matter(vectors: Mapping[str, ControlVector], facts: CardFacts) -> str:
    emotions = {vector.metadata.emotion for vector in vectors.values()} - {""}
    lines = ["---", f"license: {_yaml(facts.licence or 'unknown')}", "library_name: pyemo", "tags:"]
    lines += [f"  - {tag}" for tag in (*_TAGS, *(["emotion"] if emotions else []))]
    if facts.base_model:
        lines += ["base_model:", f"  - {_yaml(facts.base_model)}", "base_model_relation: adapter"]
    return "\n".join([*lines, "---"])


def _table(vectors: Mapping[str, ControlVector]) -> str:
    rows = ["| file | emotion | blocks | unit |", "|---|---|---|---|"]
    for name, vector in vectors.items():
        layers = f"{vector.layers[0]} to {vector.layers[-1]} ({len(vector.layers)})"
        emotion = vector.metadata.emotion or UNKNOWN
        rows.append(f"| `{_plain(name)}` | {_plain(emotion)} | {layers} | {vector.unit} |")
    units = {vector.unit for vector in vectors.values()}
    meanings = {
        "residual": "Unit residual: strength 0.02 adds 2% of the residual stream's norm.",
        "raw": "Unit raw: a strength is a plain factor of what the file holds.",
    }
    said = " ".join(text for unit, text in meanings.items() if unit in units)
    return "\n".join([*rows, "", f"Blocks count from 0. {said}"])


def _source(vectors: Mapping[str, ControlVector], facts: CardFacts) -> str:
    meta = next(iter(vectors.values())).metadata
    rows = {
        "base model": facts.base_model or meta.source_model,
        "architecture": meta.architecture,
        "weights fingerprint": meta.weights_fingerprint,
        "model file (SHA-256)": meta.source_sha256,
        "chat template (SHA-256)": meta.chat_template_sha256,
        "licence of the vectors": facts.licence,
        "texts they were made from": facts.texts_licence,
    }
    lines = ["## Source", "", "| | |", "|---|---|"]
    lines += [
        f"| {label} | {_plain(value) if value else UNKNOWN} |" for label, value in rows.items()
    ]
    recipes = {vector.metadata.recipe.strip() for vector in vectors.values()} - {""}
    if len(recipes) == 1:
        fence = "~" * 4
        recipe = next(iter(recipes)).replace(fence, "")
        lines += ["", "Recipe, the same for all:", "", f"{fence}toml", recipe, fence]
    elif recipes:
        lines += ["", f"{len(recipes)} recipes; each file holds its own: `pyemo inspect FILE`."]
    return "\n".join(lines)


def _voices(vectors: Mapping[str, ControlVector]) -> str:
    """Return what to ask before a trained voice is passed on; nothing where there is none."""
    trained = [
        name
        for name, vector in vectors.items()
        if _TRAINED.search(vector.metadata.recipe) and not vector.metadata.emotion
    ]
    if not trained:
        return ""
    names = ", ".join(f"`{_plain(name)}`" for name in trained)
    return (
        "## Whose voice\n\n"
        f"Trained on example replies that somebody wrote: {names}. A model under it writes like "
        "them and may be taken for their author. Use it where the author, or whoever the persona "
        "is, has agreed; say that a machine writes; do not pass as a person with it."
    )


def _use(vectors: Mapping[str, ControlVector]) -> str:
    name, vector = next(iter(vectors.items()))
    strength = _a_strength(vector)
    file = _plain(name)
    return "\n".join(
        [
            "## Use",
            "",
            "```sh",
            f"pyemo inspect {file} -m MODEL.gguf          # does it fit this file?",
            f"pyemo check -m MODEL.gguf --cvec {file}     # does it do on this device?",
            f'pyemo run -m MODEL.gguf --cvec {file}={strength} "Hello."',
            f"llama-cli -m MODEL.gguf --control-vector-scaled {file}:{strength}",
            "```",
            "",
            "All files lie beside this page, as saklas' installer and llama.cpp's users expect.",
        ]
    )


def _strengths(vectors: Mapping[str, ControlVector]) -> str:
    rows = [
        f"| `{_plain(name)}` | {_plain(entry.model_name)} | {entry.strength:g} | "
        f"{entry.window[0]:g} to {entry.window[1]:g} | {entry.n_tokens} | {_plain(entry.sampler)} |"
        for name, vector in vectors.items()
        for entry in vector.metadata.calibrations
    ]
    rows += [
        f"| `{_plain(name)}` | any, by its training | {strength:g} | not measured | | |"
        for name, vector in vectors.items()
        if (strength := vector.metadata.strength) is not None
    ]
    head = ["## Strengths", ""]
    if not rows:
        text = "None was measured: `pyemo run --strength auto` finds one, `pyemo calibrate` tests."
        return "\n".join([*head, text])
    table = [
        "| file | model file | strength | coherent | tokens | sampler |",
        "|---|---|---|---|---|---|",
    ]
    note = (
        "A measured strength holds for its model file (quantization) and for texts of that length."
    )
    return "\n".join([*head, *table, *rows, "", note])


def _a_strength(vector: ControlVector) -> str:
    known = [entry.strength for entry in vector.metadata.calibrations]
    if vector.metadata.strength is not None:
        known.append(vector.metadata.strength)
    return f"{known[0] if known else 0.02 if vector.unit == 'residual' else 1:g}"


def _plain(text: str) -> str:
    """Return a stranger's text without what Markdown or HTML would take for markup."""
    return re.sub(r"[|`<>\[\]\n\r]", " ", text).strip()


def _yaml(text: str) -> str:
    return "'" + re.sub(r"[^\w./ +-]", "", text) + "'"
