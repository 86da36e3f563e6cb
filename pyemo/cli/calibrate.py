"""``pyemo calibrate``: the strengths of a vector that are surgical on a model file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyemo.cli import output
from pyemo.cli.calibrate_job import Calibrations
from pyemo.cli.job_options import Workers, workers_options
from pyemo.cli.options import debug_option, json_option, model_option, threads_option
from pyemo.cli.trial_options import judge_option, load_files, prompts_option, read_prompts
from pyemo.errors import InputError

if TYPE_CHECKING:
    from pyemo.engine.model import Model
    from pyemo.engine.threads import Threads
    from pyemo.vectors.control_vector import ControlVector

AUTO = "auto"
LAYER_SHARES = {
    "all": (0.0, 1.0),
    "lower half": (0.0, 0.5),
    "middle": (0.25, 0.75),
    "upper half": (0.5, 1.0),
}
"""Ranges that ``--layers auto`` compares, as shares of a vector's own layers."""


@dataclass(frozen=True)
class Target:
    """A vector and the file its calibration is written to."""

    source: Path
    path: Path


@click.command(
    short_help="Find the strengths of a vector that are surgical, and note them in its file."
)
@click.argument("vectors", nargs=-1, required=True, metavar="VECTOR...")
@click.option(
    "--output",
    "-o",
    "target",
    metavar="PATH",
    help="Write there and leave VECTOR as it is: a file, or a folder for several.",
)
@click.option(
    "--layers",
    metavar="A:B|auto",
    help="Keep these layers only, B not included; auto tries ranges and keeps the one with most "
    "judged emotion. Needs --output.",
)
@prompts_option
@click.option(
    "--lengths",
    default="48,128,256",
    show_default=True,
    metavar="N,N",
    help="Tokens of the texts: the first searches, and each gets a window of its own.",
)
@judge_option(takes_none=False)
@click.option(
    "--system-line",
    metavar="TEXT",
    help='Calibrate together with a system message, such as "You are furious.", which is kept in '
    "the file beside what is found without one.",
)
@click.option("--raw", is_flag=True, help="Continue the prompts as they are.")
@click.option(
    "--allow-other-weights", is_flag=True, help="Take vectors of other weights of the same shape."
)
@model_option
@threads_option
@workers_options
@json_option
@debug_option
def calibrate(
    vectors: tuple[str, ...],
    target: str | None,
    layers: str | None,
    prompts: str | None,
    lengths: str,
    judge: str,
    system_line: str | None,
    raw: bool,
    allow_other_weights: bool,
    model: str,
    threads: Threads,
    workers: Workers,
    as_json: bool,
) -> None:
    """Find at which strengths the text of a model file moves and stays coherent.

    VECTOR is a file, an emotion whose vector is bundled, or a folder of files. For each length of
    text the window and the recommended strength are written into the file with what they rest on,
    so that `run` needs no --strength. They hold for this model file alone, greedy and with the
    default sampler. A vector that was trained keeps the strength of its training where that is
    surgical. A file is replaced whole or not at all, each when it is done: the same command
    again goes on where a run was stopped. With --scheduler the work runs on a Dask cluster whose
    workers have pyemo and the model file.

    \b
    Example:
      pyemo calibrate anger.gguf
      pyemo calibrate my-vectors -m my-model.gguf --workers 2
      pyemo calibrate anger --layers auto -o anger.gguf
    """
    from pyemo.engine.batches import check_lengths
    from pyemo.engine.model import Model
    from pyemo.judges import load_judge
    from pyemo.strengths.calibration import check_vector, checked_emotion
    from pyemo.vectors.control_vector import ControlVector

    if layers is not None and target is None:
        raise click.UsageError("--layers makes another vector: name its file with --output")
    wanted = parse_lengths(lengths)
    texts = read_prompts(prompts)
    for vector in load_files(file for name in vectors for file in _files(name) or [Path(name)]):
        checked_emotion(vector)
    loaded = Model.load(model)
    targets = find_targets(vectors, target, loaded)
    found = [
        ControlVector.load(one.source, loaded, allow_other_weights=allow_other_weights)
        for one in targets
    ]
    judging = load_judge(judge)
    if system_line is not None and (raw or loaded.chat_template is None):
        why = "--raw takes none" if raw else f"{loaded.name} has none"
        raise InputError(f"--system-line needs a chat template, and {why}")
    tokens = [loaded.answer_tokens(text, system=system_line, raw=raw) for text in texts]
    check_lengths(loaded, tokens, wanted[-1])
    for vector in found:
        check_vector(vector, loaded, judging)
        if system_line is not None:
            vector.with_system_line(system_line)  # what is no line of text is refused now
    how = Calibrations(loaded, model, judge, texts, wanted, raw, threads, as_json, system_line)
    how.run([(choices(v, layers), t.path) for v, t in zip(found, targets, strict=True)], workers)
    if as_json:
        output.print_json(how.results)


def calibrate_files(
    paths: Sequence[Path], model: str, threads: Threads, workers: Workers, as_json: bool
) -> list[dict[str, Any]]:
    """Calibrate vector files in place with all defaults, for ``extract --calibrate``."""
    from pyemo.engine.model import Model
    from pyemo.judges import default_judge
    from pyemo.strengths.calibration import LENGTHS
    from pyemo.vectors.control_vector import ControlVector

    loaded = Model.load(model)
    how = Calibrations(
        loaded, model, default_judge(), read_prompts(None), LENGTHS, False, threads, as_json
    )
    found = [ControlVector.load(path, loaded) for path in paths]
    how.run([([("", v)], path) for v, path in zip(found, paths, strict=True)], workers)
    return how.results


def parse_lengths(text: str) -> list[int]:
    """Return the lengths that ``48,256`` names.

    Raises:
        InputError: anything but ascending whole numbers from 1.
    """
    try:
        lengths = [int(part) for part in text.split(",")]
    except ValueError:
        lengths = []
    if not lengths or lengths[0] < 1 or lengths != sorted(set(lengths)):
        raise InputError(f"lengths {text!r} are not ascending whole numbers, such as 48,256")
    return lengths


def find_targets(vectors: Sequence[str], target: str | None, model: Model) -> list[Target]:
    """Return the files that names, files and folders stand for, and where each is written.

    Raises:
        VectorNotFoundError: no such file or bundled vector, or a folder without one.
        InputError: two would be written to one file, or a folder cannot be written to.
    """
    from pyemo.errors import InputError
    from pyemo.files.local import check_folder_writable
    from pyemo.vectors.file import check_target

    sources = [path for name in vectors for path in _sources(name, model)]
    if target is None:
        targets = [Target(source, source) for source in sources]
    elif target.endswith(".gguf"):
        if len(sources) > 1:
            raise click.UsageError(f"{len(sources)} vectors need a folder: give -o FOLDER")
        targets = [Target(sources[0], Path(target).expanduser())]
    else:
        targets = [Target(source, Path(target).expanduser() / source.name) for source in sources]
    if len({one.path for one in targets}) < len(targets):
        raise InputError("two vectors would be written to one file; calibrate them one at a time")
    for folder in {one.path.parent for one in targets}:
        check_folder_writable(folder)
    for one in targets:  # a vector that is calibrated where it lies may be of another make
        check_target(one.path, force=one.path == one.source)
    return targets


def _sources(name: str, model: Model) -> list[Path]:
    from pyemo.errors import VectorNotFoundError
    from pyemo.files import catalog

    path = Path(name).expanduser()
    if path.is_dir():
        found = _files(name)
        if not found:
            raise VectorNotFoundError(f"the folder {name!r} has no .gguf file; name another")
        return found
    if path.is_file() or name.endswith(".gguf") or "/" in name:
        return [path]  # what is not a file after all is refused by name when it is read
    return [catalog.vector_path(name, model.name)]


def _files(folder: str) -> list[Path]:
    """Return the vector files of a folder, sorted; none where it is not a folder."""
    path = Path(folder).expanduser()
    return sorted(path.glob("*.gguf")) if path.is_dir() else []


def choices(vector: ControlVector, layers: str | None) -> list[tuple[str, ControlVector]]:
    """Return the vectors to calibrate for ``--layers``: label and vector."""
    from pyemo.moods.grammar import parse_layers

    if layers is None:
        return [("", vector)]
    if layers != AUTO:
        return [("", vector.only_layers(parse_layers(layers)))]
    own = vector.layers
    found: dict[tuple[int, ...], tuple[str, ControlVector]] = {}
    for label, (begin, end) in LAYER_SHARES.items():
        kept = own[round(begin * len(own)) : round(end * len(own))]
        if kept:
            found.setdefault(kept, (label, vector.only_layers(kept)))
    return list(found.values())
