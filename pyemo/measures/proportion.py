"""A count out of a count, with its Wilson interval (doi 10.1080/01621459.1927.10502953)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyemo.errors import InputError

_Z = 1.959963984540054  # two-sided 95%


@dataclass(frozen=True)
class Proportion:
    """``k`` of ``n``; prints as ``37/40 = 92% [80, 97]``.

    Raises:
        InputError: not 0 <= k <= n, or n = 0.
    """

    k: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.k <= self.n or self.n < 1:
            raise InputError(
                f"{self.k} of {self.n} is not a proportion; it must be 0 <= k <= n, n >= 1"
            )

    @property
    def value(self) -> float:
        """k / n."""
        return self.k / self.n

    @property
    def low(self) -> float:
        """Lower end of the 95% interval."""
        return max(0.0, self._centre - self._half) if self.k else 0.0

    @property
    def high(self) -> float:
        """Upper end of the 95% interval."""
        return min(1.0, self._centre + self._half) if self.k < self.n else 1.0

    @property
    def _centre(self) -> float:
        return (self.value + _Z * _Z / (2 * self.n)) / (1 + _Z * _Z / self.n)

    @property
    def _half(self) -> float:
        spread = self.value * (1 - self.value) / self.n + _Z * _Z / (4 * self.n * self.n)
        return _Z * math.sqrt(spread) / (1 + _Z * _Z / self.n)

    def __str__(self) -> str:
        low, value, high = (100 * x for x in (self.low, self.value, self.high))
        return f"{self.k}/{self.n} = {value:.0f}% [{low:.0f}, {high:.0f}]"
