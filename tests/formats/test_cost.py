"""What another format costs: nothing for the same numbers, something for a rounding; by NumPy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from engines import random_vector
from tiny_models import TinyModel

from pyemo import Engine, Model
from pyemo.errors import VectorModelMismatchError
from pyemo.formats.cost import FormatCost, measure_cost
from pyemo.formats.quantize import requantize
from pyemo.vectors.metadata import Calibration, VectorMetadata

TEXTS = [
    "the happy story of the sea and the old house " * 2,
    "a dog and an open gate in the rain " * 2,
]


@pytest.fixture(scope="module")
def files(
    tiny: Callable[[str], TinyModel], tmp_path_factory: pytest.TempPathFactory
) -> list[Model]:
    """The tiny llama in F32, F16 and Q4_0."""
    folder = tmp_path_factory.mktemp("formats")
    source = tiny("llama").path
    targets = [folder / f"{name}.gguf" for name in ("F16", "Q4_0")]
    for target in targets:
        requantize(source, target.stem, target=target)
    return [Model.load(path) for path in (source, *targets)]


def costs(model: Model, source: Model) -> FormatCost:
    vector = random_vector(source, layers=range(1, 4))
    return measure_cost(model, source, TEXTS, vector=vector, strength=1.0, n_threads=1)


def test_the_same_file_costs_nothing(files: list[Model]) -> None:
    cost = costs(files[0], files[0])
    assert cost.perplexity == cost.source_perplexity
    assert (cost.ratio, cost.ratio_stderr) == (1.0, 0.0)
    assert cost.hidden_cosine == pytest.approx([1.0] * 4)
    assert cost.steering_cosine == pytest.approx([1.0] * 3)


def test_a_coarser_format_costs_more(files: list[Model]) -> None:
    half, four_bits = costs(files[1], files[0]), costs(files[2], files[0])
    assert min(half.hidden_cosine) > 0.999
    assert min(four_bits.hidden_cosine) < min(half.hidden_cosine)
    assert min(four_bits.steering_cosine) < min(half.steering_cosine) <= 1.0
    assert abs(four_bits.ratio - 1) > abs(half.ratio - 1)


def test_perplexity_and_cosines_are_numpys(files: list[Model]) -> None:
    cost = costs(files[2], files[0])
    logprobs, hidden = [], []
    for model in (files[2], files[0]):
        with Engine(model, n_ctx=128, n_threads=1) as engine:
            scores = [engine.score(text).logprobs for text in TEXTS]
            logprobs.append(np.concatenate(scores).astype(np.float64))
            rows = [engine.read(text, pooling="all")[10:] for text in TEXTS]
            hidden.append(np.concatenate(rows).astype(np.float64))
    assert cost.perplexity == pytest.approx(np.exp(-logprobs[0].mean()), rel=1e-4)
    assert cost.ratio == pytest.approx(np.exp(logprobs[1].mean() - logprobs[0].mean()), rel=1e-4)
    a, b = (rows / np.linalg.norm(rows, axis=2, keepdims=True) for rows in hidden)
    assert cost.hidden_cosine == pytest.approx((a * b).sum(axis=2).mean(axis=0), abs=1e-4)


def test_the_windows_of_both_files_are_told(files: list[Model]) -> None:
    vector = random_vector(files[0], metadata=VectorMetadata(unit="raw"))
    for model, window in ((files[0], (0.01, 0.03)), (files[2], (0.01, 0.02))):
        vector = vector.with_calibration(
            Calibration(model.file_sha256, model.name, "greedy", 48, window, 0.015)
        )
    cost = measure_cost(files[2], files[0], TEXTS, vector=vector, strength=0.5, n_threads=1)
    assert cost.windows == ((files[0].name, 0.01, 0.03), (files[2].name, 0.01, 0.02))
    assert all(np.isfinite(dataclasses.astuple(cost)[2:6]))


def test_other_weights_are_refused(files: list[Model], tmp_path: Path) -> None:
    from tiny_models import build_tiny

    other = Model.load(build_tiny("llama", tmp_path / "other.gguf", seed=1).path)
    with pytest.raises(VectorModelMismatchError, match="hold different weights"):
        measure_cost(other, files[0], TEXTS, n_threads=1)
