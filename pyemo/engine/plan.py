"""What the next decode carries: a row of each reply that is written, and prompts beside them.

Knows nothing of threads and queues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceABC
from dataclasses import dataclass

from pyemo.engine.replies import Reply
from pyemo.engine.row import Row
from pyemo.engine.sequence import Sequence
from pyemo.engine.tickets import Ticket


@dataclass(eq=False)
class Running:
    """A request that has a sequence.

    Attributes:
        n_pending: tokens that are not decoded yet: the prompt's, those of a reply that was paused,
            or the one that was drawn last.
        is_paused: it gave its cells to older ones, and waits.
        deciding: while its prompt is read for the mood's rules on it: where reading began.
    """

    ticket: Ticket
    sequence: Sequence
    reply: Reply
    n_pending: int
    is_paused: bool = False
    deciding: int | None = None

    @property
    def row(self) -> Row:
        """Its row of the decode loop."""
        return self.reply._row

    @property
    def n_tokens(self) -> int:
        """Tokens of its sequence."""
        return self.row.begin + len(self.row.drawn)

    def look(self) -> None:
        """Ask how many tokens are pending."""
        self.n_pending = self.sequence.n_pending

    @property
    def is_reading(self) -> bool:
        """Whether it is not ready to draw a token: more than one is pending, or a rule."""
        return self.n_pending > 1 or self.deciding is not None

    def start_deciding(self) -> None:
        """Let the prompt decide the rules of the mood that wait for it, if there are any."""
        if self.deciding is not None:
            self.sequence.stop_reading()
            self.deciding = None
        if self.sequence.undecided():
            self.deciding = self.sequence.start_deciding()
        self.look()

    def decide(self) -> None:
        """Decide, now that the prompt is read; where a rule holds it is pending again."""
        assert self.deciding is not None
        begin, self.deciding = self.deciding, None
        try:
            self.sequence.finish_deciding(begin)
        finally:
            self.sequence.stop_reading()
        self.ticket.decisions = self.sequence.decisions
        self.look()

    def pause(self) -> None:
        """Give the cells back; its tokens are to be decoded again."""
        self.sequence.drop_cells()
        self.n_pending = self.n_tokens
        self.is_paused = True


@dataclass(frozen=True)
class Plan:
    """One decode: who draws a token in it, and how many rows of whose prompts come beside."""

    draws: tuple[Running, ...]
    fills: tuple[tuple[Running, int], ...]

    @property
    def n_writing(self) -> int:
        """Replies that are written, each with a row."""
        return sum(not one.is_reading for one in self.draws)

    @property
    def n_prompt_rows(self) -> int:
        """Rows of prompts."""
        ends = sum(one.n_pending for one in self.draws if one.is_reading)
        return ends + sum(n_rows for _, n_rows in self.fills)


def plan(running: Iterable[Running], *, n_prompt_rows: Callable[[int], int], n_batch: int) -> Plan:
    """Return the next decode's rows.

    Every reply that is written has its row. Where no reply waits for its next token, prompts have
    ``n_batch``, and are read as they would be alone. A prompt that is to decide something is read
    to its end before its reply draws.

    Args:
        running: the oldest first.
        n_prompt_rows: says how many rows prompts may have beside so many replies, 1 or more.
    """
    going = [one for one in running if not one.is_paused]
    writing = [one for one in going if not one.is_reading]
    reading = [one for one in going if one.is_reading]
    n_rows = n_prompt_rows(len(writing)) if writing else n_batch
    draws, fills = writing, []
    for one, n in zip(reading, shares([one.n_pending for one in reading], n_rows), strict=True):
        if n == one.n_pending and one.deciding is None:
            draws.append(one)
        elif n > 0:
            fills.append((one, n))
    return Plan(tuple(draws), tuple(fills))


def shares(wanted: SequenceABC[int], n_rows: int) -> list[int]:
    """Return how many of ``n_rows`` each prompt has.

    Half of them are the first one's, so that it ends however many come after it. The others are
    for the shortest first, so that a short prompt does not wait for a long one. What is left over
    is the first one's again.

    Args:
        wanted: rows that each still needs, 1 or more; who came first is first.
    """
    if not wanted:
        return []
    found = [min(wanted[0], -(-n_rows // 2)), *(0 for _ in wanted[1:])]
    left = n_rows - found[0]
    for i in sorted(range(1, len(wanted)), key=lambda i: wanted[i]):
        found[i] = min(wanted[i], left)
        left -= found[i]
    found[0] += min(wanted[0] - found[0], left)
    return found
