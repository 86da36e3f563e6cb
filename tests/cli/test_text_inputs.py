"""Every option that names a text refuses, before any work, what is not a file of sensible size."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import pyemo

from pyemo.engine.engine import Engine
from pyemo.files.inputs import MOST_BYTES

ARGUMENTS: dict[str, Callable[[Path, Path, Path], list[object]]] = {
    "extract --emotions": lambda _v, it, out: ["extract", "mine", "--emotions", it, "-o", out],
    "extract --recipe": lambda _v, it, out: ["extract", "anger", "-r", it, "-o", out],
    "extract --replies": lambda _v, it, out: ["extract", "--replies", it, "-o", out],
    "calibrate --prompts": lambda v, it, out: [
        "calibrate", v / "warm.gguf", "--prompts", it, "-o", out
    ],
    "sweep --prompts": lambda v, it, _out: [
        "sweep", "-c", v / "warm.gguf", "--judge", "none", "--prompts", it
    ],
    "rescale --own-texts": lambda v, it, out: [
        "rescale", v / "warm.gguf", "--own-texts", it, "-o", out
    ],
    "check --budget": lambda _v, it, _out: ["check", "--judge", "none", "--budget", it],
    "check --reference": lambda _v, it, _out: ["check", "--judge", "none", "--reference", it],
    "condition fit": lambda _v, it, out: ["condition", "fit", it, it, "-o", out],
    "study --emotions-file": lambda _v, it, out: ["study", "--emotions-file", it, "-o", out],
    "study --prompts": lambda _v, it, out: ["study", "--prompts", it, "-o", out],
    "serve --config": lambda _v, it, _out: ["serve", "--config", it],
}  # fmt: skip
SECONDS = 30
"""For a command that waits for a pipe: it then fails, and does not hang."""


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def work(*_args: object, **_options: object) -> None:
        raise AssertionError("the work began")

    def waited(_number: int, _frame: object) -> None:
        raise AssertionError("the command waited")

    monkeypatch.setattr(Engine, "__init__", work)
    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def place(kind: str, path: Path) -> None:
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to(os.devnull)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a huge file":
        with path.open("wb") as file:
            file.truncate(MOST_BYTES + 1)


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        *((command, kind) for command in ARGUMENTS for kind in ("a pipe", "a device")),
        ("sweep --prompts", "a folder"),
        ("sweep --prompts", "a huge file"),
        ("extract --replies", "a huge file"),
    ],
)
def test_a_text_is_read_from_a_file_only(
    command: str, kind: str, vectors: Path, model: Path, tmp_path: Path
) -> None:
    if command.startswith("study") and find_spec("distributed") is None:
        pytest.skip("needs the extra `study`")
    path = tmp_path / "texts.toml"
    place(kind, path)
    arguments = ARGUMENTS[command](vectors, path, tmp_path / "out.gguf")
    result = pyemo(*arguments, "-m", model)
    assert result.exit_code == 1, (result.output, result.exception)
    assert str(path) in result.stderr
    assert "Traceback" not in result.stderr
