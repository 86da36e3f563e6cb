"""``pyemo extract`` with a recipe of voices: vectors learned from replies."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyemo.cli import output

if TYPE_CHECKING:
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
    dtype: str,
    threads: int | None,
    as_json: bool,
    *,
    force: bool,
) -> None:
    """Train each emotion's vector and write it to its path.

    A file that is there already from the same recipe and model is kept, so that a run that was
    stopped goes on.
    """
    from pyemo.extract.voices import is_made_by

    trainer = _trainer(recipe, model, device, dtype, threads)
    lines = []
    for name, path in paths.items():
        if is_made_by(path, recipe, trainer.source):
            output.note(f"{path}: kept, it is of this recipe and model already")
            lines.append({"emotion": name, "path": str(path), "kept": True})
            continue
        voice = trainer.emotion(name, _progress(name))
        voice.vector.save(path, force=force)
        lines.append(_facts(name, path, voice))
        if not as_json:
            output.say(_line(path, voice))
    if as_json:
        value = {"vectors": lines, "recipe": recipe.name, "source_model": trainer.source.name}
        output.print_json(value)


def extract_own(
    recipe: VoiceRecipe,
    replies: str,
    path: Path,
    model: str,
    device: str,
    dtype: str,
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
    voice = learn_voice(trainer, path.stem, pairs, _progress(path.stem))
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


def _trainer(
    recipe: VoiceRecipe, model: str, device: str, dtype: str, threads: int | None
) -> VoiceTrainer:
    from pyemo.extract.voices import VoiceTrainer

    _set_threads(threads)
    trainer = VoiceTrainer(model, recipe, device=device, dtype=dtype)  # type: ignore[arg-type]
    if not trainer.source.chat_template_sha256:
        output.note(
            f"{trainer.source.name} has no chat template: trained as plain text, the prompt, a "
            "blank line and the reply; steer it so, too"
        )
    return trainer


def _set_threads(threads: int | None) -> None:
    if threads is not None and find_spec("torch") is not None:  # else the trainer says so
        import torch

        torch.set_num_threads(threads)


def _progress(name: str) -> Any:
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
    return (
        f"{path}: {voice.vector.name}, layers {layers[0]}:{layers[-1] + 1}, "
        f"strength {voice.vector.metadata.strength:.3g}; at {trained.dose:.3g}, on replies not "
        f"trained on {trained.best.gain:+.2f} nats per token, "
        f"plain replies {-trained.best.damage:+.2f}; {trained.seconds:.0f} s"
    )
