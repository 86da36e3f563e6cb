"""``pyemo models``: what the catalog names and what of it is here."""

from __future__ import annotations

import json
import re
from pathlib import Path

from commands import pyemo

from pyemo.choices import DEFAULT_MODEL
from pyemo.files.catalog import catalog


def test_list_has_every_model_of_the_catalog() -> None:
    listed = json.loads(pyemo("models", "--json").stdout)
    assert [entry["name"] for entry in listed] == list(catalog())
    assert [entry["name"] for entry in listed if entry["is_default"]] == [DEFAULT_MODEL]


def test_missing_model_comes_with_the_command_that_gets_it() -> None:
    for entry in json.loads(pyemo("models", "--json").stdout):
        assert re.search(r"pip install|^pyemo models --path", entry["install"])


def test_text_says_where_the_default_model_is(smollm2: Path) -> None:
    first = pyemo("models").stdout.split("\n\n")[0]
    assert first.startswith(f"{DEFAULT_MODEL} (default)")
    assert f"installed:  {smollm2}" in first


def test_path_alone_is_printed(smollm2: Path) -> None:
    assert pyemo("models", "--path", DEFAULT_MODEL).stdout == f"{smollm2}\n"
    assert json.loads(pyemo("models", "--path", DEFAULT_MODEL, "--json").stdout) == {
        "path": str(smollm2)
    }


def test_unknown_name_is_refused_with_near_ones() -> None:
    result = pyemo("models", "--path", "smollm2-135m")
    assert result.exit_code == 1
    assert "did you mean 'smollm2-135m-instruct'" in result.stderr
