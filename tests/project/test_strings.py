"""No text falls out of a sentence: a string that stands alone is a docstring or a mistake."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from pages import ROOT

FILES = sorted(
    path
    for folder in ("pyemo", "extract", "bench", "tests")
    for path in (ROOT / folder).rglob("*.py")
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
