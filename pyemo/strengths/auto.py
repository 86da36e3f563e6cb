"""A usable strength in seconds, without texts to read: what steering costs the model's own replies.

A few short unsteered replies are scored under rising strengths. The strongest that costs them no
more than :data:`MOST_COST` is usable; where replies in the emotion's voice exist, the usable
strength that makes them likeliest is taken (:mod:`pyemo.strengths.voice`). A first guess:
``pyemo calibrate`` reads texts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pyemo.emotions import EMOTIONS, near_neighbours
from pyemo.engine.engine import Engine
from pyemo.engine.sampling import SamplerParams
from pyemo.engine.steering import Steering
from pyemo.errors import InputError
from pyemo.strengths.trials import emotion_of
from pyemo.strengths.voice import VoiceYardstick
from pyemo.texts.replies import reply_prompts
from pyemo.vectors.control_vector import ControlVector

MOST_COST = 0.35
"""Nats per token that a usable strength may cost the model's own replies: perplexity times 1.4."""

N_PROMPTS = 3
OWN_TOKENS = 32
_STEPS = 15
_TRIED_FOR_GAIN = 4


@dataclass(frozen=True)
class AutoStrength:
    """A strength that was found, and what it was chosen by.

    Attributes:
        strength: the vector's own factor.
        cost: nats per token that it costs the model's own replies.
        gain: nats per token by which it makes the emotion's replies likelier; None without one.
        n_tried: strengths that were tried.
    """

    strength: float
    cost: float
    gain: float | None
    n_tried: int


def auto_strength(
    engine: Engine,
    vector: ControlVector,
    weakest: float,
    mood: Callable[[float], Steering] | None = None,
) -> AutoStrength:
    """Return a usable strength of ``vector``, from ``weakest`` up in steps of the square root of 2.

    Args:
        engine: not steered otherwise meanwhile; with room for a short reply.
        weakest: a strength that is too weak to be seen; above 0.
        mood: strength -> the mood that is meant; by default the vector added at all its layers.
    Raises:
        InputError: ``weakest`` is not above 0, or already costs too much.
    """
    if not weakest > 0:
        raise InputError(f"the weakest strength is {weakest}; it must be above 0")
    make = mood or (lambda strength: Steering({vector: strength}))
    pairs = _own_replies(engine)
    unsteered = _level(engine, pairs, Steering())
    costs: dict[int, float] = {}

    def cost(step: int) -> float:
        if step not in costs:
            steered = _level(engine, pairs, make(weakest * 2.0 ** (step / 2)))
            costs[step] = unsteered - steered
        return costs[step]

    low, high = -1, _STEPS  # the last usable step lies from low on, before high
    while high - low > 1:
        middle = (low + high) // 2
        if cost(middle) <= MOST_COST:
            low = middle
        else:
            high = middle
    if low < 0:
        raise InputError(
            f"the control vector {vector.name!r} costs the model's own replies {costs[0]:.2f} nats "
            f"per token at strength {weakest:.3g}, over {MOST_COST}; it is no direction of this "
            "model, or far too long"
        )
    step, gain = _best(engine, vector, make, weakest, low)
    return AutoStrength(float(f"{weakest * 2.0 ** (step / 2):.3g}"), cost(step), gain, len(costs))


def _best(
    engine: Engine,
    vector: ControlVector,
    make: Callable[[float], Steering],
    weakest: float,
    last: int,
) -> tuple[int, float | None]:
    """Return the usable step with the largest gain, and that; the last where there is no voice."""
    emotion = emotion_of(vector)
    if emotion is None or emotion not in EMOTIONS:
        return last, None
    far = next(name for name in EMOTIONS if name not in {emotion, *near_neighbours(emotion)})
    yardstick = VoiceYardstick(engine, reply_prompts("watch")[:N_PROMPTS], others=[far])
    steps = range(max(0, last - _TRIED_FOR_GAIN + 1), last + 1)
    gains = {
        step: yardstick.measure(make(weakest * 2.0 ** (step / 2)), emotion).gain.value
        for step in steps
    }
    best = max(gains, key=lambda step: gains[step])
    return best, gains[best]


def _own_replies(engine: Engine) -> list[tuple[list[int], list[int]]]:
    """Return the model's own greedy replies to a few prompts, each with what it was given."""
    greedy = SamplerParams(temperature=0, dry_multiplier=0)
    pairs = []
    for prompt in reply_prompts("watch")[:N_PROMPTS]:
        given = engine.model.prompt_tokens(prompt.text)
        reply = engine.generate(given, max_tokens=OWN_TOKENS, sampler=greedy)
        tokens = [token.id for token in reply]
        if tokens:
            pairs.append((tokens, given))
    if not pairs:
        raise InputError(f"{engine.model.name} replies with nothing, so no strength can be found")
    return pairs


def _level(engine: Engine, pairs: list[tuple[list[int], list[int]]], steering: Steering) -> float:
    scores = engine.score_many(pairs, steering=steering)
    return float(np.mean([score.mean_logprob for score in scores]))
