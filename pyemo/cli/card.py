"""``pyemo card``: a model card for a folder of vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyemo.cli import output
from pyemo.cli.options import debug_option, json_option

if TYPE_CHECKING:
    from pyemo.vectors.control_vector import ControlVector

README = "README.md"


@click.command(short_help="Write a model card for a folder of vectors.")
@click.argument("folder", type=click.Path())
@click.option("--title", metavar="TEXT", help="Title of the page.  [default: the folder's name]")
@click.option(
    "--base-model", metavar="ORG/NAME", help="The Hugging Face repository of the vectors' model."
)
@click.option("--licence", metavar="ID", help="Licence of the vectors, such as apache-2.0.")
@click.option(
    "--texts-licence", metavar="TEXT", help="Which texts the vectors come from, and their licence."
)
@click.option("--force", is_flag=True, help="Replace a README.md that pyemo card did not write.")
@json_option
@debug_option
def card(
    folder: str,
    title: str | None,
    base_model: str | None,
    licence: str | None,
    texts_licence: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write README.md into FOLDER: its vectors, their model, strengths, sources and use.

    The folder is then one that Hugging Face shows, that saklas installs and that llama.cpp's users
    take files from: vectors of one model, as .gguf files side by side. Folders within it are left
    aside, since saklas skips them. What no file says and no option states is "not known".

    \b
    Example:
      pyemo card ./my-vectors --base-model org/name --licence apache-2.0
    """
    from pyemo.errors import InputError
    from pyemo.files.targets import write_whole
    from pyemo.vectors.card import MARK, CardFacts
    from pyemo.vectors.card import card as write_card

    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"no folder {folder!r}; name one with vector files in it")
    vectors, notes = _vectors(place)
    facts = CardFacts(licence or "", base_model or "", texts_licence or "")
    text = write_card(title or place.resolve().name, vectors, facts)

    def refusal(target: Path) -> str | None:
        if force or MARK in target.read_text(encoding="utf-8", errors="replace"):
            return None
        return "was not made by pyemo card (--force replaces it)"

    write_whole(place / README, text.encode(), "a model card", refusal)
    if as_json:
        output.print_json(
            {"path": str(place / README), "vectors": list(vectors), "notes": list(notes)}
        )
        return
    output.say(f"{place / README}: {len(vectors)} vectors")
    for note in notes:
        output.note(note)


def _vectors(folder: Path) -> tuple[dict[str, ControlVector], list[str]]:
    """Return the folder's vectors by file name, sorted, and what to say of the other files."""
    from pyemo.errors import VectorError
    from pyemo.vectors.control_vector import ControlVector

    vectors, notes = {}, []
    for path in sorted(folder.glob("*.gguf")):
        try:
            vectors[path.name] = vector = ControlVector.load(path)
        except VectorError as error:
            notes.append(f"left out: {error}")
            continue
        if vector.layers[0] == 0:
            notes.append(f"{path.name} steers block 0; llama.cpp refuses it: pyemo convert")
    nested = sorted({path.parent.name for path in folder.glob("*/*.gguf")})
    if nested:
        notes.append(f"folders are left aside, and saklas skips them: {', '.join(nested)}")
    return vectors, notes
