"""Print the rooms of the package with one line each; run by `make tree`.

With the name of a room, as in `make tree ROOM=engine` or `ROOM=csrc`, print its files.

The lines are the first sentences of the rooms' docstrings, in the order of the table in
docs/architecture.md: a room imports from those above it. Needs Python alone, nothing installed.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pyemo"
OUTSIDE = (ROOT / "extract", ROOT / "models")
"""Folders of the root that are installed as ``pyemo.extract`` and ``pyemo.models``."""


def rooms() -> list[Path]:
    """Return the folders and root modules of the package, in the order of the table."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    order = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    found = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or _is_package(path)]
    found += OUTSIDE

    def place(path: Path) -> tuple[int, str]:
        return (order.index(path.stem) if path.stem in order else -1, path.name)

    return sorted(found, key=place)


def line_of(room: Path) -> str:
    """Return the first sentence of the room's docstring; empty where it has none."""
    file = room / "__init__.py" if room.is_dir() else room
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]


def files(room: str) -> str:
    """Return the files of a room with a line each: of a C++ header, or a source without one, its
    first comment.
    """
    folders = [ROOT / room, PACKAGE / room]
    if not room or not (found := [folder for folder in folders if folder.is_dir()]):
        names = ", ".join(path.stem for path in rooms() if path.is_dir())
        raise SystemExit(f"no room {room!r}; there are csrc, {names}")
    lines = []
    for path in sorted(found[0].iterdir()):
        if path.suffix == ".py":
            lines.append(f"{path.name:<24}{line_of(path)}")
        elif path.suffix == ".h" or (path.suffix == ".cpp" and not path.with_suffix(".h").exists()):
            comment = re.match(r"((?://[^\n]*\n)*)", path.read_text(encoding="utf-8"))
            text = " ".join(re.sub(r"^// ?", "", comment[1] if comment else "", flags=re.M).split())
            lines.append(f"{path.name:<24}{re.split(r'(?<=[.:]) (?=[A-Z])', text)[0]}")
    return "\n".join(lines)


def tree() -> str:
    """Return all rooms with the number of their modules and their lines."""
    lines = []
    for room in rooms():
        name = f"{room.relative_to(ROOT)}{'/' * room.is_dir()}"
        n_modules = len(list(room.rglob("*.py"))) if room.is_dir() else 1
        lines.append(f"{name:<20}{n_modules:>3}  {line_of(room)}")
    return "\n".join(lines)


def _is_package(path: Path) -> bool:
    return (path / "__init__.py").exists()


if __name__ == "__main__":
    print(files(sys.argv[1]) if len(sys.argv) > 1 else tree())
