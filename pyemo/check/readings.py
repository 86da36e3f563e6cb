"""What a device check found: readings, and whether each keeps its limit. Measures nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from pyemo.check.budget import Budget
from pyemo.check.reference import Agreement

Value: TypeAlias = "float | str | bool | None"


@dataclass(frozen=True)
class Reading:
    """One thing that was measured.

    Attributes:
        name: its key in reports, such as ``"tokens_per_s"``.
        value: None is a gap, and ``note`` says why.
        unit: "tokens/s", "s", "bytes", "nats" or "".
        limit: from the budget, None without one.
        limit_name: the budget's key for it, "" where it has none.
        is_met: None without a limit; a limit on a gap is not met.
        note: how it was measured, or what it consists of.
    """

    name: str
    title: str
    value: Value
    unit: str = ""
    limit: Value = None
    limit_name: str = ""
    is_met: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class DeviceReport:
    """The outcome of a check.

    Attributes:
        facts: machine, versions, model and vector, as (title, text).
        remarks: sentences on what to know or to do, such as a faster format.
        agreement: with the reference, None without one.
        spent_s: seconds the check took.
    """

    model: str
    facts: tuple[tuple[str, str], ...]
    readings: tuple[Reading, ...]
    remarks: tuple[str, ...]
    agreement: Agreement | None
    spent_s: float

    @property
    def failures(self) -> tuple[Reading, ...]:
        """Readings whose limit is not met."""
        return tuple(reading for reading in self.readings if reading.is_met is False)

    @property
    def is_passed(self) -> bool:
        """Whether every limit is met; a check without limits passes."""
        return not self.failures


class Findings:
    """A report under way: what comes in, held against a budget. See :class:`DeviceReport`."""

    def __init__(self, budget: Budget) -> None:
        self.facts: list[tuple[str, str]] = []
        self.readings: list[Reading] = []
        self.remarks: list[str] = []
        self._budget = budget

    def add(
        self,
        name: str,
        title: str,
        value: Value,
        unit: str = "",
        limit_name: str = "",
        *,
        limit: Value = None,
        note: str = "",
    ) -> None:
        """Add a reading; its limit is the budget's, else ``limit``."""
        chosen = getattr(self._budget, limit_name) if limit_name else None
        chosen = limit if chosen is None else chosen
        met = None if chosen is None else is_met(limit_name, value, chosen)
        if value is None and not note:
            note = "this system does not show it"
        self.readings.append(Reading(name, title, value, unit, chosen, limit_name, met, note))


def is_met(limit_name: str, value: Value, limit: Value) -> bool:
    """Return whether a value keeps a limit; the limit's name says its direction."""
    if value is None or limit is None:
        return False
    if limit_name.startswith("min_"):
        return float(value) >= float(limit)
    if limit_name.startswith("max_"):
        return float(value) <= float(limit)
    return value == limit or (limit is False and limit_name == "same_text")
