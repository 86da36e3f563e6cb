"""``pyemo rescale``: a raw file becomes one in residual units, measured on the model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import pyemo

from pyemo import ControlVector, Engine
from pyemo.extract.neutral import neutral_statistics
from pyemo.texts.sources import neutral_texts, vignettes
from pyemo.vectors.metadata import VectorMetadata


@pytest.fixture(scope="module")
def rescaled(model: Path, vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command made of raw.gguf; what it printed lies beside it."""
    target = tmp_path_factory.mktemp("rescaled") / "rescaled.gguf"
    raw = vectors / "raw.gguf"
    result = pyemo(
        "rescale", raw, "-m", model, "-o", target, "--threads", 1, "--per-layer", "--json"
    )
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


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw vector for the tiny llama whose directions are 0.1, 1 and 5 long."""
    rows = np.random.default_rng(0).standard_normal((3, 64))
    rows *= np.array([[0.1], [1.0], [5.0]]) / np.linalg.norm(rows, axis=1, keepdims=True)
    metadata = VectorMetadata(architecture="llama")
    path = tmp_path_factory.mktemp("profile") / "profile.gguf"
    ControlVector(dict(enumerate(rows, 1)), metadata=metadata).save(path)
    return path


def test_proportions_of_lengths_are_kept_and_the_unit_is_a_share(
    model: Path, profile: Path, tmp_path: Path
) -> None:
    target = tmp_path / "kept.gguf"
    result = pyemo("rescale", profile, "-m", model, "-o", target, "--threads", 1)
    assert result.exit_code == 0, result.stderr
    kept = ControlVector.load(target)
    lengths = [float(np.linalg.norm(row)) for row in kept.directions.values()]
    np.testing.assert_allclose(np.array(lengths) / lengths[1], [0.1, 1.0, 5.0], rtol=1e-5)
    shares = [length / kept.residual_norms[layer] for layer, length in enumerate(lengths, 1)]
    assert np.sqrt(np.mean(np.square(shares))) == pytest.approx(1.0, rel=1e-5)
    assert "of the residual norm, by layer" in pyemo("inspect", target).stdout


def test_per_layer_makes_each_as_long_as_its_residual(
    model: Path, profile: Path, tmp_path: Path
) -> None:
    target = tmp_path / "each.gguf"
    result = pyemo("rescale", profile, "-m", model, "-o", target, "--threads", 1, "--per-layer")
    assert result.exit_code == 0, result.stderr
    each = ControlVector.load(target)
    lengths = [float(np.linalg.norm(row)) for row in each.directions.values()]
    np.testing.assert_allclose(lengths, list(each.residual_norms.values())[1:], rtol=1e-5)
    assert "2% of the residual norm at each layer" in pyemo("inspect", target).stdout


def test_signs_are_checked_with_texts_of_two_files_and_fixed(
    model: Path, profile: Path, tmp_path: Path
) -> None:
    for name, letter in (("first", "a"), ("other", "z")):
        texts = [f"{letter}{i} {letter * 3} {letter * 2} {letter * 4} {letter}." for i in range(10)]
        (tmp_path / name).write_text("\n".join(texts), encoding="utf-8")
    poles = f"{tmp_path / 'first'},{tmp_path / 'other'}"
    arguments = ("-m", model, "-o", tmp_path / "x.gguf", "--threads", 1, "--check-sign", poles)
    result = pyemo("rescale", profile, *arguments, "--fix-sign", "--json")
    assert result.exit_code == 0, result.stderr
    order = json.loads(result.stdout)["sign"]
    assert list(order) == ["1", "2", "3"]
    again = pyemo("rescale", profile, *arguments, "--force")
    assert "directions point to the first pole" in again.stderr


@pytest.mark.parametrize("poles", ["no such emotion", "one,two,three", "missing.txt,missing.txt"])
def test_poles_that_cannot_be_read_are_refused_before_the_work(
    poles: str, profile: Path, tmp_path: Path
) -> None:
    result = pyemo("rescale", profile, "-o", tmp_path / "x.gguf", "--check-sign", poles)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")


@pytest.mark.parametrize("texts", ["angry", "FILE"])
def test_own_texts_are_measured_and_nothing_else_changes(
    model: Path, vectors: Path, tmp_path: Path, texts: str
) -> None:
    source, target = vectors / "calibrated.gguf", tmp_path / "measured.gguf"
    own = [scene.text for scene in vignettes("angry")]
    if texts == "FILE":
        (tmp_path / "texts.txt").write_text("\n".join(own), encoding="utf-8")
        texts = str(tmp_path / "texts.txt")
    options = ("--own-texts", texts, "--threads", 1)
    result = pyemo("rescale", source, "-m", model, "-o", target, *options)
    assert result.exit_code == 0, result.stderr
    before, after = ControlVector.load(source), ControlVector.load(target)
    with Engine(model, n_ctx=512, n_threads=1) as engine:
        expected = neutral_statistics(engine, own, before).neutral_projections
    np.testing.assert_allclose(after.metadata.own_projections, expected, atol=1e-4)
    np.testing.assert_array_equal(after.directions[2], before.directions[2])
    assert after.metadata.calibrations == before.metadata.calibrations


def test_measured_vector_can_be_raised(model: Path, vectors: Path, tmp_path: Path) -> None:
    target = tmp_path / "measured.gguf"
    options = ("--own-texts", "angry", "--threads", 1)
    assert (
        pyemo("rescale", vectors / "raw.gguf", "-m", model, "-o", target, *options).exit_code == 0
    )
    steered = ("--threads", 1, "-n", 2, "-m", model, "--operator", "raise", "-c", target)
    assert pyemo("run", *steered, "hello").exit_code == 0


def test_vector_that_is_not_measured_is_refused_with_the_command(
    model: Path, vectors: Path
) -> None:
    result = pyemo("run", "-m", model, "--operator", "raise", "-c", vectors / "warm.gguf", "hello")
    assert result.exit_code == 1
    assert "pyemo rescale FILE --own-texts" in result.stderr


def test_real_rows_are_measured_for_add_within(model: Path, vectors: Path, tmp_path: Path) -> None:
    target = tmp_path / "measured.gguf"
    options = ("--own-texts", "angry", "--components", 4, "--threads", 1)
    made = pyemo("rescale", vectors / "warm.gguf", "-m", model, "-o", target, *options)
    assert made.exit_code == 0, made.stderr
    assert sorted(ControlVector.load(target).ellipsoids) == [1, 2, 3]
    steered = ("--threads", 1, "-n", 2, "-m", model, "-c", f"{target}=0.02@add_within")
    assert pyemo("run", *steered, "hello").exit_code == 0


def test_components_without_texts_are_wrong_usage(model: Path, vectors: Path) -> None:
    result = pyemo("rescale", vectors / "warm.gguf", "-m", model, "-o", "x.gguf", "--components", 4)
    assert result.exit_code == 2
    assert "--own-texts" in result.stderr
