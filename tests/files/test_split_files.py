"""Promises of ``pyemo.files.split_files``: a model in parts is whole or refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyemo.errors import ModelLoadError, ModelNotFoundError
from pyemo.files import split_files


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"m-Q8_0-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]
    for i, file in enumerate(files):
        file.write_bytes(bytes([i]))
    return files


def test_whole_set_is_accepted(parts: list[Path]) -> None:
    split_files.check_whole(parts[0])
    assert split_files.parts_of(parts[0]) == tuple(parts)


@pytest.mark.parametrize("name", ["m.gguf", "m-00001-of-00001.gguf", "m-00002-of-00001.gguf"])
def test_model_in_one_file_is_accepted(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    split_files.check_whole(tmp_path / name)
    assert split_files.parts_of(tmp_path / name) == (tmp_path / name,)


def test_later_part_names_the_first(parts: list[Path]) -> None:
    said = f"part 2 of 3 of a model; give the first part: {re.escape(str(parts[0]))}"
    with pytest.raises(ModelLoadError, match=said):
        split_files.check_whole(parts[1])


def test_missing_parts_are_named(parts: list[Path]) -> None:
    parts[1].unlink()
    with pytest.raises(ModelNotFoundError, match=f"{parts[1].name} is missing beside it"):
        split_files.check_whole(parts[0])
    parts[2].unlink()
    with pytest.raises(ModelNotFoundError, match=f"{parts[1].name}, {parts[2].name} are missing"):
        split_files.check_whole(parts[0])


def test_many_missing_parts_are_counted() -> None:
    assert (
        split_files.missing_text([f"{i}" for i in range(9)])
        == "0, 1, 2, 3, 4 and 4 more are missing"
    )


def test_hash_of_a_split_model_is_of_all_its_parts(parts: list[Path]) -> None:
    before = split_files.model_sha256(parts[0])
    parts[2].write_bytes(b"another")
    assert split_files.model_sha256(parts[0]) != before
