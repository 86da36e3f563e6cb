"""Models and vectors that the commands are run on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import pyemo
from engines import random_vector
from tiny_models import TinyModel, build_tiny

from pyemo import ControlVector, Model
from pyemo.vectors.metadata import Calibration, VectorMetadata

NORMS = (6.0, 7.0, 8.0, 9.0)  # about those of the tiny llama's layers


@pytest.fixture(scope="session")
def tiny_llama(tiny: Callable[[str], TinyModel]) -> TinyModel:
    return tiny("llama")


@pytest.fixture(scope="session")
def model(tiny_llama: TinyModel) -> Path:
    """The tiny llama's file: 4 layers, ChatML."""
    return tiny_llama.path


@pytest.fixture(scope="session")
def base_model(tiny: Callable[[str], TinyModel]) -> Path:
    """The tiny gpt2's file: no chat template."""
    return tiny("gpt2").path


@pytest.fixture(scope="session")
def vectors(tiny_llama: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of vectors for the tiny llama.

    warm, cold: residual units. calibrated: warm with a strength of 0.3 for the model file. raw: no
    unit. other: made on other weights. wide: of another width.
    """
    folder = tmp_path_factory.mktemp("vectors")
    loaded = Model.load(tiny_llama.path)
    known = VectorMetadata(unit="raw", emotion="loving").with_source(loaded)
    warm = random_vector(loaded, layers=[1, 2, 3], seed=1, metadata=known)
    warm = warm.rescaled(NORMS, (0.0, 0.1, 0.2, 0.3))
    warm.save(folder / "warm.gguf")
    cold = random_vector(loaded, layers=[1, 2, 3], seed=2, metadata=known)
    cold.rescaled(NORMS, (0.0, 0.1, 0.2, 0.3)).save(folder / "cold.gguf")
    calibration = Calibration(
        loaded.file_sha256, loaded.name, "greedy", 64, (0.2, 0.4), 0.3, '{"n_prompts": 8}'
    )
    warm.with_calibration(calibration).save(folder / "calibrated.gguf")
    raw = VectorMetadata(architecture="llama")
    random_vector(loaded, layers=[1, 2, 3], seed=3, metadata=raw).save(folder / "raw.gguf")
    others = replace(warm.metadata, source_sha256="0" * 64, weights_fingerprint="0" * 64)
    warm.with_metadata(others).save(folder / "other.gguf")
    ControlVector({1: [1.0, 2.0]}, metadata=raw).save(folder / "wide.gguf")
    return folder


@pytest.fixture
def own_voice(vectors: Path, tmp_path: Path) -> Path:
    """pirate.gguf: a voice of one's own replies, of no emotion, trained at 0.0181."""
    warm = ControlVector.load(vectors / "warm.gguf")
    metadata = replace(warm.metadata, emotion="", strength=0.0181)
    path = tmp_path / "pirate.gguf"
    warm.with_metadata(metadata, name="pirate").save(path)
    return path


@pytest.fixture(scope="session")
def broken_template_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama whose chat template is not Jinja."""
    path = tmp_path_factory.mktemp("broken") / "model.gguf"
    return build_tiny("llama", path, chat_template="{% for %}").path


@pytest.fixture(scope="session")
def whole_set(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder of all 20 emotions, extracted from the tiny llama, and what the command said."""
    folder = tmp_path_factory.mktemp("set") / "all"
    words = ("extract", "--all", "-r", "reading", "-m", model, "-o", folder)
    result = pyemo(*words, "--threads", 1, "--json")
    assert result.exit_code == 0, result.stderr
    return folder, json.loads(result.stdout)
