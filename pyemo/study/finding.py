"""What a finding looks like: claim, number, verdict, tables and figures.

Owns the words of a verdict; the words of each claim are in ``findings.toml``.
"""

from __future__ import annotations

import csv
import enum
import functools
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, TypeAlias

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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


def described(
    name: str,
    *,
    ours: str,
    verdict: Verdict,
    reason: str,
    tables: tuple[Table, ...],
    figure: Callable[[], Figure] | None,
    numbers: Mapping[str, Value] | None = None,
    gaps: tuple[str, ...] = (),
) -> Finding:
    """Return a finding with the words that ``findings.toml`` has for it.

    Args:
        numbers: what the words leave open, by name.
    """
    words = {key: text.format(**numbers or {}) for key, text in _words()[name].items()}
    return Finding(
        name,
        ours=ours,
        verdict=verdict,
        reason=reason,
        tables=tables,
        figure=figure,
        gaps=gaps,
        **words,
    )


@functools.cache
def _words() -> dict[str, dict[str, str]]:
    """Return name of a finding -> title, claim, paper and how."""
    text = (files("pyemo.study") / "findings.toml").read_text(encoding="utf-8")
    words: dict[str, dict[str, str]] = tomllib.loads(text)
    return words
