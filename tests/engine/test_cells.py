"""Cells of the KV cache: counted once where forks share them, and refused by name when used up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyemo import Chat, Engine
from pyemo.errors import ContextFullError
from pyemo.guard import Guard


def tokens(n: int) -> list[int]:
    return [5 + i % 40 for i in range(n)]


def test_free_cells_are_those_that_no_sequence_holds_or_will_need(
    new_engine: Callable[..., Engine],
) -> None:
    engine = new_engine(n_ctx=64, n_seq_max=3)
    with engine.sequence(tokens(20)) as sequence:
        assert engine.native.n_free_cells == 44  # pending tokens count
        sequence.logits()
        assert engine.native.n_free_cells == 44
        with sequence.fork() as twin:
            assert engine.native.n_free_cells == 44  # a fork's past counts once
            twin.append(tokens(4))
            twin.logits()
            assert engine.native.n_free_cells == 40
            sequence.rollback(20)
            assert engine.native.n_free_cells == 40  # the twin still holds them
            assert sequence.n_room == 40
        assert engine.native.n_free_cells == 64


def test_a_decode_without_room_is_refused_before_it_begins(
    new_engine: Callable[..., Engine],
) -> None:
    engine = new_engine(n_ctx=64, n_seq_max=3)
    with engine.sequence(tokens(40)) as one, engine.sequence(tokens(30)) as other:
        one.logits()
        with pytest.raises(ContextFullError, match="has 24 left, and 30 more are needed"):
            other.logits()
        assert other.n_pending == 30
        other.rollback(6)
        other.logits()


@pytest.mark.parametrize("guarded", [False, True], ids=["plain", "guarded"])
def test_many_replies_count_the_cells_of_open_sequences(
    new_engine: Callable[..., Engine], guarded: bool
) -> None:
    engine = new_engine(n_ctx=128, n_seq_max=4)

    def ask(n: int, max_tokens: int) -> list[int]:
        prompts = [tokens(20)] * n
        if guarded:
            found = Guard().generate_many(engine, prompts, max_tokens=max_tokens)
            return [len(reply.tokens) for reply in found]
        many = engine.generate_many(prompts, max_tokens=max_tokens)
        return [len(reply.tokens) for reply in many]

    with engine.sequence(tokens(80)) as held:
        held.logits()
        assert len(ask(3, 10)) == 3  # one after the other: 48 cells are free
        with pytest.raises(ContextFullError, match="48 cells of 128"):
            ask(3, 40)
        assert engine.native.n_free_sequences == 3


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_two_chats_on_one_engine_leave_each_other_room(
    new_engine: Callable[..., Engine], architecture: str
) -> None:
    engine = new_engine(architecture, n_ctx=512, n_seq_max=3)
    with Chat(engine, max_tokens=16) as one, Chat(engine, max_tokens=16) as other:
        for turn in range(14):
            for chat in (one, other):
                reply = chat.say(f"Tell me the happy story number {turn} of the old house.")
                list(reply)
                assert reply.stop_reason in ("end", "length")
        assert one.n_dropped_turns > 0
        assert other.n_dropped_turns > 0


def test_a_chat_beyond_learned_positions_leaves_out_its_oldest_turns(
    new_engine: Callable[..., Engine],
) -> None:
    engine = new_engine("gpt2", n_ctx=1024, n_seq_max=1)
    assert engine.n_ctx_seq < engine.n_ctx
    with Chat(engine, max_tokens=24) as chat:
        for turn in range(24):
            reply = chat.say(f"Tell me the happy story number {turn} of the old house.")
            list(reply)
            assert reply.stop_reason in ("end", "length")
        assert chat.n_dropped_turns > 0
