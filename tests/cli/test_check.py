"""``pyemo check`` on the tiny llama: the page, JSON, JUnit, the exit code and what is refused."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import xmlschema
from click.testing import CliRunner, Result

from pyemo import Engine
from pyemo.check import process as check_process
from pyemo.check import run as edge
from pyemo.check.budget import Budget
from pyemo.check.process import ProcessRun
from pyemo.check.reference import record
from pyemo.check.report import to_json, to_junit
from pyemo.check.run import CheckPlan, DeviceReport, Reading, is_met
from pyemo.cli import main
from pyemo.errors import ModelLoadError, PyemoError

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "check.schema.json").read_text())
XSD = xmlschema.XMLSchema(ROOT / "tests" / "data" / "junit.xsd")


@pytest.fixture(scope="module")
def vector(vectors: Path) -> str:
    return str(vectors / "warm.gguf")


@pytest.fixture(scope="module")
def report(model: Path, vector: str, tmp_path_factory: pytest.TempPathFactory) -> DeviceReport:
    """One whole check with limits that are met, limits that are not, and a reference written."""
    limits = {"min_tokens_per_s": 1, "max_memory": "1MB", "same_text": True, "regime": "inert"}
    plan = CheckPlan(
        str(model),
        vector,
        0.02,
        Budget().merged(limits, "the test"),
        n_threads=1,
        judge="",
        n_long=16,
        record=str(tmp_path_factory.mktemp("check") / "reference.json"),
    )
    stages: list[str] = []
    found = edge.check(plan, on_stage=stages.append)
    assert tuple(stages) == edge.STAGES
    return found


def reading(report: DeviceReport, name: str) -> Reading:
    (found,) = (reading for reading in report.readings if reading.name == name)
    return found


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["check", *arguments])


def test_every_limit_is_held_against_its_reading(report: DeviceReport) -> None:
    assert reading(report, "tokens_per_s").is_met is True
    assert reading(report, "same_text").is_met is True
    assert reading(report, "peak_memory").is_met is False
    assert reading(report, "regime").is_met is False  # nothing is called inert without a judge
    assert reading(report, "load_s").is_met is None
    assert {failed.name for failed in report.failures} == {"peak_memory", "regime"}
    assert not report.is_passed


def test_a_regime_of_few_texts_says_how_many_and_how_sure(report: DeviceReport) -> None:
    share = r"[0-8] of 8 texts coherent \[\d+, \d+%\], perplexity ratio"
    assert re.search(share, reading(report, "regime").note)


def test_memory_adds_up_to_the_peak(report: DeviceReport) -> None:
    peak = reading(report, "peak_memory")
    assert isinstance(peak.value, int)
    parts = [int(part.split()[-2]) for part in peak.note.split(", ")]
    assert sum(parts) == pytest.approx(peak.value / 1e6, abs=len(parts))


def test_a_missing_judge_is_a_stated_gap(report: DeviceReport) -> None:
    assert any("emotion is not judged" in remark for remark in report.remarks)


def test_json_follows_its_schema(report: DeviceReport) -> None:
    jsonschema.validate(json.loads(json.dumps(to_json(report), allow_nan=False)), SCHEMA)


def test_junit_follows_its_schema_and_counts_right(report: DeviceReport) -> None:
    text = to_junit(report)
    XSD.validate(text.encode())
    root = ET.fromstring(text.encode())
    cases = root.findall(".//testcase")
    suite = root.find("testsuite")
    assert suite is not None
    assert suite.get("tests") == str(len(cases)) == str(len(report.readings))
    assert suite.get("failures") == str(len(root.findall(".//failure"))) == "2"
    assert suite.get("skipped") == str(len(root.findall(".//skipped")))


def test_a_gap_is_skipped_without_a_limit_and_fails_with_one(report: DeviceReport) -> None:
    gap = Reading("regime", "regime", None, note="no \x1bvector")
    failed = replace(gap, limit="surgical", limit_name="regime", is_met=False)
    for case, tag in ((gap, "skipped"), (failed, "failure")):
        text = to_junit(replace(report, readings=(case,)))
        XSD.validate(text.encode())
        assert len(ET.fromstring(text.encode()).findall(f".//{tag}")) == 1
    assert is_met("regime", None, "surgical") is False


@pytest.mark.parametrize(
    ("name", "value", "limit", "expected"),
    [
        ("min_tokens_per_s", 20.0, 20.0, True),
        ("min_tokens_per_s", 19.9, 20.0, False),
        ("max_memory", 100, 100, True),
        ("max_memory", 101, 100, False),
        ("regime", "surgical", "surgical", True),
        ("same_text", False, False, True),
        ("same_text", False, True, False),
    ],
)
def test_a_limit_is_met_on_its_own_side(
    name: str, value: edge.Value, limit: edge.Value, expected: bool
) -> None:
    assert is_met(name, value, limit) is expected


def test_the_command_prints_a_page_and_ends_with_the_outcome(
    model: Path,
    report: DeviceReport,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(edge, "check", lambda _plan, on_stage: report)
    failed = run("-m", str(model), "--junit", str(tmp_path / "junit.xml"))
    assert failed.exit_code == 1
    assert "FAIL" in failed.stdout
    assert "Failed: peak memory, regime" in failed.stdout
    XSD.validate(str(tmp_path / "junit.xml"))
    passing = replace(report, readings=tuple(r for r in report.readings if r.is_met is not False))
    monkeypatch.setattr(edge, "check", lambda _plan, on_stage: passing)
    passed = run("-m", str(model), "--json")
    assert passed.exit_code == 0
    jsonschema.validate(json.loads(passed.stdout), SCHEMA)


def test_a_reference_recorded_with_two_threads_passes_with_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(model, n_ctx=128, n_threads=2) as engine:
        record(engine, ["the happy story"], n_tokens=4).save(tmp_path / "r.json")
    monkeypatch.setattr(check_process, "run_once", lambda _command: ProcessRun(0.1, None))
    plan = CheckPlan(str(model), n_threads=1, n_long=8, reference=str(tmp_path / "r.json"))
    found = edge.check(plan)
    assert reading(found, "top1").is_met is True
    assert reading(found, "mean_kl").is_met is True
    assert (reading(found, "peak_memory").value, reading(found, "regime").value) == (None, None)
    jsonschema.validate(json.loads(json.dumps(to_json(found))), SCHEMA)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "nowhere.toml"], "the budget 'nowhere.toml' cannot be read"),
        (["--max-memory", "much"], "write a number of MB"),
        (["--reference", "nowhere.json"], "the reference 'nowhere.json' cannot be read"),
        (["-c", "nowhere.gguf"], "no vector file"),
        (["-c", "anger"], "no vectors come with pyemo for the model"),
        (["-m", "nowhere.gguf"], "no file at"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    model: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_process, "run_once", lambda _command: pytest.fail("something ran"))
    result = run("-m", str(model), *arguments)
    assert result.exit_code == 1
    assert message in result.stderr


def test_a_model_larger_than_the_memory_is_refused_before_loading(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyemo.engine.memory.available_bytes", lambda: 1_000_000)
    with pytest.raises(ModelLoadError, match="does not fit"):
        edge.check(CheckPlan(str(model)))


def test_a_run_that_fails_says_why() -> None:
    import sys

    with pytest.raises(PyemoError, match="`pyemo run` failed: it broke"):
        check_process.run_once([sys.executable, "-c", "import sys; sys.exit('Error: it broke')"])
