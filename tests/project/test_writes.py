"""Files are written in one way: whole, by ``pyemo/files``."""

from __future__ import annotations

import re

from pages import ROOT, read

WRITES = re.compile(
    r"(\w+)\.write_(?:text|bytes)\(|\bos\.(?:replace|rename)\(|\.savefig\((?!out|data)"
    r"""|\bopen\((?:[^()]|\([^()]*\))*["'](?:[wax]b?|r\+b?)["']"""
)
# What writes by itself, and why.
KNOWN = {
    "extract/stories.py": "appends a line to its own store",
    "pyemo/jobs/store.py": "moves a damaged result aside",
}


def test_only_the_room_files_replaces_files() -> None:
    sources = [path for top in ("pyemo", "extract") for path in (ROOT / top).rglob("*.py")]
    writers = {
        str(path.relative_to(ROOT))
        for path in sources
        for found in WRITES.finditer(read(path))
        if found[1] != "temporary"
    }
    assert {path for path in writers if not path.startswith("pyemo/files/")} == set(KNOWN)
