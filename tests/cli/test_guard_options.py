"""``--guard`` in run and chat: what is said, and what stands in the JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from engines import random_vector

from pyemo import Model
from pyemo.cli import main
from pyemo.guard import watch
from pyemo.vectors.metadata import VectorMetadata


@pytest.fixture
def vector(tiny_model_path: Path, tmp_path: Path) -> Path:
    model = Model.load(tiny_model_path)
    metadata = VectorMetadata(architecture=model.architecture)
    layers = range(1, model.n_layer)
    path = tmp_path / "mood.gguf"
    random_vector(model, layers=layers, metadata=metadata).save(path)
    return path


def invoke(*arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, list(arguments), input=stdin)
    return result.exit_code, result.stdout, result.stderr


def always_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        watch, "trouble", lambda tokens, *_seen, **_how: "repetition" if len(tokens) >= 20 else None
    )


@pytest.mark.parametrize("option", ["--guard", "--guard-exact"])
def test_run_says_what_the_guard_did(
    option: str, tiny_model_path: Path, vector: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    always_trouble(monkeypatch)
    code, out, err = invoke(
        "run", "-m", str(tiny_model_path), "-c", f"{vector}=0.5", option, "-n", "40", "the story"
    )
    assert code == 0
    assert out
    assert "guard: went back 8 times" in err
    assert "without steering too" in err


def test_run_puts_the_guard_into_its_json(
    tiny_model_path: Path, vector: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    always_trouble(monkeypatch)
    code, out, _err = invoke(
        "run", "-m", str(tiny_model_path), "-c", f"{vector}=0.5", "--guard", "-n", "40", "--json",
        "the story",
    )  # fmt: skip
    assert code == 0
    guard = json.loads(out)["guard"]
    assert (guard["mode"], guard["factor"], len(guard["events"])) == ("fast", 0.0, 8)


def test_chat_goes_on_after_a_guarded_reply(
    tiny_model_path: Path, vector: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    always_trouble(monkeypatch)
    code, out, _err = invoke(
        "chat", "-m", str(tiny_model_path), "-c", f"{vector}=0.5", "--guard", "-n", "30", "--json",
        stdin="hello\nand then\n",
    )  # fmt: skip
    assert code == 0
    first, second = (json.loads(line) for line in out.splitlines())
    assert first["guard"]["model_fails"]
    assert second["text"]


def test_without_the_option_there_is_no_guard(tiny_model_path: Path, vector: Path) -> None:
    code, out, _err = invoke(
        "run", "-m", str(tiny_model_path), "-c", f"{vector}=0.5", "-n", "8", "--json", "the story"
    )
    assert code == 0
    assert "guard" not in json.loads(out)
