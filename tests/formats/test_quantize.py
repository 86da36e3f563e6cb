"""Another format of a file: what it holds, where it goes, and what is left when it fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_models import TinyModel

from pyemo import Model
from pyemo.errors import InputError, ModelLoadError, ModelNotFoundError
from pyemo.files.catalog import requantized_path, resolve_model
from pyemo.formats.quantize import FORMATS, requantize, tensor_types


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("PYEMO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("format", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_matrices_get_the_format_and_its_numbers(
    tiny_model_path: Path, cache: Path, format: str
) -> None:
    done = requantize(tiny_model_path, format)
    assert done.path.is_relative_to(cache)
    assert format.casefold() in {part.type for part in done.tensor_types}
    before, after = (
        {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        for path in (tiny_model_path, done.path)
    )
    name = "blk.1.ffn_up.weight"
    kind = after[name].tensor_type
    assert kind.name == format
    expected = gguf.quantize(gguf.dequantize(before[name].data, before[name].tensor_type), kind)
    found = gguf.dequantize(after[name].data, kind)
    np.testing.assert_allclose(found, gguf.dequantize(expected, kind), atol=0.02)


def test_the_weights_keep_their_fingerprint(tiny_model_path: Path, cache: Path) -> None:
    other = Model.load(requantize(tiny_model_path, "q4_0").path)
    assert other.weights_fingerprint == Model.load(tiny_model_path).weights_fingerprint


def test_tensor_types_add_up_to_the_files_tensors(tiny_model_path: Path) -> None:
    tensors = gguf.GGUFReader(tiny_model_path).tensors
    (only,) = tensor_types(tiny_model_path)
    assert only.type == "f32"
    assert only.n_tensors == len(tensors)
    assert only.n_bytes == sum(int(tensor.n_bytes) for tensor in tensors)


def test_a_file_that_is_there_is_left_as_it_is(tiny_model_path: Path, cache: Path) -> None:
    first = requantize(tiny_model_path, "Q8_0")
    stamp = first.path.stat().st_mtime_ns
    second = requantize(tiny_model_path, "Q8_0")
    assert (first.was_there, second.was_there) == (False, True)
    assert second.path.stat().st_mtime_ns == stamp


def test_progress_counts_the_tensors(tiny_model_path: Path, cache: Path) -> None:
    steps: list[tuple[int, int]] = []
    requantize(tiny_model_path, "Q8_0", on_progress=lambda *step: steps.append(step))
    n = len(gguf.GGUFReader(tiny_model_path).tensors)
    assert steps == [(i, n) for i in range(1, n + 1)]


def test_an_unknown_format_is_refused_with_those_there_are(tiny_model_path: Path) -> None:
    with pytest.raises(InputError, match=r"no format 'Q4'; there are F32, .*Q4_0"):
        requantize(tiny_model_path, "Q4")


def test_the_source_is_not_overwritten(tiny_model_path: Path) -> None:
    with pytest.raises(InputError, match="is the model itself"):
        requantize(tiny_model_path, "Q8_0", target=tiny_model_path, again=True)


def test_what_the_quantizer_refuses_is_said_and_leaves_nothing(
    tiny: Callable[[str], TinyModel], tmp_path: Path, cache: Path
) -> None:
    damaged = tmp_path / "damaged.gguf"
    data = tiny("llama").path.read_bytes()
    damaged.write_bytes(data.replace(b"general.architecture", b"general.architecturf"))
    with pytest.raises(ModelLoadError):
        requantize(damaged, "Q8_0")
    assert not list(cache.rglob("*.gguf"))


def test_a_target_that_cannot_be_written_is_named(tiny_model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ModelLoadError, match="cannot write"):
        requantize(tiny_model_path, "Q8_0", target=tmp_path / "file" / "x.gguf")


def test_a_catalog_model_is_found_again_by_name_and_format(
    tiny_model_path: Path, cache: Path
) -> None:
    path = requantized_path("smollm2-135m-instruct", "Q8_0")
    requantize(tiny_model_path, "Q8_0", target=path)
    for text in ("smollm2-135m-instruct:Q8_0", "SmolLM2-135M-Instruct:q8_0", str(path)):
        resolved = resolve_model(text)
        assert (resolved.name, resolved.path) == ("smollm2-135m-instruct:Q8_0", path)


def test_a_format_that_was_not_made_names_the_command(cache: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="pyemo models requantize gemma-3-270m Q4_0"):
        resolve_model("gemma-3-270m:q4_0")


def test_formats_are_llama_cpps() -> None:
    import llama_cpp

    for name, number in FORMATS.items():
        word = "ALL" if name == "F32" else "MOSTLY"
        assert getattr(llama_cpp, f"LLAMA_FTYPE_{word}_{name}") == number
