"""Every bundled vector is what models/README.md says it is."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import pyemo.models
from pyemo import ControlVector
from pyemo.emotions import EMOTIONS
from pyemo.engine.model import Model
from pyemo.extract.recipe import Recipe
from pyemo.extract.voice_recipe import VoiceRecipe
from pyemo.files.catalog import catalog, vector_path
from pyemo.vectors.fit import FitKind

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(pyemo.models.__file__).parent / "vectors"
MODELS = ("gemma-3-270m", "smollm2-135m-instruct")
TRAINED = [(model, emotion) for model in MODELS for emotion in EMOTIONS]
EXTRACTED = [(f"{model}/reading", emotion) for model in MODELS for emotion in EMOTIONS]


def test_there_is_one_vector_for_each_emotion_model_and_use_and_nothing_else() -> None:
    found = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    assert found == {f"{model}/{emotion}.gguf" for model, emotion in (*TRAINED, *EXTRACTED)}


@pytest.mark.parametrize(("model", "emotion"), [*TRAINED, *EXTRACTED])
def test_a_bundled_vector_says_its_emotion_recipe_and_source(model: str, emotion: str) -> None:
    vector = ControlVector.load(FOLDER / model / f"{emotion}.gguf")
    metadata = vector.metadata
    name = model.partition("/")[0]
    entry = catalog()[name]
    assert (metadata.emotion, metadata.source_model, metadata.unit) == (emotion, name, "residual")
    assert (metadata.source_sha256, metadata.architecture) == (entry.sha256, entry.architecture)
    assert bool(metadata.chat_template_sha256) == entry.chat
    # As long as the residual at its layer, so that a strength is a share of it.
    for layer, direction in vector.directions.items():
        norm = vector.residual_norms[layer]
        assert np.linalg.norm(direction) == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize(("model", "emotion"), TRAINED)
def test_a_trained_vector_was_made_by_the_recipe_of_voices_and_recommends_a_strength(
    model: str, emotion: str
) -> None:
    metadata = ControlVector.load(FOLDER / model / f"{emotion}.gguf").metadata
    assert VoiceRecipe.from_toml(metadata.recipe) == VoiceRecipe.load()
    assert metadata.strength is not None
    assert 0.005 < metadata.strength <= VoiceRecipe.load().training.cap


@pytest.mark.parametrize(("model", "emotion"), EXTRACTED)
def test_a_bundled_vector_for_reading_was_made_by_its_recipe_on_its_layers(
    model: str, emotion: str
) -> None:
    vector = ControlVector.load(FOLDER / model / f"{emotion}.gguf")
    found = tomllib.loads(vector.metadata.recipe)
    expected = tomllib.loads(Recipe.load().to_toml())
    assert {key: found[key] for key in expected} == expected
    n_layer = len(vector.metadata.residual_norms)
    assert vector.layers == tuple(Recipe.load().layer_range(n_layer))


@pytest.mark.parametrize("model", MODELS)
def test_for_reading_every_emotion_has_an_extracted_vector(model: str) -> None:
    for emotion in EMOTIONS:
        found = vector_path(emotion, model, "reading").relative_to(FOLDER)
        assert (found.parent.as_posix(), emotion) in EXTRACTED


@pytest.mark.parametrize("model", MODELS)
def test_bundled_vectors_are_found_by_noun_and_fit_the_file_they_were_made_on(
    model: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue("smollm2" if model.startswith("smollm2") else "gemma")
    loaded = Model.load(path)
    for emotion in EMOTIONS.values():
        vector = ControlVector.load(emotion.noun, model=loaded)
        assert vector.metadata.emotion == emotion.name
        assert vector.check(loaded).kind is FitKind.SAME_FILE
