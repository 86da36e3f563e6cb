"""A cache vector's file keeps every bit, and what is none is refused by name."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_models import TinyModel

from pyemo import CacheVector, ControlVector, Model
from pyemo.errors import (
    InputError,
    VectorError,
    VectorFileError,
    VectorModelMismatchError,
    VectorNotFoundError,
    VectorShapeError,
)
from pyemo.vectors.metadata import VectorMetadata


def rows(seed: int, n_cells: int = 2, width: int = 6) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((n_cells, width)).astype(np.float32)


@pytest.fixture
def vector() -> CacheVector:
    return CacheVector(
        {1: rows(1), 3: rows(3)},
        keys={3: rows(4)},
        cells=(-4, -2),
        tokens=(17, 5),
        metadata=VectorMetadata(
            emotion="angry", recipe="how = 1", strength=1.5, architecture="llama"
        ),
    )


def test_a_file_keeps_every_bit(vector: CacheVector, tmp_path: Path) -> None:
    vector.save(tmp_path / "angry.gguf")
    found = CacheVector.load(tmp_path / "angry.gguf")
    assert (found.name, found.cells, found.tokens) == ("angry", (-4, -2), (17, 5))
    assert replace(found.metadata, format_version=1) == vector.metadata
    assert found.strength == 1.5
    for mine, its in ((vector.values, found.values), (vector.keys, found.keys)):
        assert mine.keys() == its.keys()
        assert all((mine[layer] == its[layer]).all() for layer in mine)
    found.save(tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "angry.gguf").read_bytes()


def test_a_vector_of_little_says_little(tmp_path: Path) -> None:
    CacheVector({0: rows(1)}, cells=[-3, -1]).save(tmp_path / "plain.gguf")
    found = CacheVector.load(tmp_path / "plain.gguf")
    assert (found.tokens, found.strength, found.layers) == ((), 1.0, (0,))


def test_it_does_not_change_with_what_it_was_made_of() -> None:
    given = rows(1)
    vector = CacheVector({0: given}, cells=[-2, -1])
    given[:] = 7
    assert not (vector.values[0] == 7).any()
    with pytest.raises(ValueError, match="read-only"):
        vector.values[0][:] = 7


@pytest.mark.parametrize(
    ("values", "settings", "kind", "message"),
    [
        ({}, {}, VectorShapeError, "has no values"),
        ({0: rows(1, 3)}, {}, VectorShapeError, "for each of its 2 cells"),
        ({0: [1.0, 2.0]}, {}, VectorShapeError, r"shape \(2,\)"),
        ({0: "rows"}, {}, VectorShapeError, "must be a row of numbers"),
        ({0: np.full((2, 3), np.nan)}, {}, VectorShapeError, "NaN or infinity"),
        ({0: np.full((2, 3), 1e39)}, {}, VectorShapeError, "NaN or infinity"),
        ({-1: rows(1)}, {}, InputError, "layer is a whole number"),
        ({0: rows(1)}, {"cells": (-1, -2)}, InputError, "ascending"),
        ({0: rows(1)}, {"cells": (0, 1)}, InputError, "counted from the prompt's end"),
        ({0: rows(1)}, {"cells": (-2, -2)}, InputError, "ascending"),
        ({0: rows(1)}, {"cells": ()}, InputError, "ascending"),
        ({0: rows(1)}, {"tokens": (5,)}, InputError, "for each of 2 cells"),
        ({0: rows(1)}, {"tokens": (5, -1)}, InputError, "token id"),
    ],
)
def test_what_is_no_vector_is_refused_by_name(
    values: dict[int, Any], settings: dict[str, Any], kind: type[VectorError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        CacheVector(values, **{"cells": (-2, -1), **settings})


def test_a_vector_of_another_model_is_refused(tiny: Callable[[str], TinyModel]) -> None:
    model = Model.load(tiny("llama").path)
    vector = CacheVector({0: rows(1)}, cells=[-2, -1]).with_source(model)
    vector.check(model)
    other = vector.with_metadata(replace(vector.metadata, weights_fingerprint="0" * 64))
    with pytest.raises(VectorModelMismatchError, match="whose weights are not those of"):
        other.check(model)
    other.check(model, allow_other_weights=True)
    foreign = vector.with_metadata(replace(vector.metadata, architecture="gemma3"))
    with pytest.raises(VectorModelMismatchError, match="architecture 'gemma3'"):
        foreign.check(model)
    deep = CacheVector({99: rows(1)}, cells=[-2, -1])
    with pytest.raises(VectorModelMismatchError, match="edits layer 99"):
        deep.check(model, allow_other_weights=True)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(VectorNotFoundError, match=r"no cache vector .*gone\.gguf"):
        CacheVector.load(tmp_path / "gone.gguf")
    with pytest.raises(VectorFileError, match="is not a file"):
        CacheVector.load(tmp_path)


def test_each_kind_of_vector_refuses_the_others_file(vector: CacheVector, tmp_path: Path) -> None:
    vector.save(tmp_path / "cache.gguf")
    control = ControlVector({1: [1.0, 2.0]}, metadata=VectorMetadata(architecture="llama"))
    control.save(tmp_path / "control.gguf")
    with pytest.raises(VectorFileError, match=r"'controlvector'.*pass a cache vector"):
        CacheVector.load(tmp_path / "control.gguf")
    with pytest.raises(VectorFileError, match=r"'pyemo-cache'.*pass a control vector"):
        ControlVector.load(tmp_path / "cache.gguf")


def test_only_a_cache_vector_is_replaced(vector: CacheVector, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep")
    with pytest.raises(VectorFileError, match="is not a cache vector"):
        vector.save(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "keep"
    vector.save(tmp_path / "angry.gguf")
    vector.save(tmp_path / "angry.gguf")


def written(path: Path, tensors: dict[str, Any], **fields: Any) -> Path:
    """Write a file by the gguf package with these tensors."""
    writer = gguf.GGUFWriter(path, "pyemo-cache")
    writer.add_uint32("pyemo.format_version", fields.pop("version", 1))
    for key, value in {"pyemo.cache.cells": [-2, -1], **fields}.items():
        if value is not None:
            kind = gguf.GGUFValueType
            item = kind.INT32 if isinstance(value, list) else None
            writer.add_key_value(key, value, kind.ARRAY if item else kind.STRING, item)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("tensors", "fields", "message"),
    [
        ({}, {}, "holds no values"),
        ({"direction.1": rows(1)}, {}, "holds the tensor 'direction.1'"),
        ({"value.01": rows(1)}, {}, "holds the tensor 'value.01'"),
        ({"value.9999": rows(1)}, {}, "layers in a file run from 0 to 4095"),
        ({"value.1": rows(1).astype(np.float16)}, {}, "ggml type 1"),
        ({"value.1": rows(1)[0]}, {}, "a row for each cell"),
        ({"value.1": rows(1, 3)}, {}, "for each of its 2 cells"),
        ({"value.1": np.full((2, 3), np.inf, np.float32)}, {}, "NaN or infinity in value.1"),
        ({"value.1": rows(1)}, {"version": 2}, "upgrade pyemo"),
        ({"value.1": rows(1)}, {"pyemo.cache.cells": None}, "pyemo.cache.cells is None"),
        ({"value.1": rows(1)}, {"pyemo.cache.cells": [1, 2]}, "counted from the prompt's end"),
        ({"value.1": rows(1)}, {"pyemo.cache.cells": "all"}, "array of int32"),
        ({"value.1": rows(1)}, {"pyemo.cache.tokens": [1]}, "for each of 2 cells"),
        ({"value.1": rows(1)}, {"pyemo.emotion": "a\x1b[2J"}, "printable text"),
    ],
)
def test_a_strangers_file_is_refused_by_name(
    tmp_path: Path, tensors: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    path = written(tmp_path / "bad.gguf", tensors, **fields)
    with pytest.raises(VectorError, match=message) as refused:
        CacheVector.load(path)
    assert "bad.gguf" in str(refused.value)


def test_a_file_cut_anywhere_is_refused(vector: CacheVector, tmp_path: Path) -> None:
    vector.save(tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for n_bytes in [*range(0, len(whole), 7), len(whole) - 1]:
        cut.write_bytes(whole[:n_bytes])
        with pytest.raises(VectorError):
            CacheVector.load(cut)
    cut.write_bytes(whole + b"x")
    with pytest.raises(VectorFileError, match="1 bytes after its last row"):
        CacheVector.load(cut)


def test_a_damaged_file_loads_or_is_refused_by_name(vector: CacheVector, tmp_path: Path) -> None:
    vector.save(tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    rng, damaged = random.Random(0), tmp_path / "damaged.gguf"
    n_refused = 0
    for _ in range(200):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(len(content))] = rng.choice(
                (0, 1, 0x7F, 0xFF, rng.randrange(256))
            )
        damaged.write_bytes(content)
        try:
            CacheVector.load(damaged)
        except VectorError:
            n_refused += 1
    assert n_refused >= 50
    shutil.copy(tmp_path / "whole.gguf", damaged)
    assert CacheVector.load(damaged).cells == vector.cells
