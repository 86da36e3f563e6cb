"""Voices: control vectors learned from replies, on a model's own weights.

Owns what a voice is made of (own, plain and contrast replies, split by prompt) and what its file
says; the steps are in ``training``.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyemo.choices import DType
from pyemo.emotions import EMOTIONS, near_neighbours, resolve
from pyemo.engine.sampling import SamplerParams
from pyemo.errors import InputError, VectorError
from pyemo.extract.backend import Written
from pyemo.extract.descent import StepProgress
from pyemo.extract.extraction import Neutral, projections, read_neutral
from pyemo.extract.steered_tail import ReplyTokens, SteeredTail
from pyemo.extract.training import (
    Trained,
    TrainingChoices,
    VoiceTokens,
    train,
)
from pyemo.extract.training_model import load_for_training, require_training_room
from pyemo.extract.transformers_backend import TransformersBackend
from pyemo.extract.transformers_loading import Loaded
from pyemo.extract.voice_recipe import VoiceRecipe
from pyemo.texts.replies import ReplyPrompt, reply_prompts
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
        plain_prompt: what ``plain`` answers; None for ``prompt``.
        is_whole: the reply in the voice ends there, and is not cut.
    """

    prompt: str
    own: str
    plain: str
    contrasts: tuple[str, ...] = ()
    plain_prompt: str | None = None
    is_whole: bool = True


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
        require_training_room(model, dtype, self.recipe, device)
        self._loaded: Loaded = load_for_training(model, device, dtype)
        self._backend = backend = TransformersBackend(self._loaded)
        backend.compare_with_file()
        n_layer = self._loaded.source.n_layer
        self._layers = self.recipe.layer_range(n_layer)
        self._neutral: Neutral = read_neutral(
            backend, range(n_layer), lambda what, done, total: None
        )
        self._tail = SteeredTail(self._loaded.model, self._layers)
        self._end = self._loaded.words.end_token if self.recipe.ends else None

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
        training: TrainingChoices | None = None,
    ) -> Voice:
        """Return a voice learned from ``replies``, stopped by ``watch``, which has other prompts.

        Args:
            training: other choices than the recipe's, as of a control; they are not written into
                the vector.
        Raises:
            InputError: replies that do not differ from the plain ones.
        """
        norms = self._neutral.norms[self._layers.start : self._layers.stop]
        texts = [self._with_end(reply, self._tokens(reply)) for reply in replies]
        held = [self._tokens(reply) for reply in watch]
        trained = train(
            self._tail,
            norms,
            texts,
            held,
            training or self.recipe.training,
            progress,
        )
        frozen = self._tail.freeze([text.own for text in texts])
        own = np.stack([text.means for text in frozen]).astype(np.float64).mean(axis=0)
        self._tail.keep_only([text.plain for text in (*texts, *held)])
        return Voice(
            self._vector(name, trained, np.asarray(own), len(replies), len(watch)), trained
        )

    def plain_replies(self, prompts: Sequence[str], max_tokens: int) -> list[str]:
        """Return the model's own unsteered greedy reply to each prompt."""
        written = [""] * len(prompts)

        def keep(index: int, reply: Written) -> None:
            written[index] = reply.text.strip()

        given = [self._loaded.words.prompt_tokens(prompt) for prompt in prompts]
        samplers = [SamplerParams(temperature=0)] * len(prompts)
        self._backend.write(given, samplers, max_tokens, keep)
        return written

    def rises(
        self, vector: ControlVector, replies: Sequence[VoiceReply]
    ) -> npt.NDArray[np.float64]:
        """Return by how much a voice's vector makes each own reply likelier, at its strength.

        Nats per token, float64 (n_replies,).
        """
        import torch

        strength = vector.metadata.strength or 0.0
        rows = np.stack([vector.directions[layer] for layer in self._layers])
        moved = torch.tensor(rows * np.float32(strength), device=self._tail.device)
        found = []
        for reply in replies:
            text = self._tail.freeze([self._tokens(reply).own])
            scales = torch.tensor([0.0, 1.0], device=self._tail.device)
            with torch.no_grad():
                plain, steered = self._tail.nll(text * 2, scales, moved)
            found.append(float(plain - steered))
        return np.array(found)

    def n_tokens(self, text: str) -> int:
        """Return how many tokens a reply has."""
        return len(self._loaded.words.reply_tokens(text))

    def cut(self, text: str, most: int) -> tuple[str, bool]:
        """Return a reply's first ``most`` tokens as text, and whether it had more."""
        tokens = self._loaded.words.reply_tokens(text)
        if len(tokens) <= most:
            return text, False
        return self._loaded.words.text(tuple(tokens[:most])), True

    def _tokens(self, reply: VoiceReply) -> VoiceTokens:
        words = self._loaded.words
        before = words.prompt_tokens(reply.prompt)

        def after(text: str) -> ReplyTokens:
            return ReplyTokens((*before, *words.reply_tokens(text)), len(before))

        plain = after(reply.plain)
        if reply.plain_prompt is not None:
            other = words.prompt_tokens(reply.plain_prompt)
            plain = ReplyTokens((*other, *words.reply_tokens(reply.plain)), len(other))
        return VoiceTokens(after(reply.own), plain, tuple(map(after, reply.contrasts)))

    def _with_end(self, reply: VoiceReply, tokens: VoiceTokens) -> VoiceTokens:
        """Return the tokens with the one that ends the reply, so that a voice learns to end."""
        if self._end is None or not reply.is_whole:
            return tokens
        own = replace(tokens.own, tokens=(*tokens.own.tokens, self._end))
        return replace(tokens, own=own)

    def _vector(
        self,
        name: str,
        trained: Trained,
        own: npt.NDArray[np.float64],
        n_replies: int,
        n_watch: int,
    ) -> ControlVector:
        source, neutral = self._loaded.source, self._neutral
        units = dict(zip(self._layers, trained.directions, strict=True))
        directions = {layer: unit * neutral.norms[layer] for layer, unit in units.items()}
        strength = round(trained.dose * self.recipe.training.recommended, 4)
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
            neutral_projections=projections(neutral.mean, units),
            own_projections=projections(
                dict(zip(self._layers, own, strict=True)), units, source.n_layer
            ),
            strength=strength,
        ).with_source(source)
        return ControlVector(directions, name=name, metadata=metadata)


def is_made_by(path: Path, recipe: VoiceRecipe, sha256: str, model: str = "") -> bool:
    """Return whether a file holds a vector that this recipe made of a model.

    Args:
        sha256: of the model's file; "" for a model without one, which is told by its name.
        model: its name.
    """
    if not path.is_file():
        return False
    try:
        metadata = ControlVector.load(path).metadata
        made_by = VoiceRecipe.from_toml(metadata.recipe)
    except (InputError, VectorError):
        return False
    made_on = metadata.source_sha256 or metadata.source_model
    return made_by == recipe and made_on == (sha256 or model)
