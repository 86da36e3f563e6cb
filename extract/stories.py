"""Stories a model writes: their prompts, what makes one unusable, the store that keeps them.

A story costs far more than its hidden states, so it is written once: another recipe, another back
end or a run that was cut off goes on from the store.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

from pyemo.errors import InputError
from pyemo.extract.recipe import Recipe
from pyemo.files.local import cache_dir, check_folder_writable
from pyemo.files.locks import locked
from pyemo.texts import sources
from pyemo.texts.sources import NEUTRAL

Fault: TypeAlias = Literal["refusal", "short", "repetitive"]
"""Why a story is not used: the model declined, wrote too little, or repeats itself.

Too little is fewer than MIN_WORDS words, or no token that the recipe's pooling takes.
"""

_CHUNK_BYTES = 1 << 16

MIN_WORDS = 25
MIN_DISTINCT_TRIGRAMS = 0.5

# The beginnings of a refusal in English. Only the first sentence is looked at: a character in a
# story may be sorry.
_REFUSAL = re.compile(
    r"^\W*(i['\u2019]?m sorry|sorry,|i apologi[sz]e|i can(no|['\u2019])t"
    r"|i am (unable|not able)|i['\u2019]m (unable|not able)|as an ai|as a language model"
    r"|i (do not|don['\u2019]t) (have|feel|experience)|unfortunately, i)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class StoryPrompt:
    """One story to be written."""

    emotion: str
    index: int
    text: str


@dataclass(frozen=True)
class Story:
    """One story that was written. Tokens are those of the model that wrote it."""

    emotion: str
    index: int
    prompt: str
    text: str
    tokens: tuple[int, ...]

    @property
    def fault(self) -> Fault | None:
        """Why it is not used, or None."""
        return find_fault(self.text)


def find_fault(text: str) -> Fault | None:
    """Return why a story is not used, or None if it is."""
    if _REFUSAL.match(text):
        return "refusal"
    words = text.lower().split()
    if len(words) < MIN_WORDS:
        return "short"
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    if len(set(trigrams)) < MIN_DISTINCT_TRIGRAMS * len(trigrams):
        return "repetitive"
    return None


def story_prompts(recipe: Recipe, emotions: Iterable[str]) -> list[StoryPrompt]:
    """Return the prompts of a recipe for these emotions, and neutral ones if the baseline is.

    Greedy stories repeat where prompts do, so each prompt is then used once.
    """
    prompts = [
        StoryPrompt(emotion, i, text)
        for emotion in emotions
        for i, text in enumerate(_emotion_prompts(recipe, emotion))
    ]
    if recipe.baseline == "neutral":
        topics = sources.neutral_topics()
        n = _n_prompts(recipe, len(topics))
        prompts += [
            StoryPrompt(
                NEUTRAL, i, sources.neutral_template().format(topic=topics[i % len(topics)])
            )
            for i in range(n)
        ]
    return prompts


def _emotion_prompts(recipe: Recipe, emotion: str) -> list[str]:
    if recipe.story_prompts == "paper":
        templates = sources.story_templates()
        n = _n_prompts(recipe, len(templates))
        return [templates[i % len(templates)].format(emotion=emotion) for i in range(n)]
    topics = sources.story_topics()
    n = _n_prompts(recipe, len(topics))
    template = sources.topic_template()
    return [template.format(emotion=emotion, topic=topics[i % len(topics)]) for i in range(n)]


def _n_prompts(recipe: Recipe, n_different: int) -> int:
    return min(recipe.n_stories, n_different) if recipe.temperature == 0 else recipe.n_stories


class StoryStore:
    """A file of finished stories, one JSON line each, appended as they come.

    The first line says what the stories belong to: the model and the recipe's choices for writing.
    A last line that was cut off is dropped; anything else that is not a story is an error. Several
    processes may add to one file.

    Args:
        path: the file; made with the first story.
        key: what the stories belong to.
    Raises:
        InputError: the file belongs to something else, or is damaged.
    """

    def __init__(self, path: Path, key: dict[str, object]) -> None:
        self._path = path
        self._key = key
        self._stories: dict[tuple[str, int], Story] = {}
        if path.exists():
            self._load()

    @classmethod
    def open(cls, recipe: Recipe, model_key: str, folder: Path | None = None) -> StoryStore:
        """Return the store of a model's stories for a recipe, in ``folder`` or pyemo's cache."""
        key: dict[str, object] = {
            "pyemo_stories": 1,
            "model": model_key,
            "story_prompts": recipe.story_prompts,
            "max_tokens": recipe.max_tokens,
            "temperature": recipe.temperature,
            "seed": recipe.seed,
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        return cls((folder or cache_dir() / "stories") / f"{digest}.jsonl", key)

    @property
    def path(self) -> Path:
        """Where the stories are kept."""
        return self._path

    def get(self, prompt: StoryPrompt) -> Story | None:
        """Return the story to ``prompt``, or None if it is not written yet."""
        story = self._stories.get((prompt.emotion, prompt.index))
        return story if story is not None and story.prompt == prompt.text else None

    def prepare(self) -> None:
        """Make sure that stories can be kept, before one is written.

        Raises:
            InputError: the folder cannot be made or written to.
        """
        check_folder_writable(self._path.parent)

    def add(self, story: Story) -> None:
        """Keep a story; it is on disk when this returns.

        Raises:
            InputError: the disk refuses; the stories before this one are kept.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps(asdict(story)) + "\n"
            with locked(self._path), self._path.open("a+b") as file:
                if not _cut(file):
                    line = f"{self._header()}\n{line}"
                file.write(line.encode())
        except OSError as error:
            raise InputError(
                f"{self._path} cannot be written: {error.strerror or error}; free some space, or "
                "name another folder for stories (--stories). Finished stories are kept"
            ) from error
        self._stories[story.emotion, story.index] = story

    def _load(self) -> None:
        try:
            if not stat.S_ISREG(self._path.stat().st_mode):
                raise InputError(
                    f"{self._path} cannot be read: it is not a file; name another (--stories)"
                )
            # While the lock is held nobody writes: a line without an end was cut off for good.
            with locked(self._path):
                *lines, rest = self._path.read_bytes().split(b"\n")
                is_ours = self._is_ours(lines, rest)
                if is_ours and rest:
                    with self._path.open("r+b") as file:
                        _cut(file)
        except OSError as error:
            raise InputError(
                f"{self._path} cannot be read: {error.strerror or error}; move it away, or name "
                "another folder for stories (--stories)"
            ) from error
        if not is_ours:
            raise InputError(
                f"{self._path} holds stories of another model or recipe; move it away, or name "
                "another folder (--stories)"
            )
        for number, line in enumerate(lines[1:], start=2):
            story = _story(self._parse(line, number))
            if story is None:
                raise InputError(
                    f"{self._path}, line {number}, is not a story; move the file away and write "
                    "anew"
                )
            self._stories[story.emotion, story.index] = story

    def _is_ours(self, lines: list[bytes], rest: bytes) -> bool:
        if lines:
            return self._parse(lines[0], 1) == self._key
        return self._header().encode().startswith(rest)

    def _header(self) -> str:
        return json.dumps(self._key, sort_keys=True)

    def _parse(self, line: bytes, number: int) -> dict[str, object]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise InputError(
                f"{self._path}, line {number}, is not JSON; move the file away and write anew"
            )
        return value


def _cut(file: BinaryIO) -> int:
    """Drop a last line that has no end, its writer was killed; return the bytes that are left."""
    size = file.seek(0, os.SEEK_END)
    end = size
    while end > 0:
        begin = max(0, end - _CHUNK_BYTES)
        file.seek(begin)
        newline = file.read(end - begin).rfind(b"\n")
        if newline >= 0:
            end = begin + newline + 1
            break
        end = begin
    if end < size:
        file.truncate(end)
    file.seek(0, os.SEEK_END)
    return end


def _story(value: dict[str, object]) -> Story | None:
    """Return a line of the store as a story, or None if it is none."""
    emotion, index, prompt, text, tokens = (value.get(field.name) for field in fields(Story))
    if not isinstance(emotion, str) or not isinstance(prompt, str) or not isinstance(text, str):
        return None
    if type(index) is not int or not isinstance(tokens, list):
        return None
    if not all(type(token) is int and token >= 0 for token in tokens):
        return None
    return Story(emotion, index, prompt, text, tuple(tokens))


def good_stories(
    stories: Sequence[Story], min_tokens: int = 0
) -> tuple[dict[str, list[Story]], dict[str, dict[str, int]]]:
    """Return the usable stories by emotion, and how many were not, by emotion and fault.

    Args:
        min_tokens: stories of fewer tokens are short, because the pooling would take none of them.
    """
    good: dict[str, list[Story]] = {}
    faults: dict[str, dict[str, int]] = {}
    for story in stories:
        fault = story.fault
        if fault is None and len(story.tokens) < min_tokens:
            fault = "short"
        if fault is None:
            good.setdefault(story.emotion, []).append(story)
        else:
            counts = faults.setdefault(story.emotion, {})
            counts[fault] = counts.get(fault, 0) + 1
    return good, faults
