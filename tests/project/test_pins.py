"""The version of llama-cpp-python is the same wherever it is named."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pinned() -> str:
    """The requirement that set-up installs, such as ``llama-cpp-python==1.2.3``."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("llama-cpp-python")]
    assert re.fullmatch(r"llama-cpp-python==[\d.]+", line)
    return line


def test_extension_is_built_against_the_pinned_llama_cpp(
    pyproject: dict[str, Any], pinned: str
) -> None:
    assert pinned in pyproject["build-system"]["requires"]


def test_extension_runs_on_the_llama_cpp_it_was_built_against(
    pyproject: dict[str, Any], pinned: str
) -> None:
    assert pinned in pyproject["project"]["dependencies"]


def test_set_up_installs_the_packages_the_catalog_names() -> None:
    catalog = tomllib.loads((ROOT / "models" / "catalog.toml").read_text(encoding="utf-8"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = [model["install"] for model in catalog["model"] if "install" in model]
    assert commands
    assert [command for command in commands if f" {command}\n" not in makefile] == []


def test_models_page_lists_the_catalog() -> None:
    catalog = tomllib.loads((ROOT / "models" / "catalog.toml").read_text(encoding="utf-8"))
    page = (ROOT / "models" / "README.md").read_text(encoding="utf-8")
    page = page.partition("## The catalog")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([^`]+)`", page, flags=re.MULTILINE)
    assert listed == [model["name"] for model in catalog["model"]]
