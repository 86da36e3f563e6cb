"""Replies over a grid of strengths: material of the regime map and the leaks, and the strengths
that the steering check then uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyemo.engine.model_file import ModelFile
from pyemo.measures.perplexity import ratio_of
from pyemo.measures.regimes import MIN_COHERENT_SHARE
from pyemo.study import leakage, regime_map
from pyemo.study.batches import Batch, Job, reply_job, write
from pyemo.study.cells import judge_cell
from pyemo.study.context import Work
from pyemo.study.inputs import Directions, turned
from pyemo.study.writing_systems import script_of

RANDOM_SEED = 11


class Grid:
    """The replies of every model, direction and strength of a plan.

    Attributes:
        twins: each model's unsteered replies.
        batches: the steered ones.
        points: what the regime map shows of each batch.
    """

    def __init__(self, work: Work, directions: Mapping[ModelFile, Directions]) -> None:
        """Write what the store lacks."""
        self._work = work
        self._directions = directions
        jobs: list[Job] = []
        for file in work.files:
            prompts = work.plan.grid_prompts
            jobs.append(reply_job(work, file, prompts, "unsteered"))
            found = directions[file].by_emotion
            if not found:
                continue
            first = next(iter(found.values()))
            series = {**found, regime_map.RANDOM: turned(first, RANDOM_SEED)}
            jobs += [
                reply_job(
                    work, file, prompts, "vector", emotion, directions=rows, strength=strength
                )
                for emotion, rows in series.items()
                for strength in work.plan.strengths
            ]
        self.twins, self.batches = write(work, jobs)
        self.points = [self._point(batch) for batch in self.batches]

    def _point(self, batch: Batch) -> regime_map.Point:
        assert batch.twin is not None
        job = batch.job
        model = self._work.model(job.file)
        logs = [
            text.surprise - other.surprise
            for text, other in zip(batch.measures, batch.twin.measures, strict=True)
            if text is not None and other is not None
        ]
        return regime_map.Point(
            model.name,
            model.architecture,
            job.emotion,
            job.strength,
            self._directions[job.file].dose(job.emotion, job.strength),
            tuple(batch.regimes),
            tuple(batch.as_twin),
            ratio_of(logs),
        )

    def leaks(self) -> list[leakage.Leak]:
        """Return what each batch has in foreign scripts."""
        return [
            self._leak(batch, point) for batch, point in zip(self.batches, self.points, strict=True)
        ]

    def _leak(self, batch: Batch, point: regime_map.Point) -> leakage.Leak:
        assert batch.twin is not None
        model = self._work.model(batch.job.file)
        pieces = []
        for tokens in batch.result.values["tokens"]:
            raw = [model.detokenize([token]) for token in tokens]
            pieces.append([(script_of(p), p.decode("utf-8", "replace")) for p in raw])
        shares, masses, foreign = leakage.measure(
            batch.prompts, batch.twin.texts, pieces, batch.result.arrays["masses"]
        )
        return leakage.Leak(
            model.name,
            model.architecture,
            batch.job.emotion,
            batch.job.strength,
            shares,
            masses,
            foreign,
            point.coherent_share >= MIN_COHERENT_SHARE,
        )

    def chosen(self) -> dict[ModelFile, dict[str, float]]:
        """Return for each model and emotion the strength to check.

        The calibrated one, where a bundled vector has one for the file; else that of the most
        judged effect before the cliff. An emotion without any is a gap.
        """
        work = self._work
        effects = self._effects()
        out: dict[ModelFile, dict[str, float]] = {file: {} for file in work.files}
        for file in work.files:
            found = self._directions[file]
            for emotion in found.by_emotion:
                if emotion in found.strengths:
                    out[file][emotion] = found.strengths[emotion]
                    continue
                mine = [
                    i
                    for i, batch in enumerate(self.batches)
                    if batch.job.file == file and batch.job.emotion == emotion
                ]
                best = regime_map.best([self.points[i] for i in mine], [effects[i] for i in mine])
                if best is None:
                    work.gaps.append(
                        f"{work.model(file).name}: no strength keeps {emotion!r} coherent; it is "
                        "not checked."
                    )
                else:
                    out[file][emotion] = self.points[mine[best]].strength
        return out

    def _effects(self) -> Sequence[float]:
        """Return each batch's mean judged difference to its twin, for its own emotion."""
        emotions = list(self._work.plan.steered)
        everything = [*self.twins.values(), *self.batches]
        texts = [text for batch in everything for text in batch.texts]
        (judged,) = self._work.cells([judge_cell(texts, emotions, self._work.own_emotions)])
        n = len(self._work.plan.grid_prompts)
        means = judged.arrays["scores"].reshape(len(everything), n, -1).mean(axis=1)
        of_twin = dict(zip(self.twins, means, strict=False))
        return [
            float(row[column] - of_twin[batch.job.file][column])
            for batch, row in zip(self.batches, means[len(self.twins) :], strict=True)
            for column in [
                emotions.index(batch.job.emotion) if batch.job.emotion in emotions else 0
            ]
        ]
