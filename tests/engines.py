"""Engines over the tiny models, and what the core tests say about them in one word.

Everything here has F32 keys and values and one thread, so that only float32's own rounding is left
between two ways to compute the same; the batches' shapes decide whether it shows at all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import TinyModel

from pyemo import ControlVector, Engine, Model, Steering, _core
from pyemo.engine.mood import OFF
from pyemo.engine.sequence import Sequence as EngineSequence
from pyemo.vectors.metadata import VectorMetadata

Array = NDArray[np.float32]

WITH_GELU = ("gpt2", "gemma2", "gemma3")  # ggml's CPU code looks GELU up in a table of halves
WITH_WINDOW = ("gemma2", "gemma3")
FLOAT32 = 1e-4  # of a standard deviation: two float32 computations of the same in other orders
PROMPT = "the happy story"

needs_torch = pytest.mark.skipif(
    find_spec("torch") is None or find_spec("transformers") is None,
    reason="the reference needs torch and transformers: install pyemo's extra `extract`",
)


needs_plots = pytest.mark.skipif(
    find_spec("matplotlib") is None, reason="pictures need pyemo's extra `plot`"
)


def not_under_address_sanitizer(reason: str) -> pytest.MarkDecorator:
    """Return the mark of tests that run without that sanitizer only."""
    return pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason=reason)


def tolerance(architecture: str) -> float:
    """Allowed error against transformers, in standard deviations of the logits."""
    return 2e-3 if architecture in WITH_GELU else 1e-4


def error(found: Array, expected: Array) -> float:
    """Return the largest difference, in standard deviations of what was expected."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / expected.std())


def open_engine(model: Model, *, hook_through_copies: bool = False, **settings: Any) -> Engine:
    """Return an engine with F32 keys and values and one thread, but for ``settings``."""
    chosen: dict[str, Any] = {
        "n_ctx": 512,
        "n_seq_max": 4,
        "n_threads": 1,
        "kv_type": "f32",
        **settings,
    }
    engine = Engine(model, **chosen)
    if hook_through_copies:
        n_threads = chosen.pop("n_threads")
        native: dict[str, Any] = {"n_batch": 512, "n_outputs_max": 32, **chosen}
        engine._core = _core.Engine(
            model.native,
            **native,
            n_threads=n_threads,
            n_threads_batch=n_threads,
            hook_through_copies=True,
        )
    return engine


def random_directions(model: TinyModel | Model, *, seed: int = 0, length: float = 2.0) -> Array:
    """Return a random direction of this length for each layer, float32 (n_layer, n_embd).

    The default is a third to a fifth of the tiny models' residual norms.
    """
    rows = np.random.default_rng(seed).standard_normal((model.n_layer, model.n_embd))
    rows *= length / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32)


def random_vector(
    model: TinyModel | Model,
    *,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    length: float = 2.0,
    metadata: VectorMetadata | None = None,
) -> ControlVector:
    """Return a control vector with random directions at these layers; None is all, 0 included."""
    rows = random_directions(model, seed=seed, length=length)
    chosen = range(model.n_layer) if layers is None else layers
    directions = {layer: rows[layer] for layer in chosen}
    return ControlVector(directions, name=f"random{seed}", metadata=metadata)


def steering_of(directions: Mapping[int, Array]) -> Steering:
    """Return the mood that adds these directions as they are."""
    return Steering({ControlVector(directions): 1.0})


def logits_after(engine: Engine, tokens: Sequence[int], steering: Steering = OFF) -> Array:
    """Return the logits after the last token, all computed in one prefill; float32 (n_vocab,)."""
    with engine.sequence(tokens, steering=steering) as sequence:
        return sequence.logits()


def logits_after_each(
    engine: Engine, tokens: Sequence[int], steering: Steering = OFF, *, n_prompt: int
) -> Array:
    """Return the logits after token n_prompt - 1 and after each later one.

    The first ``n_prompt`` tokens are one prefill, the others are decoded one at a time; float32
    (n_tokens - n_prompt + 1, n_vocab).
    """
    with engine.sequence(tokens[:n_prompt], steering=steering) as sequence:
        return np.stack([sequence.logits(), *forced(sequence, tokens[n_prompt:])])


def forced(
    sequence: EngineSequence, tokens: Sequence[int], *, is_reply: bool = False
) -> list[Array]:
    """Append ``tokens`` and decode them one at a time; return the logits after each."""
    logits = []
    for token in tokens:
        sequence.append([token], is_reply=is_reply)
        logits.append(sequence.logits())
    return logits


def hidden_states(engine: Engine, tokens: Sequence[int], steering: Steering = OFF) -> Array:
    """Return every block's output at every token, float32 (n_layer, n_tokens, n_embd)."""
    return engine.read(tokens, pooling="all", steering=steering).swapaxes(0, 1)


def log_softmax(logits: Array) -> NDArray[np.float64]:
    """Return the log-probabilities, computed in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
