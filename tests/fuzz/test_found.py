"""What a fuzzer once found ends as it should, and so do the inputs that fuzzing begins with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from seeds import FOUND
from targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_end_by_right(target: str) -> None:
    for data in TARGETS[target].seeds():
        TARGETS[target].try_one(data)


@pytest.mark.parametrize(
    "path",
    sorted(path for path in FOUND.glob("*/*")),
    ids=lambda path: f"{path.parent.name}-{path.name}",
)
def test_what_was_found_ends_by_right(path: Path) -> None:
    TARGETS[path.parent.name].try_one(path.read_bytes())
