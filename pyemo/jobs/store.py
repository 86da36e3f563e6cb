"""The store of results: computed once, found again under the hash of all they depend on.

Owns files and nothing else: a result is JSON and named arrays, kept as one ``.npz`` whose every
member carries a checksum. Each is written whole, so that a run that was killed leaves whole
entries only, and two runs at once write the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyemo.errors import InputError
from pyemo.files.local import check_folder_writable
from pyemo.files.targets import remove_abandoned, written_beside

_log = logging.getLogger(__name__)

_JSON = "json"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # equal content gives equal bytes

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Result:
    """What a cell gives.

    Attributes:
        values: anything JSON can hold.
        arrays: name -> array of numbers; the name "json" is taken.
    """

    values: dict[str, Any]
    arrays: Arrays = field(default_factory=dict)


class Store:
    """A folder of results.

    Args:
        folder: made if it is missing.
    Raises:
        InputError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            check_folder_writable(folder)
        except InputError as error:
            raise InputError(f"the store cannot be written: {error} with --store") from error
        for inner in folder.iterdir():
            remove_abandoned(inner)

    @property
    def folder(self) -> Path:
        """Where the results are."""
        return self._folder

    def get(self, key: str) -> Result | None:
        """Return the result under ``key``, or None: it is not there, or damaged and moved aside."""
        path = self._path(key)
        try:
            return _read(path.read_bytes())
        except FileNotFoundError:
            return None
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
            aside = path.with_suffix(".broken")
            _log.warning(
                "%s is damaged (%s): moved to %s, to be computed again", path, error, aside.name
            )
            with contextlib.suppress(OSError):
                os.replace(path, aside)
            return None

    def put(self, key: str, result: Result) -> None:
        """Keep a result; it is whole on disk when this returns.

        Raises:
            InputError: the disk refuses (full, read-only); earlier results are untouched.
        """
        path = self._path(key)
        try:
            path.parent.mkdir(exist_ok=True)
            with written_beside(path, "a result") as temporary:
                temporary.write_bytes(_write(result))
        except (OSError, InputError) as error:
            why = getattr(error, "strerror", None) or error
            raise InputError(
                f"a result cannot be kept in {self._folder}: {why}; "
                "free some space or name another folder with --store, and start again: what is "
                "computed is kept"
            ) from error

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.npz"


def digest(value: object, arrays: Arrays = {}) -> str:  # noqa: B006 (never changed)
    """Return the SHA-256 over JSON ``value`` and the arrays' types, shapes and bytes."""
    hashed = hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        hashed.update(f"|{name}|{array.dtype.str}|{array.shape}|".encode())
        hashed.update(array.tobytes())
    return hashed.hexdigest()


def _write(result: Result) -> bytes:
    text = json.dumps(result.values, sort_keys=True, allow_nan=False, ensure_ascii=False)
    members = {_JSON: np.frombuffer(text.encode("utf-8"), dtype=np.uint8), **result.arrays}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(members):
            member = io.BytesIO()
            np.lib.format.write_array(
                member, np.ascontiguousarray(members[name]), allow_pickle=False
            )
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy", _EPOCH), member.getvalue(), zipfile.ZIP_DEFLATED
            )
    return out.getvalue()


def _read(data: bytes) -> Result:
    with np.load(io.BytesIO(data), allow_pickle=False) as members:
        arrays = {name: members[name] for name in members.files}  # reading checks each checksum
    values = json.loads(arrays.pop(_JSON).tobytes().decode("utf-8"))
    if not isinstance(values, dict):
        raise ValueError("its JSON is not an object")
    return Result(values, arrays)
