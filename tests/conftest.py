"""Models that several tiers share, made or found once per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import TinyModel, build_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    """``tiny(architecture)`` returns that tiny model, built on first use."""
    folder = tmp_path_factory.mktemp("tiny")
    built: dict[str, TinyModel] = {}

    def tiny(architecture: str = "llama") -> TinyModel:
        if architecture not in built:
            built[architecture] = build_tiny(architecture, folder / f"{architecture}.gguf")
        return built[architecture]

    return tiny


@pytest.fixture(scope="session")
def tiny_model_path(tiny: Callable[[str], TinyModel]) -> Path:
    """The tiny llama model's file: F32, ChatML, byte-level BPE."""
    return tiny("llama").path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct; where it is missing the catalog's error says how to get it."""
    from pyemo.catalog import resolve_model

    return resolve_model("smollm2-135m-instruct").path


@pytest.fixture(scope="session")
def gemma() -> Path:
    """Gemma 3 270M; where it is missing the catalog's error says how to get it."""
    from pyemo.catalog import resolve_model

    return resolve_model("gemma-3-270m").path


@pytest.fixture(scope="session")
def qwen() -> Path:
    """Qwen2.5-Coder-0.5B-Instruct, which only these tests use."""
    from pyemo.catalog import list_models, resolve_model

    name = "qwen2.5-coder-0.5b-instruct"
    # Asked first, because resolving a model that is not here would download it.
    if not any(status.entry.name == name and status.is_installed for status in list_models()):
        pytest.skip(f"{name} is not here: run `python tests/fetch_qwen.py` to get it")
    return resolve_model(name).path
