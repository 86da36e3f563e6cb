"""The decode loop, on tiny models: when rows end, which share a batch, what callbacks may do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from engines import PROMPT, open_engine
from tiny_models import TinyModel

from pyemo import Engine, Model, SamplerParams
from pyemo.engine import rows as loop
from pyemo.engine.row import ReplyLimits, Row
from pyemo.engine.rows import groups, run, turn
from pyemo.errors import ContextFullError

N = 12
LIMITS = ReplyLimits(N)


@pytest.fixture(scope="module")
def model(tiny: Callable[[str], TinyModel]) -> Model:
    return Model.load(tiny("llama").path)


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    with open_engine(model, n_seq_max=4, kv_unified=False) as opened:
        yield opened


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sequences each turn of the test decoded."""
    seen: list[int] = []
    step_many = loop.step_many

    def step(sequences, **settings):  # type: ignore[no-untyped-def]
        seen.append(len(sequences))
        return step_many(sequences, **settings)

    monkeypatch.setattr(loop, "step_many", step)
    return seen


def row(engine: Engine, max_tokens: int = N, seed: int = 0, **settings: list[str]) -> Row:
    sampler = SamplerParams(temperature=0.9, seed=seed)
    limits = ReplyLimits(max_tokens, **settings)
    return Row(engine.sequence(PROMPT, raw=True, sampler=sampler), limits)


def ids(written: Row) -> list[int]:
    return [result.token for result in written.drawn]


def text(written: Row) -> bytes:
    return b"".join(result.piece for result in written.drawn)


def test_rows_that_ended_leave_the_batch(engine: Engine, shapes: list[int]) -> None:
    run([row(engine, 2), row(engine, 5), row(engine, 3)])
    assert shapes == [3, 3, 2, 1, 1]


def test_kept_rows_and_idle_sequences_keep_the_batch_its_shape(
    engine: Engine, shapes: list[int]
) -> None:
    short, long = row(engine, 2), row(engine, 5)
    run([short, long], keeps_ended=True, idle=[engine.sequence(PROMPT, raw=True)])
    assert shapes == [3] * 5
    assert [len(short.drawn), len(long.drawn)] == [2, 5]


def test_rows_are_admitted_between_turns_and_written_to_their_end(
    engine: Engine, shapes: list[int]
) -> None:
    waiting = [3, 2, 2]
    written: list[Row] = []

    def admit(going: list[Row]) -> Iterator[Row]:
        if waiting and len(going) < 2:
            written.append(row(engine, waiting.pop(0)))
            yield written[-1]

    run([], admit=admit)
    assert [len(one.drawn) for one in written] == [3, 2, 2]
    assert shapes == [1, 2, 2, 1, 1]


def test_logits_are_known_before_the_token_is_drawn_from_them(engine: Engine) -> None:
    likely: list[int] = []
    greedy = Row(engine.sequence(PROMPT, raw=True, sampler=SamplerParams(temperature=0)), LIMITS)
    run([greedy], before_draw=lambda one: likely.append(int(one.sequence.logits().argmax())))
    assert likely == ids(greedy)


def test_tokens_taken_back_are_drawn_again_the_same(engine: Engine) -> None:
    plain, taken = row(engine, seed=7), row(engine, seed=7)
    run([plain])
    n_taken = []

    def take_back_once(one: Row) -> None:
        if len(one.drawn) == 9 and not n_taken:
            n_taken.append(5)
            one.take_back(5)

    run([taken], on_token=take_back_once)
    assert n_taken
    assert ids(taken) == ids(plain)
    assert taken.stop_reason == plain.stop_reason


def test_a_stop_string_that_spans_tokens_ends_the_row(engine: Engine) -> None:
    plain = row(engine, seed=3)
    run([plain])
    pieces = [result.piece for result in plain.drawn]
    pairs = [b + a for b, a in pairwise(pieces) if b and a and (b + a).isascii()]
    stop = pairs[0].decode()
    ended = row(engine, seed=3, stop=[stop])
    run([ended])
    assert ended.stop_reason == "stop"
    assert stop.encode() in text(ended)
    assert stop.encode() not in text(ended)[: -len(ended.drawn[-1].piece)]


def test_a_row_in_a_full_sequence_ends_for_the_context(engine: Engine) -> None:
    full = row(engine, 10_000)
    run([full])
    assert full.stop_reason == "context"
    assert full.sequence.n_tokens == engine.n_ctx_seq


def test_a_turn_without_room_changes_no_row(model: Model) -> None:
    with open_engine(model, n_ctx=256, n_seq_max=2) as engine:
        one, other = row(engine, 10_000), row(engine, 10_000)
        with pytest.raises(ContextFullError):
            run([one, other])
        before = [ids(one), ids(other)]
        with pytest.raises(ContextFullError):
            turn([one, other])
        assert [ids(one), ids(other)] == before
        assert one.sequence.n_tokens == other.sequence.n_tokens


def test_groups_hold_what_fits_in_cells_and_sequences(model: Model, engine: Engine) -> None:
    with open_engine(model, n_seq_max=4) as shared:
        half = shared.n_ctx // 2
        assert list(groups(shared, [half, half, 1])) == [range(2), range(2, 3)]
        with pytest.raises(ContextFullError, match=rf"take {shared.n_ctx + 1} tokens"):
            list(groups(shared, [1, shared.n_ctx + 1]))
    assert list(groups(engine, [10] * 6)) == [range(4), range(4, 6)]
    with pytest.raises(ContextFullError, match=rf"a sequence holds {engine.n_ctx_seq} at most"):
        list(groups(engine, [engine.n_ctx_seq + 1]))
