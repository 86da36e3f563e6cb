"""A direction's sign is told by texts of both poles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engines import open_engine

from pyemo import ControlVector, Engine, Model
from pyemo.errors import InputError
from pyemo.extract.signs import check_signs, turned

POSITIVE = [f"a{i}b{i} aa bb aa bb aa bb aa" for i in range(10)]
NEGATIVE = [f"z{i}y{i} zz yy zz yy zz yy zz" for i in range(10)]


@pytest.fixture(scope="module")
def engine(tiny_model_path: Path) -> Iterator[Engine]:
    with open_engine(Model.load(tiny_model_path)) as opened:
        yield opened


@pytest.fixture(scope="module")
def vector(engine: Engine) -> ControlVector:
    """The poles' difference of means at layers 1 to 3, turned round at layer 2."""
    means = [
        np.mean([engine.read(text) for text in texts], axis=0) for texts in (POSITIVE, NEGATIVE)
    ]
    signs = {1: 1.0, 2: -1.0, 3: 1.0}
    rows = {layer: sign * (means[0] - means[1])[layer] for layer, sign in signs.items()}
    return ControlVector(rows, name="poles")


def test_the_layer_that_was_turned_round_is_found(engine: Engine, vector: ControlVector) -> None:
    found = check_signs(engine, vector, POSITIVE, NEGATIVE)
    assert found.right == (1, 3)
    assert found.wrong == (2,)
    assert found.n_texts == (10, 10)


def test_turning_it_makes_all_right(engine: Engine, vector: ControlVector) -> None:
    whole = turned(vector, check_signs(engine, vector, POSITIVE, NEGATIVE).wrong)
    assert check_signs(engine, whole, POSITIVE, NEGATIVE).right == (1, 2, 3)
    assert np.array_equal(whole.directions[1], vector.directions[1])


def test_texts_of_one_kind_tell_nothing(engine: Engine, vector: ControlVector) -> None:
    assert check_signs(engine, vector, POSITIVE, POSITIVE).unclear == (1, 2, 3)


def test_one_text_as_both_poles_tells_nothing(engine: Engine, vector: ControlVector) -> None:
    found = check_signs(engine, vector, POSITIVE[:1], POSITIVE[:1])
    assert set(found.order.values()) == {0.5}
    assert found.wrong == ()


def test_a_pole_without_texts_is_refused(engine: Engine, vector: ControlVector) -> None:
    with pytest.raises(InputError, match="both poles"):
        check_signs(engine, vector, POSITIVE, [])
