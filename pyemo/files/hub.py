"""GGUF files of Hugging Face repositories, through ``huggingface_hub`` and its own cache.

Owns the way to a file and the words for what goes wrong on it. What a text means is ``hub_names``,
which file is meant ``hub_choice``. Knows no catalog.
"""

from __future__ import annotations

import errno
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from pyemo.errors import MissingExtraError, ModelNotFoundError
from pyemo.files.hub_choice import choose
from pyemo.files.hub_names import HubFile
from pyemo.files.split_files import part_of

_log = logging.getLogger(__name__)

_NOT_ALLOWED, _TOO_MANY_REQUESTS, _SERVER_FAULTS = (401, 403), 429, range(500, 600)
# What the hub says of a repository; any other error is of the way there.
_ANSWERS = {"RepositoryNotFoundError", "RevisionNotFoundError", "HFValidationError"}


def find(wanted: HubFile) -> Path | None:
    """Return where ``huggingface_hub`` keeps a file that was fetched before, without a network.

    Of a model in parts it is the first, and all others are there.
    """
    if wanted.file is None or importlib.util.find_spec("huggingface_hub") is None:
        return None
    client = _client(wanted)
    kept = [_kept(client, wanted, name) for name in _parts(wanted, wanted.file)]
    return kept[0] if all(kept) else None


def list_files(repo: str) -> list[str]:
    """Return the names of all files of a repository.

    Raises:
        MissingExtraError: ``huggingface_hub`` is not installed.
        ModelNotFoundError: no such repository, a licence to accept first, or no network.
    """
    wanted = HubFile(repo)
    client = _client(wanted)
    try:
        return list(client.list_repo_files(repo))
    except Exception as error:  # see fetch
        raise ModelNotFoundError(_explain(wanted, error)) from error


def fetch(wanted: HubFile) -> Path:
    """Return the local path of the file, or of its first part, downloading it the first time.

    A repository named without a file is asked for its files, see ``hub_choice``; where there is no
    way to it, those that were fetched before are looked at.

    Raises:
        MissingExtraError: ``huggingface_hub`` is not installed.
        ModelNotFoundError: no such repository or file, a licence to accept first, or no network.
    """
    client = _client(wanted)
    file = wanted.file
    try:
        parts = _parts(wanted, file) if file else choose(wanted, _list(client, wanted))
        kept = [_kept(client, wanted, part) for part in parts]
        if kept[0] is not None and all(kept):
            return kept[0]
        paths = []
        # All of them, those that are here too: parts of one revision lie in one folder.
        for part in parts:
            file = part
            paths.append(client.hf_hub_download(wanted.repo, part, revision=wanted.revision))
        return Path(paths[0])
    except ModelNotFoundError:
        raise
    # The client lets its HTTP library's errors through, and which library that is changes with its
    # version: only the base of all errors covers them.
    except Exception as error:
        raise ModelNotFoundError(_explain(wanted._replace(file=file), error)) from error


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


def _parts(wanted: HubFile, file: str) -> tuple[str, ...]:
    """Return the names of all files of the model whose file, or first part, is ``file``."""
    part = part_of(file)
    if part is None:
        return (file,)
    if part.number > 1:
        raise ModelNotFoundError(
            f"{file} is part {part.number} of {part.total} of a model; name the first: "
            f"{wanted._replace(file=part.name(1))}"
        )
    return part.names


def _kept(client: ModuleType, wanted: HubFile, file: str) -> Path | None:
    path = client.try_to_load_from_cache(wanted.repo, file, revision=wanted.revision)
    return Path(path) if isinstance(path, str) else None


def _list(client: ModuleType, wanted: HubFile) -> Sequence[str]:
    """Return the names of the repository's files; without a network, of those that are here."""
    try:
        return list(client.list_repo_files(wanted.repo, revision=wanted.revision))
    except Exception as error:
        kept = [] if _ANSWERS & _kinds(error) else _list_kept(client, wanted)
        if not any(name.lower().endswith(".gguf") for name in kept):
            raise
        _log.warning("no way to Hugging Face (%s): taking %s from its cache", error, wanted)
        return kept


def _list_kept(client: ModuleType, wanted: HubFile) -> list[str]:
    try:
        cache = client.scan_cache_dir()
    except client.CacheNotFound:
        return []
    revision = wanted.revision or "main"
    return [
        file.file_path.relative_to(kept.snapshot_path).as_posix()
        for repo in cache.repos
        if repo.repo_id == wanted.repo and repo.repo_type == "model"
        for kept in repo.revisions
        if revision in kept.refs or revision == kept.commit_hash
        for file in kept.files
    ]


def _kinds(error: Exception) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _explain(wanted: HubFile, error: Exception) -> str:
    kinds = _kinds(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    page = f"https://huggingface.co/{wanted.repo}"
    if "GatedRepoError" in kinds or (
        status in _NOT_ALLOWED and "RepositoryNotFoundError" not in kinds
    ):
        return (
            f"{wanted.repo} asks for its licence to be accepted first: do that on its page {page}, "
            "then `hf auth login`, then try again"
        )
    if "RepositoryNotFoundError" in kinds:
        return (
            f"Hugging Face has no public repository {wanted.repo}; check its spelling. A private "
            "one needs `hf auth login`, and Ollama's and Docker's own models are not there"
        )
    if "RevisionNotFoundError" in kinds:
        return f"the repository {wanted.repo} has no revision {wanted.revision}; see {page}"
    # A file that is missing here only because the network is, is no missing file.
    if "EntryNotFoundError" in kinds and "LocalEntryNotFoundError" not in kinds:
        return (
            f"the repository {wanted.repo} has no file {wanted.file}; check its spelling: its "
            f"files are listed on {page}/tree/{wanted.revision or 'main'}"
        )
    reason = str(error).strip().partition("\n")[0].rstrip(".")
    if "HFValidationError" in kinds:
        return f"{wanted.repo!r} is not the name of a Hugging Face repository: {reason}"
    if "OfflineModeIsEnabled" in kinds:
        return (
            f"{wanted} is not in the cache of huggingface_hub, and HF_HUB_OFFLINE forbids fetching "
            "it: unset it, or download the file on another machine and give its path"
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"no room on the disk for {wanted}: free some, or set HF_HOME to a larger one"
    if status == _TOO_MANY_REQUESTS or status in _SERVER_FAULTS:
        return f"Hugging Face cannot serve {wanted} now ({reason}); try again in some minutes"
    return (
        f"could not fetch {wanted} from Hugging Face ({reason}). Check the network and try again, "
        "or download the file on another machine and give its path"
    )
