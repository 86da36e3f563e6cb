"""Every recipe finds what was planted; what cannot be extracted is refused; no story is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engines import Array, open_engine, random_directions, steering_of
from planted_backend import BASE_NORM, N_LAYER, PlantedBackend, planted_directions
from tiny_models import TinyModel

from pyemo import ControlVector, Model
from pyemo.emotions import EMOTIONS
from pyemo.errors import InputError
from pyemo.extract import EmotionSource, EngineBackend, Recipe, VectorSet, Vignette, extract
from pyemo.extract.backend import Passage
from pyemo.extract.recipe import bundled_recipes, provenance_of
from pyemo.extract.recipe_texts import RecipeTexts
from pyemo.texts.sources import Personas, emotion_source

STORIES = [name for name in bundled_recipes() if Recipe.load(name).source == "stories"]
REFUSAL = "I'm sorry, but I can't assist with that request."
FEW = ["angry", "sad", "calm"]


@pytest.fixture
def backend() -> PlantedBackend:
    return PlantedBackend(planted_directions())


def extracted(
    backend: PlantedBackend, folder: Path, names: Sequence[str], recipe: str, **options: object
) -> VectorSet:
    return extract(
        backend,
        names,
        recipe=Recipe.load(recipe),
        stories_folder=folder,
        **options,  # type: ignore[arg-type]
    )


def cosine(one: Array, other: Array) -> float:
    a, b = one.astype(np.float64), other.astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def same(one: ControlVector, other: ControlVector) -> bool:
    return one.layers == other.layers and all(
        np.allclose(one.directions[layer], other.directions[layer], rtol=0, atol=1e-4)
        for layer in one.layers
    )


# what is found


@pytest.mark.parametrize("name", bundled_recipes())
def test_every_recipe_finds_the_planted_directions(
    backend: PlantedBackend, tmp_path: Path, name: str
) -> None:
    recipe = Recipe.load(name)
    found = extracted(backend, tmp_path, FEW, name)
    mean = np.mean(list(backend.planted.values()), axis=0)
    is_relative = recipe.source != "pairs" and recipe.baseline == "emotions"
    assert list(found.vectors) == FEW
    for emotion, vector in found.vectors.items():
        expected = backend.planted[emotion] - (mean if is_relative else 0)
        assert vector.layers == tuple(recipe.layer_range(N_LAYER))
        for layer, direction in vector.directions.items():
            assert cosine(direction, expected[layer]) > 0.99


def test_denoising_takes_out_what_neutral_texts_vary_in(
    backend: PlantedBackend, tmp_path: Path
) -> None:
    for rows in backend.planted.values():
        rows[:, :2] = 3.0  # along the nuisance axes, which hold all the neutral texts' variance
    recipe = replace(Recipe.load("paper-comprehension"), denoise=0.99, baseline="neutral")
    found = extract(backend, FEW, recipe=recipe)
    for vector in found.vectors.values():
        for direction in vector.directions.values():
            assert np.abs(direction[:2]).max() < 1e-4 * np.linalg.norm(direction)


def test_a_direction_is_as_long_as_the_residual_norm_of_its_layer(
    backend: PlantedBackend, tmp_path: Path
) -> None:
    vector = extracted(backend, tmp_path, FEW, "reading").vectors["angry"]
    assert vector.unit == "residual"
    for layer, direction in vector.directions.items():
        norm = vector.residual_norms[layer]
        assert np.linalg.norm(direction) == pytest.approx(norm, rel=1e-5)
        assert norm == pytest.approx(BASE_NORM, rel=0.2)  # the neutral texts' own


def test_neutral_projections_are_those_of_the_neutral_texts_mean(
    backend: PlantedBackend, tmp_path: Path
) -> None:
    found = extracted(backend, tmp_path, FEW, "reading")
    vector = found.vectors["angry"]
    for layer, direction in vector.directions.items():
        unit = direction / np.linalg.norm(direction)
        assert vector.neutral_projections[layer] == pytest.approx(
            found.neutral.mean[layer] @ unit, rel=1e-4
        )


def test_own_projections_are_those_of_the_emotions_texts_mean(
    backend: PlantedBackend, tmp_path: Path
) -> None:
    found = extracted(backend, tmp_path, FEW, "reading")
    vector = found.vectors["angry"]
    mean = found.states["angry"].mean(axis=0, dtype=np.float64)
    for layer, direction in vector.directions.items():
        unit = direction / np.linalg.norm(direction)
        assert vector.own_projections[layer] == pytest.approx(mean[layer] @ unit, rel=1e-4)
        assert vector.own_projections[layer] > vector.neutral_projections[layer]


def test_pairs_are_differences_and_so_say_no_own_projections(
    backend: PlantedBackend, tmp_path: Path
) -> None:
    assert not extracted(backend, tmp_path, FEW, "contrast").vectors["angry"].own_projections


@pytest.mark.parametrize("name", bundled_recipes())
def test_an_emotion_alone_is_the_same_vector_as_in_a_set(
    backend: PlantedBackend, tmp_path: Path, name: str
) -> None:
    alone = extracted(backend, tmp_path, ["anger"], name)
    together = extracted(backend, tmp_path, FEW, name)
    assert same(alone.vectors["angry"], together.vectors["angry"])


def test_the_emotions_of_the_mean_can_be_chosen(backend: PlantedBackend, tmp_path: Path) -> None:
    found = extracted(backend, tmp_path, ["angry"], "reading", among=["calm"])
    expected = backend.planted["angry"] - backend.planted["calm"]
    assert set(found.states) == {"angry", "calm"}
    for layer, direction in found.vectors["angry"].directions.items():
        assert cosine(direction, expected[layer]) > 0.99


def test_a_vector_says_how_it_was_made(backend: PlantedBackend, tmp_path: Path) -> None:
    vector = extracted(backend, tmp_path, ["angry"], "anthropic").vectors["angry"]
    assert Recipe.from_toml(vector.metadata.recipe) == Recipe.load("anthropic")
    provenance = provenance_of(vector.metadata.recipe)
    assert (provenance["backend"], provenance["n_texts"]) == ("planted", 20)
    assert provenance["emotions_in_mean"] == sorted(EMOTIONS)
    assert vector.metadata.source_model == "planted"
    assert vector.metadata.emotion == "angry"


def test_a_set_is_saved_under_its_emotions_names(backend: PlantedBackend, tmp_path: Path) -> None:
    found = extracted(backend, tmp_path, FEW, "reading")
    paths = found.save(tmp_path / "new" / "set")
    assert [path.name for path in paths] == ["angry.gguf", "sad.gguf", "calm.gguf"]
    assert same(ControlVector.load(paths[0]), found.vectors["angry"])


# what is refused, before any work


def refused(backend: PlantedBackend, match: str, recipe: Recipe, *names: str, **options: object):  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=match):
        extract(backend, names, recipe=recipe, **options)  # type: ignore[arg-type]
    assert backend.n_read == backend.n_written == 0


def test_an_unknown_emotion_is_refused_with_the_nearest_name(backend: PlantedBackend) -> None:
    refused(backend, "did you mean 'angry'", Recipe.load(), "angri")


def test_no_emotion_is_refused(backend: PlantedBackend) -> None:
    refused(backend, "no emotions", Recipe.load())


def test_one_name_in_place_of_a_list_is_refused(backend: PlantedBackend) -> None:
    with pytest.raises(InputError, match="put it into a list"):
        extract(backend, "anger", recipe=Recipe.load())


def test_an_emotion_relative_to_itself_is_refused(backend: PlantedBackend) -> None:
    refused(backend, "needs at least 2", Recipe.load(), "angry", among=[])


@pytest.mark.parametrize("name", [*STORIES, "contrast"])
def test_instructions_for_a_model_without_a_chat_template_are_refused(name: str) -> None:
    backend = PlantedBackend(planted_directions(), chat_template_sha256="")
    refused(backend, "no chat template.*--allow-no-chat-template", Recipe.load(name), "angry")


def test_a_model_without_a_chat_template_reads_and_may_be_allowed_to_continue(
    tmp_path: Path,
) -> None:
    backend = PlantedBackend(planted_directions(), chat_template_sha256="")
    extracted(backend, tmp_path, ["angry"], "paper-comprehension")
    extracted(backend, tmp_path, ["angry"], "paper-generation", allow_no_chat_template=True)


def test_a_model_of_two_blocks_is_refused() -> None:
    backend = PlantedBackend(planted_directions(), n_layer=2)
    refused(backend, "at least 3", Recipe.load(), "angry")


def test_a_folder_for_stories_that_cannot_be_made_is_refused(
    backend: PlantedBackend, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "stories"
    refused(backend, "cannot be", Recipe.load("anthropic"), "angry", stories_folder=folder)


def test_an_emotion_without_personas_is_refused_by_the_contrast_recipe(
    backend: PlantedBackend,
) -> None:
    source = EmotionSource("jealous", ("jealous",), ())
    with pytest.raises(InputError, match="no personas"):
        extract(backend, {"jealous": source}, recipe=Recipe.load("contrast"))
    assert backend.n_read == 0


# texts that do not do


def test_texts_that_do_not_differ_from_the_baseline_are_refused_by_name() -> None:
    backend = PlantedBackend({}, noise=0)
    with pytest.raises(InputError, match=r"'angry' do not differ .* layer 0 \(zero variance\)"):
        extract(backend, ["angry"], recipe=Recipe.load("paper-comprehension"))


def test_vignettes_too_short_for_the_pooling_are_refused(backend: PlantedBackend) -> None:
    recipe = replace(Recipe.load("reading"), pooling="mean", skip=500)
    with pytest.raises(InputError, match=r"too short .* from token 500 on"):
        extract(backend, ["angry"], recipe=recipe)


def test_stories_too_short_for_the_pooling_are_counted_and_not_used(tmp_path: Path) -> None:
    short = " ".join(f"word{i}" for i in range(40))  # a good story, but no token from 50 on
    backend = PlantedBackend(planted_directions(), replies={"angry": short})
    with pytest.raises(InputError, match=r"0 usable stories for 'angry' \(20 short\)"):
        extracted(backend, tmp_path, ["angry"], "anthropic")


@pytest.mark.parametrize("name", STORIES)
def test_a_class_whose_stories_all_failed_is_refused_by_name(tmp_path: Path, name: str) -> None:
    backend = PlantedBackend(planted_directions(), replies={"sad": REFUSAL})
    with pytest.raises(InputError, match=r"0 usable stories for 'sad' \(\d+ refusal\).*--fallback"):
        extracted(backend, tmp_path, ["angry", "sad"], name)


@pytest.mark.parametrize("name", STORIES)
def test_vignettes_stand_in_for_failed_stories_where_they_are_asked_to(
    tmp_path: Path, name: str
) -> None:
    backend = PlantedBackend(planted_directions(), replies={"sad": REFUSAL})
    found = extracted(backend, tmp_path, ["angry", "sad"], name, fallback_to_vignettes=True)
    assert found.replaced == {"sad"}
    assert len(found.states["sad"]) == 7
    provenance = provenance_of(found.vectors["sad"].metadata.recipe)
    assert provenance["vignettes_instead_of_stories"] is True
    assert set(provenance["unused_stories"]) == {"refusal"}
    mean = np.mean(list(backend.planted.values()), axis=0)
    base = mean if Recipe.load(name).baseline == "emotions" else 0
    for layer, direction in found.vectors["sad"].directions.items():
        assert cosine(direction, (backend.planted["sad"] - base)[layer]) > 0.99


def test_failed_neutral_stories_have_no_stand_in(tmp_path: Path) -> None:
    backend = PlantedBackend(planted_directions(), replies={"neutral": REFUSAL})
    with pytest.raises(InputError, match="'neutral'"):
        extracted(backend, tmp_path, ["angry"], "paper-generation", fallback_to_vignettes=True)


def test_a_class_that_nobody_requires_is_left_out_neutral_too(tmp_path: Path) -> None:
    texts = RecipeTexts(
        PlantedBackend(planted_directions(), replies={"neutral": REFUSAL}),
        Recipe.load("paper-generation"),
        {"angry": emotion_source("angry")},
        required=[],
        fallback=False,
        folder=tmp_path,
        tell=lambda _what, _done, _total: None,
    )
    assert set(texts.states([1])) == {"angry"}
    assert texts.left_out == {"neutral"}


def test_an_emotion_that_only_the_mean_needs_is_left_out_where_its_stories_fail(
    tmp_path: Path,
) -> None:
    backend = PlantedBackend(planted_directions(), replies={"sad": REFUSAL})
    found = extracted(backend, tmp_path, ["angry"], "anthropic")
    assert found.left_out == {"sad"}
    provenance = provenance_of(found.vectors["angry"].metadata.recipe)
    assert provenance["left_out_of_mean"] == ["sad"]
    assert "sad" not in provenance["emotions_in_mean"]


# stories are never lost


@pytest.mark.parametrize("name", STORIES)
def test_a_run_that_was_stopped_goes_on_and_gives_the_same_vectors(
    tmp_path: Path, name: str
) -> None:
    whole = PlantedBackend(planted_directions())
    expected = extracted(whole, tmp_path / "whole", FEW, name)
    stopped = PlantedBackend(planted_directions(), stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        extracted(stopped, tmp_path / "parts", FEW, name)
    rest = PlantedBackend(planted_directions())
    found = extracted(rest, tmp_path / "parts", FEW, name)
    assert (stopped.n_written, rest.n_written) == (4, whole.n_written - 4)
    assert all(same(found.vectors[emotion], expected.vectors[emotion]) for emotion in FEW)


def test_another_recipe_over_the_same_stories_writes_nothing(tmp_path: Path) -> None:
    writing = PlantedBackend(planted_directions())
    extracted(writing, tmp_path, FEW, "paper-generation")
    reading = PlantedBackend(planted_directions())
    recipe = replace(Recipe.load("paper-generation"), pooling="mean", skip=5)
    extract(reading, FEW, recipe=recipe, stories_folder=tmp_path)
    assert reading.n_written == 0
    assert reading.n_read > 0


def test_stories_are_kept_when_the_extraction_fails(tmp_path: Path) -> None:
    backend = PlantedBackend(planted_directions(), replies={"sad": REFUSAL})
    for _ in range(2):
        with pytest.raises(InputError):
            extracted(backend, tmp_path, ["angry", "sad"], "paper-generation")
    assert backend.n_written == 3 * 5  # angry, sad and neutral, once


def test_progress_goes_up_to_all_there_is(backend: PlantedBackend, tmp_path: Path) -> None:
    told: dict[str, list[tuple[int, int]]] = {}
    extracted(
        backend,
        tmp_path,
        ["angry"],
        "paper-generation",
        progress=lambda what, done, total: told.setdefault(what, []).append((done, total)),
    )
    assert set(told) == {"reading neutral texts", "writing stories", "reading texts"}
    for steps in told.values():
        assert steps == sorted(steps)
        assert steps[0][0] == 0
        assert steps[-1][0] == steps[-1][1]


# the engine


class _Steered(EngineBackend):
    """Reads the first class, or the first side of the pairs, with a vector added at block 0."""

    def __init__(self, backend: EngineBackend, direction: Array) -> None:
        super().__init__(backend._engine)
        self._steering = steering_of({0: direction})
        self._is_first = True

    def read(self, passages: Sequence[Passage], layers: Sequence[int]) -> Array:
        if not self._is_first:
            return super().read(passages, layers)
        self._is_first = False
        rows = self._engine.read_many(
            [passage.tokens for passage in passages],
            layers=layers,
            tokens=[slice(passage.begin, passage.end) for passage in passages],
            steering=self._steering,
        )
        return np.stack(rows)


def source(word: str) -> EmotionSource:
    """An emotion whose texts are those of all others: only steering can make a difference."""
    texts = [f"the {name} day was not a story and she felt it" for name in ("sad", "calm", "happy")]
    vignettes = tuple(Vignette(word, text, "train") for text in texts)
    return EmotionSource(word, (word,), vignettes, Personas("happy of the day", "sad of the day"))


@pytest.mark.parametrize(
    "name", [name for name in bundled_recipes() if Recipe.load(name).source != "stories"]
)
def test_a_vector_that_the_engine_added_is_found_at_every_layer(
    tiny_llama: TinyModel, name: str
) -> None:
    # Far longer than what a block adds, so that it is the direction of every later layer, too.
    direction = random_directions(tiny_llama, length=500)[0]
    others = {word: source(word) for word in ("plus", "minus")}
    model = Model.load(tiny_llama.path)
    with open_engine(model, n_ctx=1024, n_seq_max=8) as engine:
        backend = _Steered(EngineBackend(engine), direction)
        recipe = Recipe.load(name)
        asked = {"plus": others["plus"]}
        vector = extract(backend, asked, recipe=recipe, among=others).vectors["plus"]
    assert vector.layers == tuple(recipe.layer_range(model.n_layer))
    for found in vector.directions.values():
        assert cosine(found, direction) > 0.99
