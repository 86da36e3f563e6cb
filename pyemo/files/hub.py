"""GGUF files of Hugging Face repositories, through ``huggingface_hub`` and its own cache.

Owns the form ``org/repo:file.gguf`` and the words for what goes wrong on the way. Knows no catalog.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from pyemo.errors import MissingExtraError, ModelNotFoundError

# Formats in the order taken where a repository holds several: small and fast on a CPU first.
PREFERRED_FORMATS = ("Q4_K_M", "Q4_0", "Q8_0", "Q5_K_M", "Q4_K_S", "Q6_K", "BF16", "F16", "F32")

_REFERENCE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<file>[^:\\]+\.gguf))?", re.ASCII)
# GGUF files that are not a model by themselves: image projectors, one piece of a split model.
_NOT_A_MODEL = re.compile(r"mmproj|imatrix|-\d{5}-of-\d{5}", re.IGNORECASE)


class HubFile(NamedTuple):
    """A file of a repository; ``file`` is None where only the repository was named."""

    repo: str
    file: str | None

    def __str__(self) -> str:
        return self.repo if self.file is None else f"{self.repo}:{self.file}"


def parse(text: str) -> HubFile | None:
    """Return what ``org/repo`` or ``org/repo:file.gguf`` names; None for any other text."""
    match = _REFERENCE.fullmatch(text)
    if match is None or match["repo"].endswith(".gguf"):  # "folder/model.gguf" is a path
        return None
    return HubFile(match["repo"], match["file"])


def find(wanted: HubFile) -> Path | None:
    """Return where ``huggingface_hub`` keeps a file that was fetched before, without a network."""
    if wanted.file is None or importlib.util.find_spec("huggingface_hub") is None:
        return None
    kept = _client(wanted).try_to_load_from_cache(wanted.repo, wanted.file)
    return Path(kept) if isinstance(kept, str) else None


def list_files(repo: str) -> list[str]:
    """Return the names of all files of a repository.

    Raises:
        MissingExtraError: ``huggingface_hub`` is not installed.
        ModelNotFoundError: no such repository, a licence to accept first, or no network.
    """
    wanted = HubFile(repo, None)
    client = _client(wanted)
    try:
        return list(client.list_repo_files(repo))
    except Exception as error:  # see fetch
        raise ModelNotFoundError(_explain(wanted, error)) from error


def fetch(wanted: HubFile) -> Path:
    """Return the file's local path, downloading it the first time.

    A repository named without a file is asked for its files, and the first of
    ``PREFERRED_FORMATS`` it has is taken.

    Raises:
        MissingExtraError: ``huggingface_hub`` is not installed.
        ModelNotFoundError: no such repository or file, a licence to accept first, or no network.
    """
    client = _client(wanted)
    try:
        if wanted.file is None:
            wanted = HubFile(wanted.repo, _pick(wanted.repo, client.list_repo_files(wanted.repo)))
        return find(wanted) or Path(client.hf_hub_download(wanted.repo, wanted.file))
    except ModelNotFoundError:
        raise
    # The client lets its HTTP library's errors through, and which library that is changes with its
    # version: only the base of all errors covers them.
    except Exception as error:
        raise ModelNotFoundError(_explain(wanted, error)) from error


def _client(wanted: HubFile) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtraError(
            f"to fetch {wanted} from Hugging Face the package huggingface_hub is needed and not "
            "installed: `pip install huggingface_hub`; or download the file yourself and give its "
            "path"
        ) from error
    return huggingface_hub


def _pick(repo: str, files: Sequence[str]) -> str:
    """Return the file to take from a repository that was named without one."""
    models = sorted(name for name in files if name.lower().endswith(".gguf"))
    whole = [name for name in models if not _NOT_A_MODEL.search(name)]
    for wanted in PREFERRED_FORMATS:
        for name in whole:
            if re.search(rf"(?<![A-Z0-9]){wanted}(?![A-Z0-9_])", name.upper()):
                return name
    if len(whole) == 1:
        return whole[0]
    if not models:
        raise ModelNotFoundError(
            f"the repository {repo} holds no GGUF file; look for one whose name ends in -GGUF"
        )
    raise ModelNotFoundError(
        f"the repository {repo} holds no GGUF file in a format pyemo would choose by itself; name "
        f"one of its files, as in {repo}:{models[0]}. It has: {', '.join(models)}"
    )


def _explain(wanted: HubFile, error: Exception) -> str:
    kind = {name.__name__ for name in type(error).__mro__}
    if "GatedRepoError" in kind:
        return (
            f"{wanted.repo} asks for its licence to be accepted first: do that on its page, then "
            "`hf auth login`, then try again"
        )
    if "RepositoryNotFoundError" in kind:
        return f"Hugging Face has no public repository {wanted.repo}; check its spelling"
    # A file that is missing here only because the network is, is no missing file.
    if "EntryNotFoundError" in kind and "LocalEntryNotFoundError" not in kind:
        return f"the repository {wanted.repo} has no file {wanted.file}; check its spelling"
    reason = str(error).strip().partition("\n")[0].rstrip(".")
    if "HFValidationError" in kind:
        return f"{wanted.repo!r} is not the name of a Hugging Face repository: {reason}"
    return (
        f"could not fetch {wanted} from Hugging Face ({reason}). Check the network and try again, "
        "or download the file on another machine and give its path"
    )
