"""What an output may replace, and what dead writers leave."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pyemo.errors import InputError, VectorFileError
from pyemo.files.children import python_module
from pyemo.files.targets import checked_target, written_beside
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


def test_files_of_dead_writers_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = tmp_path / f".it.gguf.{ended.pid}-00000000.tmp"
    live = tmp_path / f".it.gguf.{os.getppid()}-00000000.tmp"
    other = tmp_path / f".that.gguf.{ended.pid}-00000000.tmp"
    for file in (dead, live, other):
        file.touch()
    with written_beside(tmp_path / "it.gguf") as temporary:
        temporary.write_bytes(b"new")
    assert sorted(tmp_path.iterdir()) == sorted([live, other, tmp_path / "it.gguf"])


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
