"""``pyemo models requantize``: a model in another format, and what that costs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pyemo.cli import output
from pyemo.cli.options import debug_option, json_option, threads_option

if TYPE_CHECKING:
    from pyemo.engine.threads import Threads
    from pyemo.formats.cost import FormatCost
    from pyemo.formats.quantize import Requantized, TensorType

_N_NEUTRAL = 16  # texts; with one of each emotion some 2,000 tokens


@click.command(short_help="Make a model in another format.")
@click.argument("model")
@click.argument("format")
@click.option(
    "--output",
    "-o",
    "target",
    metavar="FILE",
    help="The file to write.  [default: in pyemo's cache]",
)
@click.option("--again", is_flag=True, help="Make it even if it is there already.")
@click.option(
    "--cvec",
    "vector",
    metavar="VECTOR",
    help="Compare what this vector does in both files as well.",
)
@click.option(
    "--cost/--no-cost",
    default=True,
    help="Measure what the format costs in quality.  [default: cost]",
)
@threads_option
@json_option
@debug_option
def requantize(
    model: str,
    format: str,
    target: str | None,
    again: bool,
    vector: str | None,
    cost: bool,
    threads: Threads,
    as_json: bool,
) -> None:
    """Make MODEL in FORMAT, such as Q4_0 or Q8_0, with llama.cpp's own quantizer.

    The format decides the speed on a CPU, more than its size does. A model of the catalog is used
    as NAME:FORMAT afterwards, any other by the path that is printed. Vectors made for the model
    fit all its formats.

    A format that is made from a quantized file holds both roundings; take F16 or BF16 files as the
    source where you have them.

    \b
    Example:
      pyemo models requantize smollm2-135m-instruct Q4_0
      pyemo run -m smollm2-135m-instruct:Q4_0 --cvec anger "How was your day?"
    """
    from pyemo.formats import quantize

    with output.progress(1000, f"making {format.upper()}") as advance:
        done = quantize.requantize(
            model,
            format,
            target=target,
            again=again,
            n_threads=_number_of(threads),
            on_progress=_permille(advance),
        )
    measured = _measure(done, vector, threads) if cost else None
    if as_json:
        output.print_json(_describe(done, measured))
        return
    _print(done, measured)


def _number_of(threads: Threads) -> int:
    """Return a number for a word."""
    from pyemo.engine.threads import ThreadChoice

    return ThreadChoice(threads).n_threads


def _permille(advance: Any) -> Any:
    shown = 0

    def on_progress(done: int, total: int) -> None:
        nonlocal shown
        now = done * 1000 // total
        advance(now - shown)
        shown = now

    return on_progress


def _measure(done: Requantized, vector: str | None, threads: Threads) -> FormatCost:
    from pyemo.emotions import EMOTIONS
    from pyemo.engine.model import Model
    from pyemo.formats.cost import measure_cost
    from pyemo.texts.sources import neutral_texts, vignettes
    from pyemo.vectors.control_vector import ControlVector

    texts = [*neutral_texts()[:_N_NEUTRAL]]
    texts += [vignettes(emotion, "held_out")[0].text for emotion in EMOTIONS]
    model, source = Model.load(done.path), Model.load(done.source_path)
    loaded = None if vector is None else ControlVector.load(vector, model)
    with output.progress(2 * len(texts), "measuring what it costs") as advance:
        return measure_cost(
            model,
            source,
            texts,
            vector=loaded,
            n_threads=_number_of(threads),
            on_progress=advance,
        )


def _print(done: Requantized, cost: FormatCost | None) -> None:
    output.say(done.name)
    output.say(f"  file       {done.path}{'  (was there)' if done.was_there else ''}")
    output.say(f"  size       {_size(done.tensor_types)}, the source {_size(done.source_types)}")
    output.say(f"  tensors    {_types(done.tensor_types)}")
    output.say(f"  source     {_types(done.source_types)}")
    if cost is None:
        return
    output.say(
        f"  perplexity {cost.perplexity:.2f}, the source {cost.source_perplexity:.2f}: ratio "
        f"{cost.ratio:.3f} ± {cost.ratio_stderr:.3f} ({cost.n_texts} texts, {cost.n_tokens} tokens)"
    )
    output.say(f"  hidden     {_cosines(cost.hidden_cosine)}")
    if cost.steering_cosine:
        output.say(f"  steering   {_cosines(cost.steering_cosine)} of what {cost.vector} changes")
        windows = "; ".join(f"{name} {low:g} to {high:g}" for name, low, high in cost.windows)
        output.say(f"  window     {windows or 'not calibrated: `pyemo calibrate` measures it'}")


def _size(types: tuple[TensorType, ...]) -> str:
    return output.size(sum(part.n_bytes for part in types))


def _types(types: tuple[TensorType, ...]) -> str:
    total = sum(part.n_bytes for part in types)
    return ", ".join(f"{part.type} {part.n_bytes / total:.0%}" for part in types)


def _cosines(cosines: tuple[float, ...]) -> str:
    mean = sum(cosines) / len(cosines)
    low = min(range(len(cosines)), key=cosines.__getitem__)
    return f"cosine {mean:.4f} over {len(cosines)} layers, lowest {cosines[low]:.4f}"


def _describe(done: Requantized, cost: FormatCost | None) -> dict[str, Any]:
    return {
        "name": done.name,
        "path": str(done.path),
        "format": done.format,
        "was_there": done.was_there,
        "source_path": str(done.source_path),
        "tensor_types": [asdict(part) for part in done.tensor_types],
        "source_tensor_types": [asdict(part) for part in done.source_types],
        "cost": None if cost is None else asdict(cost),
    }
