"""``pyemo convert``: a vector of any tool as a file of pyemo's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pyemo.cli import output
from pyemo.cli.options import debug_option, json_option

if TYPE_CHECKING:
    from pyemo.engine.model import Model
    from pyemo.vectors.control_vector import ControlVector
    from pyemo.vectors.foreign import ForeignVector


@click.command(short_help="Make a vector file of one that another tool wrote.")
@click.argument("file", type=click.Path())
@click.option(
    "--output", "-o", "target", required=True, metavar="FILE", help="The vector to write."
)
@click.option("--force", is_flag=True, help="Replace a vector that another tool wrote, too.")
@click.option(
    "--model",
    "-m",
    metavar="NAME",
    help="The model it is for: tells its blocks and architecture, and is compared.",
)
@click.option(
    "--layer-base",
    type=click.Choice(["0", "1"]),
    help="The number the file gives the output of the first block.  [default: as the tool counts]",
)
@click.option(
    "--layer", type=int, metavar="N", help="The block of a single direction, counted from 0."
)
@click.option("--layers", metavar="A:B", help="Keep these blocks only, B not included.")
@click.option(
    "--hint", metavar="ARCH", help="The architecture it is for, such as llama, without a model."
)
@click.option("--flip", is_flag=True, help="Turn every direction round.")
@json_option
@debug_option
def convert(
    file: str,
    target: str,
    force: bool,
    model: str | None,
    layer_base: str | None,
    layer: int | None,
    layers: str | None,
    hint: str | None,
    flip: bool,
    as_json: bool,
) -> None:
    """Make a GGUF vector file of FILE: GGUF, safetensors, a .pt file, or a saklas pack.

    Reads what llama.cpp's cvector-generator, repeng, EasySteer, saklas, steering-vectors,
    persona_vectors and jukofyork's generator write, and says what it took as what. What a file
    does not say is asked for. Lengths stay as they are: `pyemo rescale` gives them a unit.
    A .pt file is opened by torch's loader for weights only: code in it is refused, not run.

    \b
    Example:
      pyemo convert evil_response_avg_diff.pt -m my.gguf -o evil.gguf
      pyemo convert ./happy-pack -m gemma-3-270m -o happy.gguf
      pyemo convert direction.safetensors --layer 14 --hint llama -o direction.gguf
    """
    from pyemo.vectors.file import check_target
    from pyemo.vectors.foreign import read_foreign

    check_target(target, force=force)
    loaded = _loaded(model)
    found = read_foreign(
        file,
        layer_base=None if layer_base is None else int(layer_base),
        layer=layer,
        hint=hint or "",
        flip=flip,
        model=loaded,
    )
    if loaded is not None:
        found.vector.check(loaded)
    vector, notes = _writable(found, layers)
    vector.save(target, force=force)
    _report(found, vector, notes, target, as_json)


def _loaded(model: str | None) -> Model | None:
    if model is None:
        return None
    from pyemo.engine.model import Model

    return Model.load(model)


def _writable(found: ForeignVector, layers: str | None) -> tuple[ControlVector, tuple[str, ...]]:
    """Return the vector with the blocks that are kept, and what to say of one that cannot be."""
    from pyemo.errors import InputError
    from pyemo.moods.grammar import parse_layers

    vector = found.vector if layers is None else found.vector.only_layers(parse_layers(layers))
    if vector.layers[0] > 0:
        return vector, found.notes
    if len(vector.layers) == 1:
        raise InputError(
            f"{found.path} steers block 0 alone, for which a GGUF control vector has no place; "
            "steer with ControlVector in Python"
        )
    note = (
        "block 0 was left out: a GGUF control vector has no place for it. A GGUF file that has it "
        "steers it as it is (--cvec)"
    )
    return vector.only_layers(vector.layers[1:]), (*found.notes, note)


def _report(
    found: ForeignVector,
    vector: ControlVector,
    notes: tuple[str, ...],
    target: str,
    as_json: bool,
) -> None:
    if as_json:
        output.print_json(
            {
                "path": target,
                "source": str(found.path),
                "tool": found.tool,
                "architecture": vector.metadata.architecture,
                "unit": vector.unit,
                "n_embd": vector.n_embd,
                "layers": list(vector.layers),
                "notes": list(notes),
            }
        )
        return
    first, last = vector.layers[0], vector.layers[-1]
    output.say(
        f"{target}: {len(vector.layers)} directions for blocks {first} to {last}, "
        f"{vector.n_embd} wide, for {vector.metadata.architecture}; from {found.tool}"
    )
    for note in notes:
        output.note(note)
