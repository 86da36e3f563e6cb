"""The stub of the extension names what the built extension has."""

from __future__ import annotations

import ast
import enum
import inspect
from typing import Any

from pages import ROOT, read

from pyemo import _core

STUB = ast.parse(read(ROOT / "pyemo" / "_core.pyi"))
ALIASES = {"Float32Array", "Spans"}  # of the stub's own


def stub_classes() -> dict[str, set[str]]:
    return {
        node.name: {name for part in node.body for name in _names(part)}
        for node in STUB.body
        if isinstance(node, ast.ClassDef)
    }


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.AnnAssign):
        return [ast.unparse(node.target)]
    return [ast.unparse(target) for target in node.targets] if isinstance(node, ast.Assign) else []


def built_members(found: type[Any]) -> set[str]:
    if issubclass(found, enum.Enum):
        return set(found.__members__)
    public = {name for name in vars(found) if not name.startswith("_")}
    has_constructor = "__init__" in vars(found) and "No constructor" not in str(
        found.__init__.__doc__
    )
    return public | ({"__init__"} if has_constructor else set())


def test_stub_names_what_the_module_has() -> None:
    built = {name for name in vars(_core) if not name.startswith("_")}
    stubbed = {name for node in STUB.body for name in [*_names(node), getattr(node, "name", "")]}
    assert stubbed - ALIASES - {""} == built


def test_stub_names_what_the_classes_have() -> None:
    built = {
        name: built_members(value)
        for name, value in vars(_core).items()
        if inspect.isclass(value) and not name.startswith("_")
    }
    stubbed = stub_classes()
    # pybind11 gives a class without a constructor one that refuses
    for name, members in built.items():
        members.discard("__init__") if "__init__" not in stubbed[name] else members.add("__init__")
    assert stubbed == built


def test_stub_names_the_arguments_of_the_functions() -> None:
    for node in STUB.body:
        if isinstance(node, ast.FunctionDef):
            doc = getattr(_core, node.name).__doc__ or ""
            head = doc.splitlines()[0]
            for argument in [*node.args.args, *node.args.kwonlyargs]:
                assert f"{argument.arg}:" in head, f"{node.name}: {head}"
