"""``pyemo inspect FOLDER``: how good a set of vectors is, for people, as JSON and as pictures.

The files alone tell how far the directions point apart. Accuracy and stability need hidden states:
where the model is at hand, the set is made again from the same texts and compared with the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pyemo import plots
from pyemo.cli import output
from pyemo.cli.progress_bars import progress_bars
from pyemo.cli.quality_text import layer_table, quality_lines
from pyemo.emotions import EMOTIONS
from pyemo.engine.model import Model
from pyemo.errors import InputError, VectorModelMismatchError
from pyemo.extract.engine_backend import EngineBackend
from pyemo.extract.extraction import VectorSet, extract
from pyemo.extract.quality import SetQuality, measure, separations_of_vectors
from pyemo.extract.recipe import Recipe, provenance_of
from pyemo.files.catalog import list_models
from pyemo.files.local import check_folder_writable
from pyemo.texts import sources
from pyemo.texts.sources import EmotionSource
from pyemo.vectors.control_vector import ControlVector

_LEAST_AGREEMENT = 0.95
"""Vectors made again count as the files' own if their mean cosine is at least this.

Another back end's differ less.
"""


@dataclass(frozen=True)
class _Measured:
    quality: SetQuality
    agreement: float
    """Mean cosine between the files' directions and those made again."""


class _NotMeasuredError(Exception):
    """Why a set's accuracy and stability are not measured."""


class _Reader(EngineBackend):
    """A back end that reads what is there and writes nothing."""

    def write(self, *_args: Any, **_options: Any) -> NoReturn:
        raise _NotMeasuredError("the stories it was made of are not kept on this machine")


def print_set(
    folder: str,
    *,
    model_name: str | None,
    own_file: str | None,
    plot_folder: str | None,
    files_only: bool,
    as_json: bool,
) -> None:
    """Print the quality of the vectors in a folder; with ``plot_folder`` also write pictures.

    Args:
        model_name: what to measure on; None for the model the vectors were made on, if its name is
            in the catalog and it is installed.
        own_file: the user's emotions file the set was made with.
        files_only: say only what the files tell.
    Raises:
        InputError: no two vectors, of different models, or nothing in common; a folder that cannot
            be written to.
        VectorError: a file is damaged.
        ModelError, VectorModelMismatchError: the model that was named cannot be loaded, or is not
            the vectors'.
        MissingExtraError: pictures without matplotlib.
    """
    if plot_folder is not None:
        plots.check_extra()
        check_folder_writable(plot_folder)
        for path in Path(plot_folder).glob("*.png"):
            plots.check_target(path)
    vectors = _load(folder)
    separations = separations_of_vectors(vectors)
    recipe = _recipe_of(vectors)
    quality = SetQuality(
        recipe="" if recipe is None else recipe.name,
        emotions=separations[0].emotions,
        layers=separations[0].layers,
        separations=separations,
    )
    agreement: float | None = None
    why_not: str | None = "only the files were asked for"
    if not files_only:
        try:
            measured = _measure(vectors, recipe, model_name, own_file)
            quality, agreement, why_not = measured.quality, measured.agreement, None
        except _NotMeasuredError as error:
            why_not = str(error)
    pictures = [] if plot_folder is None else write_pictures(quality, Path(plot_folder))
    source = next(iter(vectors.values())).metadata.source_model
    if as_json:
        value = {
            "path": folder,
            "n_vectors": len(vectors),
            "source_model": source or None,
            **quality.to_json(),
            "agreement_with_files": agreement,
            "not_measured": why_not,
            "pictures": [str(path) for path in pictures],
        }
        output.print_json(value)
        return
    output.say(f"{folder}: {len(vectors)} vectors of {source or 'a model that is not named'}")
    for line in (*quality_lines(quality), "", *layer_table(quality)):
        output.say(line)
    if why_not is not None:
        output.note(f"held-out accuracy and stability are not measured: {why_not}")
    if agreement is not None:
        output.note(f"made again from the same texts, cosine with the files {agreement:.4f}")
    for path in pictures:
        output.note(f"wrote {path}")


def write_pictures(quality: SetQuality, folder: Path) -> list[Path]:
    """Write a heat map for each centring and the curves over layers; return the paths."""
    paths = []
    at = quality.layer
    for number, separation in enumerate(quality.separations, start=1):
        path = folder / f"cosines-{number}.png"
        title = f"layer {quality.layers[at]}, {separation.centring}"
        plots.heat_map(path, separation.cosines[at], separation.emotions, title)
        paths.append(path)
    curves = {
        f"mean pairwise cosine, {separation.centring}": separation.mean_cosine
        for separation in quality.separations
    }
    if quality.held_out is not None:
        curves["held-out accuracy"] = quality.held_out.hits / quality.held_out.n_texts
    if quality.split_half is not None:
        curves["cosine between halves of the texts"] = quality.split_half
    marked = None if quality.held_out is None else quality.layers[at]
    path = folder / "layers.png"
    plots.layer_curves(path, quality.layers, curves, quality.recipe or "set", marked=marked)
    return [*paths, path]


def _load(folder: str) -> dict[str, ControlVector]:
    """Return the folder's vectors by emotion, or by file name where they do not say one."""
    vectors: dict[str, ControlVector] = {}
    for path in sorted(Path(folder).glob("*.gguf")):
        vector = ControlVector.load(path)
        name = vector.metadata.emotion or path.stem
        if name in vectors:
            raise InputError(f"{folder} has two vectors of {name!r}; keep one of them")
        vectors[name] = vector
    if len(vectors) < 2:
        raise InputError(
            f"{folder} holds {len(vectors)} control vectors (*.gguf), and a set has two or more; "
            "inspect a single one by its file"
        )
    made_on = {v.metadata.weights_fingerprint or v.metadata.source_model for v in vectors.values()}
    if len(made_on) > 1:
        raise InputError(
            f"the vectors in {folder} were made on {len(made_on)} models, whose directions cannot "
            "be compared; keep those of one model"
        )
    return vectors


def _recipe_of(vectors: Mapping[str, ControlVector]) -> Recipe | None:
    try:
        recipes = {Recipe.from_toml(vector.metadata.recipe) for vector in vectors.values()}
    except InputError:
        return None
    return recipes.pop() if len(recipes) == 1 else None


def _measure(
    vectors: Mapping[str, ControlVector],
    recipe: Recipe | None,
    model_name: str | None,
    own_file: str | None,
) -> _Measured:
    """Return what the model tells of the set; raise _NotMeasuredError where it cannot."""
    if recipe is None:
        raise _NotMeasuredError("the vectors do not say one recipe they were all made by")
    own = {} if own_file is None else sources.load_emotions_file(own_file)
    details = [provenance_of(vector.metadata.recipe) for vector in vectors.values()]
    in_mean = details[0].get("emotions_in_mean", [])
    if not isinstance(in_mean, list) or not all(isinstance(name, str) for name in in_mean):
        raise _NotMeasuredError("the vectors do not say which emotions their mean was taken over")
    among = _known(in_mean, own)
    asked = _known(vectors, own)
    model = _model(vectors, model_name)
    with (
        _Reader.open(model, recipe) as backend,
        progress_bars() as tell,
    ):
        again = extract(
            backend,
            asked,
            recipe=recipe,
            among=among,
            fallback_to_vignettes=any(d.get("vignettes_instead_of_stories") for d in details),
            allow_no_chat_template=True,
            progress=tell,
        )
        agreement = _agreement(vectors, again)
        if agreement < _LEAST_AGREEMENT:
            raise _NotMeasuredError(
                f"made again from the texts of this version, the vectors are others (cosine "
                f"{agreement:.2f})"
            )
        return _Measured(measure(backend, again, own, progress=tell), agreement)


def _known(names: Iterable[str], own: Mapping[str, EmotionSource]) -> dict[str, EmotionSource]:
    unknown = [name for name in names if name not in own and name not in EMOTIONS]
    if unknown:
        raise _NotMeasuredError(
            f"{', '.join(unknown)} is none of the built-in emotions; give the file it is described "
            "in (--own FILE)"
        )
    return {name: own.get(name) or sources.emotion_source(name) for name in names}


def _model(vectors: Mapping[str, ControlVector], model_name: str | None) -> Model:
    """Return the model that was named, or the one the vectors were made on."""
    first = next(iter(vectors.values()))
    if model_name is not None:
        model = Model.load(model_name)
        first.check(model)
        return model
    source = first.metadata.source_model
    if not any(status.entry.name == source and status.is_installed for status in list_models()):
        raise _NotMeasuredError(
            f"their model, {source or 'not named'}, is not here by a name of the catalog; give it "
            "with --model"
        )
    model = Model.load(source)
    try:
        first.check(model)
    except VectorModelMismatchError as error:
        raise _NotMeasuredError(str(error)) from None
    return model


def _agreement(vectors: Mapping[str, ControlVector], again: VectorSet) -> float:
    """Return the mean cosine between the files' directions and those made again."""
    cosines = []
    for name, vector in vectors.items():
        other = again.vectors[name].directions
        for layer in set(vector.layers) & set(other):
            cosines.append(_cosine(vector.directions[layer], other[layer]))
    return float(np.mean(cosines)) if cosines else 0.0


def _cosine(one: Sequence[float] | Any, other: Any) -> float:
    a, b = (np.asarray(row, np.float64) for row in (one, other))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
