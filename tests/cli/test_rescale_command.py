"""``pyemo rescale``: a raw file becomes one in residual units, measured on the model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import pyemo

from pyemo import ControlVector, Engine
from pyemo.extract.neutral import neutral_statistics
from pyemo.texts.sources import neutral_texts


@pytest.fixture(scope="module")
def rescaled(model: Path, vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command made of raw.gguf; what it printed lies beside it."""
    target = tmp_path_factory.mktemp("rescaled") / "rescaled.gguf"
    raw = vectors / "raw.gguf"
    result = pyemo("rescale", raw, "-m", model, "-o", target, "--threads", 1, "--json")
    assert result.exit_code == 0, result.stderr
    target.with_suffix(".json").write_text(result.stdout, encoding="utf-8")
    return target


def test_direction_is_as_long_as_the_residual(model: Path, vectors: Path, rescaled: Path) -> None:
    with Engine(model, n_ctx=512, n_threads=1) as engine:
        raw = ControlVector.load(vectors / "raw.gguf")
        expected = neutral_statistics(engine, neutral_texts(), raw)
    directions = ControlVector.load(rescaled).directions
    lengths = [float(np.linalg.norm(row)) for row in directions.values()]
    np.testing.assert_allclose(lengths, expected.residual_norms[1:], rtol=1e-5)
    described = json.loads(rescaled.with_suffix(".json").read_text(encoding="utf-8"))
    assert described["layers"] == [1, 2, 3]
    np.testing.assert_allclose(described["residual_norms"], expected.residual_norms, rtol=1e-6)


def test_rescaled_vector_has_a_default_strength_and_a_gauge(model: Path, rescaled: Path) -> None:
    mood = ("-c", rescaled, "--gauge", rescaled)
    assert pyemo("run", "--threads", 1, "-n", 2, "-m", model, *mood, "hello").exit_code == 0


def test_directions_are_moved_and_left_out(model: Path, vectors: Path, tmp_path: Path) -> None:
    target = tmp_path / "moved.gguf"
    options = ("--layer-shift", -1, "--layers", "1:", "--threads", 1)
    result = pyemo("rescale", vectors / "raw.gguf", "-m", model, "-o", target, *options)
    assert result.exit_code == 0, result.stderr
    raw, moved = ControlVector.load(vectors / "raw.gguf"), ControlVector.load(target)
    assert moved.layers == (1, 2)
    before, after = raw.directions[2], moved.directions[1]
    cosine = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
    assert cosine == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("warm.gguf", "use it as it is"),
        ("missing.gguf", "check the path"),
        ("wide.gguf", "use a vector made for this model"),
    ],
)
def test_what_cannot_be_rescaled_is_refused(
    model: Path, vectors: Path, tmp_path: Path, name: str, remedy: str
) -> None:
    target = tmp_path / "never.gguf"
    result = pyemo("rescale", vectors / name, "-m", model, "-o", target)
    assert result.exit_code == 1
    assert remedy in result.stderr
    assert not target.exists()


def test_target_is_needed(vectors: Path) -> None:
    assert pyemo("rescale", vectors / "raw.gguf").exit_code == 2
