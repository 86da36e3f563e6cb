"""Separation, held-out accuracy and stability are what they are defined to be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planted_backend import N_LAYER, PlantedBackend, planted_directions

from pyemo import ControlVector
from pyemo.emotions import EMOTIONS
from pyemo.errors import InputError
from pyemo.extract import Recipe, SetQuality, extract, measure
from pyemo.extract import quality as q

READING = Recipe.load("paper-comprehension")
LAYERS = tuple(range(N_LAYER - 1))


def measured(backend: PlantedBackend, recipe: Recipe = READING) -> SetQuality:
    return measure(backend, extract(backend, list(EMOTIONS), recipe=recipe))


@pytest.fixture(scope="module")
def found() -> SetQuality:
    return measured(PlantedBackend(planted_directions()))


# separation


def test_mean_cosine_is_over_all_pairs() -> None:
    rows = np.random.default_rng(0).standard_normal((4, 2, 8))
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    units = dict(zip(["happy", "sad", "zeal", "envy"], rows, strict=True))
    separation = q.separation_of(units, [3, 4], "none")
    pairs = [(a, b) for a in range(4) for b in range(a)]
    expected = [np.mean([rows[a, layer] @ rows[b, layer] for a, b in pairs]) for layer in (0, 1)]
    assert np.allclose(separation.mean_cosine, expected)
    assert separation.emotions == ("happy", "sad", "envy", "zeal")
    assert set(separation.opposites) == {("happy", "sad")}
    assert np.allclose(separation.opposites["happy", "sad"], np.sum(rows[0] * rows[1], axis=-1))


def test_a_set_centred_on_its_mean_cannot_show_separation(found: SetQuality) -> None:
    # The first centring forces the mean cosine; relative to neutral texts it is free.
    relative, neutral = found.separations
    assert relative.centring == q.RELATIVE_TO_EMOTIONS
    assert np.allclose(relative.mean_cosine, -1 / 19, atol=0.01)
    assert neutral.centring == q.RELATIVE_TO_NEUTRAL
    planted = list(planted_directions().values())
    pairs = [(a, b) for a in range(20) for b in range(a)]
    expected = np.mean([np.sum(planted[a] * planted[b], axis=-1) / 4 for a, b in pairs], axis=0)
    assert np.allclose(neutral.mean_cosine, expected[:-1], atol=0.01)


def test_files_alone_tell_separation_under_two_named_centrings() -> None:
    backend = PlantedBackend(planted_directions())
    vectors = extract(backend, list(EMOTIONS), recipe=READING).vectors
    as_they_are, centred = q.separations_of_vectors(vectors)
    assert (as_they_are.centring, centred.centring) == (q.RELATIVE_TO_EMOTIONS, q.RECENTRED)
    assert as_they_are.layers == tuple(READING.layer_range(N_LAYER))
    assert np.allclose(centred.mean_cosine, -1 / 19, atol=0.01)


def test_only_layers_that_all_vectors_have_count() -> None:
    one = ControlVector({1: [1.0, 0.0], 2: [1.0, 0.0]})
    other = ControlVector({2: [0.0, 1.0], 3: [0.0, 1.0]})
    third = ControlVector({2: [1.0, 1.0]})
    separation = q.separations_of_vectors({"a": one, "b": other, "c": third})[0]
    assert separation.layers == (2,)
    assert np.allclose(
        separation.cosines[0], [[1, 0, 0.5**0.5], [0, 1, 0.5**0.5], [0.5**0.5] * 2 + [1]]
    )


def test_vectors_without_a_common_layer_are_refused() -> None:
    vectors = {"a": ControlVector({1: [1.0]}), "b": ControlVector({2: [1.0]})}
    with pytest.raises(InputError, match="no layer in common"):
        q.separations_of_vectors(vectors)


def test_one_vector_is_no_set() -> None:
    with pytest.raises(InputError, match="two vectors"):
        q.separations_of_vectors({"a": ControlVector({1: [1.0]})})


@pytest.mark.parametrize(
    ("recipe", "centring"),
    [
        (Recipe.load("paper-generation"), q.RELATIVE_TO_NEUTRAL),
        (Recipe.load("contrast"), q.RELATIVE_TO_OPPOSITE),
        (READING, q.RELATIVE_TO_EMOTIONS),
        (None, "as they are"),
    ],
)
def test_the_centring_is_named(recipe: Recipe | None, centring: str) -> None:
    assert q.centring_of(recipe) == centring


# held-out accuracy


def test_planted_emotions_are_told_apart_on_held_out_texts(found: SetQuality) -> None:
    assert found.held_out is not None
    assert str(found.held_out.top_1) == "140/140 = 100% [97, 100]"
    assert found.held_out.mean_rank.tolist() == [1.0] * len(LAYERS)
    assert found.held_out.chance == 0.05


def test_noise_is_told_apart_as_often_as_by_chance() -> None:
    quality = measured(PlantedBackend({}, noise=1.0))
    assert quality.held_out is not None
    assert quality.held_out.top_1.low < 0.05 < quality.held_out.top_1.high
    assert np.allclose(quality.held_out.mean_rank, 10.5, atol=2)
    assert quality.split_half is not None
    assert np.abs(quality.split_half).max() < 0.1


def test_the_layer_is_chosen_on_training_texts_alone() -> None:
    # Signal at layer 2 alone, of the layers that are steered.
    planted = planted_directions()
    for rows in planted.values():
        rows[[0, 1, 3]] = 0
    quality = measured(PlantedBackend(planted, noise=0.5))
    assert quality.held_out is not None
    assert quality.layer == 2
    assert quality.held_out.training.argmax() == 2
    assert quality.held_out.training[2] > 0.5 > quality.held_out.training[1]


def test_a_training_text_is_never_tested_by_a_direction_made_of_it() -> None:
    # With few texts of pure noise, directions fit their own texts and nothing else.
    quality = measured(PlantedBackend({}, noise=1.0))
    assert quality.held_out is not None
    assert quality.held_out.training.max() < 0.2


def test_the_rank_counts_the_directions_that_are_nearer() -> None:
    units = {name: np.eye(3)[i][None] for i, name in enumerate("abc")}
    text = np.array([[[0.5, 2.0, 1.0]]])
    centre = np.zeros((1, 3))
    places = {name: q.ranks({name: text}, units, centre)[0, 0] for name in "abc"}
    assert places == {"a": 3, "b": 1, "c": 2}
    assert q.ranks({"a": text}, units, np.array([[-9.0, 0, 0]]))[0, 0] == 1


@pytest.mark.parametrize("name", ["paper-generation", "anthropic", "contrast"])
def test_every_recipe_is_tested_on_the_same_held_out_texts(name: str, tmp_path: Path) -> None:
    backend = PlantedBackend(planted_directions())
    few, recipe = list(EMOTIONS)[:4], Recipe.load(name)
    vectors = extract(backend, few, recipe=recipe, among=few, stories_folder=tmp_path)
    quality = measure(backend, vectors, n_splits=1)
    assert quality.held_out is not None
    assert str(quality.held_out.top_1) == "28/28 = 100% [88, 100]"


# stability


def test_halves_of_the_texts_agree_where_there_is_little_noise(found: SetQuality) -> None:
    assert found.split_half is not None
    assert found.split_half.shape == (len(LAYERS),)
    assert found.split_half.min() > 0.99


def test_stability_does_not_depend_on_the_order_of_emotions() -> None:
    states = extract(
        PlantedBackend(planted_directions(), noise=0.5), list(EMOTIONS), recipe=READING
    ).states
    bases = [np.zeros((0, 48))] * len(LAYERS)
    turned = dict(reversed(states.items()))
    assert np.allclose(
        q.split_half(READING, states, bases), q.split_half(READING, turned, bases), atol=1e-12
    )


# the result


def test_a_quality_is_plain_json(found: SetQuality) -> None:
    value = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert value["layers"] == list(LAYERS)
    assert value["held_out"]["top_1"]["hits"] == 140
    assert value["separation"][0]["centring"] == q.RELATIVE_TO_EMOTIONS
    assert len(value["split_half"]) == len(LAYERS)


def test_without_held_out_texts_the_middle_layer_stands_for_the_set(found: SetQuality) -> None:
    assert replace(found, held_out=None).layer == 2


def test_one_emotion_has_no_quality() -> None:
    backend = PlantedBackend(planted_directions())
    vectors = extract(backend, ["angry"], recipe=Recipe.load("contrast"))
    with pytest.raises(InputError, match="two emotions"):
        measure(backend, vectors)
