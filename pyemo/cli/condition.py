"""``pyemo condition``: vectors that say when another one acts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pyemo.cli import output
from pyemo.cli.options import debug_option, json_option, model_option, threads_option
from pyemo.errors import InputError

if TYPE_CHECKING:
    from pyemo.engine.threads import Threads
    from pyemo.extract.conditions import ConditionFit, Quality


@click.group(short_help="Find when a vector is to act.")
def condition() -> None:
    """Make conditions: vectors that tell two kinds of prompts apart.

    \b
    Example:
      pyemo condition fit angry-user.txt calm-user.txt -o angry-user.gguf
    """


@condition.command(short_help="Find the layer and the threshold that tell two kinds apart.")
@click.argument("positive", type=click.Path())
@click.argument("negative", type=click.Path())
@model_option
@click.option(
    "--output", "-o", "target", required=True, metavar="FILE", help="The condition to write."
)
@click.option("--force", is_flag=True, help="Replace a vector that another tool wrote, too.")
@click.option(
    "--test",
    metavar="POSITIVE,NEGATIVE",
    help="Two more files, on which the finished condition is tried.",
)
@click.option("--layers", metavar="A:B", help="Layers to choose from.  [default: all but the ends]")
@click.option("--raw", is_flag=True, help="Take the texts without the model's chat template.")
@threads_option
@json_option
@debug_option
def fit(
    positive: str,
    negative: str,
    model: str,
    target: str,
    force: bool,
    test: str | None,
    layers: str | None,
    raw: bool,
    threads: Threads,
    as_json: bool,
) -> None:
    """Fit a condition that holds on prompts like those in POSITIVE, not on those in NEGATIVE.

    Both are text files with one prompt on each line: at least 8 each, 40 are better. Each layer's
    direction is the difference of the two kinds' mean hidden states. Every text is scored by a
    direction made of other texts, and the layer, threshold and side with the best F1 are kept. The
    file is a plain vector of one layer.

    \b
    Example:
      pyemo condition fit angry-user.txt calm-user.txt -o angry-user.gguf
      pyemo condition fit code.txt talk.txt --test code2.txt,talk2.txt -o code.gguf
      pyemo run --cvec "calm@when-prompt:./angry-user.gguf" "Where is my parcel?!"
    """
    from pathlib import Path

    from pyemo.engine.engine import Engine
    from pyemo.engine.model import Model
    from pyemo.extract.conditions import fit_condition, quality_of
    from pyemo.moods.grammar import parse_layers
    from pyemo.texts.sources import neutral_texts
    from pyemo.vectors.file import check_target

    check_target(target, force=force)
    kinds = [_prompts(name) for name in (positive, negative)]
    others = [_prompts(name) for name in _pair(test)]
    chosen = None if layers is None else parse_layers(layers)
    loaded = Model.load(model)
    n_texts = sum(map(len, [*kinds, *others])) + len(neutral_texts())
    n_ctx = min(2048, loaded.n_ctx_train)
    with (
        Engine(loaded, n_ctx=n_ctx, n_batch=512, n_seq_max=8, n_threads=threads) as engine,
        output.progress(n_texts, "reading texts") as advance,
    ):
        found = fit_condition(
            engine, *kinds, name=Path(target).stem, layers=chosen, raw=raw, on_progress=advance
        )
        tested = (
            quality_of(engine, found.vector, *others, raw=raw, on_progress=advance)
            if others
            else None
        )
    found.vector.save(target, force=force)
    if as_json:
        output.print_json(_describe(found, tested, target))
    else:
        _report(found, tested, target)


def _prompts(name: str) -> list[str]:
    from pyemo.files.inputs import read_text

    text = read_text(name, "the prompts", "give a text file with a prompt a line")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{name} has no prompts; write one a line")
    return lines


def _pair(test: str | None) -> list[str]:
    if test is None:
        return []
    names = test.split(",")
    if len(names) != 2:
        raise click.UsageError(f"--test {test!r} is not two files joined by a comma")
    return names


def _describe(found: ConditionFit, tested: Quality | None, target: str) -> dict[str, Any]:
    point = found.vector.metadata.condition
    assert point is not None
    return {
        "path": target,
        "layer": point.layer,
        "threshold": point.threshold,
        "side": point.side,
        "margin": found.margin,
        "held_out": _numbers(found.quality),
        "test": None if tested is None else _numbers(tested),
        "curve": [_numbers(quality) for quality in found.curve],
        "f1_by_layer": {str(layer): f1 for layer, f1 in found.by_layer.items()},
    }


def _numbers(quality: Quality) -> dict[str, float]:
    return {
        "threshold": quality.threshold,
        "precision": quality.precision,
        "recall": quality.recall,
        "f1": quality.f1,
    }


def _report(found: ConditionFit, tested: Quality | None, target: str) -> None:
    point = found.vector.metadata.condition
    assert point is not None
    output.say(f"{target}: reads layer {point.layer}, holds {point.side} {point.threshold:+.4f}")
    output.say(_row("held out", found.quality) + f", margin {found.margin:.1f} deviations")
    if tested is not None:
        output.say(_row("other texts", tested))
    output.say("threshold  precision  recall     F1")
    for quality in found.curve:
        output.say(
            f"{quality.threshold:>+9.4f}  {quality.precision:>9.2f}  {quality.recall:>6.2f}  "
            f"{quality.f1:>5.2f}"
        )


def _row(title: str, quality: Quality) -> str:
    return (
        f"{title}: F1 {quality.f1:.3f}, precision {quality.precision:.3f}, recall "
        f"{quality.recall:.3f}"
    )
