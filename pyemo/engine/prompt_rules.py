"""Rules that a prompt decides: what its rows read on average, decided once and held for the reply.

Owns what a decision is and how it is reached from a mean row. Knows nothing of the core; when a
sequence reads and decides is its own matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pyemo.engine.rules import Condition, Rule
from pyemo.engine.scopes import Segments
from pyemo.engine.steering import Steering


class PromptRange(NamedTuple):
    """Positions of a prompt: its first token, and the one behind its last."""

    begin: int
    end: int

    @property
    def read_begin(self) -> int:
        """The first position whose row counts.

        The row at position 0 does not, where there is another: it is where attention is dumped,
        many times as long as the others, and says nothing of the prompt.
        """
        return 1 if self.begin == 0 and self.end > 1 else self.begin


@dataclass(frozen=True)
class Decision:
    """What a prompt decided.

    Attributes:
        rule: the mood's.
        holds: whether its terms act.
        readings: of each condition, in residual norms above neutral text.
    """

    rule: Rule
    holds: bool
    readings: Mapping[Condition, float]

    def __str__(self) -> str:
        read = ", ".join(
            f"{condition.vector.name}@{condition.layer} {value:+.3f}"
            for condition, value in self.readings.items()
        )
        return f"the prompt has {self.rule}: {'yes' if self.holds else 'no'} ({read})"


Decisions: TypeAlias = "dict[tuple[PromptRange, Rule], Decision]"


def last_prompt(segments: Segments, n_tokens: int) -> PromptRange | None:
    """Return the last prompt of a sequence of ``n_tokens`` tokens; None without one."""
    for i in range(len(segments) - 1, -1, -1):
        if segments[i][1] == "prompt":
            end = segments[i + 1][0] if i + 1 < len(segments) else n_tokens
            return PromptRange(segments[i][0], end)
    return None


def prompt_rules(steering: Steering) -> tuple[Rule, ...]:
    """Return the mood's rules on the prompt, each once."""
    rules = (term.when_prompt for term in steering.terms)
    return tuple(dict.fromkeys(rule for rule in rules if rule is not None))


def layers_of(rules: tuple[Rule, ...]) -> list[int]:
    """Return the layers that the rules read, sorted."""
    read = (condition.layer for rule in rules for condition in rule.conditions())
    return sorted({layer for layer in read if layer is not None})


def decide(rule: Rule, means: Mapping[int, npt.NDArray[np.float32]]) -> Decision:
    """Return what a rule comes to.

    Args:
        means: layer -> mean row of the prompt, float32 (n_embd,).
    """
    readings: dict[Condition, float] = {}
    for condition in rule.conditions():
        assert condition.layer is not None
        readings[condition] = float(condition.gauge().of_rows(means[condition.layer]))
    return Decision(rule, rule.holds(readings.__getitem__), readings)
