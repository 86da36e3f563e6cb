"""``pyemo inspect``: what a vector file says of itself, and whether it fits a model."""

from __future__ import annotations

import os

import click

from pyemo.choices import DEFAULT_MODEL
from pyemo.cli.options import debug_option, json_option


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
    "--voice",
    is_flag=True,
    help="Measure on the model how much likelier the vector makes replies in its emotion's voice, "
    "and plain ones.  [default model: " + DEFAULT_MODEL + "]",
)
@click.option(
    "--facts",
    is_flag=True,
    help="Measure on the model what the vector does to plain facts, and whether it makes the model "
    "agree with what is false.  [default model: " + DEFAULT_MODEL + "]",
)
@click.option(
    "--emotions", is_flag=True, help="List the 20 emotions, their other names and opposites."
)
@click.option(
    "--plot", metavar="FOLDER", help="For a folder: write a heat map and curves as PNG there."
)
@click.option(
    "--own", metavar="FILE", help="For a folder: the emotions file its vectors were made with."
)
@click.option(
    "--files-only", is_flag=True, help="For a folder: measure nothing on the vectors' model."
)
@json_option
@debug_option
def inspect(
    vector: str | None,
    model: str | None,
    voice: bool,
    facts: bool,
    emotions: bool,
    plot: str | None,
    own: str | None,
    files_only: bool,
    as_json: bool,
) -> None:
    """Show VECTOR: a file of any tool, the name of a bundled vector, or a folder of vectors.

    hf:org/repo lists the vectors of a Hugging Face repository; hf:org/repo/file.gguf is one.

    For one vector: what wrote it, its unit, its source and recipe, what it was calibrated on, the
    length of its direction at each layer, and the dose of a strength: how far it moves the last
    layer's residual stream, as a share of its norm.

    With --voice, written replies are put to the model, unsteered and at the recommended strength,
    half of it and minus it. Gain: how much likelier the emotion's own replies become, in nats per
    token. Specificity: gain less that of other emotions. Damage: how much less likely plain replies
    become. It reads 192 replies: a minute or two of one core on
    a model of 135M.

    With --facts, the model chooses between answers to twenty plain facts and to twenty claims,
    false and then true: unsteered, at the recommended strength, and under random directions of
    the same length. Shown are how many true answers it prefers, how many claims it agrees with, and
    by how much that changes beyond what random directions change.

    A folder is judged as a set: how far its directions point apart at each layer, and, where its
    model is at hand, how well they tell held-out texts apart and how much they depend on the texts
    they were made of.

    \b
    Example:
      pyemo inspect anger
      pyemo inspect ./my.gguf --model gemma-3-270m
      pyemo inspect anger --voice
      pyemo inspect happiness --facts
      pyemo inspect ./my-vectors --plot ./pictures
      pyemo inspect hf:org/repo
      pyemo inspect --emotions
    """
    if emotions == (vector is not None):
        raise click.UsageError("give a VECTOR, or --emotions")
    if (voice or facts) and (vector is None or os.path.isdir(vector)):
        name = "--voice" if voice else "--facts"
        raise click.UsageError(f"{name} measures one vector: name its file, or a bundled one")
    from pyemo.files.hub_vectors import parse

    if vector is None:
        from pyemo.cli.inspect_job import print_emotions

        print_emotions(as_json)
    elif (remote := parse(vector)) is not None and remote.file is None:
        from pyemo.cli.inspect_job import print_repository

        print_repository(remote.repo, as_json)
    elif os.path.isdir(vector) and not os.path.isfile(os.path.join(vector, "pack.json")):
        from pyemo.cli.inspect_set import print_set

        print_set(
            vector,
            model_name=model,
            own_file=own,
            plot_folder=plot,
            files_only=files_only,
            as_json=as_json,
        )
    else:
        from pyemo.cli.inspect_job import print_vector

        print_vector(vector, model, as_json, with_voice=voice, with_facts=facts)
