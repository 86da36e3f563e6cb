"""Calibrations as independent jobs: one vector each, anywhere.

Owns what a job says of itself; how a window is found is in ``calibration``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pyemo.engine.batches import n_ctx_for
from pyemo.engine.engine import Engine
from pyemo.engine.model_file import ModelFile, load_model
from pyemo.jobs.store import digest
from pyemo.judges import load_judge
from pyemo.strengths.calibration import N_ROWS, CalibrationResult, Calibrator

if TYPE_CHECKING:
    from pyemo.vectors.control_vector import ControlVector


@dataclass(frozen=True)
class CalibrationPlan:
    """How vectors are calibrated: all but the vectors.

    Attributes:
        judge: its name, as for :func:`pyemo.judges.load_judge`.
        lengths: of texts, ascending.
        raw: prompts are continued as they are.
        system_line: a system message that is calibrated together with the vectors.
    """

    model: ModelFile
    judge: str
    prompts: tuple[str, ...]
    lengths: tuple[int, ...]
    raw: bool = False
    system_line: str | None = None


@dataclass(frozen=True, eq=False)
class CalibrationJob:
    """A vector to calibrate; see :class:`pyemo.jobs.runner.Job`.

    Attributes:
        ranges: the vector on each range of layers that is tried; itself alone by default.
        kept: what is there of an earlier run; None for nothing.
    """

    plan: CalibrationPlan
    ranges: Sequence[ControlVector]
    kept: ControlVector | None = None

    @property
    def key(self) -> str:
        """The hash of all that the result depends on, but for the machine."""
        given = {"calibration": asdict(self.plan), "kept": self.kept is not None}
        arrays = {
            f"{i}, {vector.name}, {layer}": row
            for i, vector in enumerate(self.ranges)
            for layer, row in vector.directions.items()
        }
        return digest(given, arrays)

    @property
    def label(self) -> str:
        """What progress shows of it."""
        return self.ranges[0].name

    def compute(self) -> list[CalibrationResult]:
        """Return the result for each range; none where ``kept`` has this very calibration.

        Raises:
            InputError: the model's file here is another one than the job names.
            PyemoError: see :meth:`Calibrator.calibrate`.
        """
        calibrator = _calibrator(self.plan)
        if self.kept is not None and calibrator.has_calibrated(self.kept):
            return []
        return [calibrator.calibrate(vector) for vector in self.ranges]


@functools.lru_cache(maxsize=1)
def _calibrator(plan: CalibrationPlan) -> Calibrator:
    model = load_model(plan.model.name, plan.model.sha256)
    tokens = [
        model.answer_tokens(text, system=plan.system_line, raw=plan.raw) for text in plan.prompts
    ]
    engine = Engine(
        model,
        n_ctx=n_ctx_for(tokens, plan.lengths[-1], N_ROWS),
        n_seq_max=N_ROWS,
        n_threads=plan.model.n_threads,
    )
    return Calibrator(
        engine,
        load_judge(plan.judge),
        prompts=plan.prompts,
        lengths=plan.lengths,
        raw=plan.raw,
        system_line=plan.system_line,
    )
