"""What ``sweep`` and ``calibrate`` take: prompts from a file, and a judge by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from pyemo.cli import output
from pyemo.errors import InputError
from pyemo.files.inputs import read_text

if TYPE_CHECKING:
    from pyemo.judges import Judge
    from pyemo.vectors.control_vector import ControlVector

NO_JUDGE = "none"


def prompts_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--prompts``."""
    return click.option(
        "--prompts",
        metavar="FILE",
        help="Prompts, one a line.  [default: 8 of pyemo's own]",
    )(command)


def read_prompts(path: str | None) -> tuple[str, ...]:
    """Return the prompts of a file, one a line, empty lines left out; None for pyemo's own.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or has no prompt.
    """
    if path is None:
        from pyemo.texts.sources import prompts

        return prompts("selection")
    text = read_text(path, "prompts", "give a UTF-8 text file, one prompt a line")
    found = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not found:
        raise InputError(f"prompts {path!r} has no line with a prompt; write one a line")
    return found


def judge_option(*, takes_none: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add ``--judge``, whose value is a name: without one that of the judge that is there."""
    none = ", or none" if takes_none else ""
    return click.option(
        "--judge",
        metavar="NAME",
        callback=lambda _context, _option, value: _judge_name() if value is None else value,
        help=f"Who says whether the text moved: voice, another judge of docs/strengths.md{none}.  "
        "[default: voice; minilm without scikit-learn]",
    )


def _judge_name() -> str:
    from pyemo.judges import default_judge

    name = default_judge()
    if name != "voice":
        output.note(
            f"judged by {name}: the judge of voices agrees better with readers and needs "
            "scikit-learn, pip install 'pyemo[judge]'"
        )
    return name


def load_files(names: Iterable[str | os.PathLike[str]]) -> list[ControlVector]:
    """Return the vectors of those names that are files, for checks before a model is loaded.

    Raises:
        VectorError: a file that is no control vector.
    """
    from pyemo.vectors.control_vector import ControlVector

    files = [os.path.expanduser(name) for name in names]
    return [ControlVector.load(file) for file in files if os.path.isfile(file)]


def load_judge(name: str) -> Judge | None:
    """Return the judge of that name, None for "none".

    Raises:
        MissingExtraError: what it needs is not installed; the message says that none will do.
    """
    if name == NO_JUDGE:
        return None
    from pyemo import judges
    from pyemo.errors import MissingExtraError

    try:
        return judges.load_judge(name)
    except MissingExtraError as error:
        raise MissingExtraError(
            f"{error}; or --judge none, which cannot tell an inert strength from a surgical one"
        ) from error
