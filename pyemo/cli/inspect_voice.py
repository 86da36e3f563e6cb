"""A vector's voice on a model: gain, specificity and damage at three strengths, also as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyemo.cli import output
from pyemo.engine.engine import Engine
from pyemo.engine.model import Model
from pyemo.engine.steering import Steering
from pyemo.errors import InputError
from pyemo.measures.bootstrap import Interval
from pyemo.strengths.trials import voice_of
from pyemo.strengths.voice import FEW_OTHERS, VoiceReading, VoiceYardstick, reply_room
from pyemo.vectors.control_vector import ControlVector, Recommended

SHARES = (1.0, 0.5, -1.0)
"""Strengths that are measured, as shares of the recommended one."""


@dataclass(frozen=True)
class MeasuredVoice:
    """What a vector does to replies at :data:`SHARES` of its strength."""

    model: str
    recommended: Recommended
    readings: tuple[VoiceReading, ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "model": self.model,
            "strength_source": self.recommended.source,
            "readings": [
                {"strength": strength, **reading.as_json()}
                for strength, reading in zip(self._strengths(), self.readings, strict=True)
            ],
        }

    def lines(self) -> list[str]:
        """Return it for people: a table, and what its numbers are."""
        first = self.readings[0]
        lines = [f"{'voice':<12} {'strength':>9}  {'gain':<20}  {'specificity':<20}  damage"]
        for strength, reading in zip(self._strengths(), self.readings, strict=True):
            away = "-" if reading.specificity is None else signed(reading.specificity)
            lines.append(
                f"{'':<12} {strength:>9.4g}  {signed(reading.gain):<20}  {away:<20}  "
                f"{signed(reading.damage)}"
            )
        return [
            *lines,
            f"{'':<12} nats per token on {first.n_prompts} replies of {first.emotion} and plain "
            f"ones; 95% interval over prompts",
            f"{'':<12} compared with {', '.join(first.others)}; strength: "
            f"{self.recommended.source}",
        ]

    def _strengths(self) -> list[float]:
        return [share * self.recommended.strength for share in SHARES]


def measure(vector: ControlVector, model: Model) -> MeasuredVoice:
    """Return what a vector does to replies at its recommended strength, half of it and minus it.

    Raises:
        InputError: the vector is of none of the 20 emotions, or has no strength to begin from.
        ContextFullError: the model reads less than a reply.
    """
    emotion = voice_of(vector)
    if emotion is None:
        raise InputError(
            f"the vector {vector.name!r} is of none of the 20 emotions that replies are written "
            "in, so its voice cannot be measured; name its file by one, or leave out --voice"
        )
    recommended = vector.recommended(model)
    room = reply_room(model)
    n_ctx = -(-room // 256) * 256
    with Engine(model, n_ctx=n_ctx) as engine:
        yardstick = VoiceYardstick(engine, others=FEW_OTHERS)
        n_replies = yardstick.n_replies(emotion)
        readings = []
        with output.progress(len(SHARES) * n_replies, "reading replies") as advance:
            for share in SHARES:
                mood = Steering({vector: share * recommended.strength})
                readings.append(yardstick.measure(mood, emotion))
                advance(n_replies)
    return MeasuredVoice(model.name, recommended, tuple(readings))


def signed(interval: Interval) -> str:
    """Return an interval in nats per token, such as ``+0.52 [+0.40, +0.63]``."""
    return f"{interval.value:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"
