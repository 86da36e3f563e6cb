"""A back end without a model: a text's hidden states hold the direction planted for its emotion.

Tokens are hashes of words. A text's emotion is looked up, not guessed: among the vignettes, the
stories' prompts and the contrast pairs' instructions, of which the opposite persona counts as
minus one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pyemo.emotions import EMOTIONS
from pyemo.engine.sampling import SamplerParams
from pyemo.extract.backend import Passage, Written
from pyemo.extract.recipe import Recipe, bundled_recipes
from pyemo.extract.stories import story_prompts
from pyemo.texts import sources
from pyemo.vectors.identity import ModelIdentity

N_LAYER, N_EMBD = 5, 48
N_NUISANCE = 2  # axes that neutral texts alone vary in
END_OF_PROMPT = 0
BASE_NORM = 8.0

Array = NDArray[np.float32]
Floats = NDArray[np.float64]


@dataclass
class PlantedBackend:
    """Hidden states: a base common to all texts + the emotion's planted direction + noise.

    Attributes:
        planted: emotion -> (N_LAYER, N_EMBD).
        noise: standard deviation of a text's own noise, in each dimension.
        replies: emotion -> the text it writes instead of a story.
        stop_after: raise KeyboardInterrupt once this many stories are written.
        n_written, n_read: work done so far, in texts.
    """

    planted: Mapping[str, Floats]
    noise: float = 0.01
    replies: Mapping[str, str] = field(default_factory=dict)
    stop_after: int | None = None
    chat_template_sha256: str = "c" * 64
    n_layer: int = N_LAYER
    name: str = "planted"
    n_written: int = 0
    n_read: int = 0

    def __post_init__(self) -> None:
        self.source = ModelIdentity(
            "planted", "llama", self.n_layer, N_EMBD, "f" * 64, "", self.chat_template_sha256
        )
        rng = np.random.default_rng(1)
        base = rng.standard_normal((N_LAYER, N_EMBD))
        self.base = BASE_NORM * base / np.linalg.norm(base, axis=1, keepdims=True)
        self._words: dict[int, str] = {}
        self._emotions = _emotions_of_texts()

    # --- Backend ---

    def prompt_tokens(self, prompt: str) -> list[int]:
        return [*self.text_tokens(prompt), END_OF_PROMPT]

    def text_tokens(self, text: str) -> list[int]:
        tokens = [1 + zlib.crc32(word.encode()) for word in text.split()]
        self._words |= zip(tokens, text.split(), strict=True)
        return tokens

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        samplers: Sequence[SamplerParams],
        max_tokens: int,
        on_written: Callable[[int, Written], None],
        skip: int | None = None,
        layers: Sequence[int] = (),
    ) -> None:
        for index, (prompt, sampler) in enumerate(zip(prompts, samplers, strict=True)):
            if self.n_written == self.stop_after:
                raise KeyboardInterrupt
            emotion = self._emotion(tuple(prompt))[0]
            text = self.replies.get(emotion, _story(str(prompt), sampler.seed))
            tokens = tuple(self.text_tokens(text)[:max_tokens])
            states = None
            if skip is not None and len(tokens) > skip:
                whole = (*prompt, *tokens)
                states = self._states(Passage(whole, len(prompt) + skip, len(whole)), layers)
            self.n_written += 1
            on_written(index, Written(tokens, text, True, states))

    def read(self, passages: Sequence[Passage], layers: Sequence[int]) -> Array:
        self.n_read += len(passages)
        return np.stack([self._states(passage, layers) for passage in passages])

    def read_tokens(self, passages: Sequence[Passage], layers: Sequence[int]) -> list[Array]:
        """Neutral texts: all their tokens are alike, and the texts vary along the nuisance axes."""
        self.n_read += len(passages)
        out = []
        for passage in passages:
            rng = np.random.default_rng(_seed(passage))
            rows = self.base[list(layers)].copy()
            rows[:, :N_NUISANCE] += rng.standard_normal(N_NUISANCE)
            n = passage.end - passage.begin
            out.append(np.repeat(rows[None], n, axis=0).astype(np.float32))
        return out

    # --- what is planted ---

    def _states(self, passage: Passage, layers: Sequence[int]) -> Array:
        rng = np.random.default_rng(_seed(passage))
        emotion, sign = self._emotion(passage.tokens)
        rows = self.base + sign * self.planted.get(emotion, np.zeros((N_LAYER, N_EMBD)))
        rows = rows + self.noise * rng.standard_normal((N_LAYER, N_EMBD))
        return rows[list(layers)].astype(np.float32)

    def _emotion(self, tokens: tuple[int, ...]) -> tuple[str, float]:
        given = tokens[: tokens.index(END_OF_PROMPT)] if END_OF_PROMPT in tokens else tokens
        return self._emotions[" ".join(self._words[token] for token in given)]


def planted_directions(names: Sequence[str] = tuple(EMOTIONS), seed: int = 0) -> dict[str, Floats]:
    """Return a random direction of length 2 per layer for each emotion; none along the nuisance."""
    rng = np.random.default_rng(seed)
    out = {}
    for name in names:
        rows = rng.standard_normal((N_LAYER, N_EMBD))
        rows[:, :N_NUISANCE] = 0
        out[name] = 2 * rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return out


def _emotions_of_texts() -> dict[str, tuple[str, float]]:
    """Return every text that a bundled recipe gives -> its emotion and sign."""
    found: dict[str, tuple[str, float]] = {}
    for name in (*EMOTIONS, "neutral"):
        found |= {_plain(v.text): (name, 1.0) for v in sources.vignettes(name)}
    for name in EMOTIONS:
        for pair in sources.contrast_pairs(name):
            found[_plain(pair.instruction)] = (name, 1.0)
            found[_plain(pair.opposite_instruction)] = (name, -1.0)
    for recipe in map(Recipe.load, bundled_recipes()):
        if recipe.source == "stories":
            prompts = story_prompts(recipe, list(EMOTIONS))
            found |= {_plain(prompt.text): (prompt.emotion, 1.0) for prompt in prompts}
    return found


def _plain(text: str) -> str:
    return " ".join(text.split())


def _story(prompt: str, seed: int) -> str:
    """Return 80 words that depend on the prompt and the seed."""
    rng = np.random.default_rng([zlib.crc32(prompt.encode()), seed])
    return " ".join(f"w{number}" for number in rng.integers(0, 5000, 80))


def _seed(passage: Passage) -> list[int]:
    return [zlib.crc32(str(passage.tokens).encode()), passage.begin, passage.end]
