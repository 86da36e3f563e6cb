"""``pyemo calibrate``: the strengths of a vector that are surgical on a model file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyemo.cli import output
from pyemo.cli.options import debug_option, json_option, model_option, threads_option
from pyemo.cli.trial_options import prompts_option, read_prompts
from pyemo.errors import VectorError

if TYPE_CHECKING:
    from pyemo.engine.engine import Engine
    from pyemo.engine.model import Model
    from pyemo.engine.threads import Threads
    from pyemo.judges import Judge
    from pyemo.strengths.calibration import CalibrationResult
    from pyemo.strengths.trials import Trial
    from pyemo.vectors.control_vector import ControlVector
    from pyemo.vectors.metadata import Calibration

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
@click.option(
    "--judge",
    default="minilm",
    show_default=True,
    metavar="NAME",
    help="Who says whether the text moved: minilm, or another judge of docs/strengths.md.",
)
@click.option("--raw", is_flag=True, help="Continue the prompts as they are.")
@click.option(
    "--allow-other-weights", is_flag=True, help="Take vectors of other weights of the same shape."
)
@model_option
@threads_option
@json_option
@debug_option
def calibrate(
    vectors: tuple[str, ...],
    target: str | None,
    layers: str | None,
    prompts: str | None,
    lengths: str,
    judge: str,
    raw: bool,
    allow_other_weights: bool,
    model: str,
    threads: Threads,
    as_json: bool,
) -> None:
    """Find at which strengths the text of a model file moves and stays coherent.

    VECTOR is a file, an emotion whose vector is bundled, or a folder of files. For each length of
    text the window and the recommended strength are written into the file with what they rest on,
    so that `run` needs no --strength. They hold for this model file alone, greedy and with the
    default sampler. A file is replaced whole or not at all, each when it is done: a run that was
    stopped has done no harm.

    \b
    Example:
      pyemo calibrate anger.gguf
      pyemo calibrate my-vectors -m my-model.gguf
      pyemo calibrate anger --layers auto -o anger.gguf
    """
    from pyemo.engine.batches import check_lengths, n_ctx_for
    from pyemo.engine.engine import Engine
    from pyemo.engine.model import Model
    from pyemo.judges import load_judge
    from pyemo.strengths.calibration import N_ROWS
    from pyemo.vectors.control_vector import ControlVector

    if layers is not None and target is None:
        raise click.UsageError("--layers makes another vector: name its file with --output")
    wanted = parse_lengths(lengths)
    texts = read_prompts(prompts)
    loaded = Model.load(model)
    targets = find_targets(vectors, target, loaded)
    found = [
        ControlVector.load(one.source, loaded, allow_other_weights=allow_other_weights)
        for one in targets
    ]
    judging = load_judge(judge)
    tokens = [loaded.answer_tokens(text, raw=raw) for text in texts]
    check_lengths(loaded, tokens, wanted[-1])
    n_ctx = n_ctx_for(tokens, wanted[-1], N_ROWS)
    with Engine(loaded, n_ctx=n_ctx, n_seq_max=N_ROWS, n_threads=threads) as engine:
        job = CalibrationJob(engine, judging, texts, wanted, raw, as_json)
        for vector in found:
            job.check(vector)
        for vector, one in zip(found, targets, strict=True):
            for ranged in choices(vector, layers):
                job.try_range(*ranged)
            job.finish(one.path)
    if as_json:
        output.print_json(job.results)


def calibrate_files(
    paths: Sequence[Path], model: str, threads: Threads, as_json: bool
) -> list[dict[str, Any]]:
    """Calibrate vector files in place with all defaults, for ``extract --calibrate``."""
    from pyemo.engine.batches import n_ctx_for
    from pyemo.engine.engine import Engine
    from pyemo.engine.model import Model
    from pyemo.judges import load_judge
    from pyemo.strengths.calibration import LENGTHS, N_ROWS
    from pyemo.vectors.control_vector import ControlVector

    loaded = Model.load(model)
    texts = read_prompts(None)
    n_ctx = n_ctx_for([loaded.answer_tokens(text) for text in texts], LENGTHS[-1], N_ROWS)
    judging = load_judge()
    with Engine(loaded, n_ctx=n_ctx, n_seq_max=N_ROWS, n_threads=threads) as engine:
        job = CalibrationJob(engine, judging, texts, LENGTHS, False, as_json)
        for path in paths:
            job.try_range("", ControlVector.load(path, loaded))
            job.finish(path)
    return job.results


class CalibrationJob:
    """Calibrates vectors one after the other, writes and reports each when it is done."""

    def __init__(
        self,
        engine: Engine,
        judge: Judge,
        prompts: Sequence[str],
        lengths: Sequence[int],
        raw: bool,
        as_json: bool,
    ) -> None:
        from pyemo.strengths.calibration import Calibrator

        self.results: list[dict[str, Any]] = []
        self._lengths = lengths
        self._as_json = as_json
        self._found: list[tuple[str, ControlVector, CalibrationResult]] = []
        self._calibrator = Calibrator(
            engine, judge, prompts=prompts, lengths=lengths, raw=raw, on_trial=_tell
        )

    def check(self, vector: ControlVector) -> None:
        """Raise what :meth:`try_range` would raise of a vector."""
        self._calibrator.check(vector)

    def try_range(self, label: str, vector: ControlVector) -> None:
        """Calibrate a vector on one range of layers."""
        if label:
            output.note(
                f"{vector.name}: {label}, layers {vector.layers[0]}:{vector.layers[-1] + 1}"
            )
        self._found.append((label, vector, self._calibrator.calibrate(vector)))

    def finish(self, path: Path) -> None:
        """Write the best of the ranges that were tried since the last call, and report it.

        What was kept before for this model file and these lengths is refuted where nothing was
        found, and goes.
        """
        tried, self._found = self._found, []
        _, vector, result = max(tried, key=lambda one: _judged(one[2]))
        model = self._calibrator.engine.model
        try:
            is_written = keep_calibrations(
                path, vector, model.file_sha256, self._lengths, result.calibrations
            )
        except VectorError:  # what was found in minutes is shown at least
            for line in _lines(tried, result, None):
                output.note(line)
            raise
        self.results.append(
            {
                "path": str(path) if is_written else None,
                **_describe(vector, result),
                "ranges": [
                    {"name": label, **_describe(own, found)} for label, own, found in tried if label
                ],
            }
        )
        if not self._as_json:
            for line in _lines(tried, result, path if is_written else None):
                output.say(line)


def keep_calibrations(
    path: Path,
    vector: ControlVector,
    model_sha256: str,
    lengths: Sequence[int],
    calibrations: Sequence[Calibration],
) -> bool:
    """Put calibrations for a model file and these lengths in the place of those in a vector's file.

    Another process may do the same at the same time: both have their way. Returns whether there was
    anything to write.

    Raises:
        VectorError: the file is damaged by now, or the disk refuses.
    """
    from pyemo.files.locks import locked

    with locked(path):
        kept = _as_it_is_now(path, vector)
        changed = kept.without_calibrations(model_sha256, lengths)
        for calibration in calibrations:
            changed = changed.with_calibration(calibration)
        if not calibrations and changed.metadata == kept.metadata:
            return False
        changed.save(path, force=True)  # what is there was checked before the work
        return True


def _as_it_is_now(path: Path, vector: ControlVector) -> ControlVector:
    """Return the vector with what its file says by now: another run may have added to it."""
    import numpy as np

    from pyemo.vectors.control_vector import ControlVector

    if not path.is_file():
        return vector
    now = ControlVector.load(path)
    is_same = now.layers == vector.layers and all(
        np.array_equal(now.directions[layer], vector.directions[layer]) for layer in now.layers
    )
    return now if is_same else vector


def parse_lengths(text: str) -> list[int]:
    """Return the lengths that ``48,256`` names.

    Raises:
        InputError: anything but ascending whole numbers from 1.
    """
    from pyemo.errors import InputError

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
        found = sorted(path.glob("*.gguf"))
        if not found:
            raise VectorNotFoundError(f"the folder {name!r} has no .gguf file; name another")
        return found
    if path.is_file() or name.endswith(".gguf") or "/" in name:
        return [path]  # what is not a file after all is refused by name when it is read
    return [catalog.vector_path(name, model.name)]


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


# --- reporting ---


def _tell(trial: Trial) -> None:
    report = trial.report
    output.note(
        f"  {trial.vector} {trial.strength:g}, {trial.n_tokens} tokens: {report.regime.value}, "
        f"{report.coherent_share:.0%} coherent, emotion {trial.effect or 0:+.3f}"
    )


def _judged(result: CalibrationResult) -> float:
    """Return the judged emotion at the recommended strength; below all others without one."""
    return result.emotion or 0.0 if result.calibrations else float("-inf")


def _width(result: CalibrationResult) -> float:
    """Return how many times its lower end the first window's upper end is; 0 without one."""
    if not result.calibrations:
        return 0.0
    low, high = result.calibrations[0].window
    return high / low


def _describe(vector: ControlVector, result: CalibrationResult) -> dict[str, Any]:
    from pyemo.strengths.sweeps import describe_trial

    return {
        "vector": vector.name,
        "layers": [vector.layers[0], vector.layers[-1] + 1],
        "calibrations": [
            {"n_tokens": one.n_tokens, "window": list(one.window), "strength": one.strength}
            for one in result.calibrations
        ],
        "effect": result.emotion,
        "reason": result.reason or None,
        "trials": [describe_trial(trial) for trial in result.trials],
    }


def _lines(
    tried: Sequence[tuple[str, ControlVector, CalibrationResult]],
    result: CalibrationResult,
    path: Path | None,
) -> list[str]:
    lines = []
    if len(tried) > 1:
        widest = max(tried, key=lambda one: _width(one[2]))
        for label, own, found in tried:
            remarks = [
                remark
                for remark, is_it in (
                    ("most emotion", found is result and found.calibrations),
                    ("widest window", found is widest[2] and found.calibrations),
                )
                if is_it
            ]
            shown = f"  ({', '.join(remarks)})" if remarks else ""
            lines.append(
                f"  {label} {own.layers[0]}:{own.layers[-1] + 1}: {_windows(found)}{shown}"
            )
    return [*lines, f"{result.vector}: {_windows(result)}; {path or 'not written'}"]


def _windows(result: CalibrationResult) -> str:
    if not result.calibrations:
        return f"no surgical strength: {result.reason}"
    found = [
        f"surgical from {one.window[0]:g} to {one.window[1]:g}, recommended {one.strength:g}, for "
        f"{one.n_tokens} tokens"
        for one in result.calibrations
    ]
    emotion = f"judged emotion {_judged(result):+.3f}"
    return "; ".join([*found, *filter(None, [result.reason]), emotion])
