"""``pyemo models requantize``: the table, the JSON, and the plain ``pyemo models`` beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pyemo.cli import main
from pyemo.emotions import EMOTIONS


def test_it_prints_the_file_and_what_it_costs(
    tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYEMO_CACHE", str(tmp_path))
    monkeypatch.setattr("pyemo.cli.requantize._N_NEUTRAL", 2)
    monkeypatch.setattr("pyemo.emotions.EMOTIONS", {"angry": EMOTIONS["angry"]})
    command = ["models", "requantize", str(tiny_model_path), "q8_0", "--threads", "1"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "q8_0" in result.stdout
    assert "perplexity" in result.stdout
    found = json.loads(CliRunner().invoke(main, [*command, "--json", "--no-cost"]).stdout)
    assert found["was_there"]
    assert found["cost"] is None
    assert Path(found["path"]).is_relative_to(tmp_path)


def test_an_unknown_format_ends_with_1_and_the_formats(tiny_model_path: Path) -> None:
    result = CliRunner().invoke(main, ["models", "requantize", str(tiny_model_path), "Q9"])
    assert result.exit_code == 1
    assert "there are F32, F16, BF16" in result.stderr


def test_models_without_a_subcommand_still_lists() -> None:
    result = CliRunner().invoke(main, ["models"])
    assert result.exit_code == 0
    assert "smollm2-135m-instruct (default)" in result.stdout
