"""The decode loop: rows that get one token each at every turn, all in one batch.

Owns how a turn decodes and draws; ``row.py`` says when a row ends. What is done with a token is
the callback's, which may take tokens back (``guard``). Knows nothing of prompts, tokenizers and
texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as SequenceABC
from typing import TypeAlias

from pyemo.engine.base_engine import BaseEngine
from pyemo.engine.base_sequence import BaseSequence
from pyemo.engine.row import Row
from pyemo.engine.steps import Fill, forward_many, step_many
from pyemo.errors import ContextFullError

OnRow: TypeAlias = Callable[[Row], None]


def run(
    rows: Iterable[Row],
    *,
    keeps_ended: bool = False,
    idle: Iterable[BaseSequence] = (),
    before_draw: OnRow | None = None,
    on_token: OnRow | None = None,
    admit: Callable[[list[Row]], Iterable[Row]] | None = None,
) -> None:
    """Decode rows together, turn by turn, until each has a reason to stop.

    Kernels round differently in batches of different shape (docs/determinism.md).

    Args:
        keeps_ended: rows that have ended stay in the batch, undisturbed, so that its shape is that
            of the beginning until its end.
        idle: sequences that fill the batch up; what is drawn for them does not matter.
        before_draw, on_token: see :func:`turn`.
        admit: called before each turn with the rows that go on; returns rows to add to them.
    """
    batch = list(rows)
    fillers = list(idle)
    while True:
        if not keeps_ended:
            batch = [row for row in batch if row.stop_reason is None]
        if admit is not None:
            batch = [*batch, *admit(batch)]
        if all(row.stop_reason is not None for row in batch):
            return
        turn(batch, idle=fillers, before_draw=before_draw, on_token=on_token)


def turn(
    rows: SequenceABC[Row],
    *,
    idle: SequenceABC[BaseSequence] = (),
    before_draw: OnRow | None = None,
    on_token: OnRow | None = None,
    n_top: int | SequenceABC[int] = 0,
    fills: SequenceABC[Fill] = (),
) -> None:
    """Decode what is pending in all rows, and draw one token for each.

    Args:
        before_draw: called with each row that goes on, when its sequence's logits are known.
        on_token: called with each row that has drawn a token, the last of its ``drawn``. It may
            change the row's mood, take tokens back or close its sequence.
        n_top: alternatives to report with each token, of each row or one number for all.
        fills: what is decoded beside them.
    Raises:
        ContextFullError: the cells do not suffice; no row has changed.
        DecodeAbortedError: logits that are not finite; likewise.
    """
    sequences = [*(row.sequence for row in rows), *idle]
    if before_draw is not None:
        forward_many(sequences)
        for row in running(rows):
            before_draw(row)
    results = step_many(sequences, n_top=n_top, fills=fills)
    for row, result in zip(rows, results, strict=False):
        if row.stop_reason is None:
            row.take(result)
            if on_token is not None:
                on_token(row)


def running(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that have not ended."""
    return [row for row in rows if row.stop_reason is None]


def groups(engine: BaseEngine, lengths: SequenceABC[int]) -> Iterator[range]:
    """Yield which rows fit into the engine together, each group once the one before is closed.

    Args:
        lengths: tokens that each row may have at its end.
    Raises:
        ContextFullError: a row that does not fit alone.
    """
    done = 0
    while done < len(lengths):
        room = n_free_cells = engine.native.n_free_cells
        n_free = engine.n_free_sequences
        begin = done
        while done < min(begin + n_free, len(lengths)) and lengths[done] <= min(
            room, engine.n_ctx_seq
        ):
            room -= lengths[done]
            done += 1
        if done == begin:
            raise ContextFullError(
                f"a prompt with its reply may take {lengths[done]} tokens; a sequence holds "
                f"{engine.n_ctx_seq} at most, and {n_free_cells} cells of {engine.n_ctx} and "
                f"{n_free} sequences are free: shorten it, close a sequence, or open the engine "
                "with a larger n_ctx or n_seq_max"
            )
        yield range(begin, done)
