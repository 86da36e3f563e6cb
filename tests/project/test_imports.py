"""Imports go up the table in docs/architecture.md, and heavy packages stay out of light work."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import ROOT, read

HOMES = {"pyemo": "pyemo", "extract": "pyemo.extract", "models": "pyemo.models"}
CORE_USERS = {"engine", "formats"}
FACES = {"pyemo", "pyemo.__main__", "pyemo.models"}  # the names of the package, and its data


def modules() -> dict[str, Path]:
    """Return all modules by name; ``__init__`` is its package's."""
    found = {}
    for folder, package in HOMES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [part for part in path.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


MODULES = modules()


def rooms() -> list[str]:
    """Return the rooms of the table, in its order: a room may import from those before it."""
    page = read(ROOT / "docs" / "architecture.md")
    table = page.partition("| room | owns | knows nothing of |\n|---|---|---|\n")[2]
    lines = table.partition("\n\n")[0].splitlines()
    return [re.match(r"\| `(\w+)` \|", line).group(1) for line in lines]  # type: ignore[union-attr]


ROOMS = rooms()


def room_of(module: str) -> str:
    return module.split(".")[1]


def imports(path: Path, *, when_loaded: bool = False) -> Iterator[tuple[str, int]]:
    """Yield (module of pyemo, line) for each import, those for type checkers among them.

    ``when_loaded`` leaves out those, and what functions import when they are called.
    """
    skipped: set[int] = set()
    tree = ast.parse(read(path))
    for node in ast.walk(tree):
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        is_function = isinstance(node, ast.FunctionDef)
        if when_loaded and (is_typing or is_function):
            skipped |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            whole = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from ((name if name in MODULES else node.module, node.lineno) for name in whole)
            if node.module == "pyemo":
                yield from (("pyemo._core", node.lineno) for a in node.names if a.name == "_core")


def test_every_module_is_in_a_room_of_the_table() -> None:
    assert {room_of(module) for module in set(MODULES) - FACES} == set(ROOMS)


def test_imports_go_up_the_table() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: the room {room_of(module)} imports {imported}"
        for module, path in MODULES.items()
        if module not in FACES
        for imported, line in imports(path)
        if imported in MODULES
        and imported not in FACES
        and ROOMS.index(room_of(imported)) > ROOMS.index(room_of(module))
    ]
    assert wrong == []


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """Return a circle of imports, if there is one, as the modules on the way round."""
    done: set[str] = set()

    def walk(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module not in done:
            for name in sorted(graph[module]):
                if found := walk(name, [*trail, module]):
                    return found
            done.add(module)
        return []

    return next((found for module in graph if (found := walk(module, []))), [])


def test_no_circle_of_imports_even_for_type_hints() -> None:
    graph = {
        module: {name for name, _ in imports(path) if name in MODULES} - FACES - {module}
        for module, path in MODULES.items()
    }
    assert cycles(graph) == []


def test_no_modules_import_each_other_when_they_are_loaded() -> None:
    graph = {
        module: {name for name, _ in imports(path, when_loaded=True) if name in MODULES}
        - {"pyemo", module}
        for module, path in MODULES.items()
    }
    assert cycles(graph) == []


def test_extension_is_imported_by_few() -> None:
    users = {
        room_of(module)
        for module, path in MODULES.items()
        if any(name == "pyemo._core" for name, _ in imports(path))
    }
    assert users == CORE_USERS


def test_pybind11_is_included_by_the_bindings_only() -> None:
    sources = [*(ROOT / "csrc").glob("*.cpp"), *(ROOT / "csrc").glob("*.h")]
    users = {path.name for path in sources if "pybind11" in re.sub(r"//.*", "", read(path))}
    users |= {path.name for path in sources if '#include "bindings.h"' in read(path)}
    allowed = re.compile(r"module\.cpp|bindings\.h|bind_\w+\.cpp")
    assert sorted(name for name in users if not allowed.fullmatch(name)) == []


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import pyemo", {"numpy", "llama_cpp", "torch", "transformers", "matplotlib", "rich"}),
        (
            "from pyemo.cli import main; main(['--help'], standalone_mode=False)",
            {"numpy", "llama_cpp", "torch", "transformers", "matplotlib", "rich"},
        ),
        (
            "from pyemo.cli import main; main(['run', '--help'], standalone_mode=False)",
            {"numpy", "llama_cpp", "torch", "transformers", "matplotlib", "rich"},
        ),
        (
            "from pyemo.cli import main; "
            "main(['run', '-n', '1', '-m', {model!r}, 'x'], standalone_mode=False)",
            {"torch", "transformers", "matplotlib", "scipy", "sklearn", "dask", "llama_cpp"},
        ),
    ],
    ids=["import", "help", "run-help", "run"],
)
def test_light_work_brings_no_heavy_package(
    code: str, heavy: set[str], tiny_model_path: Path
) -> None:
    typed = code.replace("{model!r}", repr(str(tiny_model_path)))
    typed += f"\nimport sys; print('brought', *sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", typed], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "brought"
