"""What `make vectors` notes in bundled files is what `pyemo rescale --own-texts` measures."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import pyemo
from tiny_models import TinyModel

from pyemo import ControlVector, Model
from pyemo.vectors.metadata import VectorMetadata

SCRIPT = Path(__file__).parents[2] / "tools" / "own_projections.py"


def test_noted_projections_are_those_of_the_command(
    tiny: Callable[[str], TinyModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny("llama").path
    model = Model.load(path)
    rows = np.random.default_rng(0).standard_normal((2, model.n_embd)).astype(np.float32)
    bare = ControlVector(
        {1: rows[0], 2: rows[1]}, name="angry", metadata=VectorMetadata(emotion="angry")
    )
    vector = bare.rescaled([1.0] * model.n_layer, [0.0] * model.n_layer, source=model)
    folder, other = tmp_path / "set", tmp_path / "other.gguf"
    (folder / "reading").mkdir(parents=True)
    for file in (folder / "angry.gguf", folder / "reading" / "angry.gguf"):
        vector.save(file)
    main = runpy.run_path(str(SCRIPT))["main"]
    assert main([str(path), str(folder)]) == 0
    assert "residual norms above neutral" in capsys.readouterr().out
    options = ("--own-texts", "angry", "-m", path, "--threads", 1, "-o", other)
    result = pyemo("rescale", folder / "angry.gguf", *options)
    assert result.exit_code == 0, result.stderr
    expected = ControlVector.load(other).own_projections
    for file in (folder / "angry.gguf", folder / "reading" / "angry.gguf"):
        found = ControlVector.load(file)
        assert found.own_projections == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert found.metadata.neutral_projections == vector.metadata.neutral_projections
        for layer in vector.layers:
            np.testing.assert_array_equal(found.directions[layer], vector.directions[layer])
