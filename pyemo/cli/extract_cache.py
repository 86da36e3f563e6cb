"""``pyemo extract --cache``: cache vectors of emotions, learned from replies or of prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyemo.cli import output
from pyemo.cli.extract_voices import step_notes

if TYPE_CHECKING:
    from pyemo.choices import DType
    from pyemo.vectors.cache_vector import CacheVector

TRAINED, CONTRAST = "trained", "contrast"
WAYS = (TRAINED, CONTRAST)
"""Recipes of cache vectors."""


@dataclass(frozen=True)
class CacheExtraction:
    """How cache vectors are made.

    Attributes:
        way: one of :data:`WAYS`.
        seed: of the training; None for the trainer's own.
    """

    way: str
    model: str
    device: str
    dtype: DType
    threads: int | None
    seed: int | None

    def run(self, paths: Mapping[str, Path], as_json: bool) -> None:
        """Write each emotion's cache vector to its path, each when it is done."""
        facts = []
        for name, vector, how in self._made(tuple(paths)):
            vector.save(paths[name])
            cells = list(vector.cells)
            facts.append({"emotion": name, "path": str(paths[name]), "cells": cells, **how})
            if not as_json:
                output.say(_line(facts[-1]))
        if as_json:
            output.print_json({"cache_vectors": facts, "recipe": self.way})

    def _made(self, names: tuple[str, ...]) -> Iterator[tuple[str, CacheVector, dict[str, Any]]]:
        return self._trained(names) if self.way == TRAINED else self._contrasts(names)

    def _trained(self, names: tuple[str, ...]) -> Iterator[tuple[str, CacheVector, dict[str, Any]]]:
        from pyemo.extract.cache_vectors import CacheChoices, CacheTrainer
        from pyemo.extract.voice_jobs import set_threads

        if self.threads is not None:
            set_threads(self.threads)
        choices = CacheChoices() if self.seed is None else CacheChoices(seed=self.seed)
        trainer = CacheTrainer(self.model, device=self.device, dtype=self.dtype)
        for name in names:
            made = trainer.emotion(name, choices, step_notes(name))
            best = max(made.watched, key=lambda watched: watched.merit)
            yield (
                name,
                made.vector,
                {
                    "watch_gain": best.gain,
                    "watch_damage": best.damage,
                    "steps": made.n_steps,
                    "seconds": round(made.seconds, 1),
                },
            )

    def _contrasts(
        self, names: tuple[str, ...]
    ) -> Iterator[tuple[str, CacheVector, dict[str, Any]]]:
        from pyemo.engine.engine import Engine
        from pyemo.engine.model import Model
        from pyemo.extract.cache_vectors import emotion_contrast

        model = Model.load(self.model)
        n_ctx = min(512, model.n_ctx_train)
        with Engine(model, n_ctx=n_ctx, n_threads=self.threads) as engine:
            for name in names:
                began = time.monotonic()
                vector = emotion_contrast(engine, name)
                yield name, vector, {"seconds": round(time.monotonic() - began, 1)}


def check_way(recipe: str | None) -> str:
    """Return the way that a recipe's name means for cache vectors, learned ones where it is None.

    Raises:
        click.UsageError: no such way.
    """
    way = TRAINED if recipe is None else recipe
    if way not in WAYS:
        raise click.UsageError(f"--recipe {recipe} makes no cache vectors; {' and '.join(WAYS)} do")
    return way


def _line(facts: Mapping[str, Any]) -> str:
    cells = facts["cells"]
    gained = ""
    if "watch_gain" in facts:
        gained = (
            f"; on replies not trained on {facts['watch_gain']:+.2f} nats per token, plain replies "
            f"{-facts['watch_damage']:+.2f}"
        )
    return (
        f"{facts['path']}: {facts['emotion']}, cells {cells[0]} to {cells[-1]}{gained}; "
        f"{facts['seconds']:.0f} s"
    )
