"""`make tree` shows every room, and each room says in one line what it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import ROOT, script

TREE = script(ROOT / "docs" / "tree.py")
ROOMS: list[Path] = TREE.rooms()


def test_every_folder_with_modules_and_every_root_module_is_shown() -> None:
    files = [*(ROOT / "pyemo").rglob("*.py")]
    heads = {ROOT / "pyemo" / path.relative_to(ROOT / "pyemo").parts[0] for path in files}
    assert set(ROOMS) == heads | {ROOT / "extract", ROOT / "models"}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_a_room_says_in_one_line_what_it_is(room: Path) -> None:
    line = TREE.line_of(room)
    assert 20 <= len(line) <= 110, f"the first sentence of the docstring of {room.name}: {line!r}"


def test_no_two_rooms_say_the_same() -> None:
    lines = [TREE.line_of(room) for room in ROOMS]
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize("room", ["csrc", "engine", "server"])
def test_every_file_of_a_room_is_shown_with_what_it_is(room: str) -> None:
    folder = ROOT / room if (ROOT / room).is_dir() else ROOT / "pyemo" / room
    lines = TREE.files(room).splitlines()
    shown = {line.split(maxsplit=1)[0] for line in lines}
    assert shown >= {path.name for path in folder.glob("*.py")} | {
        p.name for p in folder.glob("*.h")
    }
    assert [line for line in lines if len(line.split(maxsplit=1)) < 2] == []


def test_no_room_is_said_with_those_there_are() -> None:
    with pytest.raises(SystemExit, match=r"no room 'attic'; there are csrc, .*engine"):
        TREE.files("attic")


def test_five_files_of_700_lines_show_how_a_mood_reaches_a_row() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    path = re.findall(r"^\d\. `([\w/.]+)`: ", page.split("## Where to start reading")[1], re.M)[:5]
    assert len(path) == 5
    lines = [len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in path]
    assert sum(lines) <= 700, dict(zip(path, lines, strict=True))
