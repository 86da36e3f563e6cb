"""``pyemo extract`` with a recipe of voices: vectors learned from replies."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyemo.choices import DEFAULT_MODEL
from pyemo.cli import output
from pyemo.cli.job_options import Workers

if TYPE_CHECKING:
    from pyemo.choices import DType
    from pyemo.extract.own_voice import OwnVoice
    from pyemo.extract.voice_recipe import VoiceRecipe
    from pyemo.extract.voices import Voice, VoiceTrainer


def voice_recipe(name_or_path: str, seed: int | None) -> VoiceRecipe | None:
    """Return the recipe if it is one of voices, else None."""
    from pyemo.extract.recipe import REPLIES, recipe_text, source_of_recipe
    from pyemo.extract.voice_recipe import VoiceRecipe

    if source_of_recipe(recipe_text(name_or_path)) != REPLIES:
        return None
    recipe = VoiceRecipe.load(name_or_path)
    if seed is None:
        return recipe
    return replace(recipe, training=replace(recipe.training, seed=seed))


def extract_emotions(
    recipe: VoiceRecipe,
    paths: Mapping[str, Path],
    model: str,
    device: str,
    dtype: DType,
    threads: int | None,
    workers: Workers,
    as_json: bool,
    *,
    force: bool,
    is_calibrated: bool,
) -> None:
    """Train each emotion's vector and write it to its path, each when it is done.

    A file that is there already from the same recipe and model is kept, so that a run that was
    stopped goes on.

    Args:
        is_calibrated: whether the strengths of all are then found on the model.
    """
    job = Trainings(recipe, model, device, dtype, threads)
    lines = {}
    for name, voice in job.voices(paths, workers):
        path = paths[name]
        if voice is None:
            output.note(f"{path}: kept, it is of this recipe and model already")
            lines[name] = {"emotion": name, "path": str(path), "kept": True}
            continue
        voice.vector.save(path, force=force)
        lines[name] = _facts(name, path, voice)
        if not as_json:
            output.say(_line(path, voice))
    if lines:
        output.note(_next_step(next(iter(paths.values())), model))
    calibrations = None
    if is_calibrated:
        from pyemo.cli.calibrate import calibrate_files

        calibrations = calibrate_files(list(paths.values()), model, threads, workers, as_json)
    if as_json:
        value = {
            "vectors": [lines[name] for name in paths],
            "recipe": recipe.name,
            "source_model": job.source_model,
            "calibrations": calibrations,
        }
        output.print_json(value)


@dataclass
class Trainings:
    """The training of several emotions' voices, in this process or in others.

    Attributes:
        source_model: the model's name, once it is known.
    """

    recipe: VoiceRecipe
    model: str
    device: str
    dtype: DType
    threads: int | None
    source_model: str = ""

    def voices(
        self, paths: Mapping[str, Path], workers: Workers
    ) -> Iterator[tuple[str, Voice | None]]:
        """Yield (emotion, voice) as they come; None for what is at its path already."""
        yield from self._here(paths) if workers.is_here else self._elsewhere(paths, workers)

    def _here(self, paths: Mapping[str, Path]) -> Iterator[tuple[str, Voice | None]]:
        from pyemo.extract.voices import is_made_by

        trainer = _trainer(self.recipe, self.model, self.device, self.dtype, self.threads)
        source = trainer.source
        self.source_model = source.name
        for name, path in paths.items():
            is_made = is_made_by(path, self.recipe, source.file_sha256, source.name)
            yield name, None if is_made else trainer.emotion(name, step_notes(name))

    def _elsewhere(
        self, paths: Mapping[str, Path], workers: Workers
    ) -> Iterator[tuple[str, Voice | None]]:
        from pyemo.extract.voice_jobs import voice_jobs
        from pyemo.extract.voices import is_made_by
        from pyemo.files.catalog import resolve_model

        jobs = voice_jobs(
            paths,
            self.model,
            self.recipe,
            device=self.device,
            dtype=self.dtype,
            n_threads=self.threads or 1,
            n_at_once=workers.n_here,
        )
        self.source_model = resolve_model(self.model).name
        to_do = []
        for job in jobs:
            if is_made_by(paths[job.emotion], self.recipe, job.model.sha256):
                yield job.emotion, None
            else:
                to_do.append(job)
        if not to_do:
            return
        with workers.open() as run:
            for n, (index, voice) in enumerate(run.run(to_do), start=1):
                if n == 1 and not voice.vector.metadata.chat_template_sha256:
                    output.note(_plain_text(self.source_model))
                yield to_do[index].emotion, voice
                output.note(f"{n} of {len(to_do)} voices")


def extract_own(
    recipe: VoiceRecipe,
    replies: str,
    path: Path,
    model: str,
    device: str,
    dtype: DType,
    threads: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Learn the voice of a file's pairs and write its vector; nothing where there is no voice."""
    from pyemo.extract.own_voice import learn_voice
    from pyemo.texts.pairs import read_pairs

    pairs = read_pairs(replies, seed=recipe.training.seed)  # faults are said before the model loads
    for remark in pairs.remarks:
        output.note(f"{replies}: {remark}")
    trainer = _trainer(recipe, model, device, dtype, threads)
    voice = learn_voice(trainer, path.stem, pairs, step_notes(path.stem))
    for remark in voice.remarks:
        output.note(remark)
    voice.vector.save(path, force=force)
    facts = _facts(path.stem, path, voice) | {
        "held_out_gain": list(voice.gain),
        "held_out_gain_of_shuffled_labels": list(voice.control),
        "n_train": voice.n_train,
        "n_watch": voice.n_watch,
        "n_held_out": voice.n_held_out,
        "n_usable": pairs.n_usable,
        "left_out": {reason: list(count) for reason, count in pairs.left_out.items()},
        "source_model": trainer.source.name,
    }
    facts["voice"] = facts.pop("emotion")
    if as_json:
        output.print_json(facts)
        return
    output.say(_line(path, voice))
    output.say(
        f"on {voice.n_held_out} replies held out {voice.gain.value:+.2f} [{voice.gain.low:+.2f}, "
        f"{voice.gain.high:+.2f}] nats per token; a vector of shuffled labels "
        f"{voice.control.value:+.2f}"
    )
    output.note(_next_step(path, model))


def _trainer(
    recipe: VoiceRecipe, model: str, device: str, dtype: DType, threads: int | None
) -> VoiceTrainer:
    from pyemo.extract.voice_jobs import set_threads
    from pyemo.extract.voices import VoiceTrainer

    if threads is not None:
        set_threads(threads)
    trainer = VoiceTrainer(model, recipe, device=device, dtype=dtype)
    if not trainer.source.chat_template_sha256:
        output.note(_plain_text(trainer.source.name))
    return trainer


def _plain_text(model: str) -> str:
    return (
        f"{model} has no chat template: trained as plain text, the prompt, a blank line and the "
        "reply; steer it so, too"
    )


def step_notes(name: str) -> Any:
    """Return a teller of steps: a note about every half minute."""
    last = [time.monotonic()]

    def tell(step: int, steps: int, to_go: float) -> None:
        if time.monotonic() - last[0] > 30:
            last[0] = time.monotonic()
            output.note(f"{name}: step {step} of at most {steps}, {to_go:.0f} s to go at most")

    return tell


def _facts(name: str, path: Path, voice: Voice | OwnVoice) -> dict[str, Any]:
    best = voice.trained.best
    return {
        "emotion": name,
        "path": str(path),
        "kept": False,
        "strength": voice.vector.metadata.strength,
        "watch_gain": best.gain,
        "watch_damage": best.damage,
        "steps": voice.trained.n_steps,
        "stopped": voice.trained.stopped,
        "seconds": round(voice.trained.seconds, 1),
    }


def _line(path: Path, voice: Voice | OwnVoice) -> str:
    trained, layers = voice.trained, voice.vector.layers
    own, plain = math.exp(trained.best.gain), math.exp(-trained.best.damage)
    return (
        f"{path}: {voice.vector.name}, layers {layers[0]}:{layers[-1] + 1}, strength "
        f"{voice.vector.metadata.strength:.3g}; {trained.seconds:.0f} s\n"
        f"  replies in its voice that it was not trained on: each token {own:.1f} times as likely "
        f"(at {trained.dose:.3g}), plain replies {plain:.2f} times"
    )


def _next_step(path: Path, model: str) -> str:
    from pyemo.extract.transformers_loading import is_gguf

    # what transformers alone reads does not run here: its GGUF file does
    runs = is_gguf(model, Path(model).expanduser())
    given = "" if model == DEFAULT_MODEL else f"-m {shlex.quote(model) if runs else 'FILE.gguf'} "
    file = shlex.quote(str(path) if path.is_absolute() else f"./{path}")
    return f'try: pyemo run --compare {given}--cvec {file} "Tell me about your morning."'
