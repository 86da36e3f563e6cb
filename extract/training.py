"""Learning one row for each steered layer from replies, by gradient on frozen weights.

Owns the loss, the steps and when to stop. Knows texts as tokens only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pyemo.errors import InputError
from pyemo.extract.descent import Rounds, StepProgress, Watched, check_choices, descend
from pyemo.extract.steered_tail import Frozen, ReplyTokens, SteeredTail

if TYPE_CHECKING:
    import torch

_MAY_BE_NOUGHT = ("plain_batch", "contrast_batch", "damage", "contrast", "seed")


@dataclass(frozen=True)
class TrainingChoices:
    """Every choice of a training.

    Attributes:
        steps: at most.
        patience: evaluations in a row that may bring nothing before it stops.
        evaluate_every: steps between two evaluations on the watch replies.
        batch: replies in the voice, of a step.
        plain_batch: plain replies of a step.
        contrast_batch: contrast replies of a step.
        low, high: bounds of the strength that is drawn for each reply of a step; 1 is the dose.
        rate: Adam's step, in residual norms / sqrt(n_embd) for each coordinate.
        start: dose of the mean difference that the steps begin with.
        cap: largest dose, as a share of the residual norm, the same at every layer.
        damage: weight of what plain replies lose under the vector.
        contrast: weight of what contrast replies gain under the vector.
        recommended: strength that the vector's file recommends, as a share of the dose it was
            trained at. A little less is heard as well and breaks fewer texts.
        seed: of the order of replies and of the strengths drawn.
    """

    steps: int = 32
    patience: int = 2
    evaluate_every: int = 8
    batch: int = 8
    plain_batch: int = 2
    contrast_batch: int = 4
    low: float = 1.0
    high: float = 1.0
    rate: float = 0.003
    start: float = 0.015
    cap: float = 0.03
    damage: float = 0.0
    contrast: float = 0.0
    recommended: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self, _MAY_BE_NOUGHT, "recipe, training: ")
        if self.low > self.high:
            raise InputError(f"recipe, training: low = {self.low} is above high = {self.high}")


@dataclass(frozen=True)
class VoiceTokens:
    """One prompt's replies as tokens.

    Attributes:
        own: the reply in the voice.
        plain: one without it, on the same prompt, whose likelihood is to stay.
        contrasts: what other voices say to it, whose likelihood is not to rise; may be empty.
    """

    own: ReplyTokens
    plain: ReplyTokens
    contrasts: tuple[ReplyTokens, ...] = ()


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training found.

    Attributes:
        directions: float64 (n_steered, n_embd), unit rows.
        dose: the strength it was found at, as a share of the residual norm.
        watched: the evaluations, that of the start first.
        best: the one that ``directions`` are from.
        stopped: why it ended.
        n_steps: steps taken.
        seconds: they took.
    """

    directions: npt.NDArray[np.float64]
    dose: float
    watched: tuple[Watched, ...]
    best: Watched
    stopped: str
    n_steps: int
    seconds: float


def train(
    tail: SteeredTail,
    residual_norms: npt.ArrayLike,
    texts: Sequence[VoiceTokens],
    watch: Sequence[VoiceTokens],
    choices: TrainingChoices,
    progress: StepProgress | None = None,
) -> Trained:
    """Return the rows that make the voice's replies likely, best by the watch replies.

    Args:
        tail: the model; what it computes depends on its device and threads only in rounding.
        residual_norms: (n_steered,), above 0.
        texts: what the rows are learned from.
        watch: replies to other prompts, which decide when to stop.
    Raises:
        InputError: the voice's replies do not differ from the plain ones in their mean.
    """
    began = time.monotonic()
    job = _Job(tail, np.asarray(residual_norms, dtype=np.float64), texts, watch, choices)
    rows = job.start().requires_grad_(True)
    went = descend(
        [rows],
        choices,
        job.evaluate(rows, 0),
        loss=lambda: job.loss(rows),
        limit=lambda: job.limit(rows),
        evaluate=lambda step: job.evaluate(rows, step),
        began=began,
        progress=progress,
    )
    found = went.kept[0].double().cpu().numpy()
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    dose = float(lengths.mean() / math.sqrt(tail.n_embd))
    return Trained(
        found / lengths, dose, went.watched, went.best, went.stopped, went.n_steps, went.seconds
    )


class _Job:
    """The replies of one training, with their unsteered likelihoods.

    Rows are in units of residual norm / sqrt(n_embd), so that Adam's step means the same at every
    layer.
    """

    def __init__(
        self,
        tail: SteeredTail,
        norms: npt.NDArray[np.float64],
        texts: Sequence[VoiceTokens],
        watch: Sequence[VoiceTokens],
        choices: TrainingChoices,
    ) -> None:
        import torch

        self._tail = tail
        self._choices = choices
        self._random = np.random.default_rng(choices.seed)
        units = norms[:, None] / math.sqrt(tail.n_embd)
        self._units = torch.tensor(units, dtype=torch.float32, device=tail.device)
        self._own = tail.freeze([text.own for text in texts])
        self._plain = tail.freeze([text.plain for text in texts])
        self._contrast = tail.freeze([reply for text in texts for reply in text.contrasts])
        self._watch_own = tail.freeze([text.own for text in watch])
        self._watch_plain = tail.freeze([text.plain for text in watch])
        nothing = torch.zeros(len(norms), tail.n_embd, device=tail.device)
        # Only where the loss has the term: a term that is off costs nothing.
        self._plain_nll = self._levels(self._plain if choices.damage else (), nothing)
        self._contrast_nll = self._levels(self._contrast, nothing)
        self._watch_own_nll = self._levels(self._watch_own, nothing)
        self._watch_plain_nll = self._levels(self._watch_plain, nothing)
        self._rounds = Rounds(self._random, len(self._own))

    def start(self) -> torch.Tensor:
        """Return the mean difference of own and plain replies at the starting dose."""
        import torch

        own = np.mean([text.means for text in self._own], axis=0, dtype=np.float64)
        plain = np.mean([text.means for text in self._plain], axis=0, dtype=np.float64)
        rows = torch.tensor(own - plain, dtype=torch.float32, device=self._tail.device)
        lengths = rows.norm(dim=1, keepdim=True)
        if not bool((lengths > 0).all()):
            raise InputError(
                "the voice's replies do not differ from the plain ones; give replies that do"
            )
        started: torch.Tensor = (
            rows / lengths * (self._choices.start * math.sqrt(self._tail.n_embd))
        )
        return started

    def loss(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the loss of the next batch."""
        import torch

        choices = self._choices
        own = self._rounds.take(choices.batch)
        plain = self._pick(choices.plain_batch if choices.damage else 0, len(self._plain))
        n_contrast = choices.contrast_batch if choices.contrast else 0
        contrast = self._pick(n_contrast, len(self._contrast))
        texts = [
            *(self._own[i] for i in own),
            *(self._plain[i] for i in plain),
            *(self._contrast[i] for i in contrast),
        ]
        nll = self._nll(texts, self._random.uniform(choices.low, choices.high, len(texts)), rows)
        loss: torch.Tensor = nll[: len(own)].mean()
        if plain:
            fall = nll[len(own) : len(own) + len(plain)] - self._plain_nll[plain]
            loss = loss + choices.damage * torch.relu(fall).mean()
        if contrast:
            rise = self._contrast_nll[contrast] - nll[len(own) + len(plain) :]
            loss = loss + choices.contrast * torch.relu(rise).mean()
        return loss

    def limit(self, rows: torch.Tensor) -> None:
        """Give all layers the same dose, at most the cap."""
        import torch

        with torch.no_grad():
            lengths = rows.norm(dim=1, keepdim=True)
            most = self._choices.cap * math.sqrt(self._tail.n_embd)
            dose = min(most, float(lengths.square().mean().sqrt()))
            rows.mul_(dose / lengths)

    def evaluate(self, rows: torch.Tensor, step: int) -> Watched:
        """Return what the watch replies gain and lose under the rows."""
        gain = self._watch_own_nll - self._levels(self._watch_own, rows)
        damage = self._levels(self._watch_plain, rows) - self._watch_plain_nll
        return Watched(step, float(gain.mean()), float(damage.mean()))

    def _levels(self, texts: Sequence[Frozen], rows: torch.Tensor) -> torch.Tensor:
        import torch

        if not texts:
            return torch.zeros(0, device=self._tail.device)
        with torch.no_grad():
            parts = [
                self._nll(texts[i : i + 8], np.ones(len(texts[i : i + 8])), rows)
                for i in range(0, len(texts), 8)
            ]
            return torch.cat(parts)

    def _nll(
        self, texts: Sequence[Frozen], scales: npt.NDArray[np.float64], rows: torch.Tensor
    ) -> torch.Tensor:
        import torch

        given = torch.tensor(scales, dtype=torch.float32, device=self._tail.device)
        return self._tail.nll(texts, given, rows * self._units)

    def _pick(self, n: int, n_all: int) -> list[int]:
        return [int(i) for i in self._random.choice(n_all, min(n, n_all), replace=False)]
