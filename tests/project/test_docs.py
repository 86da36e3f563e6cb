"""Links in the pages lead somewhere, and the Python in them runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pages import PAGES, ROOT, anchors, blocks, read, without_blocks

EXAMPLES = ("README.md", "docs/python.md", "docs/errors.md", "docs/scheduling.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(read(page))):
        if re.match(r"[a-z]+:", target):
            continue  # another site
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(read(file))):
            broken.append(target)
    assert broken == []


def links(page: Path) -> set[Path]:
    found = re.findall(r"\]\(([^)#\s]+)", without_blocks(read(page)))
    return {(page.parent / name).resolve() for name in found}


def test_every_page_of_the_manual_is_reached_from_the_readme() -> None:
    assert set((ROOT / "docs").glob("*.md")) - links(ROOT / "README.md") == set()


def test_every_measurement_is_reached_from_its_list() -> None:
    folder = ROOT / "docs" / "measurements"
    assert set(folder.glob("*.md")) - {folder / "README.md"} - links(folder / "README.md") == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_are_as_long_as_a_person_reads(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)
    long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")]
    assert long == []


def test_the_readme_stays_short() -> None:
    assert len(read(ROOT / "README.md").splitlines()) <= 170, "detail goes to a page of docs/"


def test_pages_that_code_names_are_there() -> None:
    sources = [ROOT / "Makefile"]
    for folder in ("pyemo", "extract", "csrc", "bench", "tests"):
        for ending in ("py", "cpp", "h", "toml", "j2"):
            sources += (ROOT / folder).rglob(f"*.{ending}")
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources
        for name in re.findall(r"(?<![\w/])docs/[\w/-]+\.md", read(path))
        if not (ROOT / name).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_python_in_the_page_runs(
    name: str,
    smollm2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    # two threads that share a busy core wait for each other
    monkeypatch.setattr("pyemo.engine.threads.available_cores", lambda: 1)
    names: dict[str, Any] = {}  # the blocks of a page are one program
    for block in blocks(read(ROOT / name), "python"):
        exec(compile(block, name, "exec"), names)
    assert capsys.readouterr().out
