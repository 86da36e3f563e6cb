"""A recipe's texts as pooled hidden states: which texts, which tokens, and what is not used."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyemo.engine.sampling import SamplerParams
from pyemo.errors import InputError
from pyemo.extract.backend import Backend, Passage, Written
from pyemo.extract.recipe import Recipe
from pyemo.extract.stories import Story, StoryPrompt, StoryStore, good_stories, story_prompts
from pyemo.texts import sources
from pyemo.texts.sources import NEUTRAL, EmotionSource

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

States = dict[str, npt.NDArray[np.float32]]
"""class -> (n_texts, n_layers, n_embd): an emotion, or "neutral"."""

MIN_TEXTS = 3


class RecipeTexts:
    """The texts of a recipe for some emotions, read or written by a back end.

    Args:
        required: classes that must have MIN_TEXTS usable texts, emotions or "neutral"; others are
            left out where they have not.
        fallback: read an emotion's vignettes where fewer of its stories are usable.
        folder: where stories are kept; None for pyemo's cache.
        tell: told how far it is.

    Attributes:
        faults: emotion -> fault -> number of stories that were not used.
        replaced: emotions whose vignettes were read instead of stories.
        left_out: emotions that are not required and have too few usable stories.
    """

    def __init__(
        self,
        backend: Backend,
        recipe: Recipe,
        emotions: Mapping[str, EmotionSource],
        *,
        required: Collection[str],
        fallback: bool,
        folder: Path | None,
        tell: Progress,
    ) -> None:
        self._backend = backend
        self._recipe = recipe
        self._emotions = emotions
        self._required = set(required)
        self._fallback = fallback
        self._folder = folder
        self._tell = tell
        self.faults: dict[str, dict[str, int]] = {}
        self.replaced: set[str] = set()
        self.left_out: set[str] = set()

    def prepare(self) -> None:
        """Open the store of stories and make sure that it can be written to, before any work.

        Raises:
            InputError: the store is another's or damaged, or its folder cannot be written to.
        """
        if self._recipe.source == "stories":
            store = self._open_store()
            if any(store.get(p) is None for p in story_prompts(self._recipe, self._emotions)):
                store.prepare()

    def states(self, layers: Sequence[int]) -> States:
        """Return the hidden states of the texts a direction is made of.

        For pairs: of the differences. The class "neutral" is there where the recipe's baseline
        needs it.

        Raises:
            InputError: too few usable stories of a required emotion; a text that is too short for
                the pooling.
        """
        if self._recipe.source == "pairs":
            return self._pairs(layers)
        if self._recipe.source == "vignettes":
            texts = {name: self._vignettes(name) for name in self._emotions}
            if self._recipe.baseline == "neutral":
                texts[NEUTRAL] = [v.text for v in sources.vignettes(NEUTRAL, "train")]
            return self.read_vignettes(texts, layers)
        return self._stories(layers)

    def read_vignettes(self, texts: Mapping[str, Sequence[str]], layers: Sequence[int]) -> States:
        """Return the hidden states of written texts, pooled as the recipe has it.

        Vignettes are shorter than stories. Where the recipe's source is stories, its mean begins
        no later than in the middle of the vignette.
        """
        return self._read(
            {
                name: [self._written_passage(tuple(self._backend.text_tokens(t))) for t in those]
                for name, those in texts.items()
            },
            layers,
        )

    def _vignettes(self, name: str) -> list[str]:
        return [v.text for v in self._emotions[name].vignettes if v.split == "train"]

    # --- pairs ---

    def _pairs(self, layers: Sequence[int]) -> States:
        # Where the model puts a BOS before a text, the opening of a reply has none.
        n_special = len(self._backend.text_tokens(""))
        states = {}
        for n_done, (name, source) in enumerate(self._emotions.items()):
            self._tell("reading pairs", n_done, len(self._emotions))
            sides: tuple[list[Passage], list[Passage]] = ([], [])
            for pair in sources.contrast_pairs(source):
                opening = tuple(self._backend.text_tokens(pair.opening)[n_special:])
                for side, instruction in zip(
                    sides, (pair.instruction, pair.opposite_instruction), strict=True
                ):
                    given = tuple(self._backend.prompt_tokens(instruction))
                    side.append(self._passage(given, opening))
            states[name] = self._backend.read(sides[0], layers) - self._backend.read(
                sides[1], layers
            )
        self._tell("reading pairs", len(self._emotions), len(self._emotions))
        return states

    # --- stories ---

    def _stories(self, layers: Sequence[int]) -> States:
        prompts = story_prompts(self._recipe, self._emotions)
        store = self._open_store()
        pooled = self._write([p for p in prompts if store.get(p) is None], store, layers)
        stories = [story for story in map(store.get, prompts) if story is not None]
        skip = self._recipe.skip if self._recipe.pooling == "mean" else 0
        good, self.faults = good_stories(stories, min_tokens=skip + 1)
        unread: dict[str, list[Passage]] = {}
        states: dict[str, list[npt.NDArray[np.float32]]] = {}
        for name in sorted({prompt.emotion for prompt in prompts}):
            usable = good.get(name, [])
            if len(usable) < MIN_TEXTS:
                unread[name] = self._instead(name, len(usable))
                continue
            for story in usable:
                rows = pooled.get((name, story.index))
                if rows is not None:
                    states.setdefault(name, []).append(rows)
                else:
                    given = tuple(self._backend.prompt_tokens(story.prompt))
                    unread.setdefault(name, []).append(self._passage(given, story.tokens))
        unread = {name: passages for name, passages in unread.items() if passages}
        for name, read in self._read(unread, layers).items():
            states.setdefault(name, []).extend(read)
        return {name: np.stack(rows) for name, rows in states.items()}

    def _open_store(self) -> StoryStore:
        source = self._backend.source
        model_key = source.file_sha256 or source.weights_fingerprint or source.name
        return StoryStore.open(self._recipe, model_key, self._folder)

    def _write(
        self, prompts: Sequence[StoryPrompt], store: StoryStore, layers: Sequence[int]
    ) -> dict[tuple[str, int], npt.NDArray[np.float32]]:
        """Write what the store lacks; return what was pooled on the way."""
        if not prompts:
            return {}
        recipe = self._recipe
        pooled: dict[tuple[str, int], npt.NDArray[np.float32]] = {}
        n_done = 0

        def keep(i: int, written: Written) -> None:
            nonlocal n_done
            prompt = prompts[i]
            store.add(
                Story(prompt.emotion, prompt.index, prompt.text, written.text, written.tokens)
            )
            if written.states is not None:
                pooled[prompt.emotion, prompt.index] = written.states
            n_done += 1
            self._tell("writing stories", n_done, len(prompts))

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

    def _instead(self, name: str, n_usable: int) -> list[Passage]:
        """Return what is read where too few stories are usable; nothing for a class left out."""
        if self._fallback and name != NEUTRAL:
            self.replaced.add(name)
            return [
                self._written_passage(tuple(self._backend.text_tokens(text)))
                for text in self._vignettes(name)
            ]
        if name not in self._required:
            self.left_out.add(name)
            return []
        faults = ", ".join(f"{n} {fault}" for fault, n in self.faults.get(name, {}).items())
        remedy = "name another recipe or model"
        if name != NEUTRAL:
            remedy = f"read its vignettes instead (--fallback), or {remedy}"
        raise InputError(
            f"only {n_usable} usable stories for {name!r} ({faults or 'none written'}), and a "
            f"direction needs {MIN_TEXTS}; {remedy}"
        )

    # --- pooling ---

    def _passage(self, given: tuple[int, ...], text: tuple[int, ...]) -> Passage:
        """Return the tokens that stand for ``text``, read after ``given``."""
        tokens = given + text
        n = len(tokens)
        if self._recipe.pooling == "last":
            return Passage(tokens, n - 1, n)
        if self._recipe.pooling == "middle":
            at = len(given) + len(text) // 2
            return Passage(tokens, at, at + 1)
        begin = len(given) + self._recipe.skip
        if begin >= n:
            raise InputError(
                f"a text of {len(text)} tokens is too short for recipe {self._recipe.name!r}, "
                f"which takes the mean from token {self._recipe.skip} on; give longer texts, or a "
                "recipe with a smaller skip"
            )
        return Passage(tokens, begin, n)

    def _written_passage(self, tokens: tuple[int, ...]) -> Passage:
        """Return the tokens that stand for a vignette."""
        n = len(tokens)
        is_shorter = self._recipe.source == "stories" and self._recipe.pooling == "mean"
        if is_shorter and self._recipe.skip > n // 2:
            return Passage(tokens, n // 2, n)
        return self._passage((), tokens)

    def _read(self, passages: Mapping[str, Sequence[Passage]], layers: Sequence[int]) -> States:
        total = sum(map(len, passages.values()))
        done = 0
        states = {}
        for name, those in passages.items():
            self._tell("reading texts", done, total)
            states[name] = self._backend.read(those, layers)
            done += len(those)
        if total:
            self._tell("reading texts", done, total)
        return states
