"""Batches of replies: one cell each, with what is measured of its texts beside their twins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pyemo.engine.model_file import ModelFile
from pyemo.jobs.store import Result
from pyemo.measures.regimes import TextRegime, classify_text
from pyemo.measures.text import MIN_TOKENS, TextMeasures, measure_text
from pyemo.study.cells import Cell, replies_cell
from pyemo.study.context import Work


@dataclass(frozen=True, eq=False)
class Job:
    """Replies to be written.

    Attributes:
        condition: "unsteered", or what is done to the model.
        emotion: whose direction or name; "" for unsteered.
    """

    file: ModelFile
    condition: str
    emotion: str
    strength: float
    cell: Cell


@dataclass(frozen=True, eq=False)
class Batch:
    """Replies that were written, beside the unsteered ones to the same prompts (their twins)."""

    job: Job
    result: Result
    twin: Batch | None

    @property
    def prompts(self) -> list[str]:
        """The prompts."""
        prompts: list[str] = self.job.cell.spec["prompts"]
        return prompts

    @property
    def texts(self) -> list[str]:
        """The replies."""
        texts: list[str] = self.result.values["texts"]
        return texts

    @cached_property
    def measures(self) -> list[TextMeasures | None]:
        """Each text's measures; None for a text of fewer than two tokens."""
        values = self.result.values
        others = self.texts if self.twin is None else self.twin.texts
        return [
            measure_text(tokens, text, logprobs, known=(prompt, other))
            if len(tokens) >= MIN_TOKENS
            else None
            for tokens, text, logprobs, prompt, other in zip(
                values["tokens"],
                values["texts"],
                values["logprobs"],
                self.prompts,
                others,
                strict=True,
            )
        ]

    @cached_property
    def regimes(self) -> list[TextRegime]:
        """Each text's regime; a text too short to measure is explosive."""
        return [
            TextRegime.EXPLOSIVE if text is None else classify_text(text) for text in self.measures
        ]

    @property
    def as_twin(self) -> list[bool]:
        """Whether each text is as coherent as its twin."""
        of_twins = self.regimes if self.twin is None else self.twin.regimes
        return [
            regime in (TextRegime.COHERENT, of_twin)
            for regime, of_twin in zip(self.regimes, of_twins, strict=True)
        ]


def reply_job(
    work: Work,
    file: ModelFile,
    prompts: Sequence[str],
    condition: str,
    emotion: str = "",
    **settings: Any,
) -> Job:
    """Return a job; ``settings`` are :func:`pyemo.study.cells.replies_cell`'s."""
    cell = replies_cell(
        file,
        prompts,
        label=f"{emotion} {condition}".strip(),
        max_tokens=work.plan.max_tokens,
        **settings,
    )
    return Job(file, condition, emotion, settings.get("strength", 0.0), cell)


def write(work: Work, jobs: Sequence[Job]) -> tuple[dict[ModelFile, Batch], list[Batch]]:
    """Return the unsteered batch of each model, and all others in their order."""
    results = work.cells([job.cell for job in jobs])
    pairs = list(zip(jobs, results, strict=True))
    twins = {j.file: Batch(j, result, None) for j, result in pairs if not j.emotion}
    return twins, [Batch(j, result, twins[j.file]) for j, result in pairs if j.emotion]
