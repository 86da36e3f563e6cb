"""Models that extractions are made on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tiny_models import TinyModel


@pytest.fixture(scope="session")
def tiny_llama(tiny: Callable[[str], TinyModel]) -> TinyModel:
    """The tiny llama: 4 layers, ChatML."""
    return tiny("llama")
