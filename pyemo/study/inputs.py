"""What the study works on: hidden states of every class, and what each model is steered with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyemo.engine.model import Model
from pyemo.engine.model_file import ModelFile
from pyemo.errors import InputError, VectorError
from pyemo.extract.recipe import Recipe
from pyemo.extract.recipe_texts import MIN_TEXTS
from pyemo.jobs.store import Result
from pyemo.study.cells import Cell, class_cell, neutral_cell, vectors_cell
from pyemo.study.context import Work
from pyemo.study.states import METHODS, NEUTRAL, Method, States
from pyemo.texts.sources import vignettes
from pyemo.vectors.control_vector import ControlVector


@dataclass(frozen=True, eq=False)
class Directions:
    """What a model is steered with.

    Attributes:
        by_emotion: emotion -> layer -> float32 (n_embd,), in residual units.
        last_norm: the last block's residual norm.
        strengths: calibrated ones, where a bundled vector has one for this file.
        origin: where they come from, in words.
    """

    by_emotion: Mapping[str, Mapping[int, npt.NDArray[np.float32]]]
    last_norm: float
    strengths: Mapping[str, float]
    origin: str

    def dose(self, emotion: str, strength: float) -> float:
        """Return how far a strength moves the last block's residual, over that residual's norm.

        A random control has the first emotion's dose, see :func:`turned`.
        """
        rows = self.by_emotion.get(emotion) or next(iter(self.by_emotion.values()))
        total = np.sum(list(rows.values()), axis=0, dtype=np.float64)
        return strength * float(np.linalg.norm(total)) / self.last_norm


def hidden_states(work: Work) -> tuple[list[States], list[Result]]:
    """Return the hidden states of each model and method, and each model's neutral texts."""
    plan = work.plan
    where: list[tuple[ModelFile, Method, str]] = []
    cells: list[Cell] = [neutral_cell(file) for file in work.files]
    for file in work.files:
        for method in METHODS:
            recipe = plan.recipe(method)
            for name, source in plan.emotions.items():
                texts = [v.text for v in source.vignettes if v.split == "held_out"]
                cells.append(class_cell(file, recipe, source, texts))
                where.append((file, method, name))
            texts = [v.text for v in vignettes(NEUTRAL, "held_out")]
            cells.append(class_cell(file, recipe, None, texts))
            where.append((file, method, NEUTRAL))
    results = work.cells(cells)
    n = len(work.files)
    by_set: dict[tuple[ModelFile, Method], tuple[dict[str, Any], dict[str, Any]]] = {}
    left_out: dict[tuple[ModelFile, Method], list[str]] = {}
    for (file, method, name), result in zip(where, results[n:], strict=True):
        train, held_out = by_set.setdefault((file, method), ({}, {}))
        if "train" in result.arrays:
            train[name] = result.arrays["train"]
            if name != NEUTRAL and "held_out" in result.arrays:
                held_out[name] = result.arrays["held_out"]
        else:
            left_out.setdefault((file, method), []).append(name)
    for (file, method), names in left_out.items():
        work.gaps.append(
            f"{work.model(file).name}, {method}: fewer than {MIN_TEXTS} usable texts for "
            f"{', '.join(names)}, left out there."
        )
    sets = []
    for (file, method), (train, held_out) in by_set.items():
        model = work.model(file)
        try:
            sets.append(States(model.name, method, model.n_layer, train, held_out))
        except InputError as error:
            work.gaps.append(f"{error}; this set is left out.")
    return sets, results[:n]


def directions_of(work: Work, file: ModelFile) -> Directions:
    """Return the bundled vectors made on this very file, or else those of recipe ``reading``."""
    model = work.model(file)
    bundled = _bundled(work, model)
    if bundled is not None:
        return bundled
    recipe = Recipe.load()
    (result,) = work.cells([vectors_cell(file, recipe, work.plan.emotions)])
    names, steered = result.values["emotions"], result.values["layers"]
    rows = result.arrays["directions"]
    by_emotion = {
        name: dict(zip(steered, rows[names.index(name)], strict=True))
        for name in work.plan.steered
        if name in names
    }
    return Directions(
        by_emotion, float(result.arrays["norms"][-1]), {}, f"extracted, recipe {recipe.name}"
    )


def _bundled(work: Work, model: Model) -> Directions | None:
    by_emotion, strengths, norm = {}, {}, 0.0
    for name in work.plan.steered:
        try:
            vector = ControlVector.load(name, model, use="reading")
        except VectorError:
            return None
        meta = vector.metadata
        if meta.source_sha256 != model.file_sha256 or not meta.residual_norms:
            return None
        by_emotion[name] = vector.directions
        norm = meta.residual_norms[-1]
        found = vector.recommended(model)
        if found.source != "default":
            strengths[name] = found.strength
    return Directions(by_emotion, norm, strengths, "bundled")


def turned(rows: Mapping[int, npt.ArrayLike], seed: int) -> dict[int, npt.NDArray[np.float32]]:
    """Return a random control: all directions turned by one random rotation.

    It keeps every layer's norm and the angles between layers, and so the dose; only where they
    point is chance.
    """
    width = np.asarray(next(iter(rows.values()))).size
    rng = np.random.default_rng(seed)
    q, r = np.linalg.qr(rng.standard_normal((width, width)))
    q *= np.sign(np.diag(r))  # uniform over rotations and reflections (Mezzadri 2007)
    return {
        layer: (np.asarray(row, np.float64) @ q).astype(np.float32) for layer, row in rows.items()
    }
