"""Hidden states with a planted answer: classes around a shared offset, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pyemo.study.states import NEUTRAL, Method, States

EMOTIONS = ("happy", "sad", "calm", "angry", "proud", "guilty", "loving", "hostile")
N_EMBD = 48
N_LAYER = 13  # so that 12 layers are read


def planted(
    spread: Sequence[float] | float = 1.0,
    *,
    shared: float = 1.0,
    noise: float = 0.3,
    n_texts: int = 8,
    n_held_out: int = 4,
    seed: int = 0,
    model: str = "planted",
    method: Method = "generation",
    emotions: Sequence[str] = EMOTIONS,
    class_seed: int = 99,
) -> States:
    """Return states whose classes lie ``spread`` from a point that is ``shared`` from neutral.

    Args:
        spread: length of what is an emotion's own, one for each layer or one for all.
        shared: length of what all emotions have in common.
        noise: of each text, per dimension.
        class_seed: of the emotions' own directions: the same for models that arrange them alike.
    """
    rng = np.random.default_rng(seed)
    axes = np.random.default_rng(class_seed)
    n_layers = N_LAYER - 1
    lengths = np.broadcast_to(np.asarray(spread, np.float64), (n_layers,))
    common = _units(axes.standard_normal((n_layers, N_EMBD))) * shared
    base = rng.standard_normal((n_layers, N_EMBD))

    def texts(centre: npt.NDArray[np.float64], n: int) -> npt.NDArray[np.float32]:
        scatter = rng.standard_normal((n, n_layers, N_EMBD)) * noise
        return (base + centre + scatter).astype(np.float32)

    train, held_out = {}, {}
    for name in emotions:
        own = _units(axes.standard_normal((1, N_EMBD))) * lengths[:, None]
        train[name] = texts(common + own, n_texts)
        if n_held_out:
            held_out[name] = texts(common + own, n_held_out)
    train[NEUTRAL] = texts(np.zeros((n_layers, N_EMBD)), n_texts)
    return States(model, method, N_LAYER, train, held_out)


def _units(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
