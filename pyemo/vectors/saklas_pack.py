"""A saklas pack: a folder with a pack.json and a tensor file for each model it was fitted on.

Owns pack.json, the sidecars of tensor files and how saklas spells a model in a file name. Believes
no name in them that leads out of the folder. Knows nothing of tensors.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyemo.errors import VectorFileError
from pyemo.vectors.gguf_header import refuse, shown, shown_path

MANIFEST = "pack.json"
TENSOR_SUFFIXES = (".gguf", ".safetensors")

_LONGEST_JSON = 1 << 22


@dataclass(frozen=True)
class Pack:
    """What a pack says of itself, and its tensor files, sorted; all lie in its folder."""

    name: str
    description: str
    tensors: tuple[Path, ...]


def is_pack(folder: Path) -> bool:
    """Return whether a folder is a saklas pack."""
    return (folder / MANIFEST).is_file()


def read_pack(folder: Path) -> Pack:
    """Return the pack in ``folder``, each file compared with its hash where there is one.

    A pack that lists no files stands for all tensor files beside its pack.json, as in saklas.

    Raises:
        VectorFileError: pack.json is damaged, names a file outside the folder or one that is not
            there, or a file is another than it says.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
        files = manifest.get("files", {})
        if not isinstance(files, dict):
            refuse(f"has 'files' {shown(files)}; it must be an object of names and hashes")
        for name, digest in files.items():
            _check_file(folder, name, digest)
    except VectorFileError as error:
        raise VectorFileError(f"saklas pack {shown_path(path)} {error}") from None
    names = files or sorted(entry.name for entry in folder.iterdir())
    tensors = tuple(folder / name for name in sorted(names) if name.endswith(TENSOR_SUFFIXES))
    name, description = (str(manifest.get(key, "")) for key in ("name", "description"))
    return Pack(name, description, tensors)


def sidecar(path: Path) -> Mapping[str, Any]:
    """Return what the .json beside a tensor file says; nothing where there is none of saklas'.

    Raises:
        VectorFileError: the sidecar is damaged, or describes another file.
    """
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return {}
    described = read_json(beside)
    if "saklas_version" not in described:
        return {}
    if described.get("tensor_sha256") not in (None, _sha256(path)):
        refuse(f"is not the file that {beside.name} describes: its SHA-256 differs; fetch it again")
    return described


def model_in(path: Path) -> str:
    """Return the model that saklas names in a tensor file's name; empty if there is none.

    Such as "google/gemma-3-270m" in ``google__gemma-3-270m.safetensors`` or in the ``_z`` form.
    """
    stem = path.name.removesuffix(path.suffix)
    if stem.startswith("_z"):
        try:
            coded = stem[2:] + "=" * (-len(stem[2:]) % 4)
            name = base64.b64decode(coded, altchars=b"-_", validate=True).decode("utf-8")
        except (binascii.Error, ValueError):
            return ""
        return name if name.isprintable() else ""
    organisation, separator, name = stem.partition("__")
    return f"{organisation}/{name}" if separator and organisation and name else ""


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a small JSON file.

    Raises:
        VectorFileError: it cannot be read, or is no such file. The message lacks its name.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST_JSON + 1)
        value = json.loads(data) if len(data) <= _LONGEST_JSON else None
    except (OSError, ValueError, RecursionError) as error:
        refuse(f"cannot be read as JSON: {error}")
    if not isinstance(value, dict):
        refuse(f"is no JSON object of at most {_LONGEST_JSON} bytes")
    return value


def _check_file(folder: Path, name: str, digest: object) -> None:
    path = folder / name
    is_plain = Path(name).name == name and name not in ("", ".", "..") and "\\" not in name
    if not is_plain or path.resolve().parent != folder.resolve():
        refuse(f"names the file {shown(name)}, which is outside its folder; do not use this pack")
    if not path.is_file():
        refuse(f"names the file {shown(name)}, which is not there; fetch the pack again")
    if not isinstance(digest, str) or digest != _sha256(path):
        refuse(f"names the file {shown(name)} with another SHA-256 than it has; fetch it again")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        refuse(f"names {path.name}, which cannot be read: {error}")
    return digest.hexdigest()
