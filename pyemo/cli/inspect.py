"""``pyemo inspect``: what a vector file says of itself, and whether it fits a model."""

from __future__ import annotations

import os

import click

from pyemo.cli.options import DEFAULT_MODEL, debug_option, json_option


@click.command(short_help="Show what a vector, or a folder of them, says of itself.")
@click.argument("vector", required=False)
@click.option(
    "--model",
    "-m",
    metavar="NAME",
    help="Say how the vector fits this model; a vector's name means the one bundled for it.  "
    f"[default: names of {DEFAULT_MODEL}]",
)
@click.option(
    "--emotions", is_flag=True, help="List the 20 emotions, their other names and opposites."
)
@json_option
@debug_option
def inspect(vector: str | None, model: str | None, emotions: bool, as_json: bool) -> None:
    """Show VECTOR: a file, the name of a bundled vector, or a folder of vectors.

    For one vector: its unit, its source and recipe, what it was calibrated on, the length of its
    direction at each layer, and the dose of a strength: how far it moves the last layer's residual
    stream, as a share of its norm. A folder is judged as a set.

    \b
    Example:
      pyemo inspect anger
      pyemo inspect ./my.gguf --model gemma-3-270m
      pyemo inspect --emotions
    """
    if emotions == (vector is not None):
        raise click.UsageError("give a VECTOR, or --emotions")
    if vector is None:
        from pyemo.cli.inspecting import print_emotions

        print_emotions(as_json)
    elif os.path.isdir(vector):
        from pyemo.errors import InputError

        raise InputError(f"{vector} is a folder; inspect one of its files")
    else:
        from pyemo.cli.inspecting import print_vector

        print_vector(vector, model, as_json)
