"""Cache vectors: made of contrasting prompts, or learned from replies by gradient.

Owns which cells are edited (a chat template's last tokens but for the very last), the differences
and the steps. The vector itself is ``vectors.cache_vector``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pyemo.choices import DType
from pyemo.emotions import resolve
from pyemo.engine.engine import Engine
from pyemo.errors import InputError
from pyemo.extract.cache_tail import CacheTail, FrozenPrompt
from pyemo.extract.descent import (
    Rounds,
    StepProgress,
    Watched,
    check_choices,
    descend,
)
from pyemo.extract.steered_tail import ReplyTokens
from pyemo.extract.training_model import load_for_training
from pyemo.extract.transformers_loading import Words
from pyemo.texts.replies import ReplyPrompt, reply_prompts
from pyemo.texts.sources import NEUTRAL
from pyemo.vectors.cache_vector import CacheVector
from pyemo.vectors.metadata import VectorMetadata

if TYPE_CHECKING:
    import torch

MOST_CELLS = 8


@dataclass(frozen=True)
class CacheChoices:
    """Every choice of a cache vector's training.

    Attributes:
        steps: at most.
        batch: replies of a step.
        evaluate_every: steps between two evaluations on the watch replies.
        patience: evaluations in a row that may bring nothing before it stops.
        rate: Adam's step for each number, in root mean squares of its layer's values.
        cap: the longest a cell's row may be, in lengths of its layer's values.
        seed: of the order of replies.
    """

    steps: int = 48
    batch: int = 8
    evaluate_every: int = 8
    patience: int = 2
    rate: float = 0.05
    cap: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self, ("seed",))


@dataclass(frozen=True, eq=False)
class TrainedCache:
    """A cache vector and how its training went; the evaluations begin with that of no edit."""

    vector: CacheVector
    watched: tuple[Watched, ...]
    n_steps: int
    seconds: float


def tail_cells(words: Words | Engine) -> tuple[int, ...]:
    """Return the cells of what every prompt ends with, but for the last.

    That is the end of the chat template, or the blank line of a model without one.

    Raises:
        InputError: prompts end with fewer than two common tokens.
    """
    model = words.model if isinstance(words, Engine) else words
    first, second = (model.prompt_tokens(prompt) for prompt in ("Hi", "What is a year?"))
    n = 0
    while n < min(len(first), len(second), MOST_CELLS + 1) and first[-1 - n] == second[-1 - n]:
        n += 1
    if n < 2:
        raise InputError(
            "prompts of this model end with fewer than two common tokens, so there is nothing of a "
            "chat template to edit; take a model with a chat template, or name the cells"
        )
    return tuple(range(-n, -1))


def contrast(
    engine: Engine,
    positive: Sequence[Sequence[int]],
    negative: Sequence[Sequence[int]],
    cells: Sequence[int],
    *,
    with_keys: bool = False,
    name: str = "contrast",
) -> CacheVector:
    """Return the mean difference of what prompts leave in their last cells (Belitsky 2025).

    Args:
        positive, negative: prompts as tokens, as many; each at least as long as the cells reach.
        cells: as of :class:`CacheVector`.
        with_keys: the keys' differences too; they hold where the prompts are as long.
    Raises:
        InputError: no prompts, or not as many of both.
    """
    if not positive or len(positive) != len(negative):
        raise InputError(
            f"{len(positive)} positive and {len(negative)} negative prompts; give as many of both"
        )
    sums: dict[bool, dict[int, npt.NDArray[np.float64]]] = {False: {}, True: {}}
    ends = set()
    for sign, prompts in ((1.0, positive), (-1.0, negative)):
        for tokens in prompts:
            ends.add(tuple(tokens[cell] for cell in cells))
            with engine.sequence(list(tokens)) as sequence:
                held = sequence.read_cache(len(tokens) + cells[0], len(tokens) + cells[-1] + 1)
            at = [cell - cells[0] for cell in cells]
            for of_keys, layers in ((False, held.values), (True, held.keys)):
                for layer, rows in layers.items():
                    before = sums[of_keys].get(layer, 0.0)
                    sums[of_keys][layer] = before + sign * rows[at].astype(np.float64)
    means = {
        of_keys: {layer: rows / len(positive) for layer, rows in layers.items()}
        for of_keys, layers in sums.items()
    }
    return CacheVector(
        means[False],
        cells=tuple(cells),
        keys=means[True] if with_keys else None,
        tokens=next(iter(ends)) if len(ends) == 1 else (),
        name=name,
    ).with_source(engine.model)


def emotion_contrast(
    engine: Engine, emotion: str, prompts: Sequence[str] | None = None
) -> CacheVector:
    """Return the contrast of prompts whose system message names an emotion with plain ones.

    Args:
        prompts: None for those of the bundled replies to train on.
    Raises:
        InputError: no such emotion, or no chat template.
    """
    name = resolve(emotion)
    texts = [prompt.text for prompt in reply_prompts("train")] if prompts is None else prompts
    tell = "You feel {0}. Answer as somebody who feels very {0}."
    ask = engine.model.prompt_tokens
    vector = contrast(
        engine,
        [ask(text, system=tell.format(name)) for text in texts],
        [ask(text, system=tell.format(NEUTRAL)) for text in texts],
        tail_cells(engine),
        name=name,
    )
    recipe = f'method = "contrast"\nsystem = "{tell}"\n'
    metadata = VectorMetadata(emotion=name, recipe=recipe)
    return vector.with_metadata(metadata.with_source(engine.model))


class CacheTrainer:
    """A model on which cache vectors are learned from the bundled replies of emotions.

    The values of a few prompt cells are the unknowns: prefix tuning (Li and Liang 2021) without
    tokens of its own. For models whose attention sees the whole text (no sliding windows).

    Args:
        model, device, dtype: as for :class:`pyemo.extract.voices.VoiceTrainer`.
    Raises:
        InputError: sliding windows, or no chat template.
        otherwise as :class:`pyemo.extract.voices.VoiceTrainer`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        device: str = "auto",
        dtype: DType = "auto",
    ) -> None:
        loaded = load_for_training(model, device, dtype)
        self._words, self.source = loaded.words, loaded.source
        if "sliding_attention" in (getattr(loaded.model.config, "layer_types", None) or ()):
            raise InputError(
                f"{self.source.name} has sliding windows, and cache vectors are learned on models "
                "without; make one of contrasting prompts: emotion_contrast"
            )
        self.cells = tail_cells(self._words)
        self._tail = CacheTail(loaded.model, len(self.cells))

    def emotion(
        self,
        emotion: str,
        choices: CacheChoices | None = None,
        progress: StepProgress | None = None,
    ) -> TrainedCache:
        """Return the values that make an emotion's replies likely, best by the watch replies.

        Raises:
            InputError: no such emotion.
        """
        import torch

        name, chosen = resolve(emotion), choices or CacheChoices()
        began = time.monotonic()
        texts = self._replies(name, (*reply_prompts("train"), *reply_prompts("train", "simple")))
        watch = (*reply_prompts("watch"), *reply_prompts("watch", "simple"))
        held, plain = self._replies(name, watch), self._replies(NEUTRAL, watch)
        units = self._units(texts)
        rows = [torch.zeros_like(like).requires_grad_(True) for _, like in units]
        sizes = [unit for unit, _ in units]

        def moved() -> list[torch.Tensor]:
            return [row * size for row, size in zip(rows, sizes, strict=True)]

        def levels(replies: Sequence[FrozenPrompt], scale: float) -> float:
            with torch.no_grad():
                now = moved()
                parts = [
                    self._tail.nll(replies[i : i + 8], now, scale)
                    for i in range(0, len(replies), 8)
                ]
            return float(torch.cat(parts).mean())

        base = levels(held, 0.0), levels(plain, 0.0)
        rounds = Rounds(np.random.default_rng(chosen.seed), len(texts))

        def loss() -> torch.Tensor:
            batch = [texts[i] for i in rounds.take(chosen.batch)]
            return self._tail.nll(batch, moved()).mean()

        def limit() -> None:
            with torch.no_grad():
                for row in rows:  # a row of root mean square 1 is as long as its layer's values
                    length = row.square().mean((0, 2), keepdim=True).sqrt()
                    row.mul_((chosen.cap / length.clamp_min(1e-9)).clamp_max(1.0))

        def evaluate(step: int) -> Watched:
            return Watched(step, base[0] - levels(held, 1.0), levels(plain, 1.0) - base[1])

        went = descend(
            rows,
            chosen,
            Watched(0, 0.0, 0.0),
            loss=loss,
            limit=limit,
            evaluate=evaluate,
            began=began,
            progress=progress,
        )
        recipe = "".join(
            f"{key} = {value}\n"
            for key, value in {
                **asdict(chosen),
                "steps_taken": went.n_steps,
                "step": went.best.step,
                "watch_gain": round(went.best.gain, 4),
                "watch_damage": round(went.best.damage, 4),
            }.items()
        )
        vector = CacheVector(
            {
                layer: (row * size).transpose(0, 1).flatten(1).cpu().double().numpy()
                for layer, (row, size) in enumerate(zip(went.kept, sizes, strict=True))
            },
            cells=self.cells,
            tokens=self._words.prompt_tokens("Hi")[self.cells[0] : -1],
            name=name,
            metadata=VectorMetadata(
                emotion=name, recipe='method = "trained cache"\n' + recipe, strength=1.0
            ).with_source(self.source),
        )
        return TrainedCache(vector, went.watched, went.n_steps, went.seconds)

    def _replies(self, voice: str, prompts: Sequence[ReplyPrompt]) -> list[FrozenPrompt]:
        texts = []
        for prompt in prompts:
            before = self._words.prompt_tokens(prompt.text)
            after = self._words.reply_tokens(prompt.replies[voice])
            texts.append(ReplyTokens((*before, *after), len(before)))
        return self._tail.freeze(texts)

    def _units(self, texts: Sequence[FrozenPrompt]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return for each layer the root mean square of its values in the cells, and a shape."""
        import torch

        n = len(self.cells)
        found = []
        for layer in range(self.source.n_layer):
            held = torch.stack([text.values[layer][:, -n:].float() for text in texts])
            found.append((held.square().mean().sqrt(), held[0]))
        return found
