"""On real models the two back ends give the same directions, but for the engine's rounding.

transformers computes the dequantized file in float32. The engine computes the file as shipped, and
the same weights
in F32 with F32 keys and values: there nothing is rounded, and the two must agree almost exactly.
docs/measurements/extraction.md
has the table of all emotions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from engines import needs_torch

from pyemo import Engine
from pyemo.extract.backend import Backend, Passage
from pyemo.extract.engine_backend import EngineBackend
from pyemo.extract.transformers_backend import TransformersBackend
from pyemo.formats.quantize import requantize
from pyemo.texts import sources

pytestmark = [pytest.mark.quality, needs_torch]

EMOTIONS = ("happy", "sad", "angry", "afraid")
N_VIGNETTES = 2
MODELS = ("smollm2", "gemma", "qwen")


def states(backend: Backend) -> Mapping[str, np.ndarray]:
    """Return each emotion's mean over its vignettes, relative to the mean over emotions."""
    means = {}
    for emotion in EMOTIONS:
        texts = [v.text for v in sources.vignettes(emotion, "train")[:N_VIGNETTES]]
        tokens = [tuple(backend.text_tokens(text)) for text in texts]
        passages = [Passage(ids, 0, len(ids)) for ids in tokens]
        means[emotion] = backend.read(passages, range(backend.source.n_layer - 1)).mean(axis=0)
    centre = np.mean(list(means.values()), axis=0)
    return {emotion: mean - centre for emotion, mean in means.items()}


def least_cosine(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    return min(
        float(
            (
                (a[e] * b[e]).sum(-1)
                / np.linalg.norm(a[e], axis=-1)
                / np.linalg.norm(b[e], axis=-1)
            ).min()
        )
        for e in EMOTIONS
    )


@pytest.fixture(scope="module", params=MODELS)
def path(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def reference(path: Path) -> Mapping[str, np.ndarray]:
    return states(TransformersBackend.load(path, device="cpu", dtype="float32", batch_size=8))


def test_file_as_shipped_gives_the_directions_of_its_dequantized_weights(
    path: Path, reference: Mapping[str, np.ndarray]
) -> None:
    with Engine(path, n_seq_max=8) as engine:
        assert least_cosine(states(EngineBackend(engine)), reference) >= 0.99


def test_unrounded_engine_gives_the_directions_of_transformers(
    path: Path, reference: Mapping[str, np.ndarray], tmp_path: Path
) -> None:
    made = requantize(path, "F32", target=tmp_path / "F32.gguf")
    with Engine(made.path, n_seq_max=8, kv_type="f32") as engine:
        assert least_cosine(states(EngineBackend(engine)), reference) >= 0.9999
