"""Steps down a gradient, and when to stop: what all trainings share.

Knows neither the loss nor what is learned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pyemo.errors import InputError

if TYPE_CHECKING:
    import torch

StepProgress = Callable[[int, int, float], None]
"""Told (steps done, steps at most, seconds to go at most)."""


class StepChoices(Protocol):
    """How many steps, how long, and how patient."""

    @property
    def steps(self) -> int:
        """At most."""

    @property
    def patience(self) -> int:
        """Evaluations in a row that may bring nothing before it stops."""

    @property
    def evaluate_every(self) -> int:
        """Steps between two evaluations on the watch replies."""

    @property
    def rate(self) -> float:
        """Adam's step."""


def check_choices(choices: Any, may_be_nought: Collection[str], what: str = "") -> None:
    """Refuse a number of a dataclass of choices outside its range.

    Args:
        may_be_nought: fields that may be 0.
        what: put in front of the message.
    Raises:
        InputError: the field, its value and the range.
    """
    for field in fields(choices):
        value, is_count = getattr(choices, field.name), field.type == "int"
        least = 0 if field.name in may_be_nought else 1 if is_count else 1e-9
        kinds = (int,) if is_count else (int, float)
        if type(value) not in kinds or not least <= value <= 1_000_000:
            raise InputError(
                f"{what}{field.name} = {value!r}; it must be a {'whole ' if is_count else ''}"
                f"number from {least:g} on"
            )


@dataclass(frozen=True)
class Watched:
    """What an evaluation on the watch replies saw, nats per token."""

    step: int
    gain: float
    damage: float

    @property
    def merit(self) -> float:
        """What is maximised: the gain, less what plain replies lose."""
        return self.gain - max(0.0, self.damage)


@dataclass(frozen=True, eq=False)
class Descent:
    """What a descent found.

    Attributes:
        kept: the parameters at the best evaluation.
        watched: the evaluations, that of the start first.
        best: the one that ``kept`` is from.
        stopped: why it ended.
        n_steps: steps taken.
        seconds: since ``began``.
    """

    kept: list[torch.Tensor]
    watched: tuple[Watched, ...]
    best: Watched
    stopped: str
    n_steps: int
    seconds: float


def descend(
    parameters: Sequence[torch.Tensor],
    choices: StepChoices,
    start: Watched,
    *,
    loss: Callable[[], torch.Tensor],
    limit: Callable[[], None],
    evaluate: Callable[[int], Watched],
    began: float,
    progress: StepProgress | None = None,
) -> Descent:
    """Take Adam's steps until the watch replies gain no more.

    Args:
        parameters: changed in place.
        start: the evaluation before the first step.
        loss: of the next batch.
        limit: brings the parameters back into their bounds after a step.
        evaluate: of a step's number.
        began: ``time.monotonic()`` from when the time counts.
    """
    import torch

    def now() -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in parameters]

    optimizer = torch.optim.Adam(list(parameters), lr=choices.rate, betas=(0.9, 0.98))
    watched, best, kept = [start], start, now()
    idle, stopped, step = 0, "the steps were used up", 0
    first_step_at = time.monotonic()
    for step in range(1, choices.steps + 1):
        optimizer.zero_grad()
        cost = loss()
        cost.backward()  # type: ignore[no-untyped-call]
        slopes = [parameter.grad for parameter in parameters]
        if not all(
            slope is not None and bool(torch.isfinite(cost + slope.sum())) for slope in slopes
        ):
            stopped = f"step {step} gave numbers that are not finite"
            break
        optimizer.step()
        limit()
        if progress is not None:
            gone = time.monotonic() - first_step_at  # what came before is done once
            progress(step, choices.steps, gone / step * (choices.steps - step))
        if step % choices.evaluate_every and step != choices.steps:
            continue
        watched.append(evaluate(step))
        if watched[-1].merit > best.merit:
            best, kept, idle = watched[-1], now(), 0
        else:
            idle += 1
        if idle >= choices.patience:
            stopped = "the watch replies gained no more"
            break
    return Descent(kept, tuple(watched), best, stopped, step, time.monotonic() - began)


class Rounds:
    """A random order in which each of n comes once a round."""

    def __init__(self, random: np.random.Generator, n: int) -> None:
        self._random = random
        self._n = n
        self._queue: list[int] = []

    def take(self, n: int) -> list[int]:
        """Return the next ones."""
        while len(self._queue) < n:
            self._queue += [int(i) for i in self._random.permutation(self._n)]
        taken, self._queue = self._queue[:n], self._queue[n:]
        return taken
