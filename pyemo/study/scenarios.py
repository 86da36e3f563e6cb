"""The steering check's scenarios: written under every condition, judged, and put into cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyemo.engine.model_file import ModelFile
from pyemo.study import steering_check
from pyemo.study.batches import Batch, Job, reply_job, write
from pyemo.study.cells import judge_cell, preference_cell
from pyemo.study.context import Work
from pyemo.study.inputs import Directions, turned
from pyemo.study.strengths import RANDOM_SEED


def run(
    work: Work,
    directions: Mapping[ModelFile, Directions],
    chosen: Mapping[ModelFile, Mapping[str, float]],
) -> list[steering_check.Case]:
    """Return the cases of every model, emotion, prompt and condition."""
    twins, batches = write(work, _jobs(work, directions, chosen))
    everything = [*twins.values(), *batches]
    emotions = list(work.plan.steered)
    asked = work.plan.check_prompts
    texts = [text for batch in everything for text in batch.texts]
    (judged,) = work.cells([judge_cell([*asked, *texts], emotions, work.own_emotions)])
    shape = (1 + len(everything), len(asked), -1)
    _, *scores = judged.arrays["scores"].reshape(shape)
    of_prompts, *embeddings = judged.arrays["embeddings"].reshape(shape)
    row_of_twin = {file: i for i, file in enumerate(twins)}
    preferences = _preferences(work, batches)
    cases: list[steering_check.Case] = []
    for i, batch in enumerate(batches):
        row, twin_row = len(twins) + i, row_of_twin[batch.job.file]
        column = emotions.index(batch.job.emotion)
        threshold = steering_check.subject_threshold(embeddings[twin_row], of_prompts)
        cases += _cases(
            work,
            batch,
            scores[row][:, column] > scores[twin_row][:, column],
            preferences[i],
            (embeddings[row] * of_prompts).sum(axis=1) >= threshold,
        )
    return cases


def _jobs(
    work: Work,
    directions: Mapping[ModelFile, Directions],
    chosen: Mapping[ModelFile, Mapping[str, float]],
) -> list[Job]:
    jobs = []
    for file in work.files:
        prompts = work.plan.check_prompts
        jobs.append(reply_job(work, file, prompts, "unsteered"))
        for k, (emotion, strength) in enumerate(chosen[file].items()):
            rows = directions[file].by_emotion[emotion]
            control = turned(rows, RANDOM_SEED + 1 + k)
            settings: dict[steering_check.Condition, dict[str, Any]] = {
                "vector": {"directions": rows, "strength": strength},
                "random": {"directions": control, "strength": strength},
                "system": {"system": f"You are {emotion}."},
            }
            jobs += [
                reply_job(work, file, prompts, condition, emotion, **setting)
                for condition, setting in settings.items()
            ]
    return jobs


def _preferences(work: Work, batches: Sequence[Batch]) -> list[npt.NDArray[np.float64] | None]:
    """Return the second judge's preference for each batch; a model does not judge itself."""
    judge = work.judge
    if judge is None:
        return [None] * len(batches)
    asked = [batch for batch in batches if batch.job.file.sha256 != judge.sha256]
    if len(asked) < len(batches):
        work.gaps.append(f"{judge.name} does not judge its own texts: MiniLM alone decides there.")
    cells = []
    for batch in asked:
        assert batch.twin is not None
        cells.append(preference_cell(judge, batch.texts, batch.twin.texts, batch.job.emotion))
    found = dict(zip(map(id, asked), work.cells(cells), strict=True))
    return [found[id(b)].arrays["prefers"] if id(b) in found else None for b in batches]


def _cases(
    work: Work,
    batch: Batch,
    nearer: npt.NDArray[np.bool_],
    prefers: npt.NDArray[np.float64] | None,
    on_subject: npt.NDArray[np.bool_],
) -> list[steering_check.Case]:
    assert batch.twin is not None
    job = batch.job
    return [
        steering_check.Case(
            work.model(job.file).name,
            job.condition,  # type: ignore[arg-type]
            job.emotion,
            prompt,
            job.strength,
            batch.twin.texts[k],
            batch.texts[k],
            bool(nearer[k]) and batch.texts[k] != batch.twin.texts[k],
            None if prefers is None else bool(prefers[k] > 0),
            batch.as_twin[k],
            bool(on_subject[k]),
        )
        for k, prompt in enumerate(batch.prompts)
    ]
