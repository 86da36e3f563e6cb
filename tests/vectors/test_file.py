"""The control-vector file: exact, atomic, and safe to read from strangers."""

import ctypes
import importlib.util
import os
import struct
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from pyemo.errors import VectorError, VectorFileError, VectorNotFoundError, VectorShapeError
from pyemo.vectors import file as vector_file
from pyemo.vectors import gguf_header
from pyemo.vectors.file import VectorFile, read, write

GOLDEN = Path(__file__).parents[1] / "golden"

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
F32, F16 = 0, 1


# --- a GGUF writer that can lie --------------------------------------------------------------


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def field(key, kind, payload):
    return text(key) + struct.pack("<I", kind) + payload


def string_field(key, value):
    return field(key, STRING, text(value))


def tensor(name, dims=(4,), kind=F32, offset=0):
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


def data(*rows):
    return b"".join(np.array(row, "<f4").tobytes().ljust(32, b"\0") for row in rows)


IS_VECTOR = string_field("general.architecture", "controlvector")
HINT = string_field("controlvector.model_hint", "llama")
ONE = [tensor("direction.1")]
TWO = [tensor("direction.1"), tensor("direction.2", offset=32)]
ROW = [1.0, 2.0, 3.0, 4.0]


def gguf_bytes(
    fields=(IS_VECTOR, HINT),
    tensors=ONE,
    body=None,
    magic=b"GGUF",
    version=3,
    n_tensors=None,
    n_fields=None,
):
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(fields) if n_fields is None else n_fields,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(fields) + b"".join(tensors)
    if body is None:
        body = data(*[ROW] * len(tensors))
    return head.ljust((len(head) + 31) // 32 * 32, b"\0") + body


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vector.gguf"


def sample(**changes):
    rows = {1: np.arange(5, dtype=np.float32), 7: np.array([-1e-40, 1e38, 0.1, -0.0, 3], "f4")}
    values = {
        "directions": rows,
        "fields": {
            "pyemo.format_version": 1,
            "pyemo.note": "größer",
            "pyemo.flag": True,
            "pyemo.number": -7,
            "pyemo.share": 0.1,
            "pyemo.norms": np.array([0.1, 2.5], np.float32),
            "pyemo.words": ("a", "b"),
        },
        "model_hint": "llama",
    }
    return VectorFile(**{**values, **changes})


# --- what is written comes back --------------------------------------------------------------


def test_directions_come_back_bit_for_bit(path):
    write(path, sample())
    for layer, row in sample().directions.items():
        assert read(path).directions[layer].tobytes() == row.tobytes()


def test_fields_come_back_with_their_types(path):
    write(path, sample())
    fields = {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in read(path).fields.items()
    }
    assert fields == {
        "pyemo.format_version": 1,
        "pyemo.note": "größer",
        "pyemo.flag": True,
        "pyemo.number": -7,
        "pyemo.share": 0.1,
        "pyemo.norms": [np.float32(0.1).item(), 2.5],
        "pyemo.words": ("a", "b"),
    }


def test_write_read_write_gives_equal_bytes(path, tmp_path):
    write(path, sample())
    write(tmp_path / "again.gguf", read(path))
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()


def test_the_order_of_layers_and_fields_does_not_change_the_bytes(path, tmp_path):
    write(path, sample())
    turned = sample(
        directions=dict(reversed(sample().directions.items())),
        fields=dict(reversed(sample().fields.items())),
    )
    write(tmp_path / "turned.gguf", turned)
    assert (tmp_path / "turned.gguf").read_bytes() == path.read_bytes()


def test_the_gguf_package_reads_the_same_file(path):
    write(path, sample())
    reader = gguf.GGUFReader(path)
    assert {t.name: t.data.tobytes() for t in reader.tensors} == {
        f"direction.{layer}": row.tobytes() for layer, row in sample().directions.items()
    }
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.layer_count").contents() == 2
    assert reader.get_field("pyemo.note").contents() == "größer"


def test_a_file_without_fields_of_pyemo_is_read(path):
    path.write_bytes(gguf_bytes())
    file = read(path)
    assert (file.directions[1].tolist(), dict(file.fields), file.model_hint) == (ROW, {}, "llama")


def test_a_file_without_a_model_hint_is_read(path):
    path.write_bytes(gguf_bytes(fields=[IS_VECTOR]))
    assert read(path).model_hint == ""


@pytest.mark.parametrize("name", ["repeng.gguf", "cvector-generator.gguf"])
def test_files_of_other_tools_are_read(name):
    file = read(GOLDEN / name)
    assert list(file.directions) == [1, 2, 3]
    assert [np.linalg.norm(row) for row in file.directions.values()] == pytest.approx([1, 1, 1])


def test_layers_are_not_shifted_in_silence():
    expected = np.arange(1, 7, dtype=np.float64) - 1  # what was written as direction.2
    row = read(GOLDEN / "cvector-generator.gguf").directions[2]
    np.testing.assert_allclose(row, expected / np.linalg.norm(expected), rtol=1e-6)


# --- what others would make of it ------------------------------------------------------------


def llama_cpp_loads(path):
    """The rules of llama.cpp's control-vector loader (common.cpp), on llama.cpp's own parser."""
    folder = importlib.util.find_spec("llama_cpp").submodule_search_locations[0]
    lib = ctypes.CDLL(str(next(Path(folder, "lib").glob("libggml-base.*"))))
    pointer = ctypes.c_void_p

    class Params(ctypes.Structure):
        _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.POINTER(pointer)))

    lib.gguf_init_from_file.argtypes = [ctypes.c_char_p, Params]
    lib.gguf_init_from_file.restype = pointer
    lib.gguf_get_n_tensors.argtypes, lib.gguf_get_n_tensors.restype = [pointer], ctypes.c_int64
    lib.gguf_get_tensor_name.argtypes = [pointer, ctypes.c_int64]
    lib.gguf_get_tensor_name.restype = ctypes.c_char_p
    lib.gguf_get_tensor_type.argtypes = [pointer, ctypes.c_int64]
    lib.ggml_get_tensor.argtypes, lib.ggml_get_tensor.restype = [pointer, ctypes.c_char_p], pointer
    lib.ggml_n_dims.argtypes = lib.ggml_nelements.argtypes = [pointer]
    lib.ggml_nelements.restype = ctypes.c_int64
    lib.ggml_get_data.argtypes, lib.ggml_get_data.restype = [pointer], pointer
    lib.gguf_free.argtypes = lib.ggml_free.argtypes = [pointer]

    tensors = pointer()
    file = lib.gguf_init_from_file(os.fsencode(path), Params(False, ctypes.pointer(tensors)))
    assert file, "llama.cpp cannot open the file"
    rows = {}
    for index in range(lib.gguf_get_n_tensors(file)):
        name = lib.gguf_get_tensor_name(file, index)
        prefix, _, number = name.partition(b".")
        assert prefix == b"direction"
        assert int(number) > 0
        assert lib.gguf_get_tensor_type(file, index) == F32
        row = lib.ggml_get_tensor(tensors, name)
        assert lib.ggml_n_dims(row) == 1
        n_embd = lib.ggml_nelements(row)
        rows[int(number)] = ctypes.string_at(lib.ggml_get_data(row), 4 * n_embd)
    assert len({len(row) for row in rows.values()}) == 1
    lib.gguf_free(file)
    lib.ggml_free(tensors)
    return rows


def repeng_loads(path):
    """What repeng's import reads: architecture, model hint and the tensors named direction.N."""
    reader = gguf.GGUFReader(path)
    architecture = reader.get_field("general.architecture")
    assert bytes(architecture.parts[-1]) == b"controlvector"
    hint = reader.get_field("controlvector.model_hint")
    assert bytes(hint.parts[-1])
    return {
        int(t.name.split(".")[1]): t.data.tobytes()
        for t in reader.tensors
        if t.name.startswith("direction.")
    }


@pytest.mark.parametrize("reads", [llama_cpp_loads, repeng_loads])
def test_other_tools_load_the_same_directions(path, reads):
    write(path, sample())
    assert reads(path) == {layer: row.tobytes() for layer, row in sample().directions.items()}


@pytest.mark.parametrize("reads", [llama_cpp_loads, repeng_loads])
@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.gguf")), ids=lambda file: file.stem)
def test_other_tools_load_every_golden_file(file, reads):
    assert reads(file) == {layer: row.tobytes() for layer, row in read(file).directions.items()}


# --- strangers' files ------------------------------------------------------------------------


def numbers_field(key, kind, count, payload=b""):
    return field(key, ARRAY, struct.pack("<IQ", kind, count) + payload)


HUGE = (1 << 64) - 1
HOSTILE = {
    "empty": (b"", "is empty"),
    "one byte": (b"G", "not a GGUF file: it begins with b'G'"),
    "not GGUF": (b"PK\x03\x04 something else", "not a GGUF file"),
    "cut in the preamble": (gguf_bytes()[:10], "cut off"),
    "cut in a key": (gguf_bytes()[:30], "cut off"),
    "cut in the directions' names": (gguf_bytes()[:150], "cut off"),
    "cut in the data": (gguf_bytes()[:-1], "cut off: it has 223 bytes where .* 224"),
    "bytes after the data": (gguf_bytes() + b"x", "1 bytes after its last direction"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 1), "big-endian"),
    "version 1": (gguf_bytes(version=1), "GGUF version 1"),
    "version 4": (gguf_bytes(version=4), "GGUF version 4"),
    "a huge count of fields": (gguf_bytes(n_fields=HUGE), f"claims {HUGE} fields"),
    "a huge count of tensors": (gguf_bytes(n_tensors=HUGE), f"claims {HUGE} tensors"),
    "more tensors than there are": (gguf_bytes(n_tensors=4000), "cut off|holds the tensor"),
    "a huge key": (gguf_bytes([struct.pack("<Q", HUGE)], []), "name of field 0 would end past"),
    "a huge text": (
        gguf_bytes([IS_VECTOR, field("a.b", STRING, struct.pack("<Q", HUGE))]),
        "'a.b' would end past",
    ),
    "a huge array": (
        gguf_bytes([IS_VECTOR, numbers_field("a.b", FLOAT32, HUGE)]),
        f"'a.b' claims {HUGE} values",
    ),
    "an array longer than the file": (
        gguf_bytes([IS_VECTOR, numbers_field("a.b", FLOAT32, 65536)]),
        "'a.b' would end past",
    ),
    "an array of arrays": (
        gguf_bytes([IS_VECTOR, numbers_field("a.b", ARRAY, 1)]),
        "array of type 9",
    ),
    "a field of no type": (gguf_bytes([IS_VECTOR, field("a.b", 99, b"")]), "has type 99"),
    "a truth value of 2": (gguf_bytes([IS_VECTOR, field("a.b", BOOL, b"\2")]), "truth value"),
    "a field of NaN": (
        gguf_bytes([IS_VECTOR, field("a.b", FLOAT32, struct.pack("<f", float("nan")))]),
        "'a.b' holds NaN or infinity",
    ),
    "an array with infinity": (
        gguf_bytes([IS_VECTOR, numbers_field("a.b", FLOAT32, 1, struct.pack("<f", float("inf")))]),
        "'a.b' holds NaN or infinity",
    ),
    "text that is not UTF-8": (gguf_bytes([IS_VECTOR, string_field("a.b", b"\xff")]), "not UTF-8"),
    "a field twice": (gguf_bytes([IS_VECTOR, HINT, HINT]), "'controlvector.model_hint' twice"),
    "a model": (
        gguf_bytes([string_field("general.architecture", "llama"), HINT]),
        "'llama', not 'controlvector': it is a model",
    ),
    "no architecture": (
        gguf_bytes([HINT]),
        "general.architecture is missing; it must be 'controlvector'",
    ),
    "an architecture that is a number": (
        gguf_bytes([field("general.architecture", UINT32, struct.pack("<I", 1))]),
        "general.architecture 1, not",
    ),
    "an architecture that is an array": (
        gguf_bytes([numbers_field("general.architecture", UINT32, 2, bytes(8))]),
        "not 'controlvector'",
    ),
    "a hint that is a number": (
        gguf_bytes([IS_VECTOR, field("controlvector.model_hint", UINT32, struct.pack("<I", 1))]),
        "model_hint 1; it must be text",
    ),
    "an alignment of 0": (
        gguf_bytes([IS_VECTOR, field("general.alignment", UINT32, struct.pack("<I", 0))]),
        "general.alignment 0; it must be a power of two",
    ),
    "an alignment of text": (
        gguf_bytes([IS_VECTOR, string_field("general.alignment", "32")]),
        "general.alignment '32'",
    ),
    "a huge alignment": (
        gguf_bytes([IS_VECTOR, field("general.alignment", 10, struct.pack("<Q", 1 << 63))]),
        "cut off",
    ),
    "a later format": (
        gguf_bytes([IS_VECTOR, field("pyemo.format_version", UINT32, struct.pack("<I", 2))]),
        "pyemo.format_version 2; this pyemo reads 1: upgrade pyemo",
    ),
    "format 0": (
        gguf_bytes([IS_VECTOR, field("pyemo.format_version", UINT32, struct.pack("<I", 0))]),
        "pyemo.format_version 0",
    ),
    "a format of text": (
        gguf_bytes([IS_VECTOR, string_field("pyemo.format_version", "1")]),
        "pyemo.format_version '1'",
    ),
    "fields of pyemo without a format": (
        gguf_bytes([IS_VECTOR, string_field("pyemo.emotion", "angry")]),
        "fields of pyemo but no pyemo.format_version",
    ),
    "no tensor": (gguf_bytes(tensors=[]), "holds no direction"),
    "a foreign tensor": (
        gguf_bytes(tensors=[*ONE, tensor("output.weight", offset=32)]),
        "holds the tensor 'output.weight'",
    ),
    "direction.4096": (gguf_bytes(tensors=[tensor("direction.4096")]), "layers .* from 0 to 4095"),
    "direction.01": (gguf_bytes(tensors=[tensor("direction.01")]), "holds the tensor"),
    "direction.-1": (gguf_bytes(tensors=[tensor("direction.-1")]), "holds the tensor"),
    "direction.1x": (gguf_bytes(tensors=[tensor("direction.1x")]), "holds the tensor"),
    "direction.٣": (gguf_bytes(tensors=[tensor("direction.٣")]), "holds the tensor"),
    "direction.2000000000": (
        gguf_bytes(tensors=[tensor("direction.2000000000")]),
        "direction.2000000000; layers in a file run from 0 to 4095",
    ),
    "a huge name": (
        gguf_bytes(tensors=[tensor("direction." + "9" * 100_000)]),
        "holds the tensor 'direction.9999",
    ),
    "the same direction twice": (
        gguf_bytes(tensors=[*ONE, tensor("direction.1", offset=32)]),
        "direction.1 twice",
    ),
    "an offset outside the file": (
        gguf_bytes(tensors=[tensor("direction.1", offset=1 << 40)]),
        "lie at 1099511627776, not 0",
    ),
    "two directions in one place": (
        gguf_bytes(tensors=[*ONE, tensor("direction.2", offset=0)]),
        "direction.2 is said to lie at 0, not 32",
    ),
    "too many dimensions": (
        gguf_bytes(tensors=[text("direction.1") + struct.pack("<I", 1 << 31)]),
        "claims 2147483648 dimensions",
    ),
}
WRONG_SHAPES = {
    "float16": (gguf_bytes(tensors=[tensor("direction.1", kind=F16)]), "ggml type 1; .* float32"),
    "two rows": (gguf_bytes(tensors=[tensor("direction.1", dims=(4, 2))]), r"shape \(4, 2\)"),
    "no dimension": (gguf_bytes(tensors=[tensor("direction.1", dims=())]), r"shape \(\)"),
    "no number": (gguf_bytes(tensors=[tensor("direction.1", dims=(0,))], body=b""), r"\(0,\)"),
    "another width": (
        gguf_bytes(tensors=[*ONE, tensor("direction.2", dims=(8,), offset=32)]),
        "direction.2 8 wide and direction.1 4",
    ),
    "NaN": (gguf_bytes(tensors=TWO, body=data(ROW, [1, 2, np.nan, 4])), "NaN .* direction 2"),
    "infinity": (gguf_bytes(body=data([1, np.inf, 3, 4])), "infinity in direction 1"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_by_name(path, content, message):
    path.write_bytes(content)
    with pytest.raises(VectorFileError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("content", "message"), WRONG_SHAPES.values(), ids=WRONG_SHAPES)
def test_a_wrong_direction_is_refused_by_name(path, content, message):
    path.write_bytes(content)
    with pytest.raises(VectorShapeError, match=message):
        read(path)


def test_a_huge_width_is_refused_without_allocating_it(path):
    path.write_bytes(gguf_bytes(tensors=[tensor("direction.1", dims=(1 << 40,))]))
    with pytest.raises(VectorFileError, match="cut off"):
        read(path)


@pytest.mark.parametrize("content", [c for c, _ in (HOSTILE | WRONG_SHAPES).values()])
def test_a_hostile_file_takes_little_memory_and_does_not_hang(path, content):
    path.write_bytes(content)
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(VectorError):
        read(path)
    seconds, (_, peak_bytes) = time.perf_counter() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 20  # a slow machine is none of its business; reading all that is claimed is
    assert peak_bytes < 16 << 20


def test_many_small_fields_do_not_take_ever_longer(path):
    many = [string_field(f"a.b{index}", "x") for index in range(gguf_header.MAX_FIELDS - 1)]
    words = numbers_field("a.words", STRING, 65536, text("") * 65536)
    path.write_bytes(gguf_bytes([IS_VECTOR, *many[:-5], words]))
    started = time.perf_counter()
    read(path)
    assert time.perf_counter() - started < 20


def test_a_header_beyond_its_limit_is_refused(path):
    path.write_bytes(gguf_bytes([IS_VECTOR, string_field("a.b", b"x" * (5 << 20))]))
    with pytest.raises(VectorFileError, match="ends past the 4194304 bytes a header may have"):
        read(path)


def test_a_file_beyond_the_size_limit_is_refused(path, monkeypatch):
    monkeypatch.setattr(vector_file, "MAX_FILE_BYTES", 100)
    path.write_bytes(gguf_bytes())
    with pytest.raises(VectorFileError, match="has 224 bytes; a control vector has at most 100"):
        read(path)


def test_a_missing_file_is_not_found(path):
    with pytest.raises(VectorNotFoundError, match="no vector file"):
        read(path)


def test_a_folder_is_refused_by_name(tmp_path):
    with pytest.raises(VectorFileError, match="is not a file"):
        read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_does_not_block(path):
    os.mkfifo(path)
    with pytest.raises(VectorFileError, match="is not a file"):
        read(path)


def test_a_path_with_a_zero_byte_is_refused():
    with pytest.raises(VectorFileError, match="cannot be read"):
        read("a\0b")


def test_a_message_shows_no_control_characters(path):
    path.write_bytes(gguf_bytes(tensors=[tensor("\x1b[2Jgone")]))
    with pytest.raises(VectorFileError) as caught:
        read(path)
    assert str(caught.value).isprintable()


def test_a_message_names_the_whole_path(tmp_path):
    folder = tmp_path / ("größe" * 20) / ("größe" * 20)
    folder.mkdir(parents=True)
    (folder / "vector.gguf").touch()
    with pytest.raises(VectorFileError) as caught:
        read(folder / "vector.gguf")
    assert str(folder / "vector.gguf") in str(caught.value)


def test_directions_from_a_file_do_not_alias_it(path):
    path.write_bytes(gguf_bytes())
    row = read(path).directions[1]
    path.write_bytes(b"")
    assert row.tolist() == ROW


# --- what is refused before it is written ----------------------------------------------------


ROW32 = np.ones(4, np.float32)
UNWRITABLE = {
    "no direction": ({"directions": {}}, "holds no direction"),
    "layer 0": ({"directions": {0: ROW32}}, "layer 0; layers in a file run from 1 .* leave it out"),
    "layer 5000": ({"directions": {5000: ROW32}}, "layer 5000"),
    "a layer of text": ({"directions": {"1": ROW32}}, "layer '1'"),
    "float64": ({"directions": {1: np.ones(4)}}, "type float64; it must be float32"),
    "a list": ({"directions": {1: [1.0]}}, "type list; it must be float32"),
    "two rows": ({"directions": {1: np.ones((2, 2), np.float32)}}, r"shape \(2, 2\)"),
    "two widths": ({"directions": {1: ROW32, 2: ROW32[:3]}}, "direction 2 of width 3"),
    "NaN": ({"directions": {1: ROW32 * np.float32(np.nan)}}, "NaN or infinity in direction 1"),
    "no hint": ({"model_hint": ""}, "no model hint"),
    "a key in capitals": ({"fields": {"Pyemo.X": 1}}, "'Pyemo.X'; a key is lower-case"),
    "a key that is taken": ({"fields": {"general.architecture": "x"}}, "general.architecture"),
    "fields without a version": ({"fields": {"pyemo.emotion": "sad"}}, "no pyemo.format_version"),
    "an empty text": ({"fields": {"a.b": ""}}, "'a.b' of value ''"),
    "a value of no type": ({"fields": {"a.b": {}}}, "'a.b' of value {}"),
    "a number beyond 64 bits": ({"fields": {"a.b": 1 << 70}}, "'a.b' of value 1180591620717411303"),
    "a mixed tuple": ({"fields": {"a.b": ("x", 1)}}, "'a.b' of value"),
    "a field of NaN": ({"fields": {"a.b": float("nan")}}, "'a.b' holds NaN"),
    "a header too large": ({"fields": {"a.b": "x" * (5 << 20)}}, "a header may have"),
}


@pytest.mark.parametrize(("changes", "message"), UNWRITABLE.values(), ids=UNWRITABLE)
def test_what_cannot_be_read_is_not_written(path, changes, message):
    with pytest.raises(VectorError, match=message):
        write(path, sample(**changes))
    assert list(path.parent.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    write(path, sample())
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full_disk)
    with pytest.raises(VectorFileError, match=r"cannot be written: .*No space left"):
        write(path, sample(model_hint="gemma3"))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_successful_write_leaves_no_other_file(path):
    write(path, sample())
    assert list(path.parent.iterdir()) == [path]


def test_a_write_replaces_the_file_whole(path):
    write(path, sample(model_hint="a" * 60_000))
    write(path, sample())
    assert read(path).model_hint == "llama"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_a_written_file_has_the_permissions_of_any_new_file(path, tmp_path):
    write(path, sample())
    other = tmp_path / "other"
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(VectorFileError, match=r"no folder.*nowhere"):
        write(tmp_path / "nowhere" / "vector.gguf", sample())


def test_a_folder_is_not_overwritten(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(VectorFileError, match="cannot be written"):
        write(tmp_path / "folder", sample())
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
