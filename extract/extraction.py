"""The extraction: a recipe and a back end in, control vectors out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyemo.control_vector import ControlVector, VectorMetadata
from pyemo.errors import InputError
from pyemo.extract import directions as dirs
from pyemo.extract import sources
from pyemo.extract.backend import Backend, Passage, Written
from pyemo.extract.recipe import Recipe
from pyemo.extract.stories import NEUTRAL, Story, StoryPrompt, StoryStore, good_stories, story_prompts
from pyemo.sampling import SamplerParams

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

MIN_TEXTS = 3
# Where residual norms are taken from: the first tokens' norms are many times the others'.
NEUTRAL_BEGIN = 10


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
        vectors: emotion -> vector.
        states: emotion -> float32 (n_texts, n_layers, n_embd), pooled hidden states of its texts (of the
            differences, for pairs), at all layers but the last.
        neutral: statistics of the neutral texts.
        faults: emotion -> fault -> number of stories that were not used.
    """

    recipe: Recipe
    vectors: Mapping[str, ControlVector]
    states: Mapping[str, npt.NDArray[np.float32]]
    neutral: Neutral
    faults: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def save(self, folder: Path) -> list[Path]:
        """Write each vector to ``folder/<emotion>.gguf``; return the paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{emotion}.gguf" for emotion in self.vectors]
        for path, vector in zip(paths, self.vectors.values(), strict=True):
            vector.save(path)
        return paths


def extract(
    backend: Backend,
    emotions: Sequence[str] | Mapping[str, sources.EmotionSource],
    *,
    recipe: Recipe,
    fallback_to_vignettes: bool = False,
    stories_folder: Path | None = None,
    progress: Progress | None = None,
) -> VectorSet:
    """Return the control vectors of ``emotions`` by ``recipe``.

    An emotion's direction is relative to the others' where the recipe's baseline is "emotions": extract them
    together, or the result is another.

    Args:
        emotions: names of built-in emotions, or name -> :class:`EmotionSource` for a user's own.
        fallback_to_vignettes: read an emotion's vignettes where fewer than 3 of its stories are usable.
        stories_folder: where stories are kept; None for pyemo's cache.
        progress: told how far it is.
    Raises:
        InputError: an unknown emotion; one emotion only, with the baseline "emotions"; fewer than 3 usable
            texts of an emotion; texts that do not differ from the baseline.
    """
    known = (
        dict(emotions)
        if isinstance(emotions, Mapping)
        else {name: sources.emotion_source(name) for name in emotions}
    )
    known = {source.word: source for source in known.values()}
    if not known:
        raise InputError("no emotions to extract; name at least one, or all")
    if recipe.source != "pairs" and recipe.baseline == "emotions" and len(known) < 2:
        raise InputError(
            f"recipe {recipe.name!r} takes an emotion relative to the mean over emotions, so it needs at least 2; "
            "extract several together, or use a recipe with the baseline neutral"
        )
    tell = progress or (lambda what, done, total: None)
    layers = range(backend.source.n_layer - 1)
    neutral = read_neutral(backend, range(backend.source.n_layer), tell)
    texts = _Texts(backend, recipe, known, fallback_to_vignettes, stories_folder, tell)
    states = texts.states(layers)
    return _vectors(backend, recipe, list(known), states, neutral, texts.faults)


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


class _Texts:
    """Turns a recipe's texts into pooled hidden states."""

    def __init__(
        self,
        backend: Backend,
        recipe: Recipe,
        emotions: Mapping[str, sources.EmotionSource],
        fallback: bool,
        folder: Path | None,
        tell: Progress,
    ) -> None:
        self._backend = backend
        self._recipe = recipe
        self._emotions = emotions
        self._fallback = fallback
        self._folder = folder
        self._tell = tell
        self.faults: dict[str, dict[str, int]] = {}

    def states(self, layers: Sequence[int]) -> dict[str, npt.NDArray[np.float32]]:
        """Return class -> (n_texts, n_layers, n_embd); the class "neutral" where the recipe's texts have one."""
        if self._recipe.source == "pairs":
            return {name: self._pairs(source, layers) for name, source in self._emotions.items()}
        if self._recipe.source == "vignettes":
            passages = {
                name: self._vignettes([v.text for v in source.vignettes if v.split == "train"])
                for name, source in self._emotions.items()
            }
            if self._recipe.baseline == "neutral":
                texts = [v.text for v in sources.vignettes(NEUTRAL, "train")]
                passages[NEUTRAL] = self._vignettes(texts)
            return self._read(passages, layers)
        return self._stories(layers)

    # --- vignettes and pairs ---

    def _vignettes(self, texts: Sequence[str]) -> list[Passage]:
        return [self._passage((), tuple(self._backend.text_tokens(text))) for text in texts]

    def _pairs(
        self, source: sources.EmotionSource, layers: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        self._tell(f"reading pairs for {source.word}", 0, 1)
        sides: tuple[list[Passage], list[Passage]] = ([], [])
        for pair in sources.contrast_pairs(source):
            for side, instruction in zip(
                sides, (pair.instruction, pair.opposite_instruction), strict=True
            ):
                given = tuple(self._backend.prompt_tokens(instruction))
                opening = tuple(self._backend.text_tokens(pair.opening))
                side.append(self._passage(given, opening))
        return self._backend.read(sides[0], layers) - self._backend.read(sides[1], layers)

    # --- stories ---

    def _stories(self, layers: Sequence[int]) -> dict[str, npt.NDArray[np.float32]]:
        prompts = story_prompts(self._recipe, self._emotions)
        store = StoryStore.open(self._recipe, self._model_key(), self._folder)
        pooled = self._write([p for p in prompts if store.get(p) is None], store, layers)
        stories = [story for story in map(store.get, prompts) if story is not None]
        good, self.faults = good_stories(stories)
        unread: dict[str, list[Passage]] = {}
        states: dict[str, list[npt.NDArray[np.float32]]] = {}
        for name in sorted({prompt.emotion for prompt in prompts}):
            usable = good.get(name, [])
            if len(usable) < MIN_TEXTS:
                unread[name] = self._too_few(name, len(usable))
                continue
            for story in usable:
                rows = pooled.get((name, story.index))
                if rows is not None:
                    states.setdefault(name, []).append(rows)
                else:
                    given = tuple(self._backend.prompt_tokens(story.prompt))
                    unread.setdefault(name, []).append(self._passage(given, story.tokens))
        for name, rows in self._read(unread, layers).items():
            states.setdefault(name, []).extend(rows)
        return {name: np.stack(rows) for name, rows in states.items()}

    def _model_key(self) -> str:
        source = self._backend.source
        return source.file_sha256 or source.weights_fingerprint or source.name

    def _write(
        self, prompts: Sequence[StoryPrompt], store: StoryStore, layers: Sequence[int]
    ) -> dict[tuple[str, int], npt.NDArray[np.float32]]:
        """Write what the store lacks; return what was pooled on the way."""
        recipe = self._recipe
        pooled: dict[tuple[str, int], npt.NDArray[np.float32]] = {}
        n_done = 0

        def keep(i: int, written: Written) -> None:
            nonlocal n_done
            prompt = prompts[i]
            store.add(Story(prompt.emotion, prompt.index, prompt.text, written.text, written.tokens))
            if written.states is not None:
                pooled[prompt.emotion, prompt.index] = written.states
            n_done += 1
            self._tell("writing stories", n_done, len(prompts))

        if prompts:
            self._tell("writing stories", 0, len(prompts))
            self._backend.write(
                [self._backend.prompt_tokens(prompt.text) for prompt in prompts],
                [
                    SamplerParams(temperature=recipe.temperature, seed=recipe.seed + prompt.index)
                    for prompt in prompts
                ],
                recipe.max_tokens,
                keep,
                skip=recipe.skip if recipe.pooling == "mean" else None,
                layers=layers,
            )
        return pooled

    def _too_few(self, name: str, n_usable: int) -> list[Passage]:
        if not self._fallback or name == NEUTRAL:
            faults = ", ".join(f"{n} {fault}" for fault, n in self.faults.get(name, {}).items())
            raise InputError(
                f"only {n_usable} usable stories for {name!r} ({faults or 'none written'}), and a direction needs "
                f"{MIN_TEXTS}; extract it from vignettes (--fallback), or name another recipe or model"
            )
        texts = [v.text for v in self._emotions[name].vignettes if v.split == "train"]
        return self._vignettes(texts)

    # --- pooling ---

    def _passage(self, given: tuple[int, ...], text: tuple[int, ...]) -> Passage:
        tokens = given + text
        n = len(tokens)
        if self._recipe.pooling == "last":
            return Passage(tokens, n - 1, n)
        if self._recipe.pooling == "middle":
            at = len(given) + len(text) // 2 if len(text) > 10 else len(given) - 1
            return Passage(tokens, at, at + 1)
        begin = len(given) + self._recipe.skip
        if begin >= n:
            raise InputError(
                f"a text of {len(text)} tokens is too short for the recipe's mean from token {self._recipe.skip} on"
            )
        return Passage(tokens, begin, n)

    def _read(
        self, passages: Mapping[str, Sequence[Passage]], layers: Sequence[int]
    ) -> dict[str, npt.NDArray[np.float32]]:
        total = sum(map(len, passages.values()))
        done = 0
        states = {}
        for name, rows in passages.items():
            self._tell("reading texts", done, total)
            states[name] = self._backend.read(rows, layers)
            done += len(rows)
        if total:
            self._tell("reading texts", done, total)
        return states


def _vectors(
    backend: Backend,
    recipe: Recipe,
    emotions: Sequence[str],
    states: Mapping[str, npt.NDArray[np.float32]],
    neutral: Neutral,
    faults: Mapping[str, Mapping[str, int]],
) -> VectorSet:
    for name, rows in states.items():
        if len(rows) < MIN_TEXTS:
            raise InputError(f"{name!r} has {len(rows)} texts; a direction needs {MIN_TEXTS}")
    if recipe.direction == "pca":
        raw = {name: dirs.pair_direction(states[name]) for name in emotions}
    else:
        means = dirs.class_means(states)
        classes = {name: means[name] for name in emotions}
        base = means[NEUTRAL] if recipe.baseline == "neutral" else dirs.mean_of_classes(classes)
        raw = {name: classes[name] - base for name in emotions}
    bases = dirs.principal_components(neutral.texts[:, :-1], recipe.denoise)
    steered = recipe.layer_range(backend.source.n_layer)
    vectors = {}
    for name in emotions:
        units = dirs.unit(dirs.project_out(raw[name], bases), name)
        vectors[name] = _vector(backend, recipe, name, units, neutral, steered, faults.get(name, {}))
    return VectorSet(recipe, vectors, states, neutral, faults)


def _vector(
    backend: Backend,
    recipe: Recipe,
    emotion: str,
    units: npt.NDArray[np.float64],
    neutral: Neutral,
    steered: range,
    faults: Mapping[str, int],
) -> ControlVector:
    source = backend.source
    projections = np.zeros(source.n_layer)
    for layer in steered:
        projections[layer] = neutral.mean[layer] @ units[layer]
    notes = "".join(f"# {n} stories not used: {fault}\n" for fault, n in sorted(faults.items()))
    metadata = VectorMetadata(
        unit="residual",
        emotion=emotion,
        recipe=notes + recipe.to_toml() + f'backend = "{backend.name}"\n',
        architecture=source.architecture,
        source_model=source.name,
        source_sha256=source.file_sha256,
        weights_fingerprint=source.weights_fingerprint,
        chat_template_sha256=source.chat_template_sha256,
        residual_norms=tuple(neutral.norms),
        neutral_projections=tuple(projections),
    )
    directions = {layer: units[layer] * neutral.norms[layer] for layer in steered}
    return ControlVector(directions, name=emotion, metadata=metadata)
