"""Engines over the tiny models, closed when their test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from engines import open_engine
from tiny_models import TinyModel

from pyemo import Engine, Model


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
