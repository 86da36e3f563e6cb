"""A calibrated file means the same in llama.cpp: the same file and number give the same text.

llama.cpp's side reads the file as its own loader does (``direction.N`` times the strength, by the
``gguf`` package) and steers by its own adapter; it shares no code with pyemo.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from engines import open_engine, random_vector
from gguf import GGUFReader
from llama_oracle import LlamaOracle
from tiny_models import TinyModel

from pyemo import ControlVector, Engine, Model, Steering
from pyemo.engine.sampling import GREEDY
from pyemo.vectors.metadata import Calibration, VectorMetadata

N = 24
PROMPT = "the happy story"


def directions_of(path: Path, strength: float) -> dict[int, np.ndarray]:
    """Return what llama.cpp's ``--control-vector-scaled FILE:STRENGTH`` adds at each layer."""
    return {
        int(tensor.name.removeprefix("direction.")): np.array(tensor.data, np.float32)
        * np.float32(strength)
        for tensor in GGUFReader(path).tensors
    }


def continuation(engine: Engine, prompt: list[int], steering: Steering) -> list[int]:
    """Return the greedy tokens, past any end of the text."""
    with engine.sequence(prompt, steering=steering, sampler=GREEDY) as sequence:
        return [sequence.step().id for _ in range(N)]


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "qwen2"])
def test_a_calibrated_file_gives_the_same_text_in_llama_cpp(
    tiny: Callable[[str], TinyModel], tmp_path: Path, architecture: str
) -> None:
    model = Model.load(tiny(architecture).path)
    path = tmp_path / "happy.gguf"
    metadata = VectorMetadata(emotion="happy").with_source(model)
    found = Calibration(model.file_sha256, model.name, "greedy", 48, (0.5, 4.0), 3.0)
    random_vector(model, layers=range(1, model.n_layer), metadata=metadata).with_calibration(
        found
    ).save(path)
    check(model, path)


def test_a_calibrated_bundled_vector_gives_the_same_text_in_llama_cpp(
    smollm2: Path, tmp_path: Path
) -> None:
    model = Model.load(smollm2)
    vector = ControlVector.load("happy", model)
    found = vector.calibration_for(model.file_sha256) or Calibration(
        model.file_sha256, model.name, "greedy", 48, (0.01, 0.03), 0.02
    )
    path = tmp_path / "happy.gguf"
    vector.with_calibration(found).save(path)
    check(model, path)


def check(model: Model, path: Path) -> None:
    """Compare pyemo's text at the file's own strength with llama.cpp's at the same number."""
    vector = ControlVector.load(path, model)
    calibration = vector.calibration_for(model.file_sha256)
    assert calibration is not None
    strength = calibration.strength
    prompt = model.prompt_tokens(PROMPT, raw=True)
    with open_engine(model) as engine, LlamaOracle(Path(model.path)) as oracle:
        steered = continuation(engine, prompt, Steering({vector: strength}))
        assert steered == oracle.greedy(prompt, N, directions_of(path, strength))
        plain = continuation(engine, prompt, Steering())
        assert plain == oracle.greedy(prompt, N)
    assert steered != plain
