"""A model's name means a GGUF file or a folder of transformers, however it is spelled."""

from __future__ import annotations

from pathlib import Path

import pytest
from engines import needs_torch

from pyemo.errors import ModelNotFoundError
from pyemo.extract.transformers_loading import is_gguf, load


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("smollm2-135m-instruct", True),
        ("org/repo:Q4_K_M", True),
        ("hf:org/repo/model.gguf", True),
        ("elsewhere/model.gguf", True),
        ("org/repo", False),
        ("https://huggingface.co/org/repo", False),
    ],
)
def test_a_format_or_a_file_of_a_repository_means_gguf(text: str, meant: bool) -> None:
    assert is_gguf(text, Path(text).absolute()) is meant


@needs_torch
def test_a_revision_of_a_repository_in_transformers_form_is_refused_by_name() -> None:
    with pytest.raises(ModelNotFoundError, match=r"names a revision.*give 'org/repo'"):
        load("org/repo@v2", "cpu", "float32", None)


@needs_torch
def test_what_is_no_model_is_refused_with_what_would_be_one() -> None:
    with pytest.raises(ModelNotFoundError, match="a repository as org/repo"):
        load("nothing at all", "cpu", "float32", None)
