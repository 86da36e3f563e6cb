"""Models and engines that several rooms share: made or found once, closed when a test ends."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from engines import open_engine
from tiny_models import TinyModel, build_tiny

from pyemo import Engine, Model

# A shell starts a background job with Ctrl-C ignored, and what is ignored is handed on to every
# child: tests that press it would then wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
    from pyemo.files.catalog import resolve_model

    return resolve_model("smollm2-135m-instruct").path


@pytest.fixture(scope="session")
def gemma() -> Path:
    """Gemma 3 270M; where it is missing the catalog's error says how to get it."""
    from pyemo.files.catalog import resolve_model

    return resolve_model("gemma-3-270m").path


@pytest.fixture(scope="session")
def qwen() -> Path:
    """Qwen2.5-Coder-0.5B-Instruct, which only these tests use."""
    from pyemo.files.catalog import list_models, resolve_model

    name = "qwen2.5-coder-0.5b-instruct"
    # Asked first, because resolving a model that is not here would download it.
    if not any(status.entry.name == name and status.is_installed for status in list_models()):
        pytest.skip(f"{name} is not here: run `python tests/fetch_qwen.py` to get it")
    return resolve_model(name).path


@pytest.fixture(scope="session")
def load(tiny: Callable[[str], TinyModel]) -> Callable[[str], Model]:
    """``load(architecture)`` returns that tiny model in the engine's hands, loaded once."""
    loaded: dict[str, Model] = {}

    def load(architecture: str) -> Model:
        if architecture not in loaded:
            loaded[architecture] = Model.load(tiny(architecture).path)
        return loaded[architecture]

    return load


@pytest.fixture
def new_engine(load: Callable[[str], Model]) -> Iterator[Callable[..., Engine]]:
    """``new_engine(architecture, **settings)``: see :func:`engines.open_engine`."""
    with ExitStack() as opened:

        def new_engine(architecture: str = "llama", **settings: Any) -> Engine:
            return opened.enter_context(open_engine(load(architecture), **settings))

        yield new_engine


@pytest.fixture
def engine(new_engine: Callable[..., Engine]) -> Engine:
    """The tiny llama in an engine for four sequences."""
    return new_engine("llama")
