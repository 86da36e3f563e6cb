"""Models in several files, named ``m-00001-of-00003.gguf`` as llama.cpp's splitter names them.

Owns those names and whether a set is whole. llama.cpp loads a set by its first part and looks for
the others beside it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pyemo.errors import ModelLoadError, ModelNotFoundError
from pyemo.files.local import file_sha256

_PART = re.compile(r"(?P<base>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_MOST_PARTS = 1024  # a set with more is refused when it is loaded
_SHOWN_PARTS = 5


class Part(NamedTuple):
    """What a name says: part ``number`` (from 1) of ``total`` of the model ``base``."""

    base: str
    number: int
    total: int

    def name(self, number: int) -> str:
        """Return the name of another part of the set."""
        return f"{self.base}-{number:05d}-of-{self.total:05d}.gguf"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all parts, in order."""
        return tuple(self.name(number) for number in range(1, self.total + 1))


def part_of(name: str) -> Part | None:
    """Return what a file's name says of its set; None for a model in one file."""
    match = _PART.fullmatch(name)
    if match is None:
        return None
    part = Part(match["base"], int(match["number"]), int(match["count"]))
    return part if 1 <= part.number <= part.total <= _MOST_PARTS else None


def parts_of(path: Path) -> tuple[Path, ...]:
    """Return the files of the model whose first file is ``path``, in order. Looks at no file."""
    part = part_of(path.name)
    return (path,) if part is None else tuple(path.with_name(name) for name in part.names)


def check_whole(path: Path) -> None:
    """Check that ``path`` is a model in one file, or the first part of a set that is all there.

    Raises:
        ModelLoadError: it is a later part.
        ModelNotFoundError: other parts are missing; the message names them.
    """
    part = part_of(path.name)
    if part is None:
        return
    if part.number > 1:
        raise ModelLoadError(
            f"{path} is part {part.number} of {part.total} of a model; give the first part: "
            f"{path.with_name(part.name(1))}"
        )
    missing = [file.name for file in parts_of(path) if not file.is_file()]
    if missing:
        raise ModelNotFoundError(
            f"{path} is the first of {part.total} parts, and {missing_text(missing)} beside it; "
            "fetch all parts into one folder"
        )


def missing_text(names: Sequence[str]) -> str:
    """Return words such as ``m-00002-of-00003.gguf is missing``."""
    more = f" and {len(names) - _SHOWN_PARTS} more" if len(names) > _SHOWN_PARTS else ""
    return f"{', '.join(names[:_SHOWN_PARTS])}{more} {'is' if len(names) == 1 else 'are'} missing"


def model_name(path: Path) -> str:
    """Return the file's name without its ending and without the number of its part."""
    part = part_of(path.name)
    return path.stem if part is None else part.base


def model_sha256(path: Path) -> str:
    """Return the SHA-256 of a model: of its file, or of the hashes of all its parts in order.

    Raises:
        ModelNotFoundError, ModelLoadError: see :func:`pyemo.files.local.file_sha256`.
    """
    parts = parts_of(path)
    if len(parts) == 1:
        return file_sha256(path)
    import hashlib  # with OpenSSL's library; a remembered hash needs none

    return hashlib.sha256("".join(map(file_sha256, parts)).encode()).hexdigest()
