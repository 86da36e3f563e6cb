"""No text falls out of a sentence, and the words are those that a reader knows at once."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from pages import PAGES, ROOT, read

FILES = sorted(
    path
    for folder in ("pyemo", "extract", "bench", "tests")
    for path in (ROOT / folder).rglob("*.py")
)

WORDED = sorted(
    path
    for path in {*FILES, *PAGES, *(ROOT / "pyemo").rglob("*.toml")}
    if path.relative_to(ROOT).parts[0] not in ("tests", "CHANGELOG.md")
)


def lost_strings(tree: ast.AST) -> list[int]:
    """Return the lines of strings that are neither used nor documentation.

    Below a definition or an assignment to a name at the top or in a class a string documents it.
    """
    lost = []
    for node in ast.walk(tree):
        for branch in ("body", "orelse", "finalbody"):
            block = getattr(node, branch, None)
            for i, line in enumerate(block if isinstance(block, list) else []):
                if not isinstance(line, ast.Expr):
                    continue
                is_text = isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
                documents = isinstance(node, (ast.Module, ast.ClassDef)) or (
                    isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and i == 0
                )
                if isinstance(line.value, ast.JoinedStr) or (is_text and not documents):
                    lost.append(line.lineno)
    return lost


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_string_is_lost(path: Path) -> None:
    assert lost_strings(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_a_string_that_falls_out_of_its_sentence_is_found() -> None:
    source = "def f(n):\n    text = f'{n} of '\n    f'them'\n    return text\n"
    assert lost_strings(ast.parse(source)) == [3]


# What a reader had to read twice, and what to say instead.
HARD_WORDS = {
    r"\bof now\b": "current",
    r"\bis no (list|number|proportion|file|model|folder)\b": "is not a ...",
    r"\bfrom which on\b": "at least this",
    r"\bis in no vocabulary\b": "is out of range",
    r"\bnobody's concern\b": "does not matter",
    r"\bthe engine's matter\b": "the engine checks it",
    r"\btells no more of\b": "adds no information about",
    r"\bsomebody else has set\b": "changed meanwhile",
    r"\b(computed|decoded|written) (side by side|beside others)\b": "in one batch",
    r"\bhas no regime\b": "cannot be classified",
}


def hard_words(text: str) -> list[str]:
    """Return the phrases of the text that are on the list, with what to say instead."""
    return [
        f"{match[0]!r}: say {better!r}"
        for pattern, better in HARD_WORDS.items()
        for match in re.finditer(pattern, text)
    ]


@pytest.mark.parametrize("path", WORDED, ids=lambda path: str(path.relative_to(ROOT)))
def test_words_are_those_a_reader_knows(path: Path) -> None:
    assert hard_words(read(path)) == []


def test_a_hard_word_is_found() -> None:
    found = hard_words("computed again under the mood of now")
    assert found == ["'of now': say 'current'"]
