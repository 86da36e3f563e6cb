"""Which of a repository's files are the model: no neighbours, one quantization, all parts.

Owns the order of preference and the words for a choice that only the user can make. Sees names
only; what a file holds is checked when it is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, NoReturn

from pyemo.errors import ModelNotFoundError
from pyemo.files.hub_names import HubFile
from pyemo.files.split_files import missing_text, part_of

# Formats in the order taken where a repository holds several: small and fast on a CPU first.
PREFERRED_FORMATS = (
    "Q4_K_M", "Q4_K_XL", "Q4_0", "Q8_0", "Q5_K_M", "Q4_K_S", "Q4_K_L", "IQ4_XS", "IQ4_NL",
    "Q6_K", "BF16", "F16", "F32",
)  # fmt: skip

_SHOWN_FILES = 8
_FORMAT = re.compile(
    r"(?<![A-Z0-9])(?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|BF16|F16|F32|MXFP4(?:_MOE)?|NVFP4)"
    r"(?![A-Z0-9_])"
)
# By these words in their names files are never a model ...
_NEVER = re.compile(
    r"(?<![a-z0-9])(?:mmproj|imatrix|(?:control|steering)[-_ ]?vectors?|cvec|ggml-vocab)"
    r"(?![a-z0-9])"
)
# ... and by these they are not the model, unless the repository has the word in its own name.
_BESIDE = re.compile(
    r"(?<![a-z0-9])(?:lora|adapters?|mtp|drafts?|drafter|eagle3?|dflash|assistant|vectors?"
    r"|vae|tokenizer|text-encoder)(?![a-z0-9])"
)


class _Model(NamedTuple):
    """A model of the repository: its path without ending and part, and its files in order."""

    label: str
    parts: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def words(self) -> str:
        """The label as its words are compared: upper case, one spelling for each format."""
        return re.sub(r"(?<![A-Z0-9])FP(?=16|32)", "F", self.label.upper())

    @property
    def format(self) -> str | None:
        """The quantization that the name says, the last if it says several."""
        return found[-1] if (found := _FORMAT.findall(self.words)) else None


def choose(wanted: HubFile, files: Iterable[str]) -> tuple[str, ...]:
    """Return the file to take from a repository, or all parts of it in order.

    Args:
        wanted: the repository, and the word that the name must have.
        files: the paths of the repository's files.
    Raises:
        ModelNotFoundError: no file fits, several models do, or a part is missing.
    """
    names = sorted(name for name in files if name.lower().endswith(".gguf"))
    models = _without_neighbours(wanted.repo, _models(names))
    if not models:
        _refuse_without_models(wanted.repo, names)
    fitting = models if wanted.tag is None else _with_word(models, wanted.tag)
    if not fitting:
        raise ModelNotFoundError(
            f"the repository {wanted.repo} has no model {wanted.tag!r}; "
            f"{_what_it_has(wanted, models)}"
        )
    best = _best(wanted.repo, fitting)
    if len(best) > 1:
        raise ModelNotFoundError(
            f"{wanted} may be one of several models; {_what_it_has(wanted, best, by_format=False)}"
        )
    if best[0].missing:
        raise ModelNotFoundError(
            f"the repository {wanted.repo} has only {len(best[0].parts)} of the parts of "
            f"{best[0].label}: {missing_text(best[0].missing)}; take another of its files, or "
            "another repository"
        )
    return best[0].parts


def _models(names: Sequence[str]) -> list[_Model]:
    """Return one model for each file and each set of parts; a whole file wins over parts of it."""
    models: dict[str, _Model] = {}
    for name in names:
        part = part_of(name)
        if part is None:
            models[name[: -len(".gguf")]] = _Model(name[: -len(".gguf")], (name,), ())
        elif part.base not in models:
            there = set(names)
            models[part.base] = _Model(
                part.base,
                tuple(other for other in part.names if other in there),
                tuple(other for other in part.names if other not in there),
            )
    return list(models.values())


def _without_neighbours(repo: str, models: Sequence[_Model]) -> list[_Model]:
    own_words = set(_BESIDE.findall(repo.lower()))
    possible = [model for model in models if not _NEVER.search(model.label.lower())]
    alone = [m for m in possible if set(_BESIDE.findall(m.label.lower())) <= own_words]
    return alone or possible


def _with_word(models: Sequence[_Model], tag: str) -> list[_Model]:
    """Return the models with the word in their path, those with exactly that format first."""
    word = re.sub(r"^FP(?=16$|32$)", "F", tag.upper())
    if exact := [model for model in models if model.format == word]:
        return exact
    whole = re.compile(rf"(?<![A-Z0-9]){re.escape(word)}(?![A-Z0-9_])")
    return [model for model in models if whole.search(model.words)]


def _best(repo: str, models: Sequence[_Model]) -> list[_Model]:
    """Return the models of the most preferred format there is; those of the repository's name."""
    for wanted in PREFERRED_FORMATS:
        same = [m for m in models if (m.format or "").removeprefix("UD-") == wanted]
        # The plain one of a format before the one that Unsloth made in its own way.
        if found := [m for m in same if m.format == wanted] or same:
            return [m for m in found if _is_named_as(repo, m)] or found
    return list(models)


def _is_named_as(repo: str, model: _Model) -> bool:
    """Return whether the file's name is the repository's, but for its quantization."""
    file = model.words.rpartition("/")[2]
    bare = file.replace(model.format or "", "")
    own = re.sub(r"[-_.]GGUF$", "", repo.upper().partition("/")[2])
    return re.sub(r"[^A-Z0-9]", "", bare) == re.sub(r"[^A-Z0-9]", "", own)


def _refuse_without_models(repo: str, names: Sequence[str]) -> NoReturn:
    if not names:
        raise ModelNotFoundError(
            f"the repository {repo} holds no GGUF file; look for one whose name ends in -GGUF, or "
            "under Quantizations on its page"
        )
    raise ModelNotFoundError(
        f"the repository {repo} holds no model, only files that belong to one: "
        f"{_shown_files(names)}. A control vector is given to --cvec"
    )


def _what_it_has(wanted: HubFile, models: Sequence[_Model], *, by_format: bool = True) -> str:
    formats = sorted({model.format for model in models if model.format})
    if by_format and formats:
        return f"it has {', '.join(formats)}: name one as in {wanted.repo}:{formats[0]}"
    files = [model.parts[0] for model in models]
    return f"name one of its files as in {wanted.repo}:{files[0]}. It has: {_shown_files(files)}"


def _shown_files(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_FILES} more" if len(names) > _SHOWN_FILES else ""
    return ", ".join(names[:_SHOWN_FILES]) + more
