"""Has a running text gone in circles that it will not leave? Asked of its tokens alone.

Surer than the guard's watch, which errs on the side of less strength: this ends a reply, and must
not act on a table, a chorus or a row of zeros. docs/measurements/guard.md has what it was tried
on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

STRIDE = 8
"""Tokens from one look to the next."""
CYCLES = 4
"""So many times the same tokens have to come, one after the other."""
CYCLE_TOKENS = 48
"""So many tokens all these cycles have to take."""
LONGEST_PERIOD = 64
"""Tokens of the longest cycle that is looked for."""
POOR_TOKENS = 64
"""So many last tokens are counted by kind."""
POOR_KINDS = 6
"""Different tokens among them, at most, of a text that goes in circles without an order."""
LOOK_BACK = CYCLES * LONGEST_PERIOD + STRIDE
"""Last tokens that are looked at."""


def circles_from(tokens: Sequence[int]) -> int | None:
    """Return how many first tokens a text has behind which it only repeats itself.

    One cycle is among them. None if the text does not go in circles at its end.

    Args:
        tokens: (n_tokens,) ids; the last :data:`LOOK_BACK` suffice, and then the number counts
            from the first of these.
    """
    n = len(tokens)
    begin = max(0, n - LOOK_BACK)
    ids = np.asarray(tokens[begin:])
    for period in range(1, min(LONGEST_PERIOD, len(ids) // CYCLES) + 1):
        if ids[-1] != ids[-1 - period]:
            continue
        breaks = np.flatnonzero(ids[period:] != ids[:-period])
        first = int(breaks[-1]) + 1 if len(breaks) else 0  # of the first cycle
        if len(ids) - first >= max(CYCLE_TOKENS, CYCLES * period):
            return begin + first + period
    if n >= POOR_TOKENS and len(set(tokens[-POOR_TOKENS:])) <= POOR_KINDS:
        return n - POOR_TOKENS + POOR_KINDS
    return None
