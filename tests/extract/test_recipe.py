"""Recipes say every choice, survive being written down, and refuse what cannot be meant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pyemo.errors import InputError
from pyemo.extract.recipe import Recipe, bundled_recipes, provenance_of
from pyemo.extract.voice_recipe import VoiceRecipe

VIGNETTES = Recipe("mine", "vignettes")


def test_five_recipes_are_bundled() -> None:
    names = ("anthropic", "contrast", "paper-comprehension", "paper-generation", "reading")
    assert bundled_recipes() == names


@pytest.mark.parametrize("name", bundled_recipes())
def test_a_bundled_recipe_is_named_like_its_file(name: str) -> None:
    assert Recipe.load(name).name == name


@pytest.mark.parametrize("name", bundled_recipes())
def test_a_recipe_survives_being_written_down(name: str) -> None:
    recipe = Recipe.load(name)
    assert Recipe.from_toml(recipe.to_toml()) == recipe


def test_paper_generation_is_the_papers() -> None:
    recipe = Recipe.load("paper-generation")
    assert (recipe.source, recipe.story_prompts, recipe.temperature) == ("stories", "paper", 0)
    assert (recipe.max_tokens, recipe.pooling, recipe.baseline) == (256, "middle", "neutral")
    assert recipe.denoise == 0


def test_anthropic_is_anthropics() -> None:
    recipe = Recipe.load("anthropic")
    assert (recipe.story_prompts, recipe.pooling, recipe.skip) == ("topics", "mean", 50)
    assert (recipe.baseline, recipe.denoise) == ("emotions", 0.5)


def test_what_was_said_of_an_extraction_is_no_part_of_the_recipe() -> None:
    text = VIGNETTES.to_toml({"backend": "engine", "n_texts": 7, "left_out_of_mean": []})
    assert Recipe.from_toml(text) == VIGNETTES
    assert provenance_of(text) == {"backend": "engine", "n_texts": 7}


def test_a_recipe_without_provenance_has_none() -> None:
    assert provenance_of(VIGNETTES.to_toml()) == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("source", "songs"),
        ("story_prompts", "novels"),
        ("pooling", "max"),
        ("baseline", "zero"),
        ("direction", "lda"),
        ("n_stories", 0),
        ("n_stories", 2.5),
        ("n_stories", True),
        ("max_tokens", 15),
        ("seed", -1),
        ("skip", -1),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("denoise", 1.0),
        ("denoise", -0.1),
        ("layers", (0.5, 0.5)),
        ("layers", (0.0, 1.1)),
        ("layers", (0.0, float("inf"))),
        ("layers", (0.0,)),
        ("name", " "),
    ],
)
def test_a_value_outside_its_range_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(InputError, match=f"recipe: {key} = "):
        replace(VIGNETTES, **{key: value})  # type: ignore[arg-type]


def test_pca_is_for_pairs_and_pairs_are_for_pca() -> None:
    with pytest.raises(InputError, match="direction"):
        Recipe("mine", "pairs")
    with pytest.raises(InputError, match="direction"):
        replace(VIGNETTES, direction="pca")


def test_only_stories_have_a_middle() -> None:
    with pytest.raises(InputError, match="only stories have a middle"):
        replace(VIGNETTES, pooling="middle")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not TOML"),
        ("[" * 5000, "not TOML"),
        ('name = "mine"', "name or source is missing"),
        ('name = "mine"\nsource = "vignettes"\nlayer = 3', "unknown: layer"),
    ],
)
def test_a_text_that_is_no_recipe_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe.from_toml(text)


def test_an_unknown_name_lists_the_bundled_recipes() -> None:
    with pytest.raises(InputError, match=r"no recipe 'papper'.*paper-generation"):
        Recipe.load("papper")


def test_a_file_goes_before_a_bundled_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("reading").write_text(VIGNETTES.to_toml(), encoding="utf-8")
    assert Recipe.load("reading") == VIGNETTES


@pytest.mark.parametrize(
    ("layers", "n_layer", "expected"),
    [
        ((0.0, 1.0), 30, range(1, 29)),  # never the first block, never the last
        ((0.25, 0.75), 24, range(6, 18)),
        ((0.5, 0.51), 30, range(14, 15)),  # at least one
        ((0.0, 0.01), 30, range(1, 2)),
        ((0.99, 1.0), 30, range(28, 29)),
    ],
)
def test_shares_of_the_depth_become_layers_that_can_be_steered(
    layers: tuple[float, float], n_layer: int, expected: range
) -> None:
    assert replace(VIGNETTES, layers=layers).layer_range(n_layer) == expected


ODD_VALUES = {
    "number": "5",
    "date": "2024-01-01",
    "time": "07:32:00",
    "digits": "9" * 400,
    "more-digits": "9" * 5000,
    "hexadecimal": "0x" + "f" * 5000,
    "infinite": "inf",
    "nan": "nan",
    "text": '"x"',
    "true": "true",
    "list": "[]",
    "lists": "[[0, 1], [0, 1]]",
    "dates": "[2024-01-01, 2024-01-02]",
    "digits-in-a-list": f"[0, {'9' * 400}]",
    "table": "{a = 1}",
    "nested": "[" * 2000 + "]" * 2000,
}


KEYS = ("layers", "temperature", "n_stories", "name", "pooling", "training")
FINE = {("name", "text"), ("temperature", "number"), ("n_stories", "number")}


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key in KEYS for value in ODD_VALUES if (key, value) not in FINE],
)
def test_a_recipe_of_odd_values_is_refused_by_name(key: str, value: str) -> None:
    line = f"{key} = {ODD_VALUES[value]}\n"
    named = "" if key == "name" else 'name = "x"\n'
    with pytest.raises(InputError, match="recipe"):
        Recipe.from_toml(f'{named}source = "vignettes"\n{line}')
    with pytest.raises(InputError, match="recipe"):
        VoiceRecipe.from_toml(f'source = "replies"\n[training]\n{line}')
