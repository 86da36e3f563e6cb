"""Promises of a model in several files: it is the model that one file would be."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_models import TinyModel

from pyemo import Engine, Model
from pyemo.errors import ModelLoadError, ModelNotFoundError


def split(source: Path, target: Path, *, header_alone: bool) -> Path:
    """Write a model again in parts of 10 tensors, by gguf's own writer; return the first."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama", split_max_tensors=10, small_first_shard=header_alone)
    for field in reader.fields.values():
        if field.name != "general.architecture" and not field.name.startswith("GGUF."):
            array = field.types[1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], array)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(target.parent.glob(f"{target.stem}-00001-of-*.gguf"))


@pytest.mark.parametrize("header_alone", [False, True])
def test_split_model_computes_as_the_whole_one(
    tiny: Callable[[str], TinyModel], tmp_path: Path, header_alone: bool
) -> None:
    whole = tiny("llama").path
    first = split(whole, tmp_path / "m.gguf", header_alone=header_alone)
    logits = []
    for path in (whole, first):
        with Engine(path, n_ctx=256, n_threads=1) as engine, engine.sequence("a text") as sequence:
            logits.append(sequence.logits())
    assert np.array_equal(*logits)


@pytest.mark.parametrize("header_alone", [False, True])
def test_split_model_has_the_fingerprint_of_the_whole_one(
    tiny: Callable[[str], TinyModel], tmp_path: Path, header_alone: bool
) -> None:
    whole = tiny("llama").path
    first = split(whole, tmp_path / "m.gguf", header_alone=header_alone)
    assert Model.load(first).weights_fingerprint == Model.load(whole).weights_fingerprint


def test_models_that_differ_in_a_later_part_have_other_fingerprints(
    tiny: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    first = split(tiny("llama").path, tmp_path / "m.gguf", header_alone=False)
    before = Model.load(first).weights_fingerprint
    last = max(tmp_path.glob("m-*.gguf"))
    norm = next(t for t in gguf.GGUFReader(last).tensors if "norm" in t.name)
    with last.open("r+b") as file:
        file.seek(norm.data_offset)
        file.write(b"\1")
    assert Model.load(first).weights_fingerprint != before


def test_a_later_part_that_changes_after_the_load_is_noticed(
    tiny: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    first = split(tiny("llama").path, tmp_path / "m.gguf", header_alone=False)
    model = Model.load(first)
    os.utime(max(tmp_path.glob("m-*.gguf")), ns=(1, 1))
    with pytest.raises(ModelLoadError, match="has changed since it was loaded"):
        _ = model.weights_fingerprint


def test_split_model_without_a_part_is_refused(
    tiny: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    first = split(tiny("llama").path, tmp_path / "m.gguf", header_alone=False)
    max(tmp_path.glob("m-*.gguf")).unlink()
    with pytest.raises(ModelNotFoundError, match="is missing beside it"):
        Engine(first)
