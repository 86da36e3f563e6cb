"""Files of other tools mean in pyemo what they mean there; docs/other-tools.md shows it."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import logits_after, needs_torch
from pages import ROOT, read, script
from tiny_models import TinyModel

from pyemo import ControlVector, Engine, Model, Steering
from pyemo.errors import (
    InputError,
    PyemoError,
    VectorError,
    VectorFileError,
    VectorModelMismatchError,
    VectorNotFoundError,
)
from pyemo.vectors import file as vector_file
from pyemo.vectors.file import VectorFile
from pyemo.vectors.foreign import ForeignVector, read_foreign
from pyemo.vectors.metadata import FittedCondition, VectorMetadata

GOLDEN = Path(__file__).parents[1] / "golden"
TOOLS = GOLDEN / "tools"
SCALE = 0.5
# tool of tests/golden/make_tools.py -> files, and what the caller has to say
FILES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "repeng": (["repeng.gguf"], {}),
    "EasySteer": (["easysteer.gguf"], {}),
    "cvector-generator": (["cvector-generator.gguf"], {}),
    "jukofyork": (["tiny-llama-language__ornate.gguf", "tiny-llama-language__debias.gguf"], {}),
    "saklas, GGUF": (["saklas.gguf"], {}),
    "saklas, pack": (["saklas-pack"], {"hint": "llama"}),
    "steering-vectors": (["steering-vectors.pt"], {"hint": "llama"}),
    "persona_vectors": (["calm_response_avg_diff.pt"], {"hint": "llama"}),
}


@pytest.fixture(scope="module")
def changes() -> dict[str, Any]:
    with np.load(TOOLS / "logit_changes.npz") as kept:
        return dict(kept)


@pytest.fixture
def engine(new_engine: Callable[..., Engine]) -> Engine:
    return new_engine("llama")


@pytest.fixture
def new_engine(tiny: Callable[[str], TinyModel]) -> Any:
    from engines import open_engine

    opened = []

    def new_engine(architecture: str) -> Engine:
        opened.append(open_engine(Model.load(tiny(architecture).path)))
        return opened[-1]

    yield new_engine
    for engine in opened:
        engine.close()


def read_all(tool: str) -> list[ForeignVector]:
    names, said = FILES[tool]
    return [read_foreign(TOOLS / name, **said) for name in names]


def cosine(found: Any, expected: Any) -> float:
    found, expected = (np.asarray(values, np.float64) for values in (found, expected))
    return float(found @ expected / np.linalg.norm(found) / np.linalg.norm(expected))


@needs_torch  # .pt files are among them
@pytest.mark.parametrize("tool", FILES)
def test_logits_change_as_by_the_tool_itself(
    tool: str, engine: Engine, changes: dict[str, Any]
) -> None:
    vectors = [found.vector for found in read_all(tool)]
    if tool == "persona_vectors":  # which steers one block at a time
        vectors = [vectors[0].only_layers([2])]
    mood = Steering(dict.fromkeys(vectors, SCALE))
    tokens = changes["tokens"].tolist()
    found = logits_after(engine, tokens, mood) - logits_after(engine, tokens)
    assert cosine(found, changes[tool]) > 0.99999
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(changes[tool]), rel=1e-2)


@needs_torch
@pytest.mark.parametrize("tool", FILES)
def test_the_table_says_what_pyemo_says(tool: str) -> None:
    """docs/other-tools.md: tool, file, whose it is, its blocks, what was taken as what."""
    page = read(ROOT / "docs" / "other-tools.md")
    for name, found in zip(FILES[tool][0], read_all(tool), strict=True):
        layers = f"{found.vector.layers[0]} to {found.vector.layers[-1]}"
        notes = "; ".join(found.notes)
        assert f"\n| {tool} | `{name}` | {found.tool} | {layers} | {notes} |\n" in page


@needs_torch
def test_gguf_py_writes_what_llama_cpps_own_writer_writes(tmp_path: Path) -> None:
    make_tools = script(GOLDEN / "make_tools.py")
    golden = GOLDEN / "cvector-generator.gguf"
    directions = dict(ControlVector.load(golden).directions)
    make_tools.write_gguf(tmp_path / "again.gguf", "llama", directions, count_is_signed=True)
    assert (tmp_path / "again.gguf").read_bytes() == golden.read_bytes()


# --- numbers of layers ---


def test_direction_0_is_block_0() -> None:
    found = read_foreign(TOOLS / "easysteer.gguf")
    assert found.vector.layers == (0, 1, 2, 3)
    assert any("direction.0 is taken as block 0" in note for note in found.notes)


def test_a_layer_base_of_1_moves_every_direction_down_and_drops_what_lies_before() -> None:
    found = read_foreign(TOOLS / "easysteer.gguf", layer_base=1)
    plain = read_foreign(TOOLS / "easysteer.gguf")
    assert found.vector.layers == (0, 1, 2)
    assert np.array_equal(found.vector.directions[0], plain.vector.directions[1])
    assert any("was left out" in note for note in found.notes)


def test_a_base_that_was_asked_for_is_said() -> None:
    found = read_foreign(TOOLS / "cvector-generator.gguf", layer_base=1)
    assert found.vector.layers == (0, 1, 2)
    assert any("block 0 has number 1 in it, as asked" in note for note in found.notes)


def test_what_was_measured_of_a_vector_goes_when_its_layers_move(tmp_path: Path) -> None:
    rows = {layer: np.ones(4, np.float32) for layer in range(1, 4)}
    condition = FittedCondition(layer=2, threshold=0.1)
    metadata = VectorMetadata(
        emotion="angry",
        residual_norms=(1.0,) * 4,
        neutral_projections=(0.5,) * 4,
        strength=0.3,
        condition=condition,
        architecture="llama",
    )
    vector_file.write(tmp_path / "it.gguf", VectorFile(rows, metadata.to_fields(), "llama"))
    found = read_foreign(tmp_path / "it.gguf", layer_base=1).vector.metadata
    assert (found.strength, found.condition, found.neutral_projections) == (None, None, ())
    assert (found.emotion, found.residual_norms) == ("angry", metadata.residual_norms)
    kept = read_foreign(tmp_path / "it.gguf").vector.metadata
    assert (kept.strength, kept.condition) == (0.3, condition)


def test_a_vector_in_residual_units_is_not_moved() -> None:
    with pytest.raises(InputError, match="residual units"):
        read_foreign(GOLDEN / "v1-residual.gguf", layer_base=1)


def test_a_file_of_pyemos_is_read_as_it_is() -> None:
    found = read_foreign(GOLDEN / "v1-residual.gguf")
    loaded = ControlVector.load(GOLDEN / "v1-residual.gguf")
    assert found.tool == "pyemo"
    assert found.vector.metadata == loaded.metadata
    assert found.notes == ()


def save(path: Path, value: Any) -> Path:
    import torch

    torch.save(value, path)
    return path


def tensor(*shape: int) -> Any:
    import torch

    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


@needs_torch
def test_rows_without_numbers_are_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "stack.pt", tensor(4, 64))
    with pytest.raises(InputError, match=r"4 rows and does not say which is block 0.*--layer-base"):
        read_foreign(path)


@needs_torch
@pytest.mark.parametrize(("n_rows", "layers"), [(4, (0, 1, 2, 3)), (5, (0, 1, 2, 3))])
def test_a_model_tells_how_many_rows_there_must_be(
    n_rows: int, layers: tuple[int, ...], tmp_path: Path, tiny_model_path: Path
) -> None:
    rows = tensor(n_rows, 64)
    path = save(tmp_path / "stack.pt", rows)
    found = read_foreign(path, model=Model.load(tiny_model_path))
    assert found.vector.layers == layers
    assert np.array_equal(found.vector.directions[3], rows[n_rows - 1].numpy())
    assert any(f"{n_rows} rows for 4 blocks" in note for note in found.notes)
    assert found.vector.metadata.architecture == "llama"


@needs_torch
def test_rows_that_fit_no_model_are_not_guessed(tmp_path: Path, tiny_model_path: Path) -> None:
    path = save(tmp_path / "stack.pt", tensor(7, 64))
    with pytest.raises(InputError, match="--layer-base"):
        read_foreign(path, model=Model.load(tiny_model_path))


@needs_torch
def test_one_direction_needs_its_block(tmp_path: Path) -> None:
    path = save(tmp_path / "one.pt", tensor(64))
    with pytest.raises(InputError, match="--layer N"):
        read_foreign(path)
    assert read_foreign(path, layer=2).vector.layers == (2,)


@needs_torch
def test_a_block_is_not_taken_for_a_file_that_says_its_layers() -> None:
    with pytest.raises(InputError, match="leave --layer out"):
        read_foreign(TOOLS / "steering-vectors.pt", layer=2)


@needs_torch
def test_names_with_numbers_are_layers(tmp_path: Path) -> None:
    rows = {"model.layers.0.steer": tensor(64), "model.layers.3.steer": tensor(64)}
    assert read_foreign(save(tmp_path / "named.pt", rows)).vector.layers == (0, 3)


@needs_torch
def test_names_without_a_zero_do_not_say_their_base(tmp_path: Path) -> None:
    path = save(tmp_path / "named.pt", {"layer.1": tensor(64), "layer.2": tensor(64)})
    with pytest.raises(InputError, match="--layer-base"):
        read_foreign(path)
    assert read_foreign(path, layer_base=1).vector.layers == (0, 1)


@needs_torch
def test_rows_of_zeros_are_left_out_and_said(tmp_path: Path) -> None:
    rows = {0: tensor(64), 1: 0 * tensor(64)}
    found = read_foreign(save(tmp_path / "zeros.pt", rows))
    assert found.vector.layers == (0,)
    assert any("1 directions of zeros were left out" in note for note in found.notes)


@needs_torch
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_other_number_types_become_float32(kind: str, tmp_path: Path) -> None:
    import torch

    rows = {0: tensor(64).to(getattr(torch, kind))}
    found = read_foreign(save(tmp_path / "rows.pt", rows)).vector.directions[0]
    assert np.array_equal(found, rows[0].to(torch.float32).numpy())


def test_flip_turns_every_direction_round() -> None:
    plain = read_foreign(TOOLS / "repeng.gguf").vector
    found = read_foreign(TOOLS / "repeng.gguf", flip=True)
    assert np.array_equal(found.vector.directions[1], -plain.directions[1])
    assert found.vector.name == plain.name


# --- what is said ---


@pytest.mark.parametrize(
    ("zeros", "said"),
    [
        ((1,), "1 of its 3 directions are zeros, which steer nothing, the first at block 1"),
        ((1, 2, 3), "all its directions are zeros, which steer nothing"),
    ],
)
def test_zeros_of_a_vector_file_are_said(zeros: tuple[int, ...], said: str, tmp_path: Path) -> None:
    rows = {layer: np.full(4, layer not in zeros, np.float32) for layer in (1, 2, 3)}
    vector_file.write(tmp_path / "it.gguf", VectorFile(rows, {}, "llama"))
    assert said in read_foreign(tmp_path / "it.gguf").notes


def test_lengths_that_differ_are_said() -> None:
    notes = read_foreign(TOOLS / "tiny-llama-language__debias.gguf").notes
    assert any("1 to 2 long, which is part of the method" in note for note in notes)


def test_the_second_file_of_a_pack_is_named(tmp_path: Path) -> None:
    """Names of jukofyork's packs hold a colon."""
    for name in ("ornate", "debias"):
        source = TOOLS / f"tiny-llama-language__{name}.gguf"
        shutil.copy(source, tmp_path / f"tiny-llama:8b-language__{name}.gguf")
    notes = read_foreign(tmp_path / "tiny-llama:8b-language__ornate.gguf").notes
    assert any("steer with 'tiny-llama:8b-language__debias.gguf' too" in note for note in notes)


def test_fields_of_easysteer_are_said() -> None:
    notes = read_foreign(TOOLS / "easysteer.gguf").notes
    assert any("method 'DiffMean', normalize 1.0" in note for note in notes)


def test_a_pack_names_its_model() -> None:
    found = read_foreign(TOOLS / "saklas-pack", hint="llama")
    assert found.vector.metadata.source_model == "example/tiny-llama"


def test_a_vector_of_another_width_is_refused_naming_both(tiny_model_path: Path) -> None:
    found = read_foreign(GOLDEN / "repeng.gguf")
    with pytest.raises(VectorModelMismatchError, match=r"wide \(n_embd\), the model .* 64"):
        found.vector.check(Model.load(tiny_model_path), allow_other_weights=True)


# --- harm ---


class Code:
    """What a pickle runs when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


@needs_torch
def test_code_in_a_pt_file_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "was-run"
    path = save(tmp_path / "code.pt", {0: tensor(64), "code": Code(trace)})
    with pytest.raises(VectorFileError, match="can run code, and was not opened"):
        read_foreign(path)
    assert not trace.exists()


@needs_torch
def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    trace, path = tmp_path / "was-run", tmp_path / "pickle.pt"
    path.write_bytes(pickle.dumps(Code(trace)))
    with pytest.raises(VectorFileError, match=r"not a file of torch.save"):
        read_foreign(path)
    assert not trace.exists()


@needs_torch
def test_an_object_of_steering_vectors_is_told_what_to_save(tmp_path: Path) -> None:
    path = save(tmp_path / "object.pt", Path("an object"))
    with pytest.raises(VectorFileError, match=r"torch.save\(vector.layer_activations, path\)"):
        read_foreign(path)


@needs_torch
def test_a_tensor_that_claims_more_than_its_file_is_refused(tmp_path: Path) -> None:
    import torch

    path = save(tmp_path / "wide.pt", {0: torch.zeros(1).expand(1 << 40)})
    with pytest.raises(VectorFileError, match="more than a vector"):
        read_foreign(path)


@needs_torch
def test_an_archive_that_would_unpack_to_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * ((1 << 29) + 1))
    with pytest.raises(VectorFileError, match="would take 536870913 bytes"):
        read_foreign(path)


@needs_torch
@pytest.mark.parametrize(
    "value",
    [{}, [], "text", {0: "text"}, {-1: 1.0}, {0: {1: {}}}, None, 3],
    ids=repr,
)
def test_what_is_no_vector_is_refused_by_name(value: Any, tmp_path: Path) -> None:
    with pytest.raises(VectorFileError, match=r"odd\.pt"):
        read_foreign(save(tmp_path / "odd.pt", value))


@needs_torch
def test_damaged_pt_files_are_errors_that_name_them(tmp_path: Path) -> None:
    good = (TOOLS / "steering-vectors.pt").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(good)
        for place in rng.integers(0, len(good), 3):
            damaged[place] = rng.integers(256)
        path = tmp_path / "damaged.pt"
        path.write_bytes(damaged[: rng.integers(len(good) // 2, len(good) + 1)])
        try:
            assert read_foreign(path).vector.n_embd > 0
        except PyemoError as error:
            assert "damaged.pt" in str(error)  # noqa: PT017


def safetensors(tensors: Any, data: bytes = b"", header: bytes | None = None) -> bytes:
    header = json.dumps(tensors).encode() if header is None else header
    return struct.pack("<Q", len(header)) + header + data


def entry(begin: int, end: int, shape: Any = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


ROW = np.array([1.0, 2.0], np.float32).tobytes()
BAD_SAFETENSORS = {
    "overlap": (
        safetensors({"layer_0": entry(0, 8), "layer_1": entry(4, 12)}, ROW * 2),
        "overlaps",
    ),
    "same place": (safetensors({"layer_0": entry(0, 8), "layer_1": entry(0, 8)}, ROW), "overlaps"),
    "gap": (safetensors({"layer_0": entry(4, 12)}, ROW * 2), "leaves a gap"),
    "negative": (safetensors({"layer_0": entry(-8, 0)}, ROW), "whole numbers from 0"),
    "backwards": (safetensors({"layer_0": entry(8, 0)}, ROW), "begins at 8 and ends at 0"),
    "past the end": (safetensors({"layer_0": entry(0, 8)}, ROW[:6]), "would end past"),
    "more data": (safetensors({"layer_0": entry(0, 8)}, ROW + b"x"), "1 bytes after"),
    "shape": (safetensors({"layer_0": entry(0, 8, (3,))}, ROW), "does not take 8"),
    "huge shape": (safetensors({"layer_0": entry(0, 8, (1 << 50,))}, ROW), "whole numbers"),
    "float shape": (safetensors({"layer_0": entry(0, 8, (2.0,))}, ROW), "whole numbers"),
    "integers": (safetensors({"layer_0": entry(0, 8, dtype="I32")}, ROW), "of type 'I32'"),
    "long header": (struct.pack("<Q", 1 << 60) + b"{}", "header would end past"),
    "no header": (b"\1\0", "header would end past"),
    "not JSON": (safetensors(None, ROW, b"{layer_0"), "not JSON"),
    "nesting": (safetensors(None, ROW, b"[" * 100_000), "not JSON"),
    "list": (safetensors([1]), "not an object"),
    "empty": (safetensors({}), "holds 0 tensors"),
    "no entry": (safetensors({"layer_0": 7}, ROW), "described by 7"),
    "twice": (
        safetensors(None, ROW, b'{"layer_0": %b, "layer_0": %b}' % ((b'{"dtype":"F32"}',) * 2)),
        "a name twice",
    ),
    "infinite": (
        safetensors({"layer_1": entry(0, 8)}, np.array([1, np.inf], np.float32).tobytes()),
        "NaN or infinity",
    ),
    "manifold": (
        safetensors({"layer_0.mean": entry(0, 8), "layer_0.basis": entry(8, 16)}, ROW * 2),
        "a manifold of saklas",
    ),
}


@pytest.mark.parametrize("name", BAD_SAFETENSORS)
def test_damaged_safetensors_are_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    data, message = BAD_SAFETENSORS[name]
    path.write_bytes(data)
    with pytest.raises(VectorError, match=rf"bad\.safetensors.*{re.escape(message)}"):
        read_foreign(path)


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("F64", np.array([1.5, -2.0]).tobytes()),
        ("F16", np.array([1.5, -2.0], np.float16).tobytes()),
        ("BF16", bytes([0xC0, 0x3F, 0x00, 0xC0])),
    ],
)
def test_safetensors_of_other_widths_are_read(dtype: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(safetensors({"layer_5": entry(0, len(data), dtype=dtype)}, data))
    vector = read_foreign(path).vector
    assert vector.directions[5].tolist() == [1.5, -2.0]


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TOOLS / "saklas-pack", tmp_path / "pack"))


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/hostname", "..", "a\\..\\b", ""])
def test_a_pack_that_points_outside_its_folder_is_refused(name: str, pack: Path) -> None:
    (pack.parent / "outside.safetensors").write_bytes(b"x")
    manifest = json.loads((pack / "pack.json").read_text())
    (pack / "pack.json").write_text(json.dumps({**manifest, "files": {name: "0" * 64}}))
    with pytest.raises(VectorFileError, match="outside its folder"):
        read_foreign(pack)


def test_a_link_out_of_a_pack_is_refused(pack: Path) -> None:
    tensors = next(pack.glob("*.safetensors"))
    outside = pack.parent / "outside.safetensors"
    tensors.rename(outside)
    tensors.symlink_to(outside)
    with pytest.raises(VectorFileError, match="outside its folder"):
        read_foreign(pack)


def test_a_file_of_a_pack_that_was_altered_is_refused(pack: Path) -> None:
    tensors = next(pack.glob("*.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\1")
    with pytest.raises(VectorFileError, match="another SHA-256"):
        read_foreign(pack)
    with pytest.raises(VectorFileError, match=r"is not the file that .* describes"):
        read_foreign(tensors)


def test_a_file_of_a_pack_that_is_missing_is_named(pack: Path) -> None:
    next(pack.glob("*.safetensors")).unlink()
    with pytest.raises(VectorFileError, match="not there"):
        read_foreign(pack)


def test_a_pack_for_several_models_asks_for_one(pack: Path) -> None:
    tensors = next(pack.glob("*.safetensors"))
    shutil.copy(tensors, pack / "google__gemma-3-270m.safetensors")
    manifest = json.loads((pack / "pack.json").read_text())
    (pack / "pack.json").write_text(json.dumps({**manifest, "files": {}}))
    with pytest.raises(VectorFileError, match=r"for 2 models; name one .*google__gemma"):
        read_foreign(pack)
    found = read_foreign(pack / "google__gemma-3-270m.safetensors")
    assert found.vector.metadata.source_model == "google/gemma-3-270m"


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"files": 3}'])
def test_a_damaged_manifest_is_refused_by_name(text: str, pack: Path) -> None:
    (pack / "pack.json").write_text(text)
    with pytest.raises(VectorFileError, match=r"pack\.json"):
        read_foreign(pack)


def test_a_folder_without_a_pack_asks_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(VectorFileError, match=r"without a pack\.json"):
        read_foreign(tmp_path)


def test_no_file_and_no_known_form_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(VectorNotFoundError, match=r"nothing\.pt"):
        read_foreign(tmp_path / "nothing.pt")
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(VectorFileError, match=r"notes\.txt.* of no known form"):
        read_foreign(tmp_path / "notes.txt")


def test_a_model_does_not_replace_what_the_file_says(tiny_model_path: Path) -> None:
    found = read_foreign(TOOLS / "easysteer.gguf", model=Model.load(tiny_model_path))
    assert found.vector.metadata.architecture == "unknown"
