"""Voices: control vectors learned from replies, on a model's own weights.

Owns what a voice is made of (own, plain and contrast replies, split by prompt) and what its file
says; the steps are in ``training``.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyemo.choices import DType
from pyemo.emotions import EMOTIONS, near_neighbours, resolve
from pyemo.errors import InputError, VectorError
from pyemo.extract.extraction import Neutral, read_neutral
from pyemo.extract.steered_tail import ReplyTokens, SteeredTail
from pyemo.extract.training import StepProgress, Trained, VoiceTokens, train
from pyemo.extract.transformers_backend import TransformersBackend
from pyemo.extract.transformers_loading import Loaded, load
from pyemo.extract.voice_recipe import VoiceRecipe
from pyemo.texts.replies import ReplyPrompt, given_for, reply_prompts
from pyemo.texts.sources import NEUTRAL
from pyemo.vectors.control_vector import ControlVector, VectorMetadata
from pyemo.vectors.identity import ModelIdentity

_N_CONTRASTS = 3


@dataclass(frozen=True)
class VoiceReply:
    """A prompt with what a voice says to it.

    Attributes:
        own: the reply in the voice.
        plain: a reply without it.
        contrasts: what other voices say, which this one is to be told from.
    """

    prompt: str
    own: str
    plain: str
    contrasts: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Voice:
    """A voice's vector and how its training went."""

    vector: ControlVector
    trained: Trained


def emotion_replies(
    emotion: str, prompts: Sequence[ReplyPrompt], n_contrasts: int = 0
) -> tuple[VoiceReply, ...]:
    """Return an emotion's replies to ``prompts``.

    Args:
        n_contrasts: for each prompt, replies of emotions that are no near neighbours, each as often
            as the others.
    Raises:
        InputError: no such emotion.
    """
    name = resolve(emotion)
    far = [other for other in EMOTIONS if other not in near_neighbours(name) | {name}]
    order = itertools.cycle(far)
    return tuple(
        VoiceReply(
            prompt.text,
            prompt.replies[name],
            prompt.replies[NEUTRAL],
            tuple(prompt.replies[next(order)] for _ in range(min(n_contrasts, len(far)))),
        )
        for prompt in prompts
    )


class VoiceTrainer:
    """A model on which voices are trained, one after the other.

    ```
    trainer = VoiceTrainer("smollm2-135m-instruct")
    angry = trainer.emotion("angry")
    angry.vector.save("angry.gguf")
    ```

    Args:
        model: as for :meth:`TransformersBackend.load`.
        recipe: every choice.
    Raises:
        as :meth:`TransformersBackend.load`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        recipe: VoiceRecipe | None = None,
        *,
        device: str = "auto",
        dtype: DType = "auto",
    ) -> None:
        self.recipe = recipe or VoiceRecipe.load()
        self._loaded: Loaded = load(model, device, dtype, None)
        backend = TransformersBackend(self._loaded)
        backend.compare_with_file()
        n_layer = self._loaded.source.n_layer
        self._layers = self.recipe.layer_range(n_layer)
        self._neutral: Neutral = read_neutral(
            backend, range(n_layer), lambda what, done, total: None
        )
        self._tail = SteeredTail(self._loaded.model, self._layers)

    @property
    def source(self) -> ModelIdentity:
        """The model that is trained on."""
        return self._loaded.source

    def emotion(self, emotion: str, progress: StepProgress | None = None) -> Voice:
        """Return the voice of a built-in emotion, from the bundled replies.

        Raises:
            InputError: no such emotion.
        """
        name = resolve(emotion)
        return self.voice(
            name,
            emotion_replies(
                name,
                (*reply_prompts("train"), *reply_prompts("train", "simple")),
                _N_CONTRASTS if self.recipe.training.contrast else 0,
            ),
            emotion_replies(name, (*reply_prompts("watch"), *reply_prompts("watch", "simple"))),
            progress,
        )

    def voice(
        self,
        name: str,
        replies: Sequence[VoiceReply],
        watch: Sequence[VoiceReply],
        progress: StepProgress | None = None,
    ) -> Voice:
        """Return a voice learned from ``replies``, stopped by ``watch``, which has other prompts.

        Raises:
            InputError: replies that do not differ from the plain ones.
        """
        norms = self._neutral.norms[self._layers.start : self._layers.stop]
        trained = train(
            self._tail,
            norms,
            [self._tokens(reply) for reply in replies],
            [self._tokens(reply) for reply in watch],
            self.recipe.training,
            progress,
        )
        return Voice(self._vector(name, trained, len(replies), len(watch)), trained)

    def _tokens(self, reply: VoiceReply) -> VoiceTokens:
        words, source = self._loaded.words, self._loaded.source
        is_chat = bool(source.chat_template_sha256)
        before = words.prompt_tokens(given_for(reply.prompt, is_chat=is_chat))

        def after(text: str) -> ReplyTokens:
            return ReplyTokens((*before, *words.reply_tokens(text)), len(before))

        return VoiceTokens(after(reply.own), after(reply.plain), tuple(map(after, reply.contrasts)))

    def _vector(self, name: str, trained: Trained, n_replies: int, n_watch: int) -> ControlVector:
        source, neutral = self._loaded.source, self._neutral
        projections = np.zeros(source.n_layer)
        directions = {}
        for row, layer in enumerate(self._layers):
            unit = trained.directions[row]
            projections[layer] = neutral.mean[layer] @ unit
            directions[layer] = unit * neutral.norms[layer]
        strength = round(trained.dose, 4)
        facts: dict[str, Any] = {
            "strength": strength,
            "n_replies": n_replies,
            "n_watch": n_watch,
            "steps_taken": trained.n_steps,
            "step": trained.best.step,
            "watch_gain": round(trained.best.gain, 4),
            "watch_damage": round(trained.best.damage, 4),
            "stopped": trained.stopped,
            "text": "chat template" if source.chat_template_sha256 else "prompt, blank line, reply",
        }
        metadata = VectorMetadata(
            unit="residual",
            emotion=name,
            recipe=self.recipe.to_toml(facts),
            residual_norms=tuple(neutral.norms),
            neutral_projections=tuple(projections),
            strength=strength,
        ).with_source(source)
        return ControlVector(directions, name=name, metadata=metadata)


def is_made_by(path: Path, recipe: VoiceRecipe, source: ModelIdentity) -> bool:
    """Return whether a file holds a vector that this recipe made of this model's file."""
    if not path.is_file():
        return False
    try:
        metadata = ControlVector.load(path).metadata
        made_by = VoiceRecipe.from_toml(metadata.recipe)
    except (InputError, VectorError):
        return False
    return made_by == recipe and metadata.source_sha256 == source.file_sha256
