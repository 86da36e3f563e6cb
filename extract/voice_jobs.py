"""Training the voices of emotions as independent jobs: one emotion each, anywhere.

Owns what a job says of itself; how a voice is trained is in ``voices``. The rows of a voice depend
on the number of threads, so a job names it: with one thread each, as many processes as there are
give the same bytes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from pyemo.choices import DType
from pyemo.engine.model_file import ModelFile
from pyemo.errors import InputError
from pyemo.extract.training_model import require_training_room
from pyemo.extract.transformers_loading import is_gguf
from pyemo.extract.voice_recipe import VoiceRecipe
from pyemo.extract.voices import Voice, VoiceTrainer
from pyemo.jobs.store import digest


@dataclass(frozen=True)
class VoiceJob:
    """One emotion's voice to train on a model file; see :class:`pyemo.jobs.runner.Job`."""

    emotion: str
    model: ModelFile
    recipe: VoiceRecipe
    device: str = "auto"
    dtype: DType = "auto"

    @property
    def key(self) -> str:
        """The hash of all that the voice depends on, but for the machine."""
        return digest({"voice": asdict(self)})

    @property
    def label(self) -> str:
        """What progress shows of it."""
        return self.emotion

    def compute(self) -> Voice:
        """Return the voice, trained here and now; a process loads the model once.

        Raises:
            InputError: the model's file here is another one than the job names.
            PyemoError: see :class:`pyemo.extract.voices.VoiceTrainer`.
        """
        set_threads(self.model.n_threads)
        return _trainer(self.model, self.recipe, self.device, self.dtype).emotion(self.emotion)


def voice_jobs(
    emotions: Iterable[str],
    model: str | os.PathLike[str],
    recipe: VoiceRecipe | None = None,
    *,
    device: str = "auto",
    dtype: DType = "auto",
    n_threads: int = 1,
    n_at_once: int = 1,
) -> list[VoiceJob]:
    """Return a job for each emotion.

    ```
    from pyemo.jobs.runner import runner

    jobs = voice_jobs(["angry", "calm"], "smollm2-135m-instruct")
    with runner(n_workers=2) as run:
        for index, voice in run.run(jobs):
            voice.vector.save(f"{jobs[index].emotion}.gguf")
    ```

    Args:
        model: a GGUF file, which every machine has under the same name.
        n_at_once: jobs that will share this machine's memory.
    Raises:
        InputError: the model is no GGUF file.
        ModelLoadError: they take more memory than there is.
    """
    name = os.fspath(model).strip()
    if not is_gguf(name, Path(name).expanduser().absolute()):
        raise InputError(
            f"{name} is no GGUF file, whose hash tells every worker that it has the same; give "
            "one, or leave --workers and --scheduler out"
        )
    chosen = recipe or VoiceRecipe.load()
    require_training_room(name, dtype, chosen, device, n_at_once)
    file = ModelFile.find(name, n_threads)
    return [VoiceJob(emotion, file, chosen, device, dtype) for emotion in emotions]


def set_threads(n_threads: int) -> None:
    """Let torch compute with this many threads; where it is missing the trainer says so."""
    if find_spec("torch") is not None:
        import torch

        torch.set_num_threads(n_threads)


@functools.lru_cache(maxsize=1)
def _trainer(model: ModelFile, recipe: VoiceRecipe, device: str, dtype: DType) -> VoiceTrainer:
    trainer = VoiceTrainer(model.name, recipe, device=device, dtype=dtype)
    model.check(trainer.source.file_sha256)
    return trainer
