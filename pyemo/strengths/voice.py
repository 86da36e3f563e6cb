"""The yardstick of a voice: what a mood does to the likelihood of replies that were written in it.

Replies are teacher-forced on the model file that runs, so the numbers need no generation and no
judge, and are the same each time. Nats per token: 0.5 means that each token of the emotion's
replies is 1.65 times as likely as unsteered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from pyemo.emotions import EMOTIONS, near_neighbours, resolve
from pyemo.engine.engine import Engine
from pyemo.engine.sampling import SamplerParams
from pyemo.engine.steering import Steering
from pyemo.errors import InputError
from pyemo.measures.bootstrap import Interval, bootstrap_interval
from pyemo.texts.replies import ReplyPrompt, given_for, reply_prompts
from pyemo.texts.sources import NEUTRAL

OWN_TOKENS = 48
"""Tokens of the model's own unsteered replies that a mood is not to make unlikely."""


@dataclass(frozen=True)
class VoiceReading:
    """What a mood does to replies, nats per token, with intervals over prompts.

    Attributes:
        emotion: the one that was meant.
        gain: rise of its own replies.
        specificity: that rise less the mean rise of emotions that are no near neighbours.
        damage: fall of plain replies; negative where they became likelier.
        own_damage: fall of the model's own unsteered greedy replies; None if not measured.
        rises: emotion or "neutral" -> mean rise, of those measured.
        n_prompts: prompts the intervals are taken over.
    """

    emotion: str
    gain: Interval
    specificity: Interval
    damage: Interval
    own_damage: Interval | None
    rises: Mapping[str, float]
    n_prompts: int

    def __str__(self) -> str:
        own = "" if self.own_damage is None else f", own replies {-self.own_damage.value:+.2f}"
        return (
            f"{self.emotion}: gain {self.gain.value:+.2f} [{self.gain.low:+.2f}, "
            f"{self.gain.high:+.2f}], specificity {self.specificity.value:+.2f}, plain replies "
            f"{-self.damage.value:+.2f}{own}"
        )


class VoiceYardstick:
    """Replies with their unsteered likelihoods on one engine, which moods are held against.

    ```
    yardstick = VoiceYardstick(engine)
    print(yardstick.measure(Steering({angry: 0.02}), "angry"))
    ```

    Args:
        engine: what computes; not steered otherwise meanwhile.
        prompts: whose replies are taken; None for those of the watch split.
        others: emotions to compare with; None for all that are no near neighbours. Few are faster.
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
        self._given = [self._before(prompt.text) for prompt in self._prompts]
        self._unsteered: dict[str, npt.NDArray[np.float64]] = {}
        self._own: list[list[int]] | None = None
        if with_own:
            self._own = self._write()

    def measure(self, steering: Steering, emotion: str) -> VoiceReading:
        """Return what ``steering`` does to replies in the voice of ``emotion`` and others.

        Raises:
            InputError: no such emotion.
        """
        name = resolve(emotion)
        far = sorted(self._others - near_neighbours(name) - {name})
        if not far:
            raise InputError(
                f"no emotion to compare {name!r} with that is no near neighbour; name others"
            )
        rises = {voice: self._rise(voice, steering) for voice in (name, NEUTRAL, *far)}
        away = np.mean([rises[voice] for voice in far], axis=0)
        own = None
        if self._own is not None:
            own = bootstrap_interval(-self._rise(_OWN, steering))
        return VoiceReading(
            emotion=name,
            gain=bootstrap_interval(rises[name]),
            specificity=bootstrap_interval(rises[name] - away),
            damage=bootstrap_interval(-rises[NEUTRAL]),
            own_damage=own,
            rises=MappingProxyType({voice: float(rows.mean()) for voice, rows in rises.items()}),
            n_prompts=len(self._prompts),
        )

    def _rise(self, voice: str, steering: Steering) -> npt.NDArray[np.float64]:
        """Return by how much each prompt's reply becomes likelier, nats per token (n_prompts,)."""
        if voice not in self._unsteered:
            self._unsteered[voice] = self._levels(voice, Steering())
        return self._levels(voice, steering) - self._unsteered[voice]

    def _levels(self, voice: str, steering: Steering) -> npt.NDArray[np.float64]:
        replies: Sequence[str | list[int]]
        if voice == _OWN:
            replies = self._own or []
        else:
            replies = [prompt.replies[voice] for prompt in self._prompts]
        scores = self._engine.score_many(
            list(zip(replies, self._given, strict=True)), steering=steering
        )
        return np.array([score.mean_logprob for score in scores])

    def _before(self, prompt: str) -> list[int]:
        """Return the tokens before a reply: chat, or plain text where there is no template."""
        model = self._engine.model
        is_chat = bool(model.chat_template_sha256)
        return model.answer_tokens(given_for(prompt, is_chat=is_chat))

    def _write(self) -> list[list[int]]:
        greedy = SamplerParams(temperature=0)
        written = []
        for given in self._given:
            reply = self._engine.generate(given, max_tokens=OWN_TOKENS, sampler=greedy)
            written.append([token.id for token in reply])
        return written


_OWN = "own"
