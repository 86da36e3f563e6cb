"""The list of the places where llama.cpp ends the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "tools" / "abort_sites.py"
    return subprocess.run(
        [sys.executable, str(script), str(folder), *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "llama-vocab.cpp").write_text(
        '// abort() here\nGGML_ASSERT(x);\n  GGML_ABORT("no");\n#define GGML_ABORT(x) y\n'
    )
    return tmp_path


def test_places_are_listed_by_what_reaches_them(source: Path) -> None:
    counted = run(source)
    assert (counted.returncode, counted.stdout.split()) == (0, ["vocabulary", "2"])
    listed = run(source, "--sites", "vocabulary").stdout.splitlines()
    assert listed[0] == "src/llama-vocab.cpp:2: GGML_ASSERT(x);"


def test_a_file_of_no_kind_is_named(source: Path) -> None:
    (source / "src" / "llama-new.cpp").write_text("abort();\n")
    found = run(source)
    assert (found.returncode, found.stderr) == (1, "no kind: src/llama-new.cpp\n")
