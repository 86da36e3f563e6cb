"""Vectors of Hugging Face repositories: ``hf:org/repo/file.gguf``, through the hub's own client.

Owns that form and the list of a repository's vectors. How a file is fetched and what goes wrong on
the way is :mod:`pyemo.files.hub`'s matter.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from pyemo.errors import ModelNotFoundError, VectorNotFoundError
from pyemo.files import hub
from pyemo.files.hub_names import HubFile

PREFIX = "hf:"
SUFFIXES = (".gguf", ".safetensors", ".pt")

_REFERENCE = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^\\]+))?", re.ASCII | re.IGNORECASE
)
_LISTED = 40


class HubVector(NamedTuple):
    """A vector of a repository; ``file`` is None where only the repository was named."""

    repo: str
    file: str | None


def parse(text: str) -> HubVector | None:
    """Return what ``hf:org/repo/folder/file.gguf`` names; None for text without ``hf:``.

    Raises:
        VectorNotFoundError: it begins with ``hf:`` and is not of this form.
    """
    if not text.lower().startswith(PREFIX):
        return None
    match = _REFERENCE.fullmatch(text)
    steps = (match["file"] or "").split("/") if match is not None else [".."]
    if match is None or any(step in (".", "..") for step in steps):
        raise VectorNotFoundError(
            f"{text!r} is not hf:org/repo/file.gguf, or hf:org/repo for the list of its vectors"
        )
    return HubVector(match["repo"], match["file"])


def fetch(wanted: HubVector) -> Path:
    """Return the file's local path, downloading it the first time.

    Raises:
        MissingExtraError: ``huggingface_hub`` is not installed.
        VectorNotFoundError: no such repository or file, a licence to accept first, or no network;
            for a repository without a file, its vectors are named.
    """
    if wanted.file is None:
        names = moods(wanted.repo)
        first = f"{PREFIX}{wanted.repo}/{names[0]}"
        listed = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
        raise VectorNotFoundError(
            f"the repository {wanted.repo} has {len(names)} vectors; name one, as in {first}. It "
            f"has: {listed}"
        )
    try:
        return hub.fetch(HubFile(wanted.repo, wanted.file))
    except ModelNotFoundError as error:
        raise VectorNotFoundError(str(error)) from error


def moods(repo: str) -> list[str]:
    """Return the names of a repository's vector files, sorted.

    Raises:
        MissingExtraError: ``huggingface_hub`` is not installed.
        VectorNotFoundError: no such repository, no vectors in it, or no network.
    """
    try:
        files = hub.list_files(repo)
    except ModelNotFoundError as error:
        raise VectorNotFoundError(str(error)) from error
    names = sorted(name for name in files if name.lower().endswith(SUFFIXES))
    if not names:
        raise VectorNotFoundError(
            f"the repository {repo} has no file that ends in {', '.join(SUFFIXES)}"
        )
    return names
