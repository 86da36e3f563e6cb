"""Public names and errors are listed, documented and where they say they are."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest
from pages import ROOT, read

import pyemo
from pyemo import errors


def test_public_names_are_sorted() -> None:
    assert sorted(pyemo.__all__) == list(pyemo.__all__)
    assert len(set(pyemo.__all__)) == len(pyemo.__all__)


def test_public_names_are_those_with_a_home() -> None:
    assert sorted(pyemo._HOMES) == list(pyemo.__all__)


@pytest.mark.parametrize("name", pyemo.__all__)
def test_public_name_can_be_imported_from_its_home(name: str) -> None:
    found = getattr(pyemo, name)
    assert found.__module__ == pyemo._HOMES[name]
    assert found.__name__ == name


@pytest.mark.parametrize("name", pyemo.__all__)
def test_public_name_and_its_methods_are_documented(name: str) -> None:
    found = getattr(pyemo, name)
    assert inspect.getdoc(found)
    bare = [
        attribute
        for attribute, value in vars(found).items()
        if not attribute.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod))
        and not inspect.getdoc(getattr(found, attribute))
    ]
    assert bare == []


@pytest.mark.parametrize("name", pyemo.__all__)
def test_public_name_is_on_the_page_of_the_python_api(name: str) -> None:
    assert re.search(rf"\b{name}\b", read(ROOT / "docs" / "python.md"))


def test_type_checkers_see_the_public_names() -> None:
    source = read(ROOT / "pyemo" / "__init__.py").partition("if TYPE_CHECKING:")[2]
    source = source.partition("__all__")[0].replace("(", " ").replace(")", " ")
    seen = re.findall(r"\b([A-Za-z_]+)\b", " ".join(re.findall(r"import ([^\n]*)", source)))
    missing = [name for name in pyemo.__all__ if name not in seen and name not in source.split()]
    assert [name for name in missing if f"{name}," not in source] == []


# --- errors ---

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, errors.PyemoError)
}
TREE = re.findall(
    r"^([│├└─ ]*)(\w+Error)\b(?:\((\w+)\))?", errors.__doc__ or "", flags=re.MULTILINE
)


def test_tree_at_the_head_of_errors_has_every_class_under_its_parent() -> None:
    parents: dict[int, str] = {}
    drawn = {}
    for stem, name, _ in TREE:
        depth = len(stem) // 3
        parents[depth] = name
        drawn[name] = parents.get(depth - 1)
    found = {
        name: next((base.__name__ for base in value.__mro__[1:] if base.__name__ in CLASSES), None)
        for name, value in CLASSES.items()
    }
    assert drawn == found


def test_tree_names_the_built_in_base() -> None:
    for _, name, built_in in TREE:
        if built_in:
            assert built_in in [base.__name__ for base in CLASSES[name].__bases__]


def test_page_of_the_errors_has_the_tree() -> None:
    def tree(text: str) -> str:
        found = re.search(r"^PyemoError\n(?:[│├└].*\n)+", text, flags=re.MULTILINE)
        assert found is not None
        return found[0]

    page = read(ROOT / "docs" / "errors.md")
    assert tree(page) == tree(errors.__doc__ or ""), (
        "copy the tree of pyemo/errors.py into the page"
    )


@pytest.mark.parametrize("name", CLASSES)
def test_error_survives_pickling(name: str) -> None:
    error = pickle.loads(pickle.dumps(CLASSES[name]("what was wrong")))
    assert (type(error), str(error)) == (CLASSES[name], "what was wrong")
