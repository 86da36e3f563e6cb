"""One decode of many sequences: what is pending in all of them, and a token for each."""

from __future__ import annotations

from collections.abc import Sequence as SequenceABC

from pyemo import _core
from pyemo.engine.base_engine import BaseEngine
from pyemo.engine.base_sequence import BaseSequence
from pyemo.engine.tokens import whole
from pyemo.errors import InputError


def step_many(sequences: SequenceABC[BaseSequence], *, n_top: int = 0) -> list[_core.StepResult]:
    """Decode what is pending in all sequences together, and draw one token for each.

    Raises:
        InputError: no sequences, or not all of one engine.
    """
    engine = _engine_of(sequences)
    n_top = whole("n_top", n_top)
    with engine.turns:
        for sequence in sequences:
            sequence.update_schedule()
        if engine.threads.is_live:
            engine.follow_load(within_reply=True)
        lengths = [sequence.n_tokens for sequence in sequences]
        try:
            results = engine.native.step([sequence.id for sequence in sequences], n_top)
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
        engine.native.forward([sequence.id for sequence in sequences])


def _engine_of(sequences: SequenceABC[BaseSequence]) -> BaseEngine:
    if not sequences:
        raise InputError("no sequences to step; pass at least one")
    engine = sequences[0].engine
    if any(sequence.engine is not engine for sequence in sequences):
        raise InputError("the sequences belong to several engines; step those of one at a time")
    return engine
