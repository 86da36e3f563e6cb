"""The guard on tiny models: leaves coherent text alone, goes back from bad, and says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from engines import random_vector

import pyemo.guard as guard_module
from pyemo import Chat, Engine, SamplerParams, Steering
from pyemo.errors import InputError
from pyemo.guard import REPEATED_TOKENS, Guard, GuardedReply, repeats
from pyemo.sequence import OFF

PROMPT = "the happy story"
SAMPLED = SamplerParams(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=3)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector that sees no trouble."""
    monkeypatch.setattr(guard_module, "repeats", lambda _tokens: False)
    monkeypatch.setattr(guard_module, "MAX_ENTROPY", 1e9)
    monkeypatch.setattr(guard_module, "MAX_SURPRISE", 1e9)


def trouble_after(n: int, times: int) -> Callable[[Sequence[int]], bool]:
    """Return a detector that sees trouble the first ``times`` it is shown ``n`` tokens or more."""
    left = times

    def detect(tokens: Sequence[int]) -> bool:
        nonlocal left
        if len(tokens) < n or not left:
            return False
        left -= 1
        return True

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
    monkeypatch.setattr(guard_module, "repeats", trouble_after(40, 1))
    mood = Steering({random_vector(engine.model): 0.5})
    reply = Guard(window=8).generate(engine, PROMPT, steering=mood, sampler=SAMPLED, max_tokens=80)
    shown = [next(reply) for _ in range(30)]
    assert not reply.events
    rest = list(reply)
    (event,) = [event for event in reply.events if event.trouble]
    assert (event.trouble, event.factor) == ("repetition", 0.5)
    assert event.token == 40 - 9
    assert reply.tokens == shown + rest
    assert len(reply.tokens) == 80


def test_after_going_back_the_text_is_that_of_the_lower_strength(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, never: None
) -> None:
    monkeypatch.setattr(guard_module, "repeats", trouble_after(20, 1))
    monkeypatch.setattr(guard_module, "CALM_TOKENS", 10_000)
    mood = Steering({random_vector(engine.model): 0.5})
    found = list(
        Guard(window=8).generate(engine, PROMPT, steering=mood, sampler=SAMPLED, max_tokens=40)
    )
    with engine.sequence(PROMPT, steering=mood, sampler=SAMPLED) as sequence:
        expected = [sequence.step().id for _ in range(20 - 9)]
        sequence.steering = mood * 0.5
        sequence.refresh()
        expected += [sequence.step().id for _ in range(40 - len(expected))]
    assert [token.id for token in found] == expected


def test_the_strength_rises_again_after_good_tokens(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, never: None
) -> None:
    monkeypatch.setattr(guard_module, "repeats", trouble_after(20, 1))
    monkeypatch.setattr(guard_module, "CALM_TOKENS", 12)
    mood = Steering({random_vector(engine.model): 0.5})
    reply = Guard(window=8).generate(engine, PROMPT, steering=mood, sampler=SAMPLED, max_tokens=100)
    list(reply)
    factors = [event.factor for event in reply.events]
    assert factors[0] == 0.5
    assert factors[1:] == sorted(factors[1:])
    assert factors[-1] == 1.0


def test_it_gives_up_after_its_steps_and_says_that_the_model_fails(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, never: None
) -> None:
    monkeypatch.setattr(guard_module, "repeats", trouble_after(16, 10_000))
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
    monkeypatch.setattr(guard_module, "repeats", trouble_after(16, 10_000))
    plain = list(engine.generate(PROMPT, sampler=SAMPLED, max_tokens=30))
    reply = Guard().generate(engine, PROMPT, sampler=SAMPLED, max_tokens=30)
    next(reply)
    assert not reply._held
    list(reply)
    assert reply.tokens == plain
    assert (reply.events, reply.model_fails) == ([], True)


def test_a_reply_leaves_its_sequence_the_mood_it_had(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, never: None
) -> None:
    monkeypatch.setattr(guard_module, "repeats", trouble_after(16, 1))
    mood = Steering({random_vector(engine.model): 0.5})
    with engine.sequence(PROMPT, steering=mood, sampler=SAMPLED) as sequence:
        list(Guard().reply(sequence, max_tokens=30))
        assert sequence.steering is mood


@pytest.mark.parametrize("n_shown", [4, 40])
def test_a_mood_that_is_set_after_a_reply_is_not_overwritten(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, never: None, n_shown: int
) -> None:
    monkeypatch.setattr(guard_module, "repeats", trouble_after(16, 1))
    mood = Steering({random_vector(engine.model): 0.5})
    with Chat(engine, steering=mood, sampler=SAMPLED, max_tokens=40, guard=Guard()) as chat:
        reply = chat.say(PROMPT)
        for _, _token in zip(range(n_shown), reply, strict=False):
            pass
        other = mood * 0.1
        chat.steering = other
        next(chat.say(PROMPT))
        assert chat.steering is other


def test_closing_early_takes_back_what_was_not_shown(engine: Engine) -> None:
    with engine.sequence(PROMPT, sampler=SAMPLED) as sequence:
        n = sequence.n_tokens
        with Guard().reply(sequence, max_tokens=60) as reply:
            shown = [next(reply) for _ in range(5)]
        assert sequence.n_tokens == n + len(shown)


# --- the unsteered score ---


def test_the_exact_score_is_that_of_the_unsteered_model_also_after_going_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, never: None
) -> None:
    seen: list[tuple[list[int], float]] = []
    original = GuardedReply._surprise

    def spy(self: GuardedReply, tokens: Sequence[int]) -> float:
        value = original(self, tokens)
        seen.append((list(tokens), value))
        return value

    monkeypatch.setattr(GuardedReply, "_surprise", spy)
    monkeypatch.setattr(guard_module, "repeats", trouble_after(40, 2))
    mood = Steering({random_vector(engine.model): 0.5})
    guard = Guard(mode="exact", window=16)
    list(guard.generate(engine, PROMPT, steering=mood, sampler=SAMPLED, max_tokens=70))
    prompt = engine.prompt_tokens(PROMPT)
    assert len(seen) > 4
    for tokens, value in seen:
        expected = -engine.score(tokens, given=prompt, steering=OFF).logprobs[-16:].mean()
        assert value == pytest.approx(expected, abs=1e-2)  # its KV cache is f16


# --- what counts as a repetition ---


def test_a_loop_is_seen_once_twelve_tokens_stand_twice() -> None:
    cycle = [1, 2, 3, 4, 5]
    text = list(range(100, 130)) + cycle * 4
    first = next(n for n in range(len(text) + 1) if repeats(text[:n]))
    assert first == 30 + len(cycle) + REPEATED_TOKENS


def test_a_text_without_repetition_is_none() -> None:
    assert not repeats(list(range(300)))


def test_a_narrow_vocabulary_without_a_loop_is_a_repetition() -> None:
    import random

    draw = random.Random(0)
    assert repeats([draw.choice((1, 2)) for _ in range(60)])


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
