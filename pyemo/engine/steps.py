"""One decode of many sequences: what is pending in all of them, and a token for each."""

from __future__ import annotations

from collections.abc import Sequence as SequenceABC
from typing import TypeAlias

from pyemo import _core
from pyemo.engine.base_engine import BaseEngine
from pyemo.engine.base_sequence import BaseSequence, settle
from pyemo.engine.tokens import whole
from pyemo.errors import InputError

Fill: TypeAlias = tuple[BaseSequence, int]
"""A sequence with pending tokens, and how many of them to decode; no token is drawn."""


def step_many(
    sequences: SequenceABC[BaseSequence],
    *,
    n_top: int | SequenceABC[int] = 0,
    fills: SequenceABC[Fill] = (),
) -> list[_core.StepResult]:
    """Decode what is pending in all sequences together, and draw one token for each.

    Args:
        n_top: alternatives to report, of each sequence or one number for all.
        fills: decoded beside them, as far as their rows fit into the same decodes.
    Raises:
        InputError: no sequences, or not all of one engine.
    """
    engine = _engine_of([*sequences, *(sequence for sequence, _ in fills)])
    each = n_top if isinstance(n_top, SequenceABC) else [n_top]
    n_tops = [whole("n_top", n) for n in each]
    with engine.turns:
        for sequence in (*sequences, *(sequence for sequence, _ in fills)):
            sequence.update_schedule()
        for sequence in sequences:
            sequence.update_grammar()
        if engine.threads.is_live:
            engine.follow_load(within_reply=True)
        lengths = [sequence.n_tokens for sequence in sequences]
        settle(sequences)
        try:
            results = engine.native.step(
                [sequence.id for sequence in sequences],
                n_tops,
                [(sequence.id, n_rows) for sequence, n_rows in fills],
            )
            for sequence, result in zip(sequences, results, strict=True):
                sequence.note_drawn(result.token)
            return results
        except BaseException:
            for sequence, n in zip(sequences, lengths, strict=True):
                sequence.cut_to(n)
            raise


def forward_many(sequences: SequenceABC[BaseSequence]) -> None:
    """Decode what is pending in all sequences together; ``logits`` then costs nothing.

    Raises:
        InputError: no sequences, or not all of one engine.
    """
    engine = _engine_of(sequences)
    with engine.turns:
        for sequence in sequences:
            sequence.update_schedule()
        settle(sequences)
        engine.native.forward([sequence.id for sequence in sequences])


def _engine_of(sequences: SequenceABC[BaseSequence]) -> BaseEngine:
    if not sequences:
        raise InputError("no sequences to step; pass at least one")
    engine = sequences[0].engine
    if any(sequence.engine is not engine for sequence in sequences):
        raise InputError("the sequences belong to several engines; step those of one at a time")
    return engine
