"""What a study computes: models, emotions, prompts, strengths, checked before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pyemo.emotions import EMOTIONS
from pyemo.errors import InputError
from pyemo.extract.recipe import Recipe
from pyemo.study.states import Method
from pyemo.texts.sources import EmotionSource, emotion_source, prompts

RECIPES: Mapping[Method, str] = {
    "generation": "paper-generation",
    "comprehension": "paper-comprehension",
}
STEERED = ("angry", "sad", "calm", "enthusiastic")
"""One emotion of each quarter of the circumplex."""
STRENGTHS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08)


@dataclass(frozen=True)
class Plan:
    """What a study computes.

    Attributes:
        models: catalog names or paths; the first is the one that others are compared with.
        emotions: name -> source, of the directions.
        steered: emotions of ``emotions`` whose steering is checked.
        n_stories: stories a class; above the recipe's five greedy ones they are sampled.
        strengths: of the regime map, ascending, above 0.
        grid_prompts: of the regime map; strengths are chosen on them.
        check_prompts: of the steering check, others than those.
        max_tokens: of every reply; the bundled vectors are calibrated for 48.
        second_judge: a model that judges the others' texts, None for none; a model never judges
            itself.
        n_threads: of every decode; part of what a result depends on. With 1 the results do not
            depend on how many cores a machine has, and processes side by side use them best.
    """

    models: tuple[str, ...]
    emotions: Mapping[str, EmotionSource]
    steered: tuple[str, ...] = STEERED
    n_stories: int = 5
    strengths: tuple[float, ...] = STRENGTHS
    grid_prompts: tuple[str, ...] = prompts("selection")
    check_prompts: tuple[str, ...] = prompts("evaluation")[:10]
    max_tokens: int = 48
    second_judge: str | None = None
    n_threads: int = 1

    def __post_init__(self) -> None:
        if not self.models or len(set(self.models)) < len(self.models):
            raise InputError(f"models {list(self.models)}; name at least one, each once")
        if len(self.emotions) < 2:
            raise InputError(
                f"{len(self.emotions)} emotion cannot be compared with others; name at least 2"
            )
        unknown = [name for name in self.steered if name not in self.emotions]
        if unknown:
            raise InputError(
                f"{unknown[0]!r} is to be steered but is not among the emotions "
                f"{', '.join(self.emotions)}"
            )
        if self.n_stories < 3:
            raise InputError(f"{self.n_stories} stories a class; a direction needs at least 3")
        ascending = list(self.strengths) == sorted(set(self.strengths))
        if not self.strengths or not ascending or self.strengths[0] <= 0:
            raise InputError(f"strengths {self.strengths} must ascend and lie above 0")
        if not all(map(math.isfinite, self.strengths)):
            raise InputError(f"strengths {self.strengths} must be finite")
        if len(self.grid_prompts) < 2 or len(self.check_prompts) < 2:
            raise InputError("a study needs at least 2 prompts to choose by and 2 to check on")
        if self.max_tokens < 16:
            raise InputError(f"max_tokens = {self.max_tokens}; a text needs at least 16")

    def recipe(self, method: Method) -> Recipe:
        """Return the recipe of a method, with the plan's number of stories."""
        recipe = Recipe.load(RECIPES[method])
        if recipe.source != "stories" or self.n_stories == recipe.n_stories:
            return recipe
        if self.n_stories < recipe.n_stories:
            return replace(recipe, n_stories=self.n_stories)
        return replace(recipe, n_stories=self.n_stories, temperature=0.8)


def built_in_emotions(names: Sequence[str] = tuple(EMOTIONS)) -> dict[str, EmotionSource]:
    """Return the built-in emotions' sources by name.

    Raises:
        InputError: an unknown emotion.
    """
    return {source.word: source for source in map(emotion_source, names)}
