"""What the study's phases share: the plan, the models, where cells run, and what went missing."""

from __future__ import annotations

from collections.abc import Sequence

from pyemo.emotions import EMOTIONS
from pyemo.engine.model import Model
from pyemo.engine.model_file import ModelFile, load_model
from pyemo.jobs.runner import Runner, Tell, run_stored
from pyemo.jobs.store import Result, Store
from pyemo.study.cells import Cell
from pyemo.study.plan import Plan
from pyemo.texts.sources import EmotionSource


class Work:
    """One run of a study.

    Attributes:
        plan: what is computed.
        files: the plan's models, in its order.
        judge: the second judge's model, None for none.
        gaps: what could not be computed, in sentences.
    """

    def __init__(self, plan: Plan, runner: Runner, store: Store, tell: Tell) -> None:
        """Load the models, so that one that is missing or damaged is named before any work."""
        self.plan = plan
        self.files = [self._file(name) for name in plan.models]
        self.judge = self._file(plan.second_judge) if plan.second_judge else None
        self.gaps: list[str] = []
        self._runner = runner
        self._store = store
        self._tell = tell

    def _file(self, name: str) -> ModelFile:
        file = ModelFile.find(name, self.plan.n_threads)
        self.model(file)
        return file

    def model(self, file: ModelFile) -> Model:
        """Return the loaded model of a file."""
        return load_model(file.name, file.sha256)

    def cells(self, cells: Sequence[Cell]) -> list[Result]:
        """Return the cells' results; see :func:`pyemo.jobs.runner.run_stored`."""
        return run_stored(cells, self._store, self._runner, self._tell)

    @property
    def own_emotions(self) -> dict[str, EmotionSource]:
        """The user's own emotions, which a judge does not know."""
        return {n: s for n, s in self.plan.emotions.items() if n not in EMOTIONS}
