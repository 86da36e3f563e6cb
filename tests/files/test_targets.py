"""What an output may replace, and what dead writers leave."""

from __future__ import annotations

import os
import shutil
import signal as signals
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pyemo.errors import InputError, VectorFileError
from pyemo.files.children import python_module
from pyemo.files.targets import checked_target, remove_abandoned, write_whole, written_beside
from pyemo.formats.quantize import requantize
from pyemo.vectors.file import VERSION_KEY, VectorFile, read, write


def sample(**fields: int) -> VectorFile:
    return VectorFile({1: np.ones(4, np.float32)}, fields, "llama")


OURS = {VERSION_KEY: 1}


@pytest.mark.parametrize("kind", ["model", "text", "folder", "pipe", "device", "read-only"])
def test_a_vector_replaces_nothing_but_a_vector(
    tmp_path: Path, tiny_model_path: Path, kind: str
) -> None:
    path = tmp_path / "there.gguf"
    if kind == "model":
        shutil.copy(tiny_model_path, path)
    elif kind == "text":
        path.write_text("my notes")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path(os.devnull)
    else:
        write(path, VectorFile(sample().directions, OURS, "llama"))
        path.chmod(0o400)
    before = (path.lstat().st_mode, path.lstat().st_size)
    with pytest.raises(VectorFileError, match="name"):
        write(path, sample(), force=True)
    assert (path.lstat().st_mode, path.lstat().st_size) == before


def test_a_vector_of_another_make_is_replaced_when_forced(tmp_path: Path) -> None:
    path = tmp_path / "there.gguf"
    write(path, sample())
    with pytest.raises(VectorFileError, match="--force"):
        write(path, VectorFile(sample().directions, OURS, "llama"))
    write(path, VectorFile(sample().directions, OURS, "llama"), force=True)
    assert read(path).fields == OURS


def test_a_link_stays_and_its_file_keeps_its_mode(tmp_path: Path) -> None:
    file, link = tmp_path / "file.gguf", tmp_path / "link.gguf"
    write(file, VectorFile(sample().directions, OURS, "llama"))
    file.chmod(0o600)
    link.symlink_to(file)
    write(link, VectorFile(sample().directions, OURS, "gemma3"))
    assert link.is_symlink()
    assert read(file).model_hint == "gemma3"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_missing_folder_is_named_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        checked_target(tmp_path / "no" / "file", "a text")


WRITER = """
import os, signal, sys
from pathlib import Path
from pyemo.files.targets import written_beside
with written_beside(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    print("in the middle", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_files_of_dead_writers_go_and_those_of_live_ones_stay(tmp_path: Path, signal: str) -> None:
    target, other = tmp_path / "it.gguf", tmp_path / "that.gguf"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for path in (target, target, other)
    ]
    for writer in writers:
        assert writer.stdout.readline()  # type: ignore[union-attr]
    for writer in (writers[0], writers[2]):
        writer.send_signal(getattr(signals, signal))
        writer.wait()
    write_whole(target, b"new", "a file")
    left = sorted(path.name.rpartition("-")[0] for path in tmp_path.glob(".*.tmp"))
    assert left == [f".it.gguf.{writers[1].pid}", f".that.gguf.{writers[2].pid}"]
    assert target.read_bytes() == b"new"
    writers[1].communicate()  # it ends its work now
    remove_abandoned(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["it.gguf"]
    assert target.read_bytes() == b"half"
    writers[0].communicate()
    writers[2].communicate()


def test_an_error_in_the_middle_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "it"
    target.write_bytes(b"old")

    def fail() -> None:
        with written_beside(target) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["it"]
    assert target.read_bytes() == b"old"


def test_an_empty_file_may_be_replaced_by_anything(tmp_path: Path) -> None:
    path = tmp_path / "it.gguf"
    path.touch()
    write(path, sample())
    assert read(path).model_hint == "llama"


def test_a_child_runs_no_code_of_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text("print('STRANGER')")
    (tmp_path / "runpy.py").write_text("print('STRANGER')")
    command = [*python_module("pyemo"), "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "STRANGER" not in done.stdout
    assert "pyemo" in done.stdout


def test_requantize_refuses_what_is_not_the_same_job(tmp_path: Path, tiny_model_path: Path) -> None:
    target = tmp_path / "it.gguf"
    requantize(tiny_model_path, "Q4_0", target=target)
    before = target.read_bytes()
    with pytest.raises(InputError, match="another format"):
        requantize(tiny_model_path, "Q8_0", target=target)
    assert target.read_bytes() == before
    assert requantize(tiny_model_path, "Q4_0", target=target).was_there
    vector = tmp_path / "vector.gguf"
    write(vector, sample())
    for again in (False, True):
        with pytest.raises(InputError, match="does not replace it"):
            requantize(tiny_model_path, "Q4_0", target=vector, again=again)
