"""The texts of the extraction benchmarks, and the directions that come of them.

The same tokens are read by everything that is compared: built-in vignettes, and stories that the
engine
wrote once, teacher-forced ever after.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyemo import SamplerParams
from pyemo.emotions import EMOTIONS
from pyemo.extract.backend import Backend, Passage, Written
from pyemo.texts import sources
from pyemo.texts.sources import Split

States = npt.NDArray[np.float32]
Rows = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Texts:
    """Texts of several emotions.

    Attributes:
        name: what tables call them.
        emotions: the class of each passage.
        passages: what is read.
    """

    name: str
    emotions: tuple[str, ...]
    passages: tuple[Passage, ...]

    def read(self, backend: Backend, layers: Sequence[int]) -> States:
        """Return the mean hidden states, float32 (n_texts, n_layers, n_embd)."""
        return backend.read(self.passages, layers)

    @property
    def n_tokens(self) -> int:
        """Tokens that are computed in one reading."""
        return sum(passage.end for passage in self.passages)


class Cache:
    """Keeps what was computed in a folder, so that a run that was cut off goes on.

    None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def arrays(
        self, name: str, compute: Callable[[], Mapping[str, npt.NDArray[Any]]]
    ) -> dict[str, Any]:
        """Return the arrays of that name, computing them if they are not there."""
        path = None if self._folder is None else self._folder / f"{name}.npz"
        if path is not None and path.is_file():
            with np.load(path) as kept:
                return dict(kept)
        found = dict(compute())
        if path is not None:
            np.savez(path, **found)
        return found

    def texts(self, name: str, compute: Callable[[], Sequence[Texts]]) -> list[Texts]:
        """Return the texts of that name, writing them if they are not there."""
        path = None if self._folder is None else self._folder / f"{name}.json"
        if path is not None and path.is_file():
            return [
                Texts(
                    part["name"],
                    tuple(part["emotions"]),
                    tuple(Passage(tuple(t), b, e) for t, b, e in part["passages"]),
                )
                for part in json.loads(path.read_text())
            ]
        found = list(compute())
        if path is not None:
            kept = [
                {
                    "name": t.name,
                    "emotions": t.emotions,
                    "passages": [(p.tokens, p.begin, p.end) for p in t.passages],
                }
                for t in found
            ]
            path.write_text(json.dumps(kept))
        return found


def vignettes(backend: Backend, split: Split, n: int | None = None) -> Texts:
    """Return the built-in vignettes of all emotions, read from their first token on."""
    emotions, passages = [], []
    for emotion in EMOTIONS:
        for vignette in sources.vignettes(emotion, split)[:n]:
            tokens = tuple(backend.text_tokens(vignette.text))
            emotions.append(emotion)
            passages.append(Passage(tokens, 0, len(tokens)))
    return Texts(f"vignettes, {split}", tuple(emotions), tuple(passages))


def stories(backend: Backend, emotions: Sequence[str], n: int, max_tokens: int) -> Texts:
    """Let the back end write ``n`` stories for each emotion; only their replies are read."""
    templates = sources.story_templates()
    asked = [(emotion, i) for emotion in emotions for i in range(n)]
    prompts = [
        backend.prompt_tokens(templates[i % len(templates)].format(emotion=emotion))
        for emotion, i in asked
    ]
    written: dict[int, Written] = {}
    samplers = [SamplerParams(seed=i) for _, i in asked]
    backend.write(prompts, samplers, max_tokens, written.__setitem__)
    kept = [k for k in range(len(asked)) if len(written[k].tokens) >= max_tokens // 4]
    passages = []
    for k in kept:
        tokens = (*prompts[k], *written[k].tokens)
        passages.append(Passage(tokens, len(prompts[k]), len(tokens)))
    return Texts("stories", tuple(asked[k][0] for k in kept), tuple(passages))


def directions(states: npt.NDArray[np.floating], emotions: Sequence[str]) -> dict[str, Rows]:
    """Return each class's mean relative to the mean over classes, float64 (n_layers, n_embd)."""
    labels = np.array(emotions)
    means = {
        name: states[labels == name].mean(axis=0, dtype=np.float64)
        for name in dict.fromkeys(emotions)
    }
    centre = np.mean(list(means.values()), axis=0)
    return {name: mean - centre for name, mean in means.items()}


def cosines(a: Mapping[str, Rows], b: Mapping[str, Rows]) -> Rows:
    """Return the cosine of directions that belong together, (n_emotions, n_layers)."""
    x, y = np.stack([a[name] for name in a]), np.stack([b[name] for name in a])
    return (x * y).sum(-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1))
