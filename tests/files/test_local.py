"""Promises of ``pyemo.files.local``: hashes, first bytes, joined files."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from pyemo.errors import InputError, ModelChecksumError, ModelLoadError, ModelNotFoundError
from pyemo.files import local as local_files
from pyemo.files.local import check_folder_writable
from pyemo.files.targets import checked_target

LONG_AGO_NS = 1_700_000_000 * 10**9


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and a process that has hashed nothing yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PYEMO_CACHE", str(folder))
    monkeypatch.setattr(local_files, "_hashed_here", {})
    return folder


def old_file(path: Path, data: bytes) -> Path:
    """Write a file whose modification time lies far enough back for its hash to be remembered."""
    path.write_bytes(data)
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
    return path


def gguf(n_tensors: int = 1, n_keys: int = 1, version: int = 3, padding: int = 200) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, n_tensors, n_keys) + bytes(padding)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behave like a new process: only what is on disk is known."""
    monkeypatch.setattr(local_files, "_hashed_here", {})


def refuse_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> str:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(local_files, "_hash", read)


def test_hash_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    file = old_file(tmp_path / "a", b"abc")
    assert local_files.file_sha256(file) == hashlib.sha256(b"abc").hexdigest()


def test_second_process_does_not_read_the_file_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = old_file(tmp_path / "a", b"abc")
    first = local_files.file_sha256(file)
    forget(monkeypatch)
    refuse_to_read(monkeypatch)
    assert local_files.file_sha256(file) == first


def test_relative_and_absolute_path_share_one_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = old_file(tmp_path / "a", b"abc")
    first = local_files.file_sha256(file)
    refuse_to_read(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert local_files.file_sha256("a") == first


@pytest.mark.parametrize("change", ["size", "time"])
def test_changed_file_is_hashed_anew(tmp_path: Path, change: str) -> None:
    file = old_file(tmp_path / "a", b"abc")
    local_files.file_sha256(file)
    data = b"abcd" if change == "size" else b"xyz"
    file.write_bytes(data)
    later = LONG_AGO_NS if change == "size" else LONG_AGO_NS + 1
    os.utime(file, ns=(later, later))
    assert local_files.file_sha256(file) == hashlib.sha256(data).hexdigest()


def test_file_just_written_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    status = file.stat()
    local_files.file_sha256(file)
    file.write_bytes(b"xyz")
    os.utime(file, ns=(status.st_mtime_ns, status.st_mtime_ns))  # a clock too coarse to tell
    assert local_files.file_sha256(file) == hashlib.sha256(b"xyz").hexdigest()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[]",
        b'{"files": []}',
        b'{"files": {"PATH": 7}}',
        b'{"files": {"PATH": {"size": 3, "mtime_ns": TIME, "sha256": "short"}}}',
        b'{"files": {"PATH": {"size": 3, "mtime_ns": TIME}}}',
    ],
)
def test_damaged_cache_costs_no_wrong_hash(tmp_path: Path, cache: Path, damage: bytes) -> None:
    file = old_file(tmp_path / "a", b"abc")
    cache.mkdir()
    text = damage.replace(b"PATH", os.fsencode(file)).replace(b"TIME", b"%d" % LONG_AGO_NS)
    (cache / "file_hashes.json").write_bytes(text)
    assert local_files.file_sha256(file) == hashlib.sha256(b"abc").hexdigest()


def test_damaged_cache_is_made_anew(tmp_path: Path, cache: Path) -> None:
    cache.mkdir()
    (cache / "file_hashes.json").write_bytes(b"not json")
    file = old_file(tmp_path / "a", b"abc")
    local_files.file_sha256(file)
    assert list(json.loads((cache / "file_hashes.json").read_bytes())["files"]) == [str(file)]


def test_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_bytes(b"")
    monkeypatch.setenv("PYEMO_CACHE", str(in_the_way / "cache"))
    file = old_file(tmp_path / "a", b"abc")
    assert local_files.file_sha256(file) == hashlib.sha256(b"abc").hexdigest()


def test_cache_that_cannot_be_written_still_saves_the_second_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_bytes(b"")
    monkeypatch.setenv("PYEMO_CACHE", str(in_the_way / "cache"))
    file = old_file(tmp_path / "a", b"abc")
    first = local_files.file_sha256(file)
    refuse_to_read(monkeypatch)
    assert local_files.file_sha256(file) == first


def test_processes_at_once_leave_a_cache_that_can_be_read(tmp_path: Path, cache: Path) -> None:
    files = [old_file(tmp_path / f"{index}", b"%d" % index) for index in range(20)]
    code = "import sys, pyemo.files.local as l; [l.file_sha256(path) for path in sys.argv[1:]]"
    running = [
        subprocess.Popen([sys.executable, "-c", code, *map(str, some)])
        for some in (files[:10], files[10:])
    ]
    assert [process.wait(60) for process in running] == [0, 0]
    kept = json.loads((cache / "file_hashes.json").read_bytes())["files"]
    assert set(kept) <= set(map(str, files))
    assert [name.name for name in cache.iterdir()] == ["file_hashes.json"]


def test_hashes_of_files_that_are_gone_are_dropped(tmp_path: Path, cache: Path) -> None:
    gone = old_file(tmp_path / "gone", b"abc")
    local_files.file_sha256(gone)
    gone.unlink()
    here = old_file(tmp_path / "here", b"abc")
    local_files.file_sha256(here)
    assert list(json.loads((cache / "file_hashes.json").read_bytes())["files"]) == [str(here)]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no file at .*nothing"):
        local_files.file_sha256(tmp_path / "nothing")


def test_cache_folder_is_the_platforms_without_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PYEMO_CACHE")
    assert local_files.cache_dir().is_absolute()
    assert "pyemo" in local_files.cache_dir().parts


@pytest.mark.parametrize("version", [2, 3])
def test_gguf_passes(tmp_path: Path, version: int) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(gguf(version=version))
    local_files.check_gguf(file)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04rest", "zip archive or a PyTorch checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\x10\0\0\0\0\0\0\0{}", "safetensors"),
        (b"whatever it is", "begins with b'what' instead of b'GGUF'"),
        (b"GGUF\x03\0\0\0", "cut off after 8 bytes"),
        (gguf(version=1), "GGUF version 1"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 1, 1), "big-endian"),
        (gguf(n_tensors=0), "no tensors"),
        (gguf(n_tensors=272, n_keys=30, padding=0), "cut off or damaged: it has 24 bytes"),
        (gguf(n_tensors=2**63), "cut off or damaged"),
    ],
)
def test_what_is_no_model_is_refused_by_name(tmp_path: Path, data: bytes, said: str) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(data)
    with pytest.raises(ModelLoadError, match=said) as caught:
        local_files.check_gguf(file)
    assert str(file) in str(caught.value)


def test_joined_file_holds_the_parts_in_order(tmp_path: Path) -> None:
    parts = [old_file(tmp_path / name, name.encode()) for name in ("b", "a")]
    target = tmp_path / "new folder" / "whole"
    local_files.join_parts(parts, target, hashlib.sha256(b"ba").hexdigest())
    assert target.read_bytes() == b"ba"


def test_joined_file_is_not_read_again_for_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(b"a").hexdigest()
    local_files.join_parts([old_file(tmp_path / "a", b"a")], tmp_path / "whole", digest)
    forget(monkeypatch)
    refuse_to_read(monkeypatch)
    assert local_files.file_sha256(tmp_path / "whole") == digest


def test_wrong_parts_leave_no_file_behind(tmp_path: Path) -> None:
    part = old_file(tmp_path / "a", b"a")
    with pytest.raises(ModelChecksumError, match="expected 0000"):
        local_files.join_parts([part], tmp_path / "folder" / "whole", "0" * 64)
    assert list((tmp_path / "folder").iterdir()) == []


def test_missing_part_leaves_no_file_behind(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"cannot read .*nothing"):
        local_files.join_parts([tmp_path / "nothing"], tmp_path / "folder" / "whole", "0" * 64)
    assert list((tmp_path / "folder").iterdir()) == []


def test_cache_that_cannot_hold_a_joined_file_names_the_remedy(tmp_path: Path) -> None:
    part = old_file(tmp_path / "a", b"a")
    with pytest.raises(ModelLoadError, match=r"cannot write .*PYEMO_CACHE"):
        local_files.join_parts([part], part / "folder" / "whole", "0" * 64)


def test_a_folder_that_can_be_written_to_is_made_and_left_empty(tmp_path: Path) -> None:
    check_folder_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written to"):
        check_folder_writable(tmp_path / "file" / "a")


@pytest.mark.parametrize("kind", ["deep", "pipe", "huge", "device", "folder", "list"])
def test_a_damaged_cache_costs_time_never_the_result(
    kind: str, tmp_path: Path, cache: Path
) -> None:
    cache.mkdir()
    hashes, file = cache / "file_hashes.json", tmp_path / "file"
    file.write_bytes(b"text")
    if kind == "deep":
        hashes.write_text("[" * 100_000)
    elif kind == "pipe":
        os.mkfifo(hashes)
    elif kind == "huge":
        with hashes.open("wb") as sparse:
            sparse.truncate(20 << 30)
    elif kind == "device":
        hashes.symlink_to("/dev/zero")
    elif kind == "folder":
        hashes.mkdir()
    else:
        hashes.write_text('{"files": {"a": [1], "b": null}}')
    assert local_files.file_sha256(file) == hashlib.sha256(b"text").hexdigest()


@pytest.mark.parametrize("place", ["", "~no-such-user/cache"])
def test_a_cache_without_a_home_folder_is_refused_by_name(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pwd

    def nobody(_key: object) -> None:
        raise KeyError("no such user")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYEMO_CACHE", place)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(InputError, match="PYEMO_CACHE"):
        local_files.cache_dir()


def test_a_hash_needs_no_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYEMO_CACHE", "~no-such-user/cache")
    file = tmp_path / "file"
    file.write_bytes(b"text")
    assert local_files.file_sha256(file) == hashlib.sha256(b"text").hexdigest()


def test_a_deleted_current_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(InputError, match="was deleted"):
        local_files.absolute("file")
    with pytest.raises(InputError):
        checked_target("file", "a text")


def test_a_path_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.gguf")
    Path(path).write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError, match="is not UTF-8"):
        local_files.check_gguf(path)
