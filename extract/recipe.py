"""How a control vector is extracted, every choice, as a value that is written into the vector."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from typing import Any, Literal, TypeAlias, get_args

from pyemo.errors import InputError
from pyemo.files.inputs import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Source: TypeAlias = Literal["stories", "vignettes", "pairs"]
StoryPrompts: TypeAlias = Literal["paper", "topics"]
Pooling: TypeAlias = Literal["middle", "mean", "last"]
Baseline: TypeAlias = Literal["neutral", "emotions"]
Direction: TypeAlias = Literal["mean_difference", "pca"]

READING = "reading"
"""The recipe whose vectors read emotions best."""
REPLIES = "replies"
"""The source of a voice's recipe, which is no :class:`Recipe`: it is learned, not read."""

PROVENANCE = "extraction"
"""The table of a vector's recipe that says how its extraction went."""


@dataclass(frozen=True)
class Recipe:
    """Every choice of an extraction.

    Attributes:
        name: what tables call it.
        source: texts that are read: stories the model writes, vignettes that it reads, or contrast
            pairs.
        story_prompts: "paper" (five templates that name the emotion) or "topics" (a paragraph on a
            topic).
        n_stories: stories for each emotion; and as many neutral ones.
        max_tokens: length of a story.
        temperature: 0 is greedy, and then a prompt is used once, for it would give the same story
            again.
        seed: story i is drawn with seed + i.
        pooling: which hidden states of a text stand for it: that of the token in the middle of the
            story, the mean from token ``skip`` on, or that of the last token.
        skip: tokens left out by "mean"; those of the prompt always are.
        baseline: what class means are taken relative to: the neutral texts' mean, or the mean over
            emotions.
        denoise: share of the neutral texts' variance whose principal components are projected out;
            0 is off.
        direction: mean difference, or first principal component of pair differences, its sign
            fixed by their mean.
        layers: half-open range of layers as shares of the depth, such as (0.25, 0.75).
    """

    name: str
    source: Source
    story_prompts: StoryPrompts = "paper"
    n_stories: int = 10
    max_tokens: int = 256
    temperature: float = 0.8
    seed: int = 0
    pooling: Pooling = "mean"
    skip: int = 0
    baseline: Baseline = "emotions"
    denoise: float = 0.0
    direction: Direction = "mean_difference"
    layers: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        for name, alias in _CHOICES.items():
            if getattr(self, name) not in get_args(alias):
                _refuse(name, getattr(self, name), " or ".join(get_args(alias)))
        for name, low in (("n_stories", 1), ("max_tokens", 16), ("seed", 0), ("skip", 0)):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= 1_000_000:
                _refuse(name, value, f"a whole number of at least {low}")
        if not _is_number(self.temperature) or not 0 <= self.temperature <= 100:
            _refuse("temperature", self.temperature, "0 (greedy) to 100")
        if not _is_number(self.denoise) or not 0 <= self.denoise < 1:
            _refuse("denoise", self.denoise, "0 (off) up to, not including, 1")
        object.__setattr__(self, "layers", checked_layers(self.layers))
        if not isinstance(self.name, str) or not self.name.strip():
            _refuse("name", self.name, "a word")
        if (self.source == "pairs") != (self.direction == "pca"):
            _refuse(
                "direction",
                self.direction,
                "pca for pairs, mean_difference for stories and vignettes",
            )
        if self.pooling == "middle" and self.source != "stories":
            _refuse("pooling", self.pooling, "mean or last: only stories have a middle")

    def layer_range(self, n_layer: int) -> range:
        """Return the layers the recipe steers in a model of ``n_layer`` blocks."""
        return layer_range(self.layers, n_layer)

    def to_toml(self, provenance: Mapping[str, Any] | None = None) -> str:
        """Return every choice as TOML text.

        Args:
            provenance: what is said of one extraction, in a table of its own; empty values are
                left out.
        """
        import tomli_w

        values = asdict(self)
        values["layers"] = list(self.layers)
        if provenance is not None:
            values[PROVENANCE] = {key: value for key, value in provenance.items() if value}
        return tomli_w.dumps(values)

    @classmethod
    def from_toml(cls, text: str) -> Recipe:
        """Return the recipe that ``text`` writes; also that in a vector's metadata.

        Raises:
            InputError: not TOML, an unknown or missing key, or a value outside its range.
        """
        values = parse_recipe(text)
        values.pop(PROVENANCE, None)
        names = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - names)
        if unknown or not {"name", "source"} <= set(values):
            raise InputError(
                f"a recipe needs name and source and may have {', '.join(sorted(names))}; "
                f"{'unknown: ' + ', '.join(unknown) if unknown else 'name or source is missing'}"
            )
        if isinstance(values.get("layers"), list):
            values["layers"] = tuple(values["layers"])
        return cls(**values)

    @classmethod
    def load(cls, name_or_path: str = READING) -> Recipe:
        """Return a bundled recipe by name, or one from a TOML file; a file that exists wins.

        Raises:
            InputError: neither, or not a recipe.
        """
        return cls.from_toml(recipe_text(name_or_path))


def recipe_text(name_or_path: str) -> str:
    """Return the TOML text of a bundled recipe by name, or of a file; a file that exists wins.

    Raises:
        InputError: neither.
    """
    path = os.path.expanduser(name_or_path)  # a ~ of no known user stays
    if os.path.exists(path) and not os.path.isdir(path):
        return read_text(path, "the recipe", "give a bundled one's name, or a TOML file")
    if name_or_path in _names():
        bundled = files(__package__) / "recipes" / f"{name_or_path}.toml"
        return bundled.read_text(encoding="utf-8")
    raise InputError(
        f"no recipe {name_or_path!r}: no such file, and the bundled ones are {', '.join(_names())}"
    )


def parse_recipe(text: str) -> dict[str, Any]:
    """Return a recipe's TOML text as a table.

    Raises:
        InputError: not TOML, or numbers or nesting without end.
    """
    try:
        values: dict[str, Any] = tomllib.loads(text)
        _check_numbers(values)
    except (ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits
        raise InputError(f"the recipe is not TOML: {error}") from None
    return values


def _check_numbers(value: object) -> None:
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_numbers(inner)
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ValueError("a whole number of more than 64 bits")


def source_of_recipe(text: str) -> str:
    """Return what a recipe's TOML text says its vectors are made of; "" where it says nothing."""
    try:
        source = parse_recipe(text).get("source", "")
    except InputError:
        return ""  # whoever reads the recipe itself says what is wrong
    return source if isinstance(source, str) else ""


def provenance_of(text: str) -> dict[str, Any]:
    """Return what a vector's recipe says of its extraction, {} where it says nothing.

    Raises:
        InputError: not TOML.
    """
    value = parse_recipe(text).get(PROVENANCE, {})
    return value if isinstance(value, dict) else {}


_CHOICES: dict[str, Any] = {
    "source": Source,
    "story_prompts": StoryPrompts,
    "pooling": Pooling,
    "baseline": Baseline,
    "direction": Direction,
}


def bundled_recipes() -> tuple[str, ...]:
    """Return the names of the bundled recipes that read hidden states, sorted; not those of
    voices, which :class:`pyemo.extract.voice_recipe.VoiceRecipe` loads."""
    return tuple(name for name in _names() if source_of_recipe(recipe_text(name)) != REPLIES)


def _names() -> tuple[str, ...]:
    folder = files(__package__) / "recipes"
    return tuple(sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml")))


def _is_number(value: object) -> bool:
    if type(value) is int:
        return abs(value) < 1 << 53  # beyond, it may not even be a float
    return isinstance(value, float) and math.isfinite(value)


def checked_layers(layers: object) -> tuple[float, float]:
    """Return a range of layers as a recipe writes it, checked.

    Raises:
        InputError: not two ascending shares of the depth.
    """
    shares = tuple(layers) if isinstance(layers, (tuple, list)) else ()
    if len(shares) != 2 or not all(map(_is_number, shares)) or not 0 <= shares[0] < shares[1] <= 1:
        _refuse("layers", layers, "two ascending shares of the depth from 0 to 1")
    return float(shares[0]), float(shares[1])


def layer_range(layers: tuple[float, float], n_layer: int) -> range:
    """Return the layers that shares of the depth mean in a model of ``n_layer`` blocks.

    Never block 0, which llama.cpp's files have no place for, and never the last block, whose output
    is no longer computed with but read off as logits; at least one.
    """
    begin = max(1, math.floor(layers[0] * n_layer + 0.5))
    end = min(n_layer - 1, math.floor(layers[1] * n_layer + 0.5))
    return range(min(begin, end - 1), end) if end > 1 else range(1, 2)


def _refuse(name: str, value: object, allowed: str) -> None:
    raise InputError(f"recipe: {name} = {value!r} is outside its range: {allowed}")
