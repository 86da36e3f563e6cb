"""What is read of a reply while it runs: gauges, the dose, and whether the text still holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

from pyemo.engine.tokens import Token
from pyemo.guard import watch

Light: TypeAlias = Literal["surgical", "collapse", "explosion"]
"""Coherent as far as the guard can tell, repeating itself, or falling apart."""

_LIGHTS: dict[str, Light] = {"repetition": "collapse", "explosion": "explosion"}


class RegimeLight:
    """Follows a reply, token by token, and says in which regime its end is.

    It looks as the guard does: at the answer, every few tokens.
    """

    def __init__(self) -> None:
        self.now: Light = "surgical"
        self._tokens: list[int] = []
        self._entropies: list[float] = []

    def push(self, token: Token) -> Light:
        """Take a token in; return the regime, which may be that of the last look."""
        if token.kind != "answer":
            return self.now
        self._tokens.append(token.id)
        self._entropies.append(token.entropy)
        if len(self._tokens) % watch.STRIDE == 0:
            trouble = watch.trouble(self._tokens, self._entropies[-watch.LONGEST :])
            self.now = "surgical" if trouble is None else _LIGHTS[trouble]
        return self.now


def light_of(trouble: str) -> Light:
    """Return the regime that a guard's trouble is."""
    return _LIGHTS[trouble]


def reading(token: Token, light: Light) -> dict[str, Any]:
    """Return what is read at one token, for JSON."""
    return {
        "gauges": {name: round(found.value, 6) for name, found in token.gauges.items()},
        "dose": round(token.dose, 6),
        "regime": light,
    }


def mean_gauges(tokens: Iterable[Token]) -> dict[str, float]:
    """Return each gauge's mean over the tokens; empty without gauges."""
    sums: dict[str, float] = {}
    n_tokens = 0
    for token in tokens:
        n_tokens += 1
        for name, found in token.gauges.items():
            sums[name] = sums.get(name, 0.0) + found.value
    return {name: total / n_tokens for name, total in sums.items()}
