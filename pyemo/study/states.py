"""The study's raw material: pooled hidden states by class, and the directions made of them.

One object for one model and one method. Knows nothing of where the states come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from pyemo.errors import InputError
from pyemo.study.statistics import Floats

Method: TypeAlias = Literal["generation", "comprehension"]
Centring: TypeAlias = Literal["neutral", "emotions"]
"""What class means are taken relative to: the neutral texts' mean, or the mean over emotions."""

METHODS: tuple[Method, ...] = ("generation", "comprehension")
NEUTRAL = "neutral"


@dataclass(frozen=True, eq=False)
class States:
    """Pooled hidden states of one model by one method.

    Attributes:
        model: the model's name.
        method: how the texts came about.
        n_layer: blocks of the model; the states are of all but the last.
        by_class: emotion, or "neutral" -> float32 (n_texts, n_layer - 1, n_embd).
        held_out: the same for texts that no direction is made of; may be empty.
    """

    model: str
    method: Method
    n_layer: int
    by_class: Mapping[str, npt.NDArray[np.float32]]
    held_out: Mapping[str, npt.NDArray[np.float32]]

    def __post_init__(self) -> None:
        if len(self.emotions) < 2 or NEUTRAL not in self.by_class:
            raise InputError(
                f"{self.model}, {self.method}: {len(self.emotions)} emotions with states"
                f"{'' if NEUTRAL in self.by_class else ', and no neutral texts'}; "
                "a comparison needs two emotions and neutral texts"
            )

    @property
    def emotions(self) -> tuple[str, ...]:
        """The emotions, in their order."""
        return tuple(name for name in self.by_class if name != NEUTRAL)

    @property
    def n_layers(self) -> int:
        """Layers that were read."""
        return int(self.by_class[NEUTRAL].shape[1])

    @property
    def middle(self) -> int:
        """The paper's layer, n_layer // 2."""
        return self.n_layer // 2

    @property
    def n_texts(self) -> int:
        """Texts of the class that has fewest."""
        return min(len(rows) for rows in self.by_class.values())

    def only(self, emotions: tuple[str, ...]) -> States:
        """Return it with these emotions, in this order, and neutral."""
        kept = {name: self.by_class[name] for name in (*emotions, NEUTRAL)}
        held_out = {name: self.held_out[name] for name in emotions if name in self.held_out}
        return States(self.model, self.method, self.n_layer, kept, held_out)

    def directions(self, centring: Centring) -> Floats:
        """Return class means less the baseline, (n_emotions, n_layers, n_embd)."""
        means = {
            name: np.asarray(rows, np.float64).mean(axis=0) for name, rows in self.by_class.items()
        }
        return centred(means, self.emotions, centring)

    def resampled_directions(
        self,
        centring: Centring,
        n_texts: int,
        n_resamples: int,
        seed: int,
        layers: slice = slice(None),
    ) -> Floats:
        """Return directions from ``n_texts`` texts a class drawn with replacement.

        Returns:
            (n_emotions, n_resamples, n_layers, n_embd).
        """
        rng = np.random.default_rng(seed)
        means = {}
        for name, rows in self.by_class.items():
            n = len(rows)
            weights = rng.multinomial(n_texts, [1 / n] * n, size=n_resamples) / n_texts
            part = np.asarray(rows[:, layers], np.float64)
            means[name] = (weights @ part.reshape(n, -1)).reshape(n_resamples, *part.shape[1:])
        return centred(means, self.emotions, centring)


def centred(means: Mapping[str, Floats], emotions: tuple[str, ...], centring: Centring) -> Floats:
    """Return the emotions' means less the baseline, stacked in front."""
    rows = np.stack([means[name] for name in emotions])
    return rows - (means[NEUTRAL] if centring == "neutral" else rows.mean(axis=0))


def common_emotions(sets: list[States]) -> tuple[str, ...]:
    """Return the emotions that all of them have, in the first one's order."""
    return tuple(name for name in sets[0].emotions if all(name in s.emotions for s in sets))
