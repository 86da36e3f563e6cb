"""The yardstick says how much likelier a mood makes replies: nothing for no mood, and signed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from engines import open_engine, random_directions
from tiny_models import TinyModel

from pyemo import ControlVector, Engine, Model, Steering
from pyemo.emotions import EMOTIONS, near_neighbours
from pyemo.errors import ContextFullError, InputError
from pyemo.strengths.voice import FEW_OTHERS, VoiceYardstick, reply_room
from pyemo.texts.replies import VOICES, ReplyPrompt

OTHERS = ("happy", "sad", "afraid")


def prompt(text: str) -> ReplyPrompt:
    replies = {name: f"the {text} dog was {name} one day" for name in VOICES}
    return ReplyPrompt(text, "note", "watch", replies)


PROMPTS = [prompt(text) for text in ("happy", "sad", "one", "a story")]


@pytest.fixture(scope="module")
def engine(tiny: Callable[[str], TinyModel]) -> Iterator[Engine]:
    with open_engine(Model.load(tiny("llama").path)) as opened:
        yield opened


@pytest.fixture(scope="module")
def vector(engine: Engine) -> ControlVector:
    rows = random_directions(engine.model, seed=3)
    return ControlVector({1: rows[1], 2: rows[2]})


def test_no_mood_gains_and_loses_nothing(engine: Engine, vector: ControlVector) -> None:
    yardstick = VoiceYardstick(engine, PROMPTS, others=OTHERS, with_own=True)
    for mood in (Steering(), Steering({vector: 0.0})):
        reading = yardstick.measure(mood, "angry")
        assert reading.gain == reading.specificity == (0, 0, 0)
        assert reading.damage == reading.own_damage == (0, 0, 0)
        assert set(reading.rises.values()) == {0.0}
        assert reading.n_prompts == len(PROMPTS)


def test_numbers_are_those_of_the_scores(engine: Engine, vector: ControlVector) -> None:
    mood = Steering({vector: 1.0})
    reading = VoiceYardstick(engine, PROMPTS, others=OTHERS).measure(mood, "angry")

    def rise(voice: str) -> float:
        pairs = [(p.replies[voice], engine.prompt_tokens(p.text)) for p in PROMPTS]
        steered, plain = engine.score_many(pairs, steering=mood), engine.score_many(pairs)
        return float(
            np.mean([s.mean_logprob - p.mean_logprob for s, p in zip(steered, plain, strict=True)])
        )

    away = np.mean([rise(voice) for voice in OTHERS])
    assert reading.gain.value == pytest.approx(rise("angry"), abs=1e-6)
    assert reading.damage.value == pytest.approx(-rise("neutral"), abs=1e-6)
    assert reading.specificity is not None
    assert reading.specificity.value == pytest.approx(rise("angry") - away, abs=1e-6)
    assert reading.others == tuple(sorted(OTHERS))
    assert reading.gain.low <= reading.gain.value <= reading.gain.high
    assert reading.own_damage is None


def test_without_others_there_is_no_specificity_and_the_rest_is_the_same(
    engine: Engine, vector: ControlVector
) -> None:
    mood = Steering({vector: 1.0})
    whole = VoiceYardstick(engine, PROMPTS, others=OTHERS).measure(mood, "angry")
    alone = VoiceYardstick(engine, PROMPTS, others=()).measure(mood, "angry")
    assert alone.specificity is None
    assert alone.others == ()
    assert (alone.gain, alone.damage) == (whole.gain, whole.damage)
    assert alone.as_json()["specificity"] is None
    assert alone.as_json()["gain"]["value"] == whole.gain.value


def test_a_system_message_goes_before_what_is_steered(
    engine: Engine, vector: ControlVector
) -> None:
    mood, line = Steering({vector: 1.0}), "you are happy"
    reading = VoiceYardstick(engine, PROMPTS, others=()).measure(mood, "angry", system=line)
    replies = [p.replies["angry"] for p in PROMPTS]
    with_line = [engine.model.prompt_tokens(p.text, system=line) for p in PROMPTS]
    without = [engine.model.prompt_tokens(p.text) for p in PROMPTS]
    steered = engine.score_many(list(zip(replies, with_line, strict=True)), steering=mood)
    plain = engine.score_many(list(zip(replies, without, strict=True)))
    rises = [s.mean_logprob - p.mean_logprob for s, p in zip(steered, plain, strict=True)]
    assert reading.gain.value == pytest.approx(np.mean(rises), abs=1e-6)


def test_few_others_leave_three_for_each_emotion(engine: Engine) -> None:
    yardstick = VoiceYardstick(engine, PROMPTS, others=FEW_OTHERS)
    assert all(yardstick.n_replies(name) >= (2 + 3) * len(PROMPTS) for name in EMOTIONS)


def test_room_is_that_of_the_longest_reply_with_its_prompt(engine: Engine) -> None:
    room = reply_room(engine.model)
    with open_engine(engine.model, n_ctx=room, n_seq_max=1) as just:
        VoiceYardstick(just, others=()).measure(Steering(), "angry")
    long = ReplyPrompt("dog", "note", "watch", dict.fromkeys(VOICES, "dog " * 600))
    with pytest.raises(ContextFullError, match="reads 512: its voices cannot be measured"):
        reply_room(engine.model, [long])


def test_the_models_own_greedy_words_lose_under_a_strong_mood(
    engine: Engine, vector: ControlVector
) -> None:
    yardstick = VoiceYardstick(engine, PROMPTS, others=OTHERS, with_own=True)
    reading = yardstick.measure(Steering({vector: 3.0}), "angry")
    assert reading.own_damage is not None
    assert reading.own_damage.value > 0.05


def test_near_neighbours_are_mutual_and_leave_some_to_compare_with() -> None:
    for name in EMOTIONS:
        near = near_neighbours(name)
        assert name not in near
        assert all(name in near_neighbours(other) for other in near)
        assert len(near) <= 8
    assert near_neighbours("fear") == {"nervous", "anxious", "desperate"}


def test_what_cannot_be_compared_is_refused(engine: Engine) -> None:
    with pytest.raises(InputError, match="at least one prompt"):
        VoiceYardstick(engine, [])
    with pytest.raises(InputError, match="no near neighbour"):
        VoiceYardstick(engine, PROMPTS, others=["hostile"]).measure(Steering(), "angry")
