"""A server over the tiny llama, asked within this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engines import random_vector
from serving import client_of
from starlette.testclient import TestClient
from tiny_models import TinyModel

from pyemo import Model
from pyemo.server.config import ServerConfig
from pyemo.server.service import Service
from pyemo.vectors.metadata import Calibration, VectorMetadata

NORMS = (6.0, 7.0, 8.0, 9.0)  # about those of the tiny llama's layers
PROJECTIONS = (0.0, 0.1, 0.2, 0.3)


@pytest.fixture(scope="session")
def tiny_llama(tiny: Callable[[str], TinyModel]) -> TinyModel:
    return tiny("llama")


@pytest.fixture(scope="session")
def vectors(tiny_llama: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of vectors: warm and cold, calibrated (at 0.3), raw, and other (other weights)."""
    folder = tmp_path_factory.mktemp("vectors")
    loaded = Model.load(tiny_llama.path)
    known = VectorMetadata(unit="raw", emotion="loving").with_source(loaded)
    for seed, name in enumerate(("warm", "cold", "calibrated"), start=1):
        vector = random_vector(loaded, layers=[1, 2, 3], seed=seed, metadata=known)
        vector = vector.rescaled(NORMS, PROJECTIONS)
        if name == "calibrated":
            entry = Calibration(
                loaded.file_sha256, loaded.name, "greedy", 64, (0.2, 0.4), 0.3, '{"n_prompts": 8}'
            )
            vector = vector.with_calibration(entry)
        vector.save(folder / f"{name}.gguf")
    raw = VectorMetadata(architecture="llama")
    random_vector(loaded, layers=[1, 2, 3], seed=4, metadata=raw).save(folder / "raw.gguf")
    others = replace(known, source_sha256="0" * 64, weights_fingerprint="0" * 64)
    random_vector(loaded, layers=[1, 2, 3], seed=5, metadata=others).save(folder / "other.gguf")
    return folder


@pytest.fixture(scope="session")
def settings(tiny_llama: TinyModel, vectors: Path) -> dict[str, Any]:
    """What the servers of these tests are told, but for what a test changes."""
    return {
        "model": str(tiny_llama.path),
        "vectors": vectors,
        "n_ctx": 512,
        "n_seq_max": 4,
        "threads": 1,
        "kv_type": "f32",
    }


@pytest.fixture
def new_client(settings: dict[str, Any]) -> Iterator[Callable[..., TestClient]]:
    """``new_client(**changed)``: a client of a server of its own."""
    services = []

    def new_client(**changed: Any) -> TestClient:
        service = Service(ServerConfig(**{**settings, **changed}))
        services.append(service)
        return client_of(service)

    yield new_client
    for service in services:
        service.close()


@pytest.fixture(scope="module")
def service(settings: dict[str, Any]) -> Iterator[Service]:
    """A server that the tests of a module share."""
    service = Service(ServerConfig(**settings))
    yield service
    service.close()


@pytest.fixture(scope="module")
def client(service: Service) -> TestClient:
    """A client of the module's server."""
    return client_of(service)
