"""The report: one page that needs nothing else, and CSV files beside it.

Owns how findings look on paper. The same findings give the same CSV bytes; the page also says when
and where it was made.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pyemo.errors import InputError
from pyemo.files.local import check_folder_writable
from pyemo.files.targets import checked_target, unless_it_begins, write_whole
from pyemo.study import figures
from pyemo.study.finding import Finding, Value, Verdict
from pyemo.study.steering_check import Case

PAGE = "report.html"
TITLE = "Emotion vectors on small quantized models"

_CSS = {Verdict.HOLDS: "holds", Verdict.DOES_NOT: "not", Verdict.CANNOT_SAY: "unknown"}


@dataclass(frozen=True)
class ModelFacts:
    """What the report says of a model."""

    name: str
    architecture: str
    format: str
    n_layer: int
    n_embd: int
    sha256: str


@dataclass(frozen=True, eq=False)
class Report:
    """Findings with what they were made from.

    Attributes:
        findings: in their order.
        models: the models.
        facts: name -> value, for "how this was made".
        gaps: what is missing from the whole.
        cases: the steering check's texts, shown in full.
        command: what made it.
    """

    findings: tuple[Finding, ...]
    models: tuple[ModelFacts, ...]
    facts: Mapping[str, str]
    gaps: tuple[str, ...] = ()
    cases: tuple[Case, ...] = ()
    command: str = "pyemo study"

    def finding(self, name: str) -> Finding:
        """Return one finding by its name.

        Raises:
            InputError: there is none of that name.
        """
        for found in self.findings:
            if found.name == name:
                return found
        names = ", ".join(found.name for found in self.findings)
        raise InputError(f"no finding {name!r}; there are {names}")

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write ``report.html`` and a CSV file for each table; return the paths, the page's last.

        Each file is written whole or not at all.

        Raises:
            InputError: see :func:`check_folder`, or the disk refuses.
            MissingExtraError: matplotlib is not installed.
        """
        target = check_folder(folder)
        tables = {
            f"{table.name}.csv": table.to_csv() for found in self.findings for table in found.tables
        }
        # The page first: by it the next run knows the folder of one that was cut off.
        for name, text in {PAGE: self.to_html(), **tables}.items():
            try:
                write_whole(target / name, text.encode(), "a report")
            except InputError as error:
                raise InputError(
                    f"{error}; with another folder (--out) the same command goes on: what is "
                    "computed is kept"
                ) from error
        return [target / name for name in (*tables, PAGE)]

    def to_html(self) -> str:
        """Return the page."""
        import jinja2

        import pyemo

        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        source = (files("pyemo.study") / "report.html.j2").read_text(encoding="utf-8")
        figures.assign_colors([model.name for model in self.models])
        drawn = {f.name: figures.svg(f.figure(), f.name) if f.figure else "" for f in self.findings}
        return environment.from_string(source).render(
            title=TITLE,
            findings=self.findings,
            figures=drawn,
            models=self.models,
            facts=list(self.facts.items()),
            gaps=self.gaps,
            cases=self.cases,
            css=_CSS,
            command=self.command,
            version=pyemo.__version__,
            is_number=_is_number,
            shown=shown,
        )


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the folder a report may be written to, made if need be; for before the work.

    Raises:
        InputError: it cannot be written, its ``report.html`` is no report of ours, or it holds
            tables (``*.csv``) without one.
    """
    target = Path(folder).expanduser()
    check_folder_writable(target)
    page = target / PAGE
    title = f"<title>{TITLE}</title>".encode()
    checked_target(page, "a report", unless_it_begins(b".*" + title, "is not a report of pyemo's"))
    for table in sorted(target.glob("*.csv")):
        if not page.exists():
            raise InputError(
                f"{str(target)!r} holds {table.name} and no report of pyemo's, whose tables would "
                "replace it; name another folder (--out)"
            )
        checked_target(table, "a report's table")
    return target


def shown(value: Value) -> str:
    """Return a value as the page shows it.

    Three significant digits, yes and no, nothing for None.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1e4 else f"{value:.4g}"
    return str(value)


def _is_number(value: Value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
