"""The 20 emotions: names, other words for them, opposites, and a place on the circumplex.

Owns the words and nothing else; knows nothing of vectors or models. The 20 are the adjectives of
Jeong 2026 (arXiv 2604.04064), in its order. Valence and arousal are pyemo's own rough placement on
Russell's circumplex (1980), good for sorting and colouring, not measured and not for statistics.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pyemo.errors import InputError


@dataclass(frozen=True)
class Emotion:
    """One emotion: its adjective, its noun and where it lies.

    Attributes:
        name: the adjective every file, command and table uses.
        noun: accepted wherever ``name`` is.
        valence: -1 (unpleasant) to 1 (pleasant); a rough placement of our own.
        arousal: -1 (still) to 1 (stirred); a rough placement of our own.
        opposite: another emotion's name, or None where none of the other 19 is one. Not always
            mutual: calm is the opposite of angry, and desperate is the opposite of calm.
        synonyms: further words accepted wherever ``name`` is.
    """

    name: str
    noun: str
    valence: float
    arousal: float
    opposite: str | None
    synonyms: tuple[str, ...] = ()


_TABLE = (
    Emotion("happy", "happiness", 0.85, 0.35, "sad", ("joy", "joyful", "cheerful")),
    Emotion("sad", "sadness", -0.75, -0.45, "happy", ("sorrow", "sorrowful", "unhappy")),
    Emotion("calm", "calmness", 0.6, -0.7, "desperate", ("serenity", "serene", "peaceful")),
    Emotion("desperate", "desperation", -0.8, 0.6, "calm", ("despair", "despairing")),
    Emotion("afraid", "fear", -0.7, 0.75, "calm", ("fearful", "scared", "frightened")),
    Emotion("angry", "anger", -0.7, 0.8, "calm", ("rage", "furious", "fury")),
    Emotion("proud", "pride", 0.65, 0.35, "guilty"),
    Emotion("guilty", "guilt", -0.6, 0.05, "proud", ("remorse", "remorseful")),
    Emotion("nervous", "nervousness", -0.45, 0.6, "calm", ("jittery",)),
    Emotion("hopeful", "hope", 0.6, 0.2, "gloomy", ("hopefulness", "optimism", "optimistic")),
    Emotion("brooding", "rumination", -0.45, -0.25, "enthusiastic", ("broody",)),
    Emotion("gloomy", "gloom", -0.65, -0.5, "hopeful", ("gloominess", "melancholy")),
    Emotion("reflective", "reflection", 0.15, -0.5, None, ("pensive", "thoughtful")),
    Emotion("enthusiastic", "enthusiasm", 0.8, 0.75, "brooding", ("excited", "excitement")),
    Emotion("hostile", "hostility", -0.8, 0.65, "loving"),
    Emotion("loving", "love", 0.85, 0.1, "hostile", ("affection", "affectionate")),
    Emotion("exasperated", "exasperation", -0.6, 0.5, "grateful", ("frustration", "frustrated")),
    Emotion("blissful", "bliss", 0.95, 0.2, "anxious", ("blissfulness",)),
    Emotion("anxious", "anxiety", -0.55, 0.65, "blissful", ("worry", "worried")),
    Emotion("grateful", "gratitude", 0.75, -0.05, "exasperated", ("gratefulness", "thankful")),
)

# name -> Emotion, in the paper's order
EMOTIONS: Mapping[str, Emotion] = MappingProxyType({emotion.name: emotion for emotion in _TABLE})

# noun or synonym -> name
ALIASES: Mapping[str, str] = MappingProxyType(
    {word: emotion.name for emotion in _TABLE for word in (emotion.noun, *emotion.synonyms)}
)

# the pairs whose cosine the paper reports
PAPER_OPPOSITES = (
    ("happy", "sad"),
    ("calm", "desperate"),
    ("loving", "hostile"),
    ("proud", "guilty"),
)

# Emotions whose voices a reader may take for each other; fixed before any text was read.
_NEAR = (
    ("happy", "blissful enthusiastic grateful hopeful loving proud"),
    ("blissful", "calm grateful loving"),
    ("enthusiastic", "hopeful proud"),
    ("grateful", "loving"),
    ("calm", "reflective"),
    ("sad", "gloomy brooding guilty desperate"),
    ("gloomy", "brooding"),
    ("brooding", "reflective angry"),
    ("angry", "hostile exasperated"),
    ("hostile", "exasperated"),
    ("afraid", "nervous anxious desperate"),
    ("anxious", "nervous desperate"),
)

_LONGEST_SHOWN = 40


def resolve(name: str) -> str:
    """Return the canonical adjective for an emotion's adjective, noun or synonym.

    Case and surrounding blanks do not matter.

    Raises:
        InputError: no such emotion; the message offers the nearest names.

    Example:
        >>> resolve("Anger")
        'angry'
    """
    if not isinstance(name, str):
        raise InputError(f"an emotion is named by a string, got {type(name).__name__}")
    word = name.strip().casefold()
    if word in EMOTIONS:
        return word
    if word in ALIASES:
        return ALIASES[word]
    raise InputError(
        f"no emotion {name[:_LONGEST_SHOWN]!r}; {_suggestion(word)} "
        f"`pyemo inspect --emotions` lists all {len(EMOTIONS)}"
    )


def opposite_of(name: str) -> str | None:
    """Return the opposite emotion's name, or None where none of the others is one.

    Raises:
        InputError: no such emotion.

    Example:
        >>> opposite_of("joy")
        'sad'
    """
    return EMOTIONS[resolve(name)].opposite


def near_neighbours(emotion: str) -> frozenset[str]:
    """Return the emotions that a reader may take for this one, without itself.

    Raises:
        InputError: no such emotion.

    Example:
        >>> sorted(near_neighbours("anger"))
        ['brooding', 'exasperated', 'hostile']
    """
    name = resolve(emotion)
    pairs = [(one, other) for one, others in _NEAR for other in others.split()]
    return frozenset(other if one == name else one for one, other in pairs if name in (one, other))


def _suggestion(word: str) -> str:
    """Return "did you mean ...?" with up to three nearest names, or all names if none is near."""
    words = [*EMOTIONS, *ALIASES]
    near = difflib.get_close_matches(word[:_LONGEST_SHOWN], words, n=3, cutoff=0.6)
    names = dict.fromkeys(ALIASES.get(match, match) for match in near)  # keeps the order
    if not names:
        return f"the names are {', '.join(EMOTIONS)}."
    return f"did you mean {' or '.join(repr(candidate) for candidate in names)}?"
