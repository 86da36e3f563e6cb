"""Standard streams that are closed, full or read by nobody, and what could command a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import pyemo

from pyemo.cli import output
from pyemo.files.children import python_module


def shell(redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with a shell's redirection."""
    line = f'exec "$@" {redirection}'
    command = ["sh", "-c", line, "sh", *python_module("pyemo"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("arguments", [["inspect", "--emotions"], ["--help"], ["run", "--help"]])
@pytest.mark.parametrize(
    ("redirection", "why"), [(">&-", "Bad file descriptor"), (">/dev/full", "No space left")]
)
def test_a_result_that_cannot_be_printed_is_an_error_of_one_line(
    arguments: list[str], redirection: str, why: str
) -> None:
    done = shell(redirection, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: standard input or output failed: ")
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["inspect", "--emotions"], ["--help"], ["run", "--help"]])
def test_a_reader_that_has_gone_ends_the_command_quietly(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [*python_module("pyemo"), *arguments]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>&- <&-"])
def test_messages_that_cannot_be_printed_change_nothing(redirection: str) -> None:
    plain = shell("", "inspect", "--emotions")
    done = shell(redirection, "inspect", "--emotions")
    assert (done.returncode, done.stdout, done.stderr) == (0, plain.stdout, "")


@pytest.mark.parametrize(
    ("redirection", "argument", "code"),
    [
        ("2>&-", "nowhere.gguf", 1),
        ("2>/dev/full", "nowhere.gguf", 1),
        ("2>&-", "--no-such-option", 2),
    ],
)
def test_errors_that_cannot_be_printed_keep_their_exit_code(
    redirection: str, argument: str, code: int
) -> None:
    assert shell(redirection, "inspect", argument).returncode == code


def test_a_closed_stdin_is_an_error_of_one_line(model: Path) -> None:
    done = shell("<&-", "chat", "-m", str(model), "--threads", "1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: standard input or output failed")


def test_no_file_takes_the_number_of_a_closed_stream(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "it.gguf"
    arguments = ("models", "requantize", str(model), "Q8_0", "-o", str(target), "--no-cost")
    shell(">&- 2>&- <&-", *arguments)
    assert target.read_bytes().startswith(b"GGUF")
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_is_one_line_without_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "\x1b]0;title\x07\nsecond line.gguf"
    path.write_bytes(b"GGUF")
    result = pyemo("run", "-m", path, "x")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "\x1b" not in result.stderr
    assert "\x07" not in result.stderr


def test_a_refused_model_prints_one_line(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "it.gguf"
    path.write_bytes(model.read_bytes().replace(b"llama.block_count", b"llama.block_c\x1bunt"))
    done = shell("", "run", "-m", str(path), "x")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr


def test_a_result_is_harmless_on_a_terminal_and_whole_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\x07name\x9b"
    output.say(text)
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    output.say(text)
    whole, shown = capsys.readouterr().out.splitlines()
    assert whole == text
    assert shown == "\ufffdname\ufffd"


def test_json_has_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"name": "\x1b[31m\x9b\x7f"}
    output.print_json(value)
    printed = capsys.readouterr().out
    assert "\x9b" not in printed
    assert "\x1b" not in printed
    assert json.loads(printed) == value


def test_a_child_that_was_killed_is_named(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path
) -> None:
    from pyemo.check.process import run_once
    from pyemo.errors import ModelError
    from pyemo.formats import quantize

    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(quantize, "python_module", lambda _name: killed)
    with pytest.raises(ModelError, match="ended by SIGKILL"):
        quantize.requantize(model, "Q8_0", target=tmp_path / "it.gguf")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ModelError, match="ended by SIGKILL"):
        run_once(killed)
