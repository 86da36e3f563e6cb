"""Going back, sideways and on gives what a fresh computation gives.

Bit by bit where the batches have the same shapes; else within float32's rounding, which depends on
the number of rows computed together and on where in the cache a token's keys lie.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from engines import (
    WITH_WINDOW,
    Array,
    error,
    forced,
    logits_after,
    logits_after_each,
    open_engine,
    random_vector,
    tolerance,
)
from tiny_layouts import SLIDING_WINDOW
from tiny_models import ARCHITECTURES, TinyModel

from pyemo import Engine, HalfLife, SamplerParams, Sequence, Steering
from pyemo.errors import (
    ClosedError,
    ContextFullError,
    DecodeAbortedError,
    InputError,
    SequenceLimitError,
)

N_PROMPT = 2 * SLIDING_WINDOW + 5
GREEDY = SamplerParams(temperature=0)

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
every_window = pytest.mark.parametrize("architecture", WITH_WINDOW)


@pytest.fixture
def architecture() -> str:
    return "llama"


@pytest.fixture
def engine(new_engine: Callable[..., Engine], architecture: str) -> Engine:
    return new_engine(architecture)


@pytest.fixture
def fresh(new_engine: Callable[..., Engine], architecture: str) -> Engine:
    """A second engine, where nothing was computed before."""
    return new_engine(architecture)


@pytest.fixture
def tokens(tiny: Callable[[str], TinyModel], architecture: str) -> list[int]:
    """Enough for the window to have moved on twice."""
    return tiny(architecture).random_tokens(N_PROMPT + 40)


@pytest.fixture
def one(engine: Engine) -> Steering:
    return Steering({random_vector(engine.model, seed=1): 1.0})


@pytest.fixture
def two(engine: Engine) -> Steering:
    return Steering({random_vector(engine.model, seed=2): -1.0})


def prefilled(engine: Engine, tokens: list[int], steering: Steering = Steering()) -> Sequence:  # noqa: B008
    sequence = engine.sequence(tokens, steering=steering)
    sequence.logits()
    return sequence


def assert_same(found: Array | list[Array], expected: Array | list[Array]) -> None:
    np.testing.assert_array_equal(found, expected)


@pytest.fixture
def assert_close(architecture: str) -> Callable[..., None]:
    """Equal but for float32's rounding, and what ggml's table of halves makes of it."""

    def assert_close(found: Array | list[Array], expected: Array | list[Array]) -> None:
        assert error(np.asarray(found), np.asarray(expected)) <= tolerance(architecture)

    return assert_close


# --- chunks ---


@every_architecture
@pytest.mark.parametrize("n_batch", [5, 32])
def test_prefill_in_chunks_is_prefill_in_one(
    new_engine: Callable[..., Engine],
    fresh: Engine,
    architecture: str,
    tokens: list[int],
    one: Steering,
    n_batch: int,
    assert_close: Callable[..., None],
) -> None:
    chunked = new_engine(architecture, n_batch=n_batch)
    assert_close(logits_after(chunked, tokens, one), logits_after(fresh, tokens, one))


@every_architecture
def test_prefill_is_decoding_one_by_one(
    engine: Engine, tokens: list[int], one: Steering, assert_close: Callable[..., None]
) -> None:
    assert_close(
        logits_after(engine, tokens, one), logits_after_each(engine, tokens, one, n_prompt=1)[-1]
    )


def test_logits_are_a_copy_that_later_decodes_leave_alone(
    engine: Engine, tokens: list[int]
) -> None:
    sequence = prefilled(engine, tokens[:9])
    logits = sequence.logits()
    kept = logits.copy()
    forced(sequence, tokens[9:12])
    assert_same(logits, kept)


def test_logits_of_a_sequence_survive_the_decodes_of_others(
    engine: Engine, tokens: list[int]
) -> None:
    sequence = prefilled(engine, tokens[:9])
    before = sequence.logits()
    prefilled(engine, tokens[9:30])
    assert_same(sequence.logits(), before)


# --- fork ---


@every_architecture
def test_fork_goes_on_as_a_fresh_sequence_would(
    engine: Engine, fresh: Engine, tokens: list[int], one: Steering
) -> None:
    twin = prefilled(engine, tokens[:N_PROMPT], one).fork()
    found = forced(twin, tokens[N_PROMPT:])
    assert_same(found, forced(prefilled(fresh, tokens[:N_PROMPT], one), tokens[N_PROMPT:]))


@every_architecture
def test_fork_goes_on_as_a_fresh_sequence_would_beside_its_parent(
    engine: Engine,
    fresh: Engine,
    tokens: list[int],
    one: Steering,
    two: Steering,
    assert_close: Callable[..., None],
) -> None:
    parent = prefilled(engine, tokens[:N_PROMPT], one)
    twin = parent.fork()
    parent.steering = two
    forced(parent, tokens[:20])
    found = forced(twin, tokens[N_PROMPT:])
    assert_close(found, forced(prefilled(fresh, tokens[:N_PROMPT], one), tokens[N_PROMPT:]))


@every_architecture
def test_fork_leaves_its_parent_as_it_was(
    engine: Engine,
    fresh: Engine,
    tokens: list[int],
    one: Steering,
    two: Steering,
    assert_close: Callable[..., None],
) -> None:
    parent = prefilled(engine, tokens[:N_PROMPT], one)
    twin = parent.fork()
    twin.steering = two
    forced(twin, tokens[:20])
    twin.close()
    found = forced(parent, tokens[N_PROMPT:])
    assert_close(found, forced(prefilled(fresh, tokens[:N_PROMPT], one), tokens[N_PROMPT:]))


def test_fork_outlives_its_parent(
    engine: Engine,
    fresh: Engine,
    tokens: list[int],
    one: Steering,
    assert_close: Callable[..., None],
) -> None:
    parent = prefilled(engine, tokens[:N_PROMPT], one)
    twin = parent.fork()
    parent.close()
    found = forced(twin, tokens[N_PROMPT:])
    assert_close(found, forced(prefilled(fresh, tokens[:N_PROMPT], one), tokens[N_PROMPT:]))


def test_fork_has_the_logits_of_its_parent(engine: Engine, tokens: list[int]) -> None:
    parent = prefilled(engine, tokens)
    expected = parent.logits()
    twin = parent.fork()
    forced(parent, tokens[:1])
    assert_same(twin.logits(), expected)


def test_fork_of_what_is_not_decoded_yet_is_decoded_under_its_own_mood(
    engine: Engine, fresh: Engine, tokens: list[int], one: Steering, two: Steering
) -> None:
    parent = engine.sequence(tokens, steering=one)
    twin = parent.fork()
    twin.steering = two
    assert_same(twin.logits(), logits_after(fresh, tokens, two))


def test_fork_costs_no_cells(new_engine: Callable[..., Engine], tokens: list[int]) -> None:
    engine = new_engine(n_ctx=256, n_seq_max=8)
    parent = prefilled(engine, tokens[:60] * 3)
    twins = [parent.fork() for _ in range(7)]
    engine.native.forward([twin.id for twin in twins])
    for twin in twins:
        forced(twin, tokens[:9])
    assert [twin.n_tokens for twin in twins] == [189] * 7


# --- rollback ---


@every_architecture
@pytest.mark.parametrize("n_back", [1, 7, 25])
def test_tokens_taken_back_and_given_again_have_the_same_logits(
    engine: Engine, tokens: list[int], one: Steering, n_back: int
) -> None:
    sequence = prefilled(engine, tokens[:N_PROMPT], one)
    before = forced(sequence, tokens[N_PROMPT : N_PROMPT + 30])
    sequence.rollback(n_back)
    sequence.logits()
    again = forced(sequence, tokens[N_PROMPT + 30 - n_back : N_PROMPT + 30])
    assert_same(again, before[-n_back:])


@every_architecture
@pytest.mark.parametrize("n_back", [1, 7, 25])
def test_sequence_taken_back_goes_on_as_a_fresh_one_would(
    engine: Engine, fresh: Engine, tokens: list[int], one: Steering, n_back: int
) -> None:
    kept = tokens[: N_PROMPT + 30 - n_back]
    sequence = prefilled(engine, tokens[:N_PROMPT], one)
    forced(sequence, tokens[N_PROMPT : N_PROMPT + 30])
    sequence.rollback(n_back)
    found = [sequence.logits(), *forced(sequence, tokens[:9])]
    expected = logits_after_each(fresh, kept + tokens[:9], one, n_prompt=N_PROMPT)
    assert_same(found, expected[len(kept) - N_PROMPT :])


@every_architecture
@pytest.mark.parametrize("n_kept", [1, 12, N_PROMPT - 1])
def test_sequence_taken_back_into_its_prompt_goes_on_as_a_fresh_one_would(
    engine: Engine,
    fresh: Engine,
    tokens: list[int],
    one: Steering,
    n_kept: int,
    assert_close: Callable[..., None],
) -> None:
    sequence = prefilled(engine, tokens[:N_PROMPT], one)
    forced(sequence, tokens[N_PROMPT:])
    sequence.rollback(len(tokens) - n_kept)
    found = [sequence.logits(), *forced(sequence, tokens[:9])]
    expected = logits_after_each(fresh, tokens[:n_kept] + tokens[:9], one, n_prompt=n_kept)
    assert_close(found, expected)


def test_rollback_keeps_the_moods_the_tokens_were_decoded_under(
    engine: Engine, fresh: Engine, tokens: list[int], one: Steering, two: Steering
) -> None:
    def first_twenty(engine: Engine) -> Sequence:
        sequence = prefilled(engine, tokens[:10], one)
        forced(sequence, tokens[10:15])
        sequence.steering = two
        forced(sequence, tokens[15:20])
        return sequence

    sequence = first_twenty(engine)
    forced(sequence, tokens[30:])
    sequence.rollback(len(tokens[30:]))
    found = [sequence.logits(), *forced(sequence, tokens[20:25])]
    expected = first_twenty(fresh)
    assert_same(found, [expected.logits(), *forced(expected, tokens[20:25])])


@pytest.mark.parametrize("n_kept", [14, 15, 16])
def test_rollback_to_where_the_mood_changed_keeps_both_sides_moods(
    engine: Engine, fresh: Engine, tokens: list[int], one: Steering, two: Steering, n_kept: int
) -> None:
    sequence = prefilled(engine, tokens[:10], one)
    forced(sequence, tokens[10:15])
    sequence.steering = two
    forced(sequence, tokens[15:20])
    sequence.rollback(20 - n_kept)
    found = [sequence.logits(), *forced(sequence, tokens[20:25])]

    expected = prefilled(fresh, tokens[:10], one)
    forced(expected, tokens[10 : min(n_kept, 15)])
    expected.steering = two
    forced(expected, tokens[15:n_kept])
    assert_same(found, [expected.logits(), *forced(expected, tokens[20:25])])


def test_mood_assigned_after_a_rollback_leaves_the_tokens_that_stay_alone(
    engine: Engine, tokens: list[int], one: Steering, two: Steering
) -> None:
    sequence = prefilled(engine, tokens[:10], one)
    kept = forced(sequence, tokens[10:15])[-1]
    forced(sequence, tokens[15:20])
    sequence.rollback(5)
    sequence.steering = two
    assert_same(sequence.logits(), kept)


def test_mood_assigned_after_taking_nothing_back_acts_on_what_is_not_decoded_yet(
    engine: Engine, tokens: list[int], one: Steering
) -> None:
    with engine.sequence(tokens) as sequence:
        sequence.rollback(0)
        sequence.steering = one
        found = sequence.logits()
    assert_same(found, logits_after(engine, tokens, one))


def test_mood_assigned_after_a_rollback_acts_on_what_was_never_decoded(
    engine: Engine, tokens: list[int], one: Steering
) -> None:
    with engine.sequence(tokens) as sequence:
        sequence.rollback(30)
        sequence.steering = one
        found = sequence.logits()
    assert_same(found, logits_after(engine, tokens[:-30], one))


def test_scheduled_reply_taken_back_goes_on_as_a_fresh_one_would(
    engine: Engine, fresh: Engine, tokens: list[int], one: Steering
) -> None:
    mood = Steering({one.terms[0].vector: 1.0}, schedule=HalfLife(3))
    sequence = prefilled(engine, tokens[:10], mood)
    forced(sequence, tokens[10:20], is_reply=True)
    sequence.rollback(6)
    found = [sequence.logits(), *forced(sequence, tokens[30:35], is_reply=True)]
    expected = prefilled(fresh, tokens[:10], mood)
    forced(expected, tokens[10:14], is_reply=True)
    assert_same(found, [expected.logits(), *forced(expected, tokens[30:35], is_reply=True)])


def test_fork_of_a_sequence_taken_back_goes_on_as_a_fresh_one_would(
    engine: Engine,
    fresh: Engine,
    tokens: list[int],
    one: Steering,
    assert_close: Callable[..., None],
) -> None:
    sequence = prefilled(engine, tokens[:10], one)
    forced(sequence, tokens[10:20])
    sequence.rollback(5)
    found = forced(sequence.fork(), tokens[20:25])
    expected = prefilled(fresh, tokens[:10], one)
    forced(expected, tokens[10:15])
    assert_close(found, forced(expected, tokens[20:25]))


def test_rollback_of_a_fork_leaves_its_parent_as_it_was(
    engine: Engine, fresh: Engine, tokens: list[int], assert_close: Callable[..., None]
) -> None:
    parent = prefilled(engine, tokens[:N_PROMPT])
    twin = parent.fork()
    twin.rollback(N_PROMPT - 3)
    forced(twin, tokens[:20])
    found = forced(parent, tokens[N_PROMPT:])
    assert_close(found, forced(prefilled(fresh, tokens[:N_PROMPT]), tokens[N_PROMPT:]))


@every_window
def test_rollback_where_another_sequence_took_the_windows_cells_is_a_fresh_computation(
    engine: Engine, fresh: Engine, tokens: list[int], assert_close: Callable[..., None]
) -> None:
    # Cells behind the window are free for all: a short sequence in front, once closed, makes
    # llama.cpp search from there and write over the long one's.
    front = prefilled(engine, tokens[:1])
    block = prefilled(engine, tokens[:80] * 2)
    sequence = prefilled(engine, tokens[:10])
    block.close()
    forced(sequence, tokens[10:90])
    front.close()
    forced(sequence, tokens[90:])
    sequence.rollback(len(tokens) - 60)
    found = [sequence.logits(), *forced(sequence, tokens[:9])]
    assert_close(found, logits_after_each(fresh, tokens[:60] + tokens[:9], n_prompt=60))


@every_window
def test_rollback_beside_a_fork_where_the_windows_cells_were_taken_is_a_fresh_computation(
    engine: Engine, fresh: Engine, tokens: list[int], assert_close: Callable[..., None]
) -> None:
    block = prefilled(engine, tokens[:40])
    sequence = prefilled(engine, tokens[:10])
    twin = sequence.fork()  # cells of two sequences are never written over
    forced(sequence, tokens[10:90])
    block.close()
    forced(sequence, tokens[90:])
    forced(twin, tokens[:60])
    sequence.rollback(len(tokens) - 60)
    found = [sequence.logits(), *forced(sequence, tokens[:9])]
    assert_close(found, logits_after_each(fresh, tokens[:60] + tokens[:9], n_prompt=60))


def test_sequence_taken_back_to_nothing_begins_anew(
    engine: Engine, tokens: list[int], one: Steering
) -> None:
    with engine.sequence(tokens[:20], steering=one) as sequence:
        sequence.logits()
        sequence.rollback(20)
        sequence.append(tokens[20:])
        found = sequence.logits()
    assert_same(found, logits_after(engine, tokens[20:], one))


def test_sequence_taken_back_to_nothing_predicts_nothing(engine: Engine, tokens: list[int]) -> None:
    sequence = prefilled(engine, tokens)
    sequence.rollback(len(tokens))
    with pytest.raises(InputError, match="an empty sequence predicts nothing"):
        sequence.logits()


@pytest.mark.parametrize("n_back", [-1, 11])
def test_rollback_of_more_than_there_is_is_refused(
    engine: Engine, tokens: list[int], n_back: int
) -> None:
    with pytest.raises(InputError, match=f"cannot take {n_back} tokens off a sequence of 10"):
        engine.sequence(tokens[:10]).rollback(n_back)


# --- refresh ---


@every_architecture
def test_refreshed_sequence_is_a_fresh_one_under_the_mood_of_now(
    engine: Engine, tokens: list[int], one: Steering, two: Steering
) -> None:
    with engine.sequence(tokens, steering=one) as sequence:
        sequence.logits()
        sequence.steering = two
        sequence.refresh()
        found = sequence.logits()
    assert_same(found, logits_after(engine, tokens, two))


def test_refresh_knows_the_scope_of_prompt_and_reply(
    engine: Engine, tokens: list[int], one: Steering
) -> None:
    mood = Steering({one.terms[0].vector: 1.0}, scope="reply")

    def begun(steering: Steering) -> Sequence:
        sequence = engine.sequence(tokens[:10], steering=steering)
        sequence.append(tokens[10:20], is_reply=True)
        sequence.append(tokens[20:])
        return sequence

    with begun(Steering()) as sequence:
        sequence.logits()
        sequence.steering = mood
        sequence.refresh()
        found = sequence.logits()
    with begun(mood) as expected:
        assert_same(found, expected.logits())


def test_refresh_forgets_that_tokens_were_kept(
    engine: Engine, tokens: list[int], one: Steering
) -> None:
    with engine.sequence(tokens) as sequence:
        sequence.logits()
        sequence.rollback(10)
        sequence.refresh()
        sequence.steering = one
        found = sequence.logits()
    assert_same(found, logits_after(engine, tokens[:-10], one))


def test_refreshed_schedule_begins_where_the_reply_began(
    engine: Engine, tokens: list[int], one: Steering
) -> None:
    mood = Steering({one.terms[0].vector: 1.0}, schedule=HalfLife(3))
    with engine.sequence(tokens[:10]) as sequence:
        sequence.logits()
        forced(sequence, tokens[10:20], is_reply=True)
        sequence.steering = mood
        sequence.refresh()
        found = sequence.logits()
    with engine.sequence(tokens[:10], steering=mood) as sequence:
        sequence.append(tokens[10:20], is_reply=True)
        expected = sequence.logits()
    assert_same(found, expected)


# --- room ---


def test_more_sequences_than_there_is_room_for_are_refused(
    engine: Engine, tokens: list[int]
) -> None:
    opened = [engine.sequence(tokens[:3]) for _ in range(4)]
    with pytest.raises(SequenceLimitError, match="all 4 sequences are in use; close one"):
        engine.sequence(tokens[:3])
    assert len(opened) == 4


def test_fork_without_room_is_refused(engine: Engine, tokens: list[int]) -> None:
    opened = [engine.sequence(tokens[:3]) for _ in range(4)]
    with pytest.raises(SequenceLimitError, match="all 4 sequences are in use"):
        opened[0].fork()


def test_closed_sequence_makes_room(engine: Engine, tokens: list[int]) -> None:
    opened = [engine.sequence(tokens[:3]) for _ in range(4)]
    opened[1].close()
    assert engine.sequence(tokens[:3]).n_tokens == 3


def test_dropped_sequence_makes_room(new_engine: Callable[..., Engine], tokens: list[int]) -> None:
    engine = new_engine(n_seq_max=1)
    engine.sequence(tokens[:3])
    assert engine.sequence(tokens[:3]).n_tokens == 3


def test_closed_sequence_leaves_nothing_behind(engine: Engine, tokens: list[int]) -> None:
    before = logits_after(engine, tokens)
    for _ in range(3):
        prefilled(engine, tokens[::-1]).close()
    assert_same(logits_after(engine, tokens), before)


def test_closed_sequence_is_refused_by_name(engine: Engine, tokens: list[int]) -> None:
    sequence = engine.sequence(tokens)
    sequence.close()
    with pytest.raises(ClosedError, match="the sequence is closed"):
        sequence.logits()


def test_prompt_longer_than_the_context_is_refused(
    new_engine: Callable[..., Engine], tokens: list[int]
) -> None:
    engine = new_engine(n_ctx=16)
    with pytest.raises(ContextFullError, match="17 tokens, but a sequence holds at most 16"):
        engine.sequence(tokens[:17])


def test_refused_prompt_leaves_no_sequence_behind(
    new_engine: Callable[..., Engine], tokens: list[int]
) -> None:
    engine = new_engine(n_ctx=16, n_seq_max=1)
    with pytest.raises(ContextFullError):
        engine.sequence(tokens[:17])
    assert engine.sequence(tokens[:16]).logits().shape == (engine.model.n_vocab,)


def test_full_sequence_refuses_a_step_and_stays_as_it_was(
    new_engine: Callable[..., Engine], tokens: list[int]
) -> None:
    engine = new_engine(n_ctx=16)
    sequence = prefilled(engine, tokens[:16])
    with pytest.raises(ContextFullError, match="fills the context of 16 tokens; roll it back"):
        sequence.step()
    assert sequence.tokens == tokens[:16]


def test_cells_that_run_out_are_named_and_the_tokens_stay_pending(
    new_engine: Callable[..., Engine], tokens: list[int], assert_close: Callable[..., None]
) -> None:
    engine = new_engine(n_ctx=256, n_seq_max=3)  # llama.cpp rounds smaller caches up to this
    first, second = prefilled(engine, tokens[:100]), prefilled(engine, tokens[:100])
    third = engine.sequence(tokens[:100])
    with pytest.raises(ContextFullError, match="n_ctx = 256 cells has 56 left, and 100 more"):
        third.logits()
    first.close()
    assert_close(third.logits(), second.logits())


def test_reply_that_finds_no_cells_ends_with_the_context(
    new_engine: Callable[..., Engine], tokens: list[int]
) -> None:
    engine = new_engine(n_ctx=256, n_seq_max=2)
    held = prefilled(engine, (tokens * 3)[:240])
    reply = engine.generate(tokens[:10], sampler=GREEDY, max_tokens=50)
    assert (len(list(reply)), reply.stop_reason, held.n_tokens) == (7, "context", 240)


# --- too strong ---


@pytest.fixture
def far(one: Steering) -> Steering:
    """Adds what float32 cannot hold."""
    return Steering({one.terms[0].vector: 1e6}, schedule=lambda t: 1e32)


def test_steering_too_strong_for_float32_is_named(
    engine: Engine, tokens: list[int], far: Steering
) -> None:
    with pytest.raises(
        DecodeAbortedError, match="far too strong: it takes the output of block 0 at position 0"
    ):
        engine.sequence(tokens, steering=far).step()


def test_sequence_steered_too_strongly_stays_as_it_was(
    engine: Engine, tokens: list[int], far: Steering
) -> None:
    sequence = prefilled(engine, tokens[:30])
    sequence.steering = far
    sequence.append(tokens[30:])
    with pytest.raises(DecodeAbortedError):
        sequence.step()
    sequence.steering = Steering()
    assert_same(sequence.logits(), logits_after_tail(engine, tokens, 30))


def logits_after_tail(engine: Engine, tokens: list[int], n_prompt: int) -> Array:
    engine = open_engine(engine.model)
    with engine, engine.sequence(tokens[:n_prompt]) as sequence:
        sequence.logits()
        sequence.append(tokens[n_prompt:])
        return sequence.logits()


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("n_tokens", [10, 90])  # from 64 rows on llama.cpp takes another kernel
def test_sequence_steered_too_strongly_leaves_the_others_alone(
    new_engine: Callable[..., Engine],
    tokens: list[int],
    far: Steering,
    kv_type: str,
    n_tokens: int,
) -> None:
    engine = new_engine(kv_type=kv_type)
    expected = logits_after(engine, tokens[:n_tokens])
    with engine.sequence(tokens, steering=far) as sequence:
        with pytest.raises(DecodeAbortedError):
            sequence.logits()
        sequence.steering = Steering()
    assert_same(logits_after(engine, tokens[:n_tokens]), expected)
