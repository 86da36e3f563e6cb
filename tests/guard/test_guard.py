"""The guard on tiny models: leaves coherent text alone, goes back from bad, and says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engines import random_vector

from pyemo import Chat, Engine, SamplerParams, Steering
from pyemo.engine.mood import OFF
from pyemo.errors import ClosedError, InputError
from pyemo.guard import MAX_PENALTY, Guard, GuardMode, watch
from pyemo.guard import guard as guard_module
from pyemo.guard.watch import Trouble

PROMPT = "the happy story"
SAMPLED = SamplerParams(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=3)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector that sees no trouble."""
    monkeypatch.setattr(watch, "trouble", lambda *_seen, **_how: None)


def trouble_after(n: int, times: int, kind: Trouble = "explosion") -> Callable[..., Trouble | None]:
    """Return a detector that sees trouble the first ``times`` it is shown ``n`` tokens or more."""
    left = times

    def detect(tokens: Sequence[int], *_seen: object, **_how: object) -> Trouble | None:
        nonlocal left
        if len(tokens) < n or not left:
            return None
        left -= 1
        return kind

    return detect


# --- a guard that does not act ---


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_a_guard_that_never_acts_gives_the_very_tokens(engine: Engine, mode: str) -> None:
    mood = Steering({random_vector(engine.model): 0.5})
    settings = {"steering": mood, "sampler": SAMPLED, "max_tokens": 60}
    plain = list(engine.generate(PROMPT, **settings))
    guarded = list(Guard(mode=mode).generate(engine, PROMPT, **settings))  # type: ignore[arg-type]
    assert guarded == plain


@pytest.mark.usefixtures("never")
def test_text_is_held_back_by_the_window_and_all_shown_at_the_end(engine: Engine) -> None:
    mood = Steering({random_vector(engine.model): 0.5})
    reply = Guard(window=10).generate(engine, PROMPT, steering=mood, sampler=SAMPLED, max_tokens=30)
    next(reply)
    assert len(reply._held) == 10
    assert len(list(reply)) == 29
    assert reply.stop_reason == "length"


@pytest.mark.usefixtures("never")
def test_stop_strings_end_a_guarded_reply_as_an_unguarded_one(engine: Engine) -> None:
    plain = engine.generate(PROMPT, sampler=SAMPLED, max_tokens=40)
    text = "".join(token.text for token in plain)
    stop = text[8:12]
    expected = engine.generate(PROMPT, sampler=SAMPLED, max_tokens=40, stop=[stop])
    list(expected)
    with engine.sequence(PROMPT, sampler=SAMPLED) as sequence:
        found = Guard().reply(sequence, max_tokens=40, stop=[stop])
        list(found)
        assert (found.text, found.stop_reason) == (expected.text, "stop")
        # what was drawn beyond the stop string is not in the sequence
        n_prompt = len(engine.prompt_tokens(PROMPT))
        assert sequence.n_tokens == n_prompt + len(found.tokens)


# --- a guard that acts ---


def test_going_back_lowers_the_strength_and_what_is_shown_stays(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, never: None
) -> None:
    monkeypatch.setattr(watch, "trouble", trouble_after(40, 1))
    mood = Steering({random_vector(engine.model): 0.5})
    reply = Guard(window=8).generate(engine, PROMPT, steering=mood, sampler=SAMPLED, max_tokens=80)
    shown = [next(reply) for _ in range(30)]
    assert not reply.events
    rest = list(reply)
    (event,) = [event for event in reply.events if event.trouble]
    assert (event.trouble, event.factor) == ("explosion", 0.5)
    assert event.token == 40 - 9
    assert reply.tokens == shown + rest
    assert len(reply.tokens) == 80


def test_after_going_back_the_text_is_that_of_the_lower_strength(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, never: None
) -> None:
    monkeypatch.setattr(watch, "trouble", trouble_after(24, 1))
    monkeypatch.setattr(guard_module, "CALM_TOKENS", 10_000)
    mood = Steering({random_vector(engine.model): 0.5})
    found = list(
        Guard(window=8).generate(engine, PROMPT, steering=mood, sampler=SAMPLED, max_tokens=40)
    )
    with engine.sequence(PROMPT, steering=mood, sampler=SAMPLED) as sequence:
        expected = [sequence.step().id for _ in range(24 - 9)]
        sequence.steering = mood * 0.5
        sequence.refresh()
        expected += [sequence.step().id for _ in range(40 - len(expected))]
    assert [token.id for token in found] == expected


def test_the_strength_rises_again_after_good_tokens(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, never: None
) -> None:
    monkeypatch.setattr(watch, "trouble", trouble_after(24, 1))
    monkeypatch.setattr(guard_module, "CALM_TOKENS", 12)
    mood = Steering({random_vector(engine.model): 0.5})
    reply = Guard(window=8).generate(engine, PROMPT, steering=mood, sampler=SAMPLED, max_tokens=100)
    list(reply)
    factors = [event.factor for event in reply.events]
    assert factors[0] == 0.5
    assert factors[1:] == sorted(factors[1:])
    assert factors[-1] == guard_module.CEILING  # below what has failed


def test_it_gives_up_after_its_steps_and_says_that_the_model_fails(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, never: None
) -> None:
    monkeypatch.setattr(watch, "trouble", trouble_after(16, 10_000))
    mood = Steering({random_vector(engine.model): 0.5})
    reply = Guard(max_steps_back=3).generate(
        engine, PROMPT, steering=mood, sampler=SAMPLED, max_tokens=40
    )
    list(reply)
    assert [event.factor for event in reply.events] == [0.5, 0.25, 0.0]
    assert reply.model_fails
    assert len(reply.tokens) == 40


def test_without_a_mood_nothing_is_held_back_and_a_failing_model_is_said(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, never: None
) -> None:
    monkeypatch.setattr(watch, "trouble", trouble_after(16, 10_000))
    plain = list(engine.generate(PROMPT, sampler=SAMPLED, max_tokens=30))
    reply = Guard().generate(engine, PROMPT, sampler=SAMPLED, max_tokens=30)
    next(reply)
    assert not reply._held
    list(reply)
    assert reply.tokens == plain
    assert (reply.events, reply.model_fails) == ([], True)


def test_a_reply_is_watched_more_closely_after_a_step_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, never: None
) -> None:
    detect = trouble_after(24, 1)
    looks: list[bool] = []

    def spy(tokens: Sequence[int], *_seen: object, again: bool) -> Trouble | None:
        looks.append(again)
        return detect(tokens)

    monkeypatch.setattr(watch, "trouble", spy)
    mood = Steering({random_vector(engine.model): 0.5})
    reply = Guard().generate(engine, PROMPT, steering=mood, sampler=SAMPLED, max_tokens=48)
    list(reply)
    n_before = looks.index(True)
    assert n_before == 3  # at 8, 16 and 24 tokens
    assert all(looks[n_before:])


def test_a_reply_leaves_its_sequence_the_mood_it_had(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, never: None
) -> None:
    monkeypatch.setattr(watch, "trouble", trouble_after(16, 1))
    mood = Steering({random_vector(engine.model): 0.5})
    with engine.sequence(PROMPT, steering=mood, sampler=SAMPLED) as sequence:
        list(Guard().reply(sequence, max_tokens=30))
        assert sequence.steering is mood


@pytest.mark.parametrize("n_shown", [4, 40])
def test_a_mood_that_is_set_after_a_reply_is_not_overwritten(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, never: None, n_shown: int
) -> None:
    monkeypatch.setattr(watch, "trouble", trouble_after(16, 1))
    mood = Steering({random_vector(engine.model): 0.5})
    with Chat(engine, steering=mood, sampler=SAMPLED, max_tokens=40, guard=Guard()) as chat:
        reply = chat.say(PROMPT)
        for _, _token in zip(range(n_shown), reply, strict=False):
            pass
        other = mood * 0.1
        chat.steering = other
        next(chat.say(PROMPT))
        assert chat.steering is other


def test_a_mood_that_is_set_within_a_reply_is_the_one_that_is_guarded(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, never: None
) -> None:
    mood, other = (Steering({random_vector(engine.model): s}) for s in (0.5, 0.2))
    with engine.sequence(PROMPT, steering=mood, sampler=SAMPLED) as sequence:
        reply = Guard().reply(sequence, max_tokens=60)
        next(reply)
        sequence.steering = other
        monkeypatch.setattr(watch, "trouble", trouble_after(32, 1))
        while not reply.events:
            next(reply)
        assert sequence.steering == other * 0.5
        list(reply)
        assert sequence.steering is other


def test_the_last_step_back_turns_a_clamp_off_too(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "trouble", trouble_after(16, 1))
    mood = Steering({random_vector(engine.model): 0.5}, operator="clamp")
    with engine.sequence(PROMPT, steering=mood, sampler=SAMPLED) as sequence:
        reply = Guard(max_steps_back=1).reply(sequence, max_tokens=30)
        next(reply)
        assert reply.factor == 0.0
        assert not sequence.steering
        list(reply)
        assert sequence.steering is mood


def test_a_kept_cache_does_not_prove_that_the_model_fails(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    mood = Steering({random_vector(engine.model): 0.5})
    for refreshes in (True, False):
        monkeypatch.setattr(watch, "trouble", trouble_after(16, 10_000))
        guard = Guard(max_steps_back=2, refreshes=refreshes)
        reply = guard.generate(engine, PROMPT, steering=mood, sampler=SAMPLED, max_tokens=30)
        list(reply)
        assert reply.factor == 0.0
        assert reply.model_fails is refreshes


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_a_guarded_reply_that_finds_no_cells_ends_with_the_context_as_an_unguarded_one(
    tiny_model_path: Path, strength: float
) -> None:
    with Engine(tiny_model_path, n_ctx=256, n_seq_max=2) as engine:
        mood = Steering({random_vector(engine.model): 0.5}) if strength else OFF
        prompt = engine.prompt_tokens(PROMPT)
        with engine.sequence((prompt * 240)[:240]) as other:
            other.step()
            settings: dict[str, Any] = {"steering": mood, "sampler": SAMPLED, "max_tokens": 50}
            plain = engine.generate(prompt[:3], **settings)
            expected = list(plain)
            reply = Guard().generate(engine, prompt[:3], **settings)
            list(reply)
            assert plain.stop_reason == reply.stop_reason == "context"
            assert [t.id for t in reply.tokens] == [t.id for t in expected]
            assert reply.text == plain.text


def test_what_comes_after_a_stop_string_is_not_watched(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, never: None
) -> None:
    mood = Steering({random_vector(engine.model): 0.5})
    settings: dict[str, Any] = {"steering": mood, "sampler": SAMPLED, "max_tokens": 40}
    text = engine.generate_many([PROMPT], **settings)[0].text
    settings["stop"] = [text[12:18]]
    (plain,) = engine.generate_many([PROMPT], **settings)
    monkeypatch.setattr(watch, "trouble", trouble_after(len(plain.tokens) + 1, 10_000))
    reply = Guard().generate(engine, PROMPT, **settings)
    list(reply)
    assert (reply.text, reply.stop_reason, reply.events) == (plain.text, "stop", [])


def test_a_guarded_reply_that_was_closed_says_so(engine: Engine) -> None:
    mood = Steering({random_vector(engine.model): 0.5})
    reply = Guard().generate(engine, PROMPT, steering=mood, sampler=SAMPLED, max_tokens=17)
    next(reply)
    reply.close()
    with pytest.raises(ClosedError, match="the guarded reply is closed"):
        next(reply)


def test_a_guarded_reply_follows_the_machines_load(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(Engine, "follow_load", lambda *_a, **_k: asked.append(True))
    list(Guard().generate(engine, PROMPT, sampler=SAMPLED, max_tokens=4))
    assert asked


def test_closing_early_takes_back_what_was_not_shown(engine: Engine) -> None:
    with engine.sequence(PROMPT, sampler=SAMPLED) as sequence:
        n = sequence.n_tokens
        with Guard().reply(sequence, max_tokens=60) as reply:
            shown = [next(reply) for _ in range(5)]
        assert sequence.n_tokens == n + len(shown)


# --- the unsteered score ---


def test_the_exact_surprises_are_those_of_the_unsteered_model_also_after_going_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[int], list[float]]] = []
    detect = trouble_after(40, 2)

    def spy(
        tokens: list[int], entropies: list[float], surprises: list[float], **_how: object
    ) -> Trouble | None:
        seen.append((list(tokens), list(surprises)))
        return detect(tokens)

    monkeypatch.setattr(watch, "trouble", spy)
    mood = Steering({random_vector(engine.model): 0.5})
    guard = Guard(mode="exact", window=16)
    list(guard.generate(engine, PROMPT, steering=mood, sampler=SAMPLED, max_tokens=70))
    prompt = engine.prompt_tokens(PROMPT)
    assert len(seen) > 4
    for tokens, surprises in seen:
        expected = -engine.score(tokens, given=prompt, steering=OFF).logprobs
        assert surprises == pytest.approx(expected, abs=5e-2)  # its KV cache is f16


# --- many side by side ---

PROMPTS = [PROMPT, "a dog", "what did the old man say", "the end"]


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_many_replies_that_are_left_alone_are_the_unguarded_ones(
    tiny_model_path: Path, mode: GuardMode
) -> None:
    with Engine(tiny_model_path, n_ctx=512, n_seq_max=3) as engine:  # so a second batch is needed
        settings = {
            "steering": Steering({random_vector(engine.model): 0.5}),
            "sampler": SAMPLED,
            "max_tokens": 40,
        }
        plain = engine.generate_many(PROMPTS, fixed_shape=False, **settings)
        guarded = Guard(mode=mode).generate_many(engine, PROMPTS, **settings)
        assert [reply.tokens for reply in guarded] == [reply.tokens for reply in plain]
        assert [reply.stop_reason for reply in guarded] == [r.stop_reason for r in plain]
        assert engine.native.n_free_sequences == 3


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_each_of_many_replies_goes_back_by_itself(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch, mode: GuardMode
) -> None:
    first: list[list[int]] = []

    def detect(tokens: list[int], *_seen: object, **_how: object) -> Trouble | None:
        if len(tokens) >= 24 and tokens[:4] not in first:
            first.append(tokens[:4])
            return "explosion"
        return None

    monkeypatch.setattr(watch, "trouble", detect)
    with Engine(tiny_model_path, n_ctx=512, n_seq_max=3) as engine:
        mood = Steering({random_vector(engine.model): 0.5})
        replies = Guard(mode=mode).generate_many(
            engine, PROMPTS, steering=mood, sampler=SAMPLED, max_tokens=40
        )
    for reply in replies:
        assert [(event.token, event.factor) for event in reply.events] == [(24 - 17, 0.5)]
        assert len(reply.tokens) == 40


# --- a repetition ---


def test_a_step_back_from_a_repetition_makes_repeating_harder_until_the_reply_ends(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "trouble", trouble_after(24, 4, "repetition"))
    mood = Steering({random_vector(engine.model): 0.5})
    with engine.sequence(PROMPT, steering=mood, sampler=SAMPLED) as sequence:
        reply = Guard().reply(sequence, max_tokens=60)
        list(reply)
        penalties = [event.repeat_penalty for event in reply.events if event.trouble]
        assert penalties == pytest.approx([1.1, MAX_PENALTY, MAX_PENALTY, MAX_PENALTY])
        assert sequence.sampler is SAMPLED


def test_a_penalty_that_is_higher_already_stays(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "trouble", trouble_after(24, 1, "repetition"))
    mood = Steering({random_vector(engine.model): 0.5})
    sampler = replace(SAMPLED, repeat_penalty=1.5)
    reply = Guard().generate(engine, PROMPT, steering=mood, sampler=sampler, max_tokens=40)
    list(reply)
    assert [event.repeat_penalty for event in reply.events if event.trouble] == [1.5]


# --- bad input ---


@pytest.mark.parametrize(
    "settings",
    [{"mode": "slow"}, {"window": 4}, {"window": 2.5}, {"max_steps_back": 0}],
)
def test_a_guard_outside_its_range_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"must be|unknown"):
        Guard(**settings)  # type: ignore[arg-type]


def test_a_guarded_reply_of_no_tokens_is_refused(engine: Engine) -> None:
    with pytest.raises(InputError, match="max_tokens"):
        Guard().generate(engine, PROMPT, max_tokens=0)
