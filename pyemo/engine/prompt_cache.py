"""What ended replies have read, kept for prompts that begin alike.

A sequence is kept as it is. What another prompt may take from it is what it would have read itself:
the same tokens under the same moods, compared number by number in the core, so that no mood leaks
into a prompt of another. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceABC

from pyemo.engine.sequence import Sequence
from pyemo.engine.steering import Steering

WORTH = 64
"""Tokens in common below which a prompt is read anew: what is saved is less than what differs in
the last bits, since a row that is read alone rounds differently from one among others."""


class PromptCache:
    """Sequences that nobody writes to, the one that was not used for longest first."""

    def __init__(self) -> None:
        self._kept: dict[Sequence, int] = {}  # and its tokens

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, sequence: object) -> bool:
        return sequence in self._kept

    @property
    def n_tokens(self) -> int:
        """Tokens that are kept; what sequences share counts for each."""
        return sum(list(self._kept.values()))

    def keep(self, sequence: Sequence) -> None:
        """Take over a sequence."""
        self._kept[sequence] = sequence.n_tokens

    def best(
        self, tokens: SequenceABC[int], steering: Steering, running: Iterable[Sequence]
    ) -> tuple[Sequence | None, int]:
        """Return which sequence, kept or running, has most in common with a prompt, and how much.

        None where it is not worth it.
        """
        best: tuple[Sequence | None, int] = (None, WORTH - 1)
        for sequence in (*self._kept, *running):
            n = sequence.n_common(tokens, steering)
            if n > best[1]:
                best = (sequence, n)
        return best if best[0] is not None else (None, 0)

    def take(self, sequence: Sequence) -> Sequence:
        """Hand a kept sequence out."""
        del self._kept[sequence]
        return sequence

    def drop_oldest(self, *, but: Sequence | None = None) -> bool:
        """Close the sequence that was not used for longest; False where there is none."""
        oldest = next((sequence for sequence in self._kept if sequence is not but), None)
        if oldest is not None:
            self.take(oldest).close()
        return oldest is not None

    def clear(self) -> None:
        """Close all."""
        while self.drop_oldest():
            pass
