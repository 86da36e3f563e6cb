"""Language directions: where texts in one language lie beside the same texts in others.

The form of ReCoVeR (Sterz and others 2025, arXiv 2509.14814): a language's mean state minus the
mean over other languages of the same content, at every layer. Owns that and the taking of a
language out of another vector. Knows nothing of emotions.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pyemo.choices import LANGUAGES
from pyemo.engine.engine import Engine
from pyemo.errors import InputError
from pyemo.extract.neutral import FIRST_POSITION
from pyemo.texts.sources import parallel_texts
from pyemo.vectors.control_vector import ControlVector
from pyemo.vectors.metadata import VectorMetadata

Floats = npt.NDArray[np.float64]

MOST_ALIKE = 0.999
"""Cosine above which taking a direction out leaves rounding."""


def language_vector(
    engine: Engine, language: str, *, on_progress: Callable[[int], None] | None = None
) -> ControlVector:
    """Return the direction of a language, in residual units, at all blocks but the last.

    Its neutral projections are those of the other languages' texts, its own those of its own: so
    ``cap`` at 0 keeps a row at the others, and ``raise`` at 1 lifts it to the language.

    Args:
        language: one of :data:`pyemo.choices.LANGUAGES`.
        on_progress: called with the number of texts that were read since the last call.
    Raises:
        InputError: no texts in this language.
        SteeringUnsupportedError: the model's block outputs cannot be read.
    """
    parallel_texts(language)  # there are some
    n_layer = engine.model.n_layer
    layers = list(range(n_layer - 1))
    means: dict[str, Floats] = {}
    norms = []
    for name in LANGUAGES:
        rows = []
        for text in parallel_texts(name):
            states = engine.read(text, layers=layers, pooling="all")[FIRST_POSITION:]
            rows.append(states.astype(np.float64))
            if on_progress is not None:
                on_progress(1)
        own = np.concatenate(rows)  # (n_tokens, n_layers, n_embd)
        means[name] = own.mean(axis=0)
        norms.append(np.linalg.norm(own, axis=2))
    others = np.mean([means[name] for name in LANGUAGES if name != language], axis=0)
    towards = means[language] - others
    units = towards / np.linalg.norm(towards, axis=1, keepdims=True)
    steered = layers[1:]  # a vector file has no place for block 0

    def along(states: Floats) -> list[float]:
        found = np.einsum("le,le->l", states, units)
        return [float(found[layer]) if layer in steered else 0.0 for layer in range(n_layer)]

    residual = np.median(np.concatenate(norms), axis=0)
    recipe = f"method = {json.dumps('language')}\nlanguage = {json.dumps(language)}\n"
    bare = ControlVector(
        {layer: units[layer].astype(np.float32) for layer in steered},
        name=language,
        metadata=VectorMetadata(recipe=recipe),
    )
    return bare.rescaled(
        [*residual, residual[-1]],
        along(others),
        own_projections=along(means[language]),
        source=engine.model,
    )


def without(vector: ControlVector, other: ControlVector) -> tuple[ControlVector, dict[int, float]]:
    """Return ``vector`` with the directions of ``other`` taken out, and their cosines by layer.

    What was measured along the old directions goes: projections, windows and strengths.

    Raises:
        InputError: no layer in common but where one is all zeros, or the same direction at one.
        VectorShapeError: vectors of different widths.
    """
    directions = {layer: row.astype(np.float64) for layer, row in vector.directions.items()}
    cosines: dict[int, float] = {}
    for layer, row in directions.items():
        if layer not in other.directions or not (row.any() and other.directions[layer].any()):
            continue
        away = other.directions[layer].astype(np.float64)
        away /= np.linalg.norm(away)
        cosines[layer] = float(row @ away / np.linalg.norm(row))
        if abs(cosines[layer]) > MOST_ALIKE:
            raise InputError(
                f"{vector.name} and {other.name} are the same direction at layer {layer}; nothing "
                "would be left of it"
            )
        directions[layer] = row - (row @ away) * away
    if not cosines:
        raise InputError(
            f"{vector.name} and {other.name} have no layer in common at which both are more than 0"
        )
    metadata = vector.metadata.unmeasured()
    return ControlVector(directions, name=vector.name, metadata=metadata), cosines
