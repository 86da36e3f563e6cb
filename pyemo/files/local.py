"""Files on this disk: their SHA-256, whether they begin like a GGUF, joining them from parts.

Owns the cache folder. Knows nothing of model names or of where files come from.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from pyemo.errors import InputError, ModelChecksumError, ModelLoadError, ModelNotFoundError
from pyemo.files.inputs import read_input
from pyemo.files.targets import written_beside

_log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_SHA256_DIGITS = 64
# A file written within this time may be written again without its modification time moving on.
_UNSETTLED_NS = 2_000_000_000
_HASHES_FILE = "file_hashes.json"
_NO_HOME = (
    "no home folder is known in which pyemo's cache could be; set the environment variable "
    "PYEMO_CACHE to a folder that you may write"
)

_GGUF_MAGIC = b"GGUF"
_GGUF_VERSIONS = (2, 3)
_GGUF_HEADER = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of keys
# The least bytes that one key or one tensor takes in the header, whatever its name and value.
_LEAST_KEY_BYTES = 8 + 4 + 1
_LEAST_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8
# What people hand over instead of a GGUF, by its first bytes.
_OTHER_FORMATS = (
    (b"PK\x03\x04", "a zip archive or a PyTorch checkpoint"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to"),
    (b"<!", "a web page, perhaps the error page of a failed download"),
    (b"<h", "a web page, perhaps the error page of a failed download"),
    (b"ggml", "a model of llama.cpp from before GGUF"),
    (b"ggjt", "a model of llama.cpp from before GGUF"),
)


class FileStamp(NamedTuple):
    """What must not have changed for a remembered hash to hold."""

    size: int
    mtime_ns: int


# Hashes of this process, for a cache folder that cannot be written: absolute path -> (stamp, hash).
_hashed_here: dict[str, tuple[FileStamp, str]] = {}


def cache_dir() -> Path:
    """Return the folder for what pyemo can make again: hashes and joined model files.

    The environment variable ``PYEMO_CACHE`` names another folder than the platform's. The folder
    need not exist yet.

    Raises:
        InputError: there is no home folder to have it in.
    """
    override = os.environ.get("PYEMO_CACHE")
    try:
        if override:
            return absolute(Path(override).expanduser())
        import platformdirs  # not needed where PYEMO_CACHE is set; kept out of this file's import

        folder = Path(platformdirs.user_cache_dir("pyemo", appauthor=False))
    except RuntimeError as error:
        raise InputError(_NO_HOME) from error
    if not folder.is_absolute():
        raise InputError(_NO_HOME)
    return folder


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return a path from the root on.

    Raises:
        InputError: it is relative, and the current folder was deleted.
    """
    try:
        return Path(path).absolute()
    except FileNotFoundError as error:
        raise InputError(
            f"{os.fspath(path)!r} is in the current folder, which was deleted; change to a folder "
            "that is there, or give a path from the root on"
        ) from error


def check_utf8(path: str | os.PathLike[str]) -> None:
    """Refuse a path that llama.cpp's interface cannot take.

    Raises:
        ModelLoadError: it is not UTF-8 text.
    """
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ModelLoadError(
            f"the path {os.fspath(path)!a} is not UTF-8 text, which llama.cpp needs; rename "
            "the file, or set PYTHONUTF8=1 where the locale is C"
        ) from error


def check_folder_writable(folder: str | os.PathLike[str]) -> None:
    """Make a folder where there is none, and prove that a file can be written into it.

    For commands that work for long: what cannot be kept is found out before.

    Raises:
        InputError: it cannot be made, is not a folder, or refuses files.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        import tempfile  # not needed to run a model

        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"the folder {str(folder)!r} cannot be written to: {error.strerror or error}; name "
            "another"
        ) from error


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    The hash is remembered on disk by absolute path, size and modification time, so that only the
    first call for a file reads it. A cache that is damaged or cannot be written costs time, never
    the result.

    Raises:
        ModelNotFoundError: there is no such file.
        ModelLoadError: the file cannot be read.
    """
    path = absolute(path)
    stamp = file_stamp(path)
    known = _recall(path, stamp)
    if known is not None:
        return known
    started_ns = time.time_ns()
    digest = _hash(path)
    if file_stamp(path) == stamp and abs(started_ns - stamp.mtime_ns) > _UNSETTLED_NS:
        _remember(path, stamp, digest)
    return digest


def check_gguf(path: str | os.PathLike[str], *, is_split: bool = False) -> None:
    """Check that a file begins like a GGUF model and is not cut off within its first bytes.

    Reads 24 bytes. The engine checks names, sizes and offsets when it loads the file.

    Args:
        path: the file.
        is_split: it is the first of several parts, which may hold no tensors.
    Raises:
        ModelNotFoundError: there is no such file.
        ModelLoadError: not a GGUF, of a version llama.cpp does not read, or cut off.
    """
    check_utf8(path)
    path = Path(path)
    size = file_stamp(path).size
    with _reading(path) as file:
        head = file.read(_GGUF_HEADER.size)
    if not head.startswith(_GGUF_MAGIC):
        raise ModelLoadError(
            f"{path} is not a GGUF file: {_what_it_is(head)}; give the path of a .gguf model"
        )
    if len(head) < _GGUF_HEADER.size:
        raise ModelLoadError(f"{path} is cut off after {size} bytes; fetch the file again")
    _, version, n_tensors, n_keys = _GGUF_HEADER.unpack(head)
    if version not in _GGUF_VERSIONS:
        big_endian = int.from_bytes(head[4:8], "big") in _GGUF_VERSIONS
        was = "written for a big-endian machine" if big_endian else f"GGUF version {version}"
        raise ModelLoadError(f"{path} is {was}; llama.cpp reads little-endian version 2 and 3")
    if n_tensors == 0 and not is_split:
        raise ModelLoadError(f"{path} holds no tensors, only a header or a vocabulary: not a model")
    least = _GGUF_HEADER.size + n_keys * _LEAST_KEY_BYTES + n_tensors * _LEAST_TENSOR_BYTES
    if size < least:
        raise ModelLoadError(
            f"{path} is cut off or damaged: it has {size} bytes, and its header alone, with "
            f"{n_keys} keys and {n_tensors} tensors, needs {least} or more; fetch the file again"
        )


def join_parts(parts: Sequence[Path], target: Path, sha256: str) -> None:
    """Write ``parts``, one after the other, to ``target``, which appears only when whole and right.

    Raises:
        ModelChecksumError: the joined bytes have another SHA-256; ``target`` is left as it was.
        ModelLoadError: a part cannot be read, or the folder of ``target`` cannot be written.
    """
    import hashlib  # with OpenSSL's library; a remembered hash needs none

    digest = hashlib.sha256()
    with _replacing(target) as out:
        for part in parts:
            for chunk in _chunks(part):
                digest.update(chunk)
                out.write(chunk)
        if digest.hexdigest() != sha256:
            raise ModelChecksumError(
                f"the {len(parts)} parts of {target.name} do not make the file that the catalog "
                f"names: SHA-256 {digest.hexdigest()}, expected {sha256}"
            )
    # Nobody else writes this file, so its hash holds although the file is new.
    _remember(absolute(target), file_stamp(target), sha256)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield the path of a file to make, which takes the place of ``target`` at the end.

    On an error it vanishes, and ``target`` stays as it was. The folder is made if need be.

    Raises:
        ModelLoadError: ``target`` cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(target) as temporary:
            yield temporary
    except (OSError, InputError) as error:
        why = getattr(error, "strerror", None) or error
        raise ModelLoadError(
            f"cannot write {target}: {why}; set the environment variable "
            "PYEMO_CACHE to a folder with room that you may write"
        ) from error


def file_stamp(path: Path) -> FileStamp:
    """Return a file's size and modification time, by which a changed one is known.

    Raises:
        ModelNotFoundError: there is no such file.
        ModelLoadError: the system does not say.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ModelNotFoundError(f"no file at {path}") from None
    except OSError as error:
        raise ModelLoadError(f"cannot read {path}: {error.strerror or error}") from error
    return FileStamp(status.st_size, status.st_mtime_ns)


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise ModelLoadError(f"cannot read {path}: {error.strerror or error}") from error


def _chunks(path: Path) -> Iterator[bytes]:
    with _reading(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _hash(path: Path) -> str:
    import hashlib

    digest = hashlib.sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _replacing(target: Path) -> Iterator[IO[bytes]]:
    """Open a new file that takes the place of ``target`` at the end, or vanishes on an error."""
    with replacing(target) as temporary, temporary.open("wb") as file:
        yield file


def _recall(path: Path, stamp: FileStamp) -> str | None:
    here = _hashed_here.get(str(path))
    if here is not None and here[0] == stamp:
        return here[1]
    entry = _read_hashes().get(str(path))
    if not isinstance(entry, dict):
        return None
    if entry.get("size") != stamp.size or entry.get("mtime_ns") != stamp.mtime_ns:
        return None
    digest = entry.get("sha256")
    if not isinstance(digest, str) or len(digest) != _SHA256_DIGITS:
        return None
    _hashed_here[str(path)] = (stamp, digest)
    return digest


def _remember(path: Path, stamp: FileStamp, digest: str) -> None:
    _hashed_here[str(path)] = (stamp, digest)
    # Read again just before writing: another process may have added its own. Where both write at
    # once, one entry is lost and that file is hashed once more.
    hashes = {name: entry for name, entry in _read_hashes().items() if os.path.exists(name)}
    hashes[str(path)] = {"size": stamp.size, "mtime_ns": stamp.mtime_ns, "sha256": digest}
    text = json.dumps({"version": 1, "files": hashes}, indent=1)
    try:
        with _replacing(cache_dir() / _HASHES_FILE) as file:
            file.write(text.encode())
    except (ModelLoadError, InputError) as error:
        _log.debug("the hash of %s is not kept: %s", path, error)


def _read_hashes() -> dict[str, Any]:
    """Return the remembered hashes; none where the cache is missing, unreadable or damaged."""
    try:
        text = read_input(cache_dir() / _HASHES_FILE, "the remembered hashes", "they are made anew")
        hashes = json.loads(text)["files"]
    except (InputError, ValueError, KeyError, TypeError, RecursionError) as error:
        _log.debug("no hash is remembered: %s", error)
        return {}
    return hashes if isinstance(hashes, dict) else {}


def _what_it_is(head: bytes) -> str:
    if not head:
        return "it is empty"
    for magic, kind in _OTHER_FORMATS:
        if head.startswith(magic):
            return f"it looks like {kind}"
    if head[8:9] == b"{":
        return "it looks like a safetensors file"
    return f"it begins with {head[:4]!r} instead of {_GGUF_MAGIC!r}"
