"""Where real rows lie is measured, and kept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from engines import random_vector

from pyemo import ControlVector, Engine
from pyemo.errors import InputError
from pyemo.extract.ellipsoids import SHARE_WITHIN, ellipsoid, ellipsoids

TEXTS = ["the happy story and the day was over, I was sad and the house was happy"] * 2
OWN = ["I was so angry that the door and the whole house were over and the story too"]


def rows(n: int, *, seed: int, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 1, (n, 12)) * np.linspace(3, 0.1, 12) * scale + 2).astype(np.float32)


def test_rows_are_white_on_the_components() -> None:
    plain, own = rows(400, seed=1), rows(400, seed=2)
    found = ellipsoid(plain, own, 5)
    white = np.concatenate([plain, own]) @ found.components.T - found.center
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(white, rowvar=False, bias=True), np.eye(5), atol=1e-3)


def test_most_of_the_own_rows_are_inside() -> None:
    plain, own = rows(400, seed=1), rows(400, seed=2, scale=0.5)
    found = ellipsoid(plain, own, 5)
    distances = np.square(own @ found.components.T - found.center).sum(axis=1)
    assert (distances <= found.radius2 * 1.0001).mean() == pytest.approx(SHARE_WITHIN, abs=0.01)


def test_rows_that_vary_too_little_are_refused() -> None:
    flat = np.ones((50, 12), np.float32)
    flat[:, 0] = np.arange(50)
    with pytest.raises(InputError, match="fewer than 3 directions"):
        ellipsoid(flat, flat, 3)


def test_every_layer_of_a_vector_is_measured_and_kept_in_its_file(
    new_engine: Callable[..., Engine], tmp_path: object
) -> None:
    engine = new_engine("llama")
    vector = random_vector(engine.model, layers=[1, 2])
    found = ellipsoids(engine, TEXTS, OWN, vector, 4)
    assert sorted(found) == [1, 2]
    zeros = [0.0] * engine.model.n_layer
    ones = [1.0] * engine.model.n_layer
    measured = vector.rescaled(ones, source=engine.model).with_own_projections(zeros, ones, found)
    measured.save(f"{tmp_path}/v.gguf")
    loaded = ControlVector.load(f"{tmp_path}/v.gguf", engine.model)
    assert dict(loaded.ellipsoids) == found
    assert dict(loaded.only_layers([2]).ellipsoids) == {2: found[2]}


@pytest.mark.parametrize("n_components", [0, 1000])
def test_components_that_the_rows_cannot_give_are_refused(
    new_engine: Callable[..., Engine], n_components: int
) -> None:
    engine = new_engine("llama")
    with pytest.raises(InputError, match="components"):
        ellipsoids(engine, TEXTS, OWN, random_vector(engine.model), n_components)
