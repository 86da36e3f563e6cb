"""What a finding looks like: claim, number, verdict, tables and figures.

Owns the words of a verdict.
"""

from __future__ import annotations

import csv
import enum
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Value: TypeAlias = "str | int | float | bool | None"


class Verdict(enum.Enum):
    """What our numbers say of the paper's claim."""

    HOLDS = "holds"
    DOES_NOT = "does not hold"
    CANNOT_SAY = "cannot say"


@dataclass(frozen=True)
class Table:
    """Rows of values under named columns; one CSV file.

    Attributes:
        name: of the CSV file, such as ``separation-layers``.
        columns: their names, with units.
        rows: one value for each column; None where there is none.
        is_long: only a link in the report, not shown as a table.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    is_long: bool = False

    def to_csv(self) -> str:
        """Return it as CSV: numbers with all their digits, a missing value empty."""
        out = io.StringIO()
        # Every text in quotes: a model's may hold any character, a lone carriage return too.
        writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(self.columns)
        writer.writerows(["" if value is None else value for value in row] for row in self.rows)
        return out.getvalue()


@dataclass(frozen=True)
class Finding:
    """One claim of the paper beside what was found.

    Attributes:
        name: a short word, such as ``separation``.
        title: a heading.
        claim: what the paper says.
        paper: the paper's number; "not known" where its text could not be had.
        ours: our number with its interval.
        verdict: see :class:`Verdict`.
        reason: why this verdict, in a sentence.
        how: how it was computed: statistic, unit, n, resampling, seed.
        tables: shown below it.
        figure: draws it, or None where there is nothing to draw.
        gaps: what could not be computed, and why.
    """

    name: str
    title: str
    claim: str
    paper: str
    ours: str
    verdict: Verdict
    reason: str
    how: str
    tables: tuple[Table, ...] = ()
    figure: Callable[[], Figure] | None = None
    gaps: tuple[str, ...] = field(default=())


def table(
    name: str, columns: Sequence[str], rows: Sequence[Sequence[Value]], *, is_long: bool = False
) -> Table:
    """Return a table of sequences."""
    return Table(name, tuple(columns), tuple(tuple(row) for row in rows), is_long)
