"""The yardstick of a voice: what a mood does to the likelihood of replies that were written in it.

Replies are teacher-forced on the model file that runs, so the numbers need no generation and no
judge, and are the same each time. Nats per token: 0.5 means that each token of the emotion's
replies is 1.65 times as likely as unsteered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyemo.emotions import EMOTIONS, near_neighbours, resolve
from pyemo.engine.engine import Engine
from pyemo.engine.model import Model
from pyemo.engine.sampling import SamplerParams
from pyemo.engine.steering import Steering
from pyemo.errors import ContextFullError, InputError
from pyemo.measures.bootstrap import Interval, bootstrap_interval
from pyemo.texts.replies import ReplyPrompt, reply_prompts
from pyemo.texts.sources import NEUTRAL
from pyemo.vectors.cache_vector import CacheVector

OWN_TOKENS = 48
"""Tokens of the model's own unsteered replies that a mood is not to make unlikely."""


FEW_OTHERS = ("happy", "sad", "angry", "afraid", "calm")
"""Emotions to compare with where all would take too long: of each emotion, three or more are no
near neighbours."""


@dataclass(frozen=True)
class VoiceReading:
    """What a mood does to replies, nats per token, with intervals over prompts.

    Attributes:
        emotion: the one that was meant.
        gain: rise of its own replies.
        specificity: that rise less the mean rise of emotions that are no near neighbours; None if
            not measured.
        damage: fall of plain replies; negative where they became likelier.
        own_damage: fall of the model's own unsteered greedy replies; None if not measured.
        rises: emotion or "neutral" -> mean rise, of those measured.
        n_prompts: prompts the intervals are taken over.
    """

    emotion: str
    gain: Interval
    specificity: Interval | None
    damage: Interval
    own_damage: Interval | None
    rises: Mapping[str, float]
    n_prompts: int

    def __str__(self) -> str:
        away, own = self.specificity, self.own_damage
        parts = [
            f"{self.emotion}: gain {self.gain.value:+.2f} [{self.gain.low:+.2f}, "
            f"{self.gain.high:+.2f}]",
            "" if away is None else f"specificity {away.value:+.2f}",
            f"plain replies {-self.damage.value:+.2f}",
            "" if own is None else f"own replies {-own.value:+.2f}",
        ]
        return ", ".join(filter(None, parts))

    @property
    def others(self) -> tuple[str, ...]:
        """The emotions that specificity compares with."""
        return tuple(voice for voice in self.rises if voice not in (self.emotion, NEUTRAL))

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        intervals = {
            "gain": self.gain,
            "specificity": self.specificity,
            "damage": self.damage,
            "own_damage": self.own_damage,
        }
        return {
            "emotion": self.emotion,
            **{name: None if i is None else i._asdict() for name, i in intervals.items()},
            "others": list(self.others),
            "n_prompts": self.n_prompts,
        }


class VoiceYardstick:
    """Replies with their unsteered likelihoods on one engine, which moods are held against.

    ```
    yardstick = VoiceYardstick(engine)
    print(yardstick.measure(Steering({angry: 0.02}), "angry"))
    ```

    Args:
        engine: what computes; not steered otherwise meanwhile.
        prompts: whose replies are taken; None for those of the watch split.
        others: emotions to compare with; None for all that are no near neighbours. Few are faster
            (:data:`FEW_OTHERS`), and with none there is no specificity.
        with_own: measure the model's own unsteered replies too.
    Raises:
        InputError: no prompts.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[ReplyPrompt] | None = None,
        *,
        others: Iterable[str] | None = None,
        with_own: bool = False,
    ) -> None:
        self._engine = engine
        self._prompts = tuple(reply_prompts("watch") if prompts is None else prompts)
        if not self._prompts:
            raise InputError("a voice is measured on replies; give at least one prompt")
        self._others = frozenset(EMOTIONS if others is None else map(resolve, others))
        self._given = [engine.model.answer_tokens(prompt.text) for prompt in self._prompts]
        self._unsteered: dict[str, npt.NDArray[np.float64]] = {}
        self._own: list[list[int]] | None = None
        if with_own:
            self._own = self._write()

    def n_replies(self, emotion: str) -> int:
        """Return how many replies :meth:`measure` reads for an emotion, unsteered ones not counted.

        Raises:
            InputError: no such emotion.
        """
        n_own = 0 if self._own is None else 1
        return len(self._prompts) * (2 + n_own + len(self._far(resolve(emotion))))

    def measure(
        self,
        steering: Steering,
        emotion: str,
        *,
        cache: Sequence[tuple[CacheVector, float]] = (),
        system: str | None = None,
    ) -> VoiceReading:
        """Return what ``steering`` does to replies in the voice of ``emotion`` and others.

        Args:
            cache: cache vectors with their strengths, which act on each prompt too.
            system: a system message that goes with it; unsteered there is none.
        Raises:
            InputError: no such emotion.
            ContextFullError: a reply is longer than the engine has room for (:func:`reply_room`).
        """
        name = resolve(emotion)
        far = self._far(name)
        rises = {
            voice: self._rise(voice, steering, cache, system) for voice in (name, NEUTRAL, *far)
        }
        specificity = None
        if far:
            away = np.mean([rises[voice] for voice in far], axis=0)
            specificity = bootstrap_interval(rises[name] - away)
        own = None
        if self._own is not None:
            own = bootstrap_interval(-self._rise(_OWN, steering, cache, system))
        return VoiceReading(
            emotion=name,
            gain=bootstrap_interval(rises[name]),
            specificity=specificity,
            damage=bootstrap_interval(-rises[NEUTRAL]),
            own_damage=own,
            rises={voice: float(rows.mean()) for voice, rows in rises.items()},
            n_prompts=len(self._prompts),
        )

    def _far(self, name: str) -> list[str]:
        """Return the emotions to compare an emotion with."""
        far = sorted(self._others - near_neighbours(name) - {name})
        if self._others and not far:
            raise InputError(
                f"no emotion to compare {name!r} with that is no near neighbour; name others"
            )
        return far

    def _rise(
        self,
        voice: str,
        steering: Steering,
        cache: Sequence[tuple[CacheVector, float]],
        system: str | None,
    ) -> npt.NDArray[np.float64]:
        """Return by how much each prompt's reply becomes likelier, nats per token (n_prompts,)."""
        if voice not in self._unsteered:
            self._unsteered[voice] = self._levels(voice, Steering())
        return self._levels(voice, steering, cache, system) - self._unsteered[voice]

    def _levels(
        self,
        voice: str,
        steering: Steering,
        cache: Sequence[tuple[CacheVector, float]] = (),
        system: str | None = None,
    ) -> npt.NDArray[np.float64]:
        replies: Sequence[str | list[int]]
        if voice == _OWN:
            replies = self._own or []
        else:
            replies = [prompt.replies[voice] for prompt in self._prompts]
        before = self._given
        if system is not None:
            before = [
                self._engine.model.answer_tokens(one.text, system=system) for one in self._prompts
            ]
        if cache:
            levels = []
            for reply, given in zip(replies, before, strict=True):
                words = self._engine.model.tokenize(reply) if isinstance(reply, str) else reply
                with self._engine.sequence(given, steering=steering) as sequence:
                    for vector, strength in cache:
                        sequence.edit_cache(vector, strength)
                    levels.append(float(sequence.score_next(words).mean()))
            return np.array(levels)
        scores = self._engine.score_many(list(zip(replies, before, strict=True)), steering=steering)
        return np.array([score.mean_logprob for score in scores])

    def _write(self) -> list[list[int]]:
        greedy = SamplerParams(temperature=0)
        written = []
        for given in self._given:
            reply = self._engine.generate(given, max_tokens=OWN_TOKENS, sampler=greedy)
            written.append([token.id for token in reply])
        return written


_OWN = "own"


def reply_room(
    model: Model, prompts: Sequence[ReplyPrompt] | None = None, *, system: str | None = None
) -> int:
    """Return the tokens that the longest reply with its prompt takes: what an engine must hold.

    Args:
        prompts: None for those of the watch split.
        system: a system message before each prompt.
    Raises:
        ContextFullError: more than the model reads.
    """
    chosen = reply_prompts("watch") if prompts is None else prompts
    n_tokens = max(
        len(model.answer_tokens(prompt.text, system=system))
        + max(map(len, map(model.tokenize, replies)))
        for prompt in chosen
        for replies in [prompt.replies.values()]
    )
    if n_tokens > model.n_ctx_train:
        raise ContextFullError(
            f"a reply with its prompt has {n_tokens} tokens, and {model.name} reads "
            f"{model.n_ctx_train}: its voices cannot be measured"
        )
    return n_tokens
