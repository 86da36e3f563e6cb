"""The texts a direction is made of: pyemo's own, and those of a user's emotions file.

Owns the texts, their split and their words; knows nothing of models, tokens or recipes. The texts
are in ``extract/data/``; docs/extraction.md says how they were written and what they cannot show.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from pyemo.choices import LANGUAGES
from pyemo.emotions import resolve
from pyemo.errors import InputError
from pyemo.files.inputs import read_text
from pyemo.texts.toml_checks import check_distinct, check_keys, strings

Split = Literal["train", "held_out"]
Use = Literal["selection", "evaluation"]

NEUTRAL = "neutral"
MIN_VIGNETTES = 3
SENTENCES = 4
"""Of a parallel text."""


@dataclass(frozen=True)
class Vignette:
    """A scene of two to four sentences that shows an emotion without naming it.

    Attributes:
        emotion: the adjective, or ``"neutral"``.
        text: the scene.
        split: a direction is made of ``"train"`` texts and tested on ``"held_out"`` ones.
    """

    emotion: str
    text: str
    split: Split


@dataclass(frozen=True)
class Personas:
    """Two phrases that complete "someone ...": one with the emotion, one with its opposite."""

    persona: str
    opposite: str


@dataclass(frozen=True)
class ContrastPair:
    """Two instructions that differ in the persona, and the reply's beginning under both."""

    instruction: str
    opposite_instruction: str
    opening: str


@dataclass(frozen=True)
class EmotionSource:
    """All that is needed to extract one emotion: pyemo's own and a user's have this one type.

    Attributes:
        word: the adjective ("angry"), which fills ``{emotion}`` in the templates.
        forbidden: the words that name the emotion, ``word`` among them.
        vignettes: train texts first, then held-out ones; a user's file may have none of these.
        personas: for the contrast recipe; None if a user's file gives none.
    """

    word: str
    forbidden: tuple[str, ...]
    vignettes: tuple[Vignette, ...]
    personas: Personas | None = None

    def naming(self) -> tuple[Vignette, ...]:
        """Return the vignettes that name the emotion, which a direction could pick up instead."""
        return tuple(v for v in self.vignettes if words_used(v.text, self.forbidden))


def emotion_source(emotion: str) -> EmotionSource:
    """Return one of the 20 built-in emotions' texts; adjectives, nouns and synonyms are accepted.

    Raises:
        InputError: no such emotion; the message offers the nearest names.
    """
    name = resolve(emotion)
    personas = _data("pairs.toml")["personas"][name]
    return EmotionSource(
        word=name,
        forbidden=forbidden_words(name),
        vignettes=vignettes(name),
        personas=Personas(personas["persona"], personas["opposite"]),
    )


def vignettes(emotion: str, split: Split | None = None) -> tuple[Vignette, ...]:
    """Return the vignettes of a built-in emotion or of ``"neutral"``, train before held out.

    Args:
        emotion: a name `pyemo.emotions.resolve` accepts, or ``"neutral"``.
        split: ``"train"`` or ``"held_out"``; None is both.
    Raises:
        InputError: no such emotion or split.
    """
    if split is not None:
        _check_choice("split", split, get_args(Split))
    loaded = _vignettes(_name(emotion))
    return tuple(v for v in loaded if split is None or v.split == split)


def forbidden_words(emotion: str) -> tuple[str, ...]:
    """Return the words the texts of this built-in emotion, or of ``"neutral"``, do not use.

    Raises:
        InputError: no such emotion.
    """
    return tuple(_data("vignettes", f"{_name(emotion)}.toml")["forbidden"])


def words_used(text: str, words: Iterable[str]) -> tuple[str, ...]:
    """Return those of ``words`` that the text uses, in any case and any regular inflection.

    Example:
        >>> words_used("Her worries were fading.", ["worry", "fear"])
        ('worry',)
    """
    return tuple(word for word in words if _inflected(word).search(text))


def neutral_texts() -> tuple[str, ...]:
    """Return 64 plain texts on unrelated subjects, in which nobody feels anything."""
    return tuple(_data("neutral.toml")["texts"])


def story_templates() -> tuple[str, ...]:
    """Return the five story prompts of the paper's recipe; each has an ``{emotion}``."""
    return tuple(_data("stories.toml")["emotion"]["templates"])


def neutral_template() -> str:
    """Return the prompt for a neutral story; it has a ``{topic}``."""
    return str(_data("stories.toml")["neutral"]["template"])


def neutral_topics() -> tuple[str, ...]:
    """Return the ten subjects of neutral stories."""
    return tuple(_data("stories.toml")["neutral"]["topics"])


def topic_template() -> str:
    """Return the prompt for a one-paragraph story; it has a ``{topic}`` and an ``{emotion}``."""
    return str(_data("stories.toml")["topic"]["template"])


def story_topics() -> tuple[str, ...]:
    """Return 40 subjects for one-paragraph stories; each can carry any emotion."""
    return tuple(_data("stories.toml")["topic"]["topics"])


def sentence_openings() -> tuple[str, ...]:
    """Return 60 beginnings of a reply that say nothing of a mood."""
    return tuple(_data("pairs.toml")["openings"])


def contrast_pairs(emotion: str | EmotionSource) -> tuple[ContrastPair, ...]:
    """Return one pair of instructions for each sentence opening.

    Args:
        emotion: a name `pyemo.emotions.resolve` accepts, or a source that has personas.
    Raises:
        InputError: no such emotion, or the source has no personas.
    """
    source = emotion if isinstance(emotion, EmotionSource) else emotion_source(emotion)
    if source.personas is None:
        raise InputError(
            f"emotion {source.word!r} has no personas, which the contrast recipe compares; add "
            f'personas = ["feeling ...", "feeling the opposite ..."] to [emotion.{source.word}], '
            "or choose another recipe"
        )
    template = str(_data("pairs.toml")["template"])
    with_emotion = template.format(persona=source.personas.persona)
    with_opposite = template.format(persona=source.personas.opposite)
    return tuple(ContrastPair(with_emotion, with_opposite, o) for o in sentence_openings())


def parallel_texts(language: str) -> tuple[str, ...]:
    """Return texts of four sentences each in a language; all say the same things.

    Raises:
        InputError: no texts in this language.
    """
    if language not in LANGUAGES:
        raise InputError(
            f"there are no texts in the language {language!r}; there are in {', '.join(LANGUAGES)}"
        )
    sentences = [entry[language] for entry in _data("languages.toml")["sentence"]]
    space = "" if language == "zh" else " "
    return tuple(
        space.join(sentences[i : i + SENTENCES]) for i in range(0, len(sentences), SENTENCES)
    )


def prompts(use: Use) -> tuple[str, ...]:
    """Return everyday requests for a steered model to answer.

    Args:
        use: ``"selection"`` to choose strengths and layers by (8 prompts), ``"evaluation"`` for
            what is reported (16 others).
    Raises:
        InputError: another use.
    """
    _check_choice("use", use, get_args(Use))
    return tuple(p["text"] for p in _data("prompts.toml")["prompt"] if p["use"] == use)


def load_emotions_file(path: str | Path) -> dict[str, EmotionSource]:
    """Return the emotions a user describes in a TOML file, by name, in the file's order.

    A table ``[emotion.NAME]`` has ``vignettes``, three texts or more that show the emotion, and
    may have ``held_out`` (further texts to test it on), ``nouns`` (words that name it) and
    ``personas`` (two phrases, the second the opposite). A name may be one of pyemo's own: the
    file's texts then stand in its place.

    Raises:
        InputError: the file cannot be read, is not TOML, or breaks one of these rules; the
            message names the table, the key and the rule.
    """
    where = f"emotions file {str(path)!r}"
    remedy = "give the path of a TOML file with a table [emotion.NAME] for each emotion"
    text = read_text(path, "emotions file", remedy)
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: nested without end
        raise InputError(f"{where} is not a TOML file: {error}; {_SHAPE}") from error
    check_keys(where, document, required=("emotion",))
    tables = document["emotion"]
    if not isinstance(tables, dict) or not tables:
        raise InputError(f"{where} describes no emotion; {_SHAPE}")
    sources = {name: _user_source(where, name, table) for name, table in tables.items()}
    check_distinct(where, [v.text for source in sources.values() for v in source.vignettes])
    return sources


_SHAPE = 'each emotion is a table [emotion.NAME] with vignettes = ["...", "...", "..."]'
_LONGEST_NAME = 40


def _user_source(where: str, name: str, table: object) -> EmotionSource:
    """Return one table of a user's file as a source, or raise InputError."""
    _check_name(where, name)
    where = f"{where}, [emotion.{name}]"
    if not isinstance(table, dict):
        raise InputError(f"{where} is of type {type(table).__name__}, not a table; {_SHAPE}")
    check_keys(where, table, ("vignettes",), ("held_out", "nouns", "personas"))
    train = strings(where, table, "vignettes")
    if len(train) < MIN_VIGNETTES:
        raise InputError(
            f"{where}: vignettes has {len(train)} of at least {MIN_VIGNETTES} texts; add scenes "
            "of two to four sentences that show the emotion without naming it"
        )
    held_out = strings(where, table, "held_out")
    splits: tuple[tuple[Split, tuple[str, ...]], ...] = (("train", train), ("held_out", held_out))
    nouns = (noun.strip().casefold() for noun in strings(where, table, "nouns"))
    return EmotionSource(
        word=name,
        forbidden=tuple(dict.fromkeys((name, *nouns))),
        vignettes=tuple(Vignette(name, text, split) for split, texts in splits for text in texts),
        personas=_personas(where, table),
    )


def _personas(where: str, table: dict[str, Any]) -> Personas | None:
    """Return the two phrases, None where the table has no such key."""
    phrases = strings(where, table, "personas")
    if "personas" not in table:
        return None
    if len(phrases) != 2:
        raise InputError(
            f"{where}: personas has {len(phrases)} phrases, not 2; give one with the emotion and "
            "one with its opposite"
        )
    check_distinct(f"{where}, personas", phrases)
    return Personas(*phrases)


def _check_name(where: str, name: str) -> None:
    """Refuse a name that could not name a vector file or a command's option."""
    letters = name.replace("-", "").replace("_", "")
    well_formed = letters.isalnum() and name[0].isalpha() and name == name.lower()
    if not well_formed or len(name) > _LONGEST_NAME:
        raise InputError(
            f"{where}: {name[:_LONGEST_NAME]!r} cannot name an emotion; use up to "
            f"{_LONGEST_NAME} lower-case letters, digits, - and _, a letter first"
        )
    if name == NEUTRAL:
        raise InputError(
            f"{where}: {NEUTRAL!r} names the texts emotions are compared with; choose another name"
        )


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"no {name} {value!r}; it is {' or '.join(map(repr, choices))}")


def _name(emotion: str) -> str:
    """Return the name of the emotion's file."""
    return NEUTRAL if emotion == NEUTRAL else resolve(emotion)


@functools.cache
def _vignettes(name: str) -> tuple[Vignette, ...]:
    entries = _data("vignettes", f"{name}.toml")["vignette"]
    loaded = [Vignette(name, entry["text"], entry["split"]) for entry in entries]
    return tuple(sorted(loaded, key=lambda vignette: vignette.split == "held_out"))  # stable


@functools.cache
def _data(*parts: str) -> dict[str, Any]:
    """Return one of the package's own files, parsed once. Callers do not change it."""
    text = files("pyemo.extract").joinpath("data", *parts).read_text(encoding="utf-8")
    document: dict[str, Any] = tomllib.loads(text)
    return document


@functools.cache
def _inflected(word: str) -> re.Pattern[str]:
    """Return a pattern for the word and its regular inflections (worry, worries, worried)."""
    if word.endswith("y"):
        stem, endings = word[:-1], "y|ys|yed|ying|ies|ied|ier|iest|ily|iness"
    elif word.endswith("e"):
        stem, endings = word[:-1], "e|es|ed|er|est|ely|eness|ing"
    else:
        stem, endings = word, "|s|es|ed|er|est|ing|ly|ness"
    return re.compile(rf"\b{re.escape(stem)}(?:{endings})\b", re.IGNORECASE)
