"""Links in the pages lead somewhere, and the Python in them runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pages import PAGES, ROOT, anchors, blocks, read, without_blocks

EXAMPLES = ("README.md", "docs/python.md", "docs/errors.md")


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


def test_every_page_is_reached_from_the_readme() -> None:
    text = read(ROOT / "README.md")
    missing = [
        page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in text
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
