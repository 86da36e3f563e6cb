"""A voice's recipe is read as it was written, and what is no recipe is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pyemo.errors import InputError
from pyemo.extract.recipe import bundled_recipes
from pyemo.extract.training import TrainingChoices
from pyemo.extract.voice_recipe import VoiceRecipe


def test_the_bundled_recipe_is_the_default() -> None:
    assert VoiceRecipe.load("trained") == VoiceRecipe()
    assert "trained" not in bundled_recipes()  # those read hidden states


def test_it_goes_to_toml_and_back() -> None:
    recipe = replace(VoiceRecipe(), training=TrainingChoices(steps=7, damage=0.5, seed=3))
    assert VoiceRecipe.from_toml(recipe.to_toml({"strength": 0.02})) == recipe


def test_a_recipe_written_before_ends_were_learned_has_none() -> None:
    text = VoiceRecipe().to_toml()
    assert "ends = true\n" in text
    old = VoiceRecipe.from_toml(text.replace("ends = true\n", ""))
    assert old == replace(VoiceRecipe(), ends=False)
    with pytest.raises(InputError, match="ends = 'no'; it must be true or false"):
        VoiceRecipe.from_toml(text.replace("ends = true", 'ends = "no"'))


def test_layers_are_shares_of_the_depth() -> None:
    assert VoiceRecipe().layer_range(30) == range(5, 27)
    assert VoiceRecipe(layers=(0, 1)).layer_range(3) == range(1, 2)
    for layers in ((0.0, 0.1), (0.0, 0.3), (0.95, 1.0)):
        for n_layer in (3, 4, 30):
            found = VoiceRecipe(layers=layers).layer_range(n_layer)
            assert found
            assert 0 < found.start < found.stop < n_layer
    with pytest.raises(InputError, match="at least 3"):
        VoiceRecipe().layer_range(2)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name = ", "not TOML"),
        ('source = "vignettes"', "source = .replies."),
        ('source = "replies"\nfoo = 1', "source = .replies."),
        ('source = "replies"\n[training]\nfoo = 1', "source = .replies."),
        ('source = "replies"\n[training]\nsteps = 0', "steps = 0"),
        ('source = "replies"\n[training]\nsteps = 1.5', "whole number"),
        ('source = "replies"\n[training]\nrate = nan', "rate = nan"),
        ('source = "replies"\n[training]\nlow = 2', "above high"),
        ('source = "replies"\nlayers = [0.8, 0.2]', "ascending"),
        ('source = "replies"\nlayers = 3', "ascending"),
        ('source = "replies"\nlayers = ["a", "b"]', "ascending"),
    ],
)
def test_what_is_no_recipe_is_refused(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        VoiceRecipe.from_toml(text)
