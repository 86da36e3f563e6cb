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
from pyemo.study import figures
from pyemo.study.finding import Finding, Value, Verdict
from pyemo.study.steering_check import Case
from pyemo.study.store import write_whole

PAGE = "report.html"

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
        """Write ``report.html`` and a CSV file for each table; return the paths.

        Each file is written whole or not at all.

        Raises:
            InputError: the folder cannot be written.
            MissingExtraError: matplotlib is not installed.
        """
        target = Path(folder)
        texts = {
            f"{table.name}.csv": table.to_csv() for found in self.findings for table in found.tables
        }
        texts[PAGE] = self.to_html()
        try:
            target.mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                write_whole(target / name, text.encode())
        except OSError as error:
            raise InputError(
                f"the report cannot be written to {target}: {error.strerror or error}; "
                "name another folder with --out, and start again: what is computed is kept"
            ) from error
        return [target / name for name in texts]

    def to_html(self) -> str:
        """Return the page."""
        import jinja2

        import pyemo

        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        source = (files("pyemo.study") / "report.html.j2").read_text(encoding="utf-8")
        figures.assign_colors([model.name for model in self.models])
        drawn = {f.name: figures.svg(f.figure(), f.name) if f.figure else "" for f in self.findings}
        return environment.from_string(source).render(
            title="Emotion vectors on small quantized models",
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
