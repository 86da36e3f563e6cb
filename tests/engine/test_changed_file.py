"""What a model says of its file is of the bytes that were loaded."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pyemo import Model
from pyemo.errors import ModelLoadError


@pytest.mark.parametrize("fact", ["file_sha256", "weights_fingerprint"])
def test_a_file_that_changed_since_it_was_loaded_is_refused(
    fact: str, tiny_model_path: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(tiny_model_path, tmp_path / "it.gguf"))
    model = Model.load(path)
    replacement = Path(shutil.copy(tiny_model_path, tmp_path / "other.gguf"))
    os.utime(replacement, (1, 1))
    os.replace(replacement, path)
    with pytest.raises(ModelLoadError, match="has changed since it was loaded"):
        getattr(model, fact)


def test_a_file_that_stayed_says_its_hash(tiny_model_path: Path) -> None:
    model = Model.load(tiny_model_path)
    assert len(model.file_sha256) == len(model.weights_fingerprint) == 64
