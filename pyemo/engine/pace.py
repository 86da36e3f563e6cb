"""How many rows of prompts a decode may carry beside running replies, learned from the clock.

Owns what decodes took. Knows nothing of who is read or written.
"""

from __future__ import annotations

from collections import deque
from statistics import median

LONGEST = 3.5
"""A decode with prompts takes so many times one without, as nearly as the clock allows."""

LEAST_S = 0.1
"""Nobody minds a decode of so many seconds, however short one without prompts is."""

LEAST = 16
"""Rows of prompts in a decode at least, however many replies are written."""

MOST = 63
"""Rows of a decode at most, of replies and prompts, but for LEAST. From 64 on llama.cpp's attention
on the CPU goes by squares of 64 rows and 64 cells. Where rows of many sequences meet in one, each
row costs half as much again (docs/scheduling.md)."""

FIRST = 32
"""Rows of a decode while nothing is known of the clock."""


class Pace:
    """Learns what a decode costs without prompts, and what each row of a prompt adds.

    Both are medians of the last few decodes, so that one decode during which the machine was busy
    with something else changes nothing. Rows cost more towards the end of a long prompt, and other
    kernels and models have other prices: nothing of that is assumed here.
    """

    def __init__(self) -> None:
        self._alone: dict[int, deque[float]] = {}  # replies -> seconds of decodes without prompts
        self._row: deque[float] = deque(maxlen=3)  # seconds that a row of a prompt added

    def note(self, n_writing: int, n_rows: int, seconds: float) -> None:
        """Learn from a decode.

        Args:
            n_writing: replies that drew a token, 1 or more.
            n_rows: rows of prompts beside them.
            seconds: what it took.
        """
        if not n_rows:
            self._alone.setdefault(n_writing, deque(maxlen=9)).append(seconds)
        elif (alone := self.alone_s(n_writing)) is not None:
            self._row.append(max(seconds - alone, 0.0) / n_rows)

    def n_rows(self, n_writing: int) -> int:
        """Return how many rows of prompts the next decode may carry beside so many replies."""
        alone = self.alone_s(n_writing)
        wanted = FIRST - n_writing
        if alone is not None:
            spare = max(alone * LONGEST, LEAST_S) - alone
            each = median(self._row) if self._row else alone / n_writing
            wanted = int(spare / each) if each * MOST > spare else MOST
        return max(min(wanted, MOST - n_writing), LEAST)

    def alone_s(self, n_writing: int) -> float | None:
        """Return what a decode of so many replies takes without prompts; None if not known."""
        if not self._alone:
            return None
        nearest = min(self._alone, key=lambda n: (abs(n - n_writing), n))
        seconds = median(self._alone[nearest])
        if nearest > n_writing:
            return seconds * n_writing / nearest
        if self._row:  # a row of a reply costs about what one of a prompt does
            seconds += (n_writing - nearest) * median(self._row)
        return seconds
