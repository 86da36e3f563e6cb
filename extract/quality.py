"""How good a set of emotion directions is: separation, held-out accuracy, split-half stability.

Owns the numbers; knows nothing of tables or pictures. Everything is per layer, because directions
are. A set is tested on vignettes that no extraction reads (``held_out`` in `sources`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyemo.emotions import EMOTIONS, PAPER_OPPOSITES
from pyemo.errors import InputError
from pyemo.extract import directions as dirs
from pyemo.extract.backend import Backend
from pyemo.extract.extraction import VectorSet, unit_directions
from pyemo.extract.recipe import Recipe
from pyemo.extract.recipe_texts import Progress, RecipeTexts
from pyemo.measures.proportion import Proportion
from pyemo.texts import sources
from pyemo.texts.sources import NEUTRAL, EmotionSource
from pyemo.vectors.control_vector import ControlVector

Floats = npt.NDArray[np.float64]

RELATIVE_TO_NEUTRAL = "relative to neutral texts"
RELATIVE_TO_EMOTIONS = "relative to the mean over emotions"
RELATIVE_TO_OPPOSITE = "relative to each emotion's opposite"
RECENTRED = "re-centred on the set's mean"


@dataclass(frozen=True, eq=False)
class Separation:
    """How far a set's directions point apart, under one centring.

    Mean cosines compare only under the same centring: a set that is centred on its own mean has one
    near -1 / (n - 1), however well it separates.

    Attributes:
        centring: what the directions are relative to.
        emotions: in the order of the rows.
        layers: those measured.
        cosines: (n_layers, n_emotions, n_emotions).
    """

    centring: str
    emotions: tuple[str, ...]
    layers: tuple[int, ...]
    cosines: Floats

    @property
    def mean_cosine(self) -> Floats:
        """Mean over all pairs of two emotions, (n_layers,)."""
        above = np.triu_indices(len(self.emotions), 1)
        return np.asarray(self.cosines[:, above[0], above[1]].mean(axis=1))

    @property
    def opposites(self) -> dict[tuple[str, str], Floats]:
        """The paper's opposite pairs that the set has -> their cosine, (n_layers,)."""
        return {
            (a, b): self.cosines[:, self.emotions.index(a), self.emotions.index(b)]
            for a, b in PAPER_OPPOSITES
            if a in self.emotions and b in self.emotions
        }


@dataclass(frozen=True, eq=False)
class HeldOut:
    """How often a held-out vignette's nearest direction is that of its own emotion.

    Attributes:
        n_texts: vignettes tested.
        n_emotions: directions each is compared with.
        hits: (n_layers,) texts whose own direction is the nearest.
        mean_rank: (n_layers,) mean place of the own direction, 1 the nearest.
        training: (n_layers,) share of hits on training vignettes, which chose ``layer``.
        layer: an index into the layers of the set.
    """

    n_texts: int
    n_emotions: int
    hits: npt.NDArray[np.int64]
    mean_rank: Floats
    training: Floats
    layer: int

    @property
    def top_1(self) -> Proportion:
        """The accuracy at the layer that training vignettes chose."""
        return Proportion(int(self.hits[self.layer]), self.n_texts)

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return 1 / self.n_emotions


@dataclass(frozen=True, eq=False)
class SetQuality:
    """What is known of a set's quality; what could not be measured is None.

    Attributes:
        recipe: the recipe's name.
        emotions: those of the set, in the order of the tables.
        layers: those measured.
        separations: under one centring or several; the first is as extracted.
        held_out: None where there is nothing to test on.
        split_half: (n_layers,) mean cosine between the directions of two halves of the texts.
    """

    recipe: str
    emotions: tuple[str, ...]
    layers: tuple[int, ...]
    separations: tuple[Separation, ...]
    held_out: HeldOut | None = None
    split_half: Floats | None = None

    @property
    def layer(self) -> int:
        """Index of the layer that stands for the set: chosen by training texts, or the middle."""
        return len(self.layers) // 2 if self.held_out is None else self.held_out.layer

    def to_json(self) -> dict[str, Any]:
        """Return every number as plain values."""
        return {
            "recipe": self.recipe,
            "emotions": list(self.emotions),
            "layers": list(self.layers),
            "chosen_layer": self.layers[self.layer],
            "separation": [_separation_json(separation) for separation in self.separations],
            "held_out": None if self.held_out is None else _held_out_json(self.held_out),
            "split_half": None if self.split_half is None else self.split_half.tolist(),
        }


def separation_of(units: Mapping[str, Floats], layers: Sequence[int], centring: str) -> Separation:
    """Return the cosines between unit directions, emotion -> (n_layers, n_embd)."""
    emotions = _ordered(units)
    rows = np.stack([units[name] for name in emotions])
    cosines = np.einsum("ald,bld->lab", rows, rows)
    return Separation(centring, emotions, tuple(layers), cosines)


def separations_of_vectors(vectors: Mapping[str, ControlVector]) -> tuple[Separation, ...]:
    """Return the separation of vectors as they are, and re-centred on their mean.

    Only layers that all of them have count.

    Raises:
        InputError: fewer than two vectors, or no layer that all have.
        VectorShapeError: they are not equally wide.
    """
    if len(vectors) < 2:
        raise InputError("a set has two vectors or more; there is no distance within one")
    layers = sorted(set.intersection(*(set(vector.layers) for vector in vectors.values())))
    if not layers or len({vector.n_embd for vector in vectors.values()}) > 1:
        raise InputError("the vectors have no layer in common, or are not equally wide")
    units = {
        name: dirs.unit(np.stack([vector.directions[i] for i in layers]).astype(np.float64), name)
        for name, vector in vectors.items()
    }
    as_they_are = separation_of(units, layers, centring_of(_recipe_of(vectors)))
    mean = np.mean(list(units.values()), axis=0)
    centred = {name: dirs.unit(rows - mean, name) for name, rows in units.items()}
    return as_they_are, separation_of(centred, layers, RECENTRED)


def centring_of(recipe: Recipe | None) -> str:
    """Return what a recipe's directions are relative to, in words."""
    if recipe is None:
        return "as they are"
    if recipe.source == "pairs":
        return RELATIVE_TO_OPPOSITE
    return RELATIVE_TO_NEUTRAL if recipe.baseline == "neutral" else RELATIVE_TO_EMOTIONS


def measure(
    backend: Backend,
    vectors: VectorSet,
    own: Mapping[str, EmotionSource] | None = None,
    *,
    n_splits: int = 5,
    progress: Progress | None = None,
) -> SetQuality:
    """Return the quality of all emotions that an extraction had texts of.

    Args:
        backend: that of the extraction; reads the held-out vignettes.
        own: the user's own emotions of the extraction.
        n_splits: times the texts are halved at random, always in the same way.
    Raises:
        InputError: fewer than two emotions.
    """
    recipe = vectors.recipe
    emotions = _ordered(name for name in vectors.states if name != NEUTRAL)
    if len(emotions) < 2:
        raise InputError("the quality of a set needs two emotions or more")
    known = {name: (own or {}).get(name) or sources.emotion_source(name) for name in emotions}
    layers = tuple(range(backend.source.n_layer - 1))
    reader = RecipeTexts(
        backend,
        recipe,
        known,
        required=(NEUTRAL,),
        fallback=False,
        folder=None,
        tell=progress or (lambda what, done, total: None),
    )
    bases = dirs.principal_components(vectors.neutral.texts[:, :-1], recipe.denoise)
    states = vectors.states
    separations = [
        separation_of(unit_directions(recipe, states, bases), layers, centring_of(recipe))
    ]
    if recipe.source == "vignettes" and recipe.baseline == "emotions":
        neutral = [v.text for v in sources.vignettes(NEUTRAL, "train")]
        with_neutral = {**states, **reader.read_vignettes({NEUTRAL: neutral}, layers)}
        units = {
            name: dirs.unit(means - dirs.class_means(with_neutral)[NEUTRAL], name)
            for name, means in dirs.class_means(states).items()
        }
        separations.append(separation_of(units, layers, RELATIVE_TO_NEUTRAL))
    return SetQuality(
        recipe=recipe.name,
        emotions=emotions,
        layers=layers,
        separations=tuple(separations),
        held_out=_held_out(recipe, states, bases, known, reader, backend.source.n_layer),
        split_half=split_half(recipe, states, bases, n_splits=n_splits),
    )


def split_half(
    recipe: Recipe, states: Mapping[str, dirs.States], bases: list[dirs.Rows], *, n_splits: int = 5
) -> Floats:
    """Return the mean cosine between directions made of two halves of the texts, (n_layers,).

    Halves are drawn at random, seeded; the mean is over emotions and ``n_splits`` draws. It says
    how much of a direction is the emotion's, and how much that of the texts that happened to be
    taken.
    """
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n_splits):
        halves: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        for name, rows in sorted(states.items()):  # so that their order does not matter
            order = rng.permutation(len(rows))
            halves[0][name] = rows[order[: len(rows) // 2]]
            halves[1][name] = rows[order[len(rows) // 2 :]]
        one, other = (unit_directions(recipe, half, bases) for half in halves)
        found.append([np.sum(one[name] * other[name], axis=-1) for name in one])
    return np.asarray(np.mean(found, axis=(0, 1)))


def ranks(texts: Mapping[str, dirs.States], units: Mapping[str, Floats], centre: Floats) -> Floats:
    """Return each text's place of its own direction among all, 1 the nearest: (n_texts, n_layers).

    Nearest is the largest cosine with the hidden state, relative to ``centre`` (n_layers, n_embd).
    """
    names = list(units)
    rows = np.stack([units[name] for name in names])
    places = []
    for name, those in texts.items():
        scores = np.einsum("nld,eld->nle", np.asarray(those, np.float64) - centre, rows)
        own = scores[:, :, names.index(name), None]
        places.append(1 + np.sum(scores > own, axis=-1))
    return np.concatenate(places).astype(np.float64)


def _held_out(
    recipe: Recipe,
    states: Mapping[str, dirs.States],
    bases: list[dirs.Rows],
    known: Mapping[str, EmotionSource],
    reader: RecipeTexts,
    n_layer: int,
) -> HeldOut | None:
    """Return the accuracy on held-out vignettes; None where no emotion has any."""
    layers = range(n_layer - 1)
    texts = _texts(known, "held_out")
    if not texts:
        return None
    if recipe.source == "vignettes":
        train = {name: rows for name, rows in states.items() if name != NEUTRAL}
        training = _cross_validated(recipe, states, bases)
    else:
        train = reader.read_vignettes(_texts(known, "train"), layers)
        training = ranks(train, unit_directions(recipe, states, bases), _centre(train))
    steered = [i for i in recipe.layer_range(n_layer) if i in layers]
    # The layer with the most hits; among equals that where the own direction ranks highest.
    shares = (training == 1).mean(axis=0)
    chosen = max(steered, key=lambda layer: (shares[layer], -training[:, layer].mean()))
    tested = reader.read_vignettes(texts, layers)
    places = ranks(tested, unit_directions(recipe, states, bases), _centre(train))
    return HeldOut(
        n_texts=len(places),
        n_emotions=len(known),
        hits=np.sum(places == 1, axis=0),
        mean_rank=places.mean(axis=0),
        training=shares,
        layer=chosen,
    )


def _cross_validated(
    recipe: Recipe, states: Mapping[str, dirs.States], bases: list[dirs.Rows]
) -> Floats:
    """Return ranks of the training vignettes, each by directions that were made without it."""
    n_folds = min(map(len, states.values()))
    places = []
    for fold in range(n_folds):
        kept = {k: rows[np.arange(len(rows)) % n_folds != fold] for k, rows in states.items()}
        left = {k: rows[fold::n_folds] for k, rows in states.items() if k != NEUTRAL}
        centre = _centre({k: rows for k, rows in kept.items() if k != NEUTRAL})
        places.append(ranks(left, unit_directions(recipe, kept, bases), centre))
    return np.concatenate(places)


def _centre(states: Mapping[str, dirs.States]) -> Floats:
    return dirs.mean_of_classes(dirs.class_means(states))


def _texts(known: Mapping[str, EmotionSource], split: str) -> dict[str, list[str]]:
    texts = {
        name: [v.text for v in source.vignettes if v.split == split]
        for name, source in known.items()
    }
    return {name: those for name, those in texts.items() if those}


def _ordered(names: Any) -> tuple[str, ...]:
    """Return the built-in emotions in the paper's order, then others by name."""
    places = {name: place for place, name in enumerate(EMOTIONS)}
    return tuple(sorted(names, key=lambda name: (places.get(name, len(places)), name)))


def _recipe_of(vectors: Mapping[str, ControlVector]) -> Recipe | None:
    """Return the recipe all vectors say they were made by, or None."""
    try:
        recipes = {Recipe.from_toml(vector.metadata.recipe) for vector in vectors.values()}
    except InputError:
        return None
    return recipes.pop() if len(recipes) == 1 else None


def _separation_json(separation: Separation) -> dict[str, Any]:
    return {
        "centring": separation.centring,
        "mean_cosine": separation.mean_cosine.tolist(),
        "opposites": {f"{a}/{b}": c.tolist() for (a, b), c in separation.opposites.items()},
    }


def _held_out_json(held_out: HeldOut) -> dict[str, Any]:
    top_1 = held_out.top_1
    return {
        "n_texts": held_out.n_texts,
        "chance": held_out.chance,
        "top_1": {"hits": top_1.k, "value": top_1.value, "low": top_1.low, "high": top_1.high},
        "mean_rank": float(held_out.mean_rank[held_out.layer]),
        "accuracy": (held_out.hits / held_out.n_texts).tolist(),
        "mean_ranks": held_out.mean_rank.tolist(),
        "training_accuracy": held_out.training.tolist(),
    }
