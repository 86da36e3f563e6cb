"""A device check for machines: JSON, and JUnit XML for CI. Owns both forms; measures nothing."""

from __future__ import annotations

import math
import os
import xml.etree.ElementTree as ET
from dataclasses import asdict
from typing import Any

from pyemo.check.readings import DeviceReport, Reading
from pyemo.files.targets import checked_target, unless_it_begins, write_whole

VERSION = 1
"""Of the JSON; docs/check.schema.json describes it."""

_KIND = "a JUnit file"
_NOT_OURS = unless_it_begins(rb'.{0,99}<testsuites name="pyemo check"', "is not a check's result")
_NO_XML = {code: None for code in range(32) if chr(code) not in "\t\n"}


def to_json(report: DeviceReport) -> dict[str, Any]:
    """Return the report as what JSON has; numbers that are not finite become null."""
    return {
        "version": VERSION,
        "model": report.model,
        "passed": report.is_passed,
        "spent_s": report.spent_s,
        "facts": dict(report.facts),
        "readings": [_plain(asdict(reading)) for reading in report.readings],
        "remarks": list(report.remarks),
        "agreement": None if report.agreement is None else _plain(asdict(report.agreement)),
    }


def to_junit(report: DeviceReport) -> str:
    """Return JUnit XML: a case for each reading, failed where its limit is not met.

    A gap without a limit is skipped, with the reason.
    """
    cases = [_case(report.model, reading) for reading in report.readings]
    n_skipped = sum(reading.value is None and reading.is_met is None for reading in report.readings)
    counts = {
        "tests": str(len(cases)),
        "failures": str(len(report.failures)),
        "errors": "0",
        "time": f"{report.spent_s:.3f}",
    }
    suites = ET.Element("testsuites", {"name": "pyemo check", **counts})
    counts |= {"name": f"pyemo check {report.model}", "skipped": str(n_skipped)}
    suite = ET.SubElement(suites, "testsuite", counts)
    properties = ET.SubElement(suite, "properties")
    for name, text in report.facts:
        ET.SubElement(properties, "property", {"name": name, "value": text.translate(_NO_XML)})
    suite.extend(cases)
    if report.remarks:
        ET.SubElement(suite, "system-out").text = "\n".join(report.remarks).translate(_NO_XML)
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def check_junit(path: str | os.PathLike[str]) -> None:
    """Raise unless JUnit XML may be written to ``path``; for before the work.

    Raises:
        InputError: what is there is no check's JUnit file, or the folder refuses files.
    """
    checked_target(path, _KIND, _NOT_OURS)


def write_junit(report: DeviceReport, path: str | os.PathLike[str]) -> None:
    """Write :func:`to_junit` to ``path``, whole or not at all.

    Raises:
        InputError: see :func:`check_junit`, or the disk refuses.
    """
    write_whole(path, to_junit(report).encode(), _KIND, _NOT_OURS)


def shown(value: object, unit: str) -> str:
    """Return a reading's value in words."""
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    assert isinstance(value, int | float)
    if unit == "bytes":
        return f"{value / 1e6:.0f} MB"
    number = f"{value:.4f}" if unit == "nats" else f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return f"{number} {unit}".rstrip()


def _case(model: str, reading: Reading) -> ET.Element:
    attributes = {"classname": f"pyemo.check.{model}", "name": reading.title, "time": "0"}
    case = ET.Element("testcase", attributes)
    measured = f"{shown(reading.value, reading.unit)} ({reading.note})".removesuffix(" ()")
    measured = measured.translate(_NO_XML)
    if reading.is_met is False:
        limit = f"{reading.limit_name} is {shown(reading.limit, reading.unit)}"
        failure = {"message": f"{reading.title}: {measured}; {limit}", "type": reading.limit_name}
        ET.SubElement(case, "failure", failure)
    elif reading.value is None:
        ET.SubElement(case, "skipped", {"message": reading.note.translate(_NO_XML)})
    ET.SubElement(case, "system-out").text = measured
    return case


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
