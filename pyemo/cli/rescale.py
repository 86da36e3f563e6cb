"""``pyemo rescale``: a raw vector of another tool in residual units."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pyemo.cli import output
from pyemo.cli.options import debug_option, json_option, model_option, threads_option

if TYPE_CHECKING:
    from pyemo.engine.model import Model
    from pyemo.engine.threads import Threads
    from pyemo.extract.neutral import NeutralStatistics
    from pyemo.vectors.control_vector import ControlVector


@click.command(short_help="Give a vector of another tool pyemo's unit of strength.")
@click.argument("file", type=click.Path())
@model_option
@click.option(
    "--output", "-o", "target", required=True, metavar="FILE", help="The vector to write."
)
@click.option("--force", is_flag=True, help="Replace a vector of another make too.")
@click.option(
    "--layer-shift",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="Move each direction by N layers first. llama.cpp's cvector-generator writes what it "
    "measured after block N-1 as direction N: -1 puts it back.",
)
@click.option(
    "--layers", metavar="A:B", help="Keep these layers only, B not included; after the shift."
)
@click.option(
    "--allow-other-weights",
    is_flag=True,
    help="Rescale for another architecture of the same shape.",
)
@threads_option
@json_option
@debug_option
def rescale(
    file: str,
    model: str,
    target: str,
    force: bool,
    layer_shift: int,
    layers: str | None,
    allow_other_weights: bool,
    threads: Threads,
    as_json: bool,
) -> None:
    """Turn the raw vector FILE into residual units, so that 0.02 is 2% of the residual norm.

    Files of repeng and of llama.cpp's cvector-generator do not say how long a direction is beside
    what it is added to. This reads neutral texts with the model, makes every direction as long as
    the median residual norm of its layer, and notes the neutral projections that gauges need. The
    model is noted as the one the vector was made on.

    \b
    Example:
      pyemo rescale repeng.gguf -m smollm2-135m-instruct -o happy.gguf
      pyemo rescale cvector.gguf -m smollm2-135m-instruct --layer-shift -1 --layers 1: -o happy.gguf
    """
    from pyemo.engine.model import Model
    from pyemo.vectors.file import check_target

    check_target(target, force=force)
    vector = _prepare(file, layer_shift, layers)
    loaded = Model.load(model)
    vector.check(loaded, allow_other_weights=allow_other_weights)
    statistics = _measure(loaded, vector, threads)
    rescaled = vector.rescaled(
        statistics.residual_norms, statistics.neutral_projections, source=loaded
    )
    rescaled.save(target, force=force)
    _report(rescaled, statistics, target, as_json)


def _prepare(file: str, layer_shift: int, layers: str | None) -> ControlVector:
    """Return the file's vector with the layers it is to have."""
    from pyemo.engine.steering import parse_layers
    from pyemo.errors import InputError
    from pyemo.vectors.control_vector import ControlVector

    vector = ControlVector.load(file)
    if vector.unit != "raw":
        raise InputError(f"{file} is in residual units already; use it as it is")
    if layer_shift:
        vector = vector.shifted(layer_shift)
    return vector if layers is None else vector.only_layers(parse_layers(layers))


def _measure(model: Model, vector: ControlVector, threads: Threads) -> NeutralStatistics:
    """Read the neutral texts, with a progress bar on stderr."""
    from pyemo.engine.engine import Engine
    from pyemo.extract.neutral import neutral_statistics
    from pyemo.texts.sources import neutral_texts

    texts = neutral_texts()
    n_ctx = min(512, model.n_ctx_train)
    with (
        Engine(model, n_ctx=n_ctx, n_batch=n_ctx, n_threads=threads) as engine,
        output.progress(len(texts), "reading neutral texts") as advance,
    ):
        return neutral_statistics(engine, texts, vector, on_progress=advance)


def _report(
    vector: ControlVector, statistics: NeutralStatistics, target: str, as_json: bool
) -> None:
    if as_json:
        output.print_json(
            {
                "path": target,
                "layers": list(vector.layers),
                "residual_norms": list(statistics.residual_norms),
                "neutral_projections": list(statistics.neutral_projections),
                "n_tokens": statistics.n_tokens,
                "source_model": vector.metadata.source_model,
            }
        )
        return
    norms = statistics.residual_norms
    output.say(
        f"{target}: {len(vector.layers)} layers in residual units of {vector.metadata.source_model}"
    )
    output.note(
        f"residual norms {min(norms):.3g} to {max(norms):.3g}, the median of "
        f"{statistics.n_tokens} tokens"
    )
