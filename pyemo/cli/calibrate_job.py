"""Calibrates vectors here or in other processes; writes and reports each when it is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pyemo.cli import output
from pyemo.cli.job_options import Workers
from pyemo.errors import InputError, VectorError

if TYPE_CHECKING:
    from pyemo.engine.model import Model
    from pyemo.engine.threads import Threads
    from pyemo.strengths.calibration import CalibrationResult
    from pyemo.strengths.trials import Trial
    from pyemo.strengths.voice import VoiceReading
    from pyemo.vectors.control_vector import ControlVector
    from pyemo.vectors.metadata import Calibration

Ranges: TypeAlias = "list[tuple[str, ControlVector]]"
"""A vector on ranges of its layers: label, and the vector on them."""


@dataclass
class Calibrations:
    """Calibrates vectors, writes and reports each when it is done.

    Attributes:
        results: for JSON, in the order of the vectors.
    """

    model: Model
    model_name: str
    judge: str
    prompts: Sequence[str]
    lengths: Sequence[int]
    raw: bool
    threads: Threads
    as_json: bool
    system_line: str | None = None
    results: list[dict[str, Any]] = field(default_factory=list)

    def run(self, wanted: Sequence[tuple[Ranges, Path]], workers: Workers) -> None:
        """Calibrate each vector, and keep in its file what was found.

        A file that keeps this very calibration already stays as it is, so that a run that was
        stopped goes on.
        """
        done: dict[int, dict[str, Any]] = {}
        each = self._here(wanted) if workers.is_here else self._elsewhere(wanted, workers)
        for index, found in each:
            ranges, path = wanted[index]
            if found:
                tried = [(*ranged, one) for ranged, one in zip(ranges, found, strict=True)]
                done[index] = self._finish(path, tried)
                continue
            output.note(f"{path}: kept, it is calibrated so already")
            done[index] = {"path": str(path), "vector": ranges[0][1].name, "kept": True}
        self.results = [done[index] for index in range(len(wanted))]

    def _here(
        self, wanted: Sequence[tuple[Ranges, Path]]
    ) -> Iterator[tuple[int, list[CalibrationResult]]]:
        from pyemo.engine.batches import n_ctx_for
        from pyemo.engine.engine import Engine
        from pyemo.judges import load_judge
        from pyemo.strengths.calibration import N_ROWS, Calibrator

        tokens = [
            self.model.answer_tokens(text, system=self.system_line, raw=self.raw)
            for text in self.prompts
        ]
        n_ctx = n_ctx_for(tokens, self.lengths[-1], N_ROWS)
        with Engine(self.model, n_ctx=n_ctx, n_seq_max=N_ROWS, n_threads=self.threads) as engine:
            calibrator = Calibrator(
                engine,
                load_judge(self.judge),
                prompts=self.prompts,
                lengths=self.lengths,
                raw=self.raw,
                system_line=self.system_line,
                on_trial=_tell,
            )
            for index, (ranges, path) in enumerate(wanted):
                kept = _kept(path, ranges)
                if kept is not None and calibrator.has_calibrated(kept):
                    yield index, []
                    continue
                found = []
                for label, vector in ranges:
                    if label:
                        layers = f"layers {vector.layers[0]}:{vector.layers[-1] + 1}"
                        output.note(f"{vector.name}: {label}, {layers}")
                    found.append(calibrator.calibrate(vector))
                yield index, found

    def _elsewhere(
        self, wanted: Sequence[tuple[Ranges, Path]], workers: Workers
    ) -> Iterator[tuple[int, list[CalibrationResult]]]:
        from pyemo.engine.model_file import ModelFile
        from pyemo.strengths.calibration_job import CalibrationJob, CalibrationPlan

        threads = 1 if self.threads is None else self.threads
        if not isinstance(threads, int):
            raise InputError(f"--threads {threads} is for one process; give --workers a number")
        file = ModelFile(self.model_name, self.model.file_sha256, threads)
        plan = CalibrationPlan(
            file, self.judge, tuple(self.prompts), tuple(self.lengths), self.raw, self.system_line
        )
        jobs = [
            CalibrationJob(plan, [vector for _, vector in ranges], _kept(path, ranges))
            for ranges, path in wanted
        ]
        with workers.open() as run:
            for n, (index, found) in enumerate(run.run(jobs), start=1):
                yield index, found
                output.note(f"{n} of {len(jobs)} vectors")

    def _finish(
        self, path: Path, tried: Sequence[tuple[str, ControlVector, CalibrationResult]]
    ) -> dict[str, Any]:
        """Write the best of the ranges that were tried, report it, and return it for JSON.

        What was kept before for this model file and these lengths is refuted where nothing was
        found, and goes.
        """
        _, vector, result = max(tried, key=lambda one: _judged(one[2]))
        try:
            is_written = keep_calibrations(
                path,
                vector,
                self.model.file_sha256,
                self.lengths,
                result.calibrations,
                self.system_line,
            )
        except VectorError:  # what was found in minutes is shown at least
            for line in _lines(tried, result, None):
                output.note(line)
            raise
        if not self.as_json:
            for line in _lines(tried, result, path if is_written else None):
                output.say(line)
        return {
            "path": str(path) if is_written else None,
            **_describe(vector, result),
            "kept": False,
            "ranges": [
                {"name": label, **_describe(own, found)} for label, own, found in tried if label
            ],
        }


def _kept(path: Path, ranges: Ranges) -> ControlVector | None:
    """Return what an earlier run has written of a vector on all its layers, None for nothing."""
    if len(ranges) != 1 or not path.is_file():
        return None
    from pyemo.vectors.control_vector import ControlVector

    now = ControlVector.load(path)
    return now if _is_same(now, ranges[0][1]) else None


def _is_same(one: ControlVector, other: ControlVector) -> bool:
    import numpy as np

    return one.layers == other.layers and all(
        np.array_equal(one.directions[layer], other.directions[layer]) for layer in one.layers
    )


def keep_calibrations(
    path: Path,
    vector: ControlVector,
    model_sha256: str,
    lengths: Sequence[int],
    calibrations: Sequence[Calibration],
    system_line: str | None = None,
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
        has_line = system_line is not None
        changed = kept
        if system_line is not None and calibrations:
            changed = kept.with_system_line(system_line)
        if not has_line or kept.metadata.system_line == system_line:
            changed = changed.without_calibrations(model_sha256, lengths, with_line=has_line)
        for calibration in calibrations:
            changed = changed.with_calibration(calibration, with_line=has_line)
        if not calibrations and changed.metadata == kept.metadata:
            return False
        changed.save(path, force=True)  # what is there was checked before the work
        return True


def _as_it_is_now(path: Path, vector: ControlVector) -> ControlVector:
    """Return the vector with what its file says by now: another run may have added to it."""
    from pyemo.vectors.control_vector import ControlVector

    if not path.is_file():
        return vector
    now = ControlVector.load(path)
    return now if _is_same(now, vector) else vector


# --- reporting ---


def _tell(trial: Trial) -> None:
    report = trial.report
    output.note(
        f"  {trial.vector} {trial.strength:g}, {trial.n_tokens} tokens: {report.regime.value}, "
        f"{report.n_coherent} of {report.n_texts} coherent, emotion {trial.effect or 0:+.3f}"
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
        "voices": [voice.as_json() for voice in result.voices],
        "judge": result.judge,
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
    emotion = f"judged emotion {_judged(result):+.3f} ({result.judge})"
    voice = [in_words(result.voices[0])] if result.voices else []
    return "; ".join([*found, *filter(None, [result.reason]), emotion, *voice])


def in_words(voice: VoiceReading) -> str:
    """Return gain, specificity and damage in a line."""
    away = "" if voice.specificity is None else f", specificity {voice.specificity.value:+.2f}"
    return f"gain {voice.gain.value:+.2f}{away}, damage {voice.damage.value:+.2f} nats per token"
