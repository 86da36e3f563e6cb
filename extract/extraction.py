"""The extraction: a recipe and a back end in, control vectors out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyemo.emotions import EMOTIONS
from pyemo.errors import InputError
from pyemo.extract import directions as dirs
from pyemo.extract.backend import Backend, Passage
from pyemo.extract.recipe import Recipe
from pyemo.extract.recipe_texts import MIN_TEXTS, Progress, RecipeTexts
from pyemo.files.local import check_folder_writable
from pyemo.texts import sources
from pyemo.texts.sources import NEUTRAL, EmotionSource
from pyemo.vectors.control_vector import ControlVector, VectorMetadata
from pyemo.vectors.identity import ModelIdentity

# Where residual norms are taken from: the first tokens' norms are many times the others'.
NEUTRAL_BEGIN = 10

Emotions = Sequence[str] | Mapping[str, EmotionSource]
"""Names of built-in emotions, or name -> source for a user's own."""


@dataclass(frozen=True, eq=False)
class Neutral:
    """What neutral texts look like at every layer of the model.

    Attributes:
        norms: float64 (n_layers,), median residual norm of their tokens from position 10 on.
        mean: float64 (n_layers, n_embd), mean hidden state of the same tokens.
        texts: float32 (n_texts, n_layers, n_embd), mean hidden state of each text.
    """

    norms: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    texts: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class VectorSet:
    """Control vectors of several emotions, extracted together, with what they were made of.

    Attributes:
        vectors: emotion -> vector, for the emotions that were asked for.
        states: emotion -> float32 (n_texts, n_layers, n_embd), pooled hidden states of its texts
            (of the differences, for pairs), at all layers but the last; also of the emotions that
            only the mean over emotions is taken over, and of "neutral" where it is the baseline.
        neutral: statistics of the neutral texts.
        faults: emotion -> fault -> number of stories that were not used.
        replaced: emotions whose vignettes were read, because too few of their stories were usable.
        left_out: emotions that the mean is not taken over, for the same reason.
    """

    recipe: Recipe
    vectors: Mapping[str, ControlVector]
    states: Mapping[str, npt.NDArray[np.float32]]
    neutral: Neutral
    faults: Mapping[str, Mapping[str, int]]
    replaced: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()

    def save(self, folder: str | Path) -> list[Path]:
        """Write each vector to ``folder/<emotion>.gguf``; return the paths.

        Raises:
            InputError: the folder cannot be written to.
            VectorFileError: a file cannot be written.
        """
        folder = Path(folder)
        check_folder_writable(folder)
        paths = [folder / f"{emotion}.gguf" for emotion in self.vectors]
        for path, vector in zip(paths, self.vectors.values(), strict=True):
            vector.save(path)
        return paths


def extract(
    backend: Backend,
    emotions: Emotions,
    *,
    recipe: Recipe,
    among: Emotions | None = None,
    fallback_to_vignettes: bool = False,
    allow_no_chat_template: bool = False,
    stories_folder: Path | None = None,
    progress: Progress | None = None,
) -> VectorSet:
    """Return the control vectors of ``emotions`` by ``recipe``.

    Args:
        emotions: what to extract.
        among: where the recipe's baseline is "emotions", the emotions that their mean is taken
            over, beside ``emotions`` themselves; None for all 20 built-in ones, so that a vector
            does not depend on which others were asked for.
        fallback_to_vignettes: read an emotion's vignettes where fewer than 3 of its stories are
            usable.
        allow_no_chat_template: let a model without one continue the recipe's instructions as plain
            text.
        stories_folder: where stories are kept; None for pyemo's cache.
        progress: told how far it is.
    Raises:
        InputError: an unknown emotion; one emotion only, with the baseline "emotions";
            instructions for a model without a chat template; fewer than 3 usable texts of an
            emotion, or texts that are too short for the pooling; texts that do not differ from the
            baseline; a folder or file of stories that cannot be used. Finished stories are kept.
    """
    asked = _sources(emotions)
    if not asked:
        raise InputError("no emotions to extract; name at least one, or all")
    is_relative = recipe.source != "pairs" and recipe.baseline == "emotions"
    known = dict(asked)
    if is_relative:
        others = _sources(list(EMOTIONS) if among is None else among)
        known |= {name: source for name, source in others.items() if name not in known}
    _check(backend.source, recipe, asked, known if is_relative else None, allow_no_chat_template)
    tell = progress or (lambda what, done, total: None)
    texts = RecipeTexts(
        backend,
        recipe,
        known,
        required=[*asked, NEUTRAL],
        fallback=fallback_to_vignettes,
        folder=stories_folder,
        tell=tell,
    )
    texts.prepare()
    neutral = read_neutral(backend, range(backend.source.n_layer), tell)
    states = texts.states(range(backend.source.n_layer - 1))
    for name, rows in states.items():
        if len(rows) < MIN_TEXTS:
            raise InputError(f"{name!r} has {len(rows)} texts; a direction needs {MIN_TEXTS}")
    bases = dirs.principal_components(neutral.texts[:, :-1], recipe.denoise)
    units = unit_directions(recipe, states, bases, only=asked)
    vectors = {}
    for name in asked:
        provenance = {
            "backend": backend.name,
            "n_texts": len(states[name]),
            "emotions_in_mean": sorted(set(states) - {NEUTRAL}) if is_relative else [],
            "left_out_of_mean": sorted(texts.left_out),
            "vignettes_instead_of_stories": name in texts.replaced,
            "unused_stories": texts.faults.get(name, {}),
        }
        text = recipe.to_toml(provenance)
        # of pairs only differences were read, which lie nowhere
        own = None if recipe.source == "pairs" else states[name]
        vectors[name] = _vector(backend.source, recipe, name, units[name], neutral, own, text)
    return VectorSet(
        recipe,
        vectors,
        states,
        neutral,
        texts.faults,
        frozenset(texts.replaced),
        frozenset(texts.left_out),
    )


def unit_directions(
    recipe: Recipe,
    states: Mapping[str, dirs.States],
    bases: list[dirs.Rows],
    only: Sequence[str] | Mapping[str, Any] | None = None,
) -> dict[str, dirs.Rows]:
    """Return the recipe's unit directions, emotion -> float64 (n_layers, n_embd).

    Args:
        states: as in :class:`VectorSet`; the mean over emotions is over all of them.
        bases: neutral principal components of each layer, which are projected out; may be empty
            ones.
        only: the emotions to return; None for all in ``states``.
    Raises:
        InputError: an emotion's texts do not differ from the baseline at a layer.
    """
    names = [name for name in states if name != NEUTRAL] if only is None else list(only)
    if recipe.direction == "pca":
        raw = {name: dirs.pair_direction(states[name]) for name in names}
    else:
        means = dirs.class_means(states)
        if recipe.baseline == "neutral":
            base = means[NEUTRAL]
        else:
            base = dirs.mean_of_classes({k: rows for k, rows in means.items() if k != NEUTRAL})
        raw = {name: means[name] - base for name in names}
    return {name: dirs.unit(dirs.project_out(raw[name], bases), name) for name in names}


def read_neutral(backend: Backend, layers: Sequence[int], tell: Progress) -> Neutral:
    """Return the statistics of the neutral texts at ``layers``."""
    passages = []
    for text in sources.neutral_texts():
        tokens = tuple(backend.text_tokens(text))
        if len(tokens) > NEUTRAL_BEGIN:
            passages.append(Passage(tokens, NEUTRAL_BEGIN, len(tokens)))
    norms, total, n_tokens, means = [], np.float64(0.0), 0, []
    for first in range(0, len(passages), 8):
        tell("reading neutral texts", first, len(passages))
        for rows in backend.read_tokens(passages[first : first + 8], layers):
            norms.append(np.linalg.norm(rows, axis=-1))
            total = total + rows.sum(axis=0, dtype=np.float64)
            means.append(rows.mean(axis=0, dtype=np.float64))
            n_tokens += len(rows)
    tell("reading neutral texts", len(passages), len(passages))
    return Neutral(
        norms=np.median(np.concatenate(norms), axis=0),
        mean=total / n_tokens,
        texts=np.stack(means).astype(np.float32),
    )


def projections(
    means: Mapping[int, npt.NDArray[np.float64]] | npt.NDArray[np.float64],
    units: Mapping[int, npt.NDArray[np.float64]],
    n_layer: int | None = None,
) -> tuple[float, ...]:
    """Return mean . unit for each layer of the model, 0 at layers without a unit direction.

    Args:
        means: mean hidden states by layer; those of ``units`` at least.
        n_layer: of the model; None where ``means`` has a row for each.
    """
    n = len(means) if n_layer is None else n_layer
    return tuple(float(means[il] @ units[il]) if il in units else 0.0 for il in range(n))


def _sources(emotions: Emotions) -> dict[str, EmotionSource]:
    """Return the sources by their emotions' canonical names."""
    if isinstance(emotions, str):
        raise InputError(f"emotions is {emotions!r}, one name; put it into a list")
    if isinstance(emotions, Mapping):
        return {source.word: source for source in emotions.values()}
    return {source.word: source for source in map(sources.emotion_source, emotions)}


def _check(
    source: ModelIdentity,
    recipe: Recipe,
    asked: Mapping[str, EmotionSource],
    in_mean: Mapping[str, EmotionSource] | None,
    allow_no_chat_template: bool,
) -> None:
    """Refuse before any work what could not end well."""
    if in_mean is not None and len(in_mean) < 2:
        raise InputError(
            f"recipe {recipe.name!r} takes an emotion relative to the mean over emotions, so it "
            "needs at least 2; extract several together, or use a recipe with the baseline neutral"
        )
    if recipe.source == "pairs":
        for emotion in asked.values():
            sources.contrast_pairs(emotion)
    if source.n_layer < 3:
        raise InputError(
            f"{source.name} has {source.n_layer} blocks; the first and the last are never steered, "
            "so a model needs at least 3"
        )
    instructs = recipe.source in ("stories", "pairs")
    if instructs and not source.chat_template_sha256 and not allow_no_chat_template:
        raise InputError(
            f"{source.name} has no chat template, and recipe {recipe.name!r} gives instructions; "
            "use a recipe that reads, such as paper-comprehension, or let the model continue the "
            "instructions as plain text (allow_no_chat_template=True, --allow-no-chat-template)"
        )


def _vector(
    source: ModelIdentity,
    recipe: Recipe,
    emotion: str,
    units: npt.NDArray[np.float64],
    neutral: Neutral,
    own: dirs.States | None,
    recipe_text: str,
) -> ControlVector:
    steered = recipe.layer_range(source.n_layer)
    rows = {layer: units[layer] for layer in steered}
    mean = None if own is None else own.mean(axis=0, dtype=np.float64)
    metadata = VectorMetadata(
        unit="residual",
        emotion=emotion,
        recipe=recipe_text,
        residual_norms=tuple(neutral.norms),
        neutral_projections=projections(neutral.mean, rows),
        own_projections=() if mean is None else projections(mean, rows, source.n_layer),
    ).with_source(source)
    directions = {layer: row * neutral.norms[layer] for layer, row in rows.items()}
    return ControlVector(directions, name=emotion, metadata=metadata)
