"""``pyemo rescale``: a raw vector of another tool in residual units."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from pyemo.cli import output
from pyemo.cli.options import debug_option, json_option, model_option, threads_option

if TYPE_CHECKING:
    from pyemo.engine.model import Model
    from pyemo.engine.threads import Threads
    from pyemo.extract.neutral import NeutralStatistics
    from pyemo.extract.signs import SignCheck
    from pyemo.vectors.control_vector import ControlVector
    from pyemo.vectors.metadata import Ellipsoid


@click.command(short_help="Give a vector of another tool pyemo's unit of strength.")
@click.argument("file", type=click.Path())
@model_option
@click.option(
    "--output", "-o", "target", required=True, metavar="FILE", help="The vector to write."
)
@click.option("--force", is_flag=True, help="Replace a vector that another tool wrote, too.")
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
    "--per-layer",
    is_flag=True,
    help="Make every direction as long as its own layer's residual, instead of keeping the "
    "proportions of their lengths.",
)
@click.option(
    "--check-sign",
    metavar="POLES",
    help="Read texts of both poles and say which layers point the wrong way. POLES is an emotion's "
    "name, or two files with one text on each line: happy.txt,sad.txt.",
)
@click.option("--fix-sign", is_flag=True, help="With --check-sign: turn round the layers that do.")
@click.option(
    "--own-texts",
    metavar="TEXTS",
    help="Read these texts, and note in the file how far they point along the vector; the "
    "operators raise and cap need it. TEXTS is an emotion's name, or a file with one text on each "
    "line. The directions of a vector that is in residual units already stay as they are.",
)
@click.option(
    "--components",
    type=click.IntRange(min=1),
    metavar="K",
    help="With --own-texts: note too where the model's hidden states lie, in K principal "
    "components of each layer; the operator add_within needs it.",
)
@click.option(
    "--without",
    "away",
    metavar="VECTOR",
    help="Take this vector's directions out of FILE's, such as a language's; docs/methods.md.",
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
    per_layer: bool,
    check_sign: str | None,
    fix_sign: bool,
    own_texts: str | None,
    components: int | None,
    away: str | None,
    layers: str | None,
    allow_other_weights: bool,
    threads: Threads,
    as_json: bool,
) -> None:
    """Turn the raw vector FILE into residual units, so that 0.02 is 2% of the residual norm.

    Files of other tools do not say how long a direction is beside what it is added to. This reads
    neutral texts with the model and multiplies all directions by one factor, so that 0.02 is 2% of
    the median residual norm, on average over the layers. It also notes the neutral projections that
    gauges need, and the model as the one the vector was made on. How the directions' lengths differ
    is part of many methods and stays; --per-layer makes each as long as the residual of its own
    layer.

    llama.cpp's PCA leaves each layer's sign to chance. --check-sign reads ten texts of each pole
    and compares their hidden states along each direction.

    \b
    Example:
      pyemo rescale repeng.gguf -m smollm2-135m-instruct -o happy.gguf
      pyemo rescale cvector.gguf -m smollm2-135m-instruct --layer-shift -1 --layers 1: -o happy.gguf
      pyemo rescale cvector.gguf --check-sign happy --fix-sign -o happy.gguf
      pyemo rescale angry.gguf --own-texts angry -o angry.gguf
      pyemo rescale angry.gguf --without zh.gguf -o clean.gguf
    """
    from pyemo.engine.model import Model
    from pyemo.vectors.file import check_target

    if fix_sign and check_sign is None:
        raise click.UsageError("--fix-sign turns what --check-sign finds: give both")
    if components is not None and own_texts is None:
        raise click.UsageError("--components needs the texts whose rows are real: --own-texts")
    check_target(target, force=force)
    poles = None if check_sign is None else _poles(check_sign)
    own = None if own_texts is None else _own_texts(own_texts)
    may_be_residual = own is not None or away is not None
    vector = _prepare(file, layer_shift, layers, may_be_residual=may_be_residual)
    loaded = Model.load(model)
    vector.check(loaded, allow_other_weights=allow_other_weights)
    if away is not None:
        vector = _without(loaded, vector, away)
    vector, signs = _signed(loaded, vector, threads, poles, fix_sign)
    statistics, along = _measure(loaded, vector, threads, own)
    if vector.unit == "residual":
        known = replace(
            vector.metadata,
            neutral_projections=vector.metadata.neutral_projections
            or statistics.neutral_projections,
        )
        rescaled = vector.with_metadata(known)
    else:
        rescaled = vector.rescaled(
            statistics.residual_norms,
            statistics.neutral_projections,
            source=loaded,
            keep_profile=not per_layer,
        )
    if own is not None:
        found = None
        if components is not None:
            found = _ellipsoids(loaded, rescaled, threads, own, components)
        rescaled = rescaled.with_own_projections(statistics.neutral_projections, along, found)
    rescaled.save(target, force=force)
    _report(rescaled, statistics, signs, fix_sign, target, as_json)


def _prepare(
    file: str, layer_shift: int, layers: str | None, *, may_be_residual: bool
) -> ControlVector:
    """Return the file's vector with the layers it is to have."""
    from pyemo.errors import InputError
    from pyemo.moods.grammar import parse_layers
    from pyemo.vectors.foreign import read_foreign

    found = read_foreign(file)
    for note in found.notes:
        output.note(note)
    vector = found.vector
    if vector.unit != "raw" and not may_be_residual:
        raise InputError(f"{file} is in residual units already; use it as it is")
    if layer_shift:
        vector = vector.shifted(layer_shift)
    if layers is not None:
        vector = vector.only_layers(parse_layers(layers))
    if vector.layers[0] == 0 and len(vector.layers) > 1:
        output.note("block 0 is left out: a vector file has no place for it")
        vector = vector.only_layers(vector.layers[1:])
    return vector


def _without(model: Model, vector: ControlVector, away: str) -> ControlVector:
    """Return the vector without another's directions, and say how alike they were."""
    from pyemo.extract.languages import without
    from pyemo.vectors.control_vector import ControlVector

    other = ControlVector.load(away, model=model)
    cleaned, cosines = without(vector, other)
    low, high = min(cosines.values()), max(cosines.values())
    output.note(
        f"{other.name} was taken out at {len(cosines)} layers; cosines {low:+.3f} to {high:+.3f}"
    )
    return cleaned


def _poles(text: str) -> tuple[list[str], list[str]]:
    """Return texts of the positive and the negative pole.

    Raises:
        InputError: no such emotion, or files that cannot be read or hold no text.
    """
    from pyemo.emotions import EMOTIONS, resolve
    from pyemo.errors import InputError
    from pyemo.texts.sources import neutral_texts, vignettes

    if "," not in text:
        emotion = resolve(text)
        own = [scene.text for scene in vignettes(emotion)]
        opposite = EMOTIONS[emotion].opposite
        others = [scene.text for scene in vignettes(opposite)] if opposite else neutral_texts()
        return own, list(others)
    names = text.split(",")
    if len(names) != 2:
        raise InputError(f"{text!r} is not an emotion, nor two files joined by a comma")
    first, second = (_texts(name) for name in names)
    return first, second


def _own_texts(text: str) -> list[str]:
    """Return the texts of an emotion, or those of a file."""
    from pyemo.emotions import resolve
    from pyemo.errors import InputError
    from pyemo.texts.sources import vignettes

    try:
        return [scene.text for scene in vignettes(resolve(text))]
    except InputError:
        return _texts(text)


def _texts(name: str) -> list[str]:
    from pyemo.errors import InputError
    from pyemo.files.inputs import read_text

    text = read_text(name, "the texts", "give a UTF-8 text file, one text a line")
    texts = [line.strip() for line in text.splitlines() if line.strip()]
    if not texts:
        raise InputError(f"{name!r} holds no text; write one a line")
    return texts


def _signed(
    model: Model,
    vector: ControlVector,
    threads: Threads,
    poles: tuple[list[str], list[str]] | None,
    fix: bool,
) -> tuple[ControlVector, SignCheck | None]:
    """Return the vector, turned round where that was found and wanted, and what was found."""
    if poles is None:
        return vector, None
    from pyemo.engine.engine import Engine
    from pyemo.extract.signs import check_signs, turned

    n_ctx = min(512, model.n_ctx_train)
    with Engine(model, n_ctx=n_ctx, n_batch=n_ctx, n_threads=threads) as engine:
        signs = check_signs(engine, vector, *poles)
    return (turned(vector, signs.wrong) if fix else vector), signs


def _sign_lines(signs: SignCheck, fixed: bool) -> list[str]:
    """Return what was found of the signs, in words."""
    total = len(signs.order)
    lines = [
        f"sign: {len(signs.right)} of {total} directions point to the first pole, "
        f"{len(signs.wrong)} to the other, {len(signs.unclear)} do not tell them apart "
        f"({signs.n_texts[0]} and {signs.n_texts[1]} texts)"
    ]
    if signs.wrong:
        layers = ", ".join(map(str, signs.wrong))
        done = "turned round" if fixed else "point the wrong way; --fix-sign turns them"
        lines.append(f"sign: layers {layers} {done}")
    return lines


def _measure(
    model: Model, vector: ControlVector, threads: Threads, own: list[str] | None
) -> tuple[NeutralStatistics, tuple[float, ...]]:
    """Read neutral texts and the vector's own, with a progress bar on stderr.

    Returns:
        the statistics, and the mean projections of the own texts; () where there are none.
    """
    from pyemo.engine.engine import Engine
    from pyemo.extract.neutral import neutral_statistics
    from pyemo.texts.sources import neutral_texts

    texts = neutral_texts()
    n_ctx = min(512, model.n_ctx_train)
    with (
        Engine(model, n_ctx=n_ctx, n_batch=n_ctx, n_threads=threads) as engine,
        output.progress(len(texts) + len(own or ()), "reading texts") as advance,
    ):
        neutral = neutral_statistics(engine, texts, vector, on_progress=advance)
        if own is None:
            return neutral, ()
        found = neutral_statistics(engine, own, vector, on_progress=advance)
        return neutral, found.neutral_projections


def _ellipsoids(
    model: Model, vector: ControlVector, threads: Threads, own: list[str], n_components: int
) -> dict[int, Ellipsoid]:
    """Read all texts again, now every row of them."""
    from pyemo.engine.engine import Engine
    from pyemo.extract.ellipsoids import ellipsoids
    from pyemo.texts.sources import neutral_texts

    texts = neutral_texts()
    n_ctx = min(512, model.n_ctx_train)
    with (
        Engine(model, n_ctx=n_ctx, n_batch=n_ctx, n_threads=threads) as engine,
        output.progress(len(texts) + len(own), "reading rows") as advance,
    ):
        return ellipsoids(engine, texts, own, vector, n_components, on_progress=advance)


def _report(
    vector: ControlVector,
    statistics: NeutralStatistics,
    signs: SignCheck | None,
    fixed: bool,
    target: str,
    as_json: bool,
) -> None:
    if as_json:
        output.print_json(
            {
                "path": target,
                "layers": list(vector.layers),
                "residual_norms": list(statistics.residual_norms),
                "neutral_projections": list(statistics.neutral_projections),
                "own_projections": list(vector.metadata.own_projections),
                "n_tokens": statistics.n_tokens,
                "source_model": vector.metadata.source_model,
                "sign": None if signs is None else {str(k): v for k, v in signs.order.items()},
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
    for line in [] if signs is None else _sign_lines(signs, fixed):
        output.note(line)
