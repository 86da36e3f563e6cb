"""``pyemo condition``: two files of prompts become a condition that a mood can name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import pyemo

from pyemo import ControlVector

WORDS = ["happy", "sad", "day", "story", "the", "and", "was", "over", "house", "river"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of happy.txt and river.txt, two kinds of prompts."""
    folder = tmp_path_factory.mktemp("prompts")
    happy = [f"the happy story of the happy {word}" for word in WORDS]
    river = [f"a river, a house and {word} 1234" for word in WORDS]
    (folder / "happy.txt").write_text("\n\n".join(happy) + "\n", encoding="utf-8")
    (folder / "river.txt").write_text("\n".join(river), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def fitted(model: Path, prompts: Path) -> Path:
    """The condition that the command wrote, and its report beside it."""
    target = prompts / "happy.gguf"
    kinds = prompts / "happy.txt", prompts / "river.txt"
    options = ("-m", model, "-o", target, "--threads", 1, "--json")
    test = f"{kinds[1]},{kinds[0]}"
    result = pyemo("condition", "fit", *kinds, *options, "--test", test)
    assert result.exit_code == 0, result.stderr
    target.with_suffix(".json").write_text(result.stdout, encoding="utf-8")
    return target


def test_report_says_how_well_it_tells_them_apart(fitted: Path) -> None:
    report = json.loads(fitted.with_suffix(".json").read_text(encoding="utf-8"))
    assert report["held_out"]["f1"] == 1.0
    assert report["test"]["f1"] == 0.0  # the files were given the other way round
    assert [point["threshold"] for point in report["curve"]] == sorted(
        point["threshold"] for point in report["curve"]
    )
    found = ControlVector.load(fitted).metadata.condition
    assert found is not None
    assert (found.layer, found.threshold) == (report["layer"], report["threshold"])


@pytest.mark.parametrize(
    ("prompt", "holds"), [("the happy story of the happy cat", True), ("a river and 1234", False)]
)
def test_condition_decides_a_run(
    model: Path, vectors: Path, fitted: Path, prompt: str, holds: bool
) -> None:
    mood = f"{vectors}/warm.gguf=0.3@when-prompt:{fitted}"
    result = pyemo("run", "--threads", 1, "-n", 2, "-m", model, "--json", "-c", mood, prompt)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["decisions"][0]["holds"] is holds


def test_inspect_shows_the_condition(fitted: Path) -> None:
    result = pyemo("inspect", fitted)
    assert "condition    holds above" in result.stdout.replace("below", "above")
    assert "F1 1.000 on texts that were held out" in result.stdout


def test_too_few_prompts_are_refused(model: Path, prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("one\ntwo", encoding="utf-8")
    result = pyemo(
        "condition", "fit", tmp_path / "few.txt", prompts / "river.txt", "-m", model, "-o", "c.gguf"
    )
    assert result.exit_code == 1
    assert "a condition needs 8 of each kind" in result.stderr


def test_a_file_without_prompts_is_refused_before_the_work(
    model: Path, prompts: Path, tmp_path: Path
) -> None:
    (tmp_path / "none.txt").write_text("\n \n", encoding="utf-8")
    kinds = prompts / "happy.txt", prompts / "river.txt"
    target = tmp_path / "c.gguf"
    test = f"{kinds[0]},{tmp_path / 'none.txt'}"
    result = pyemo("condition", "fit", *kinds, "-m", model, "-o", target, "--test", test)
    assert result.exit_code == 1
    assert "none.txt has no prompts" in result.stderr
    assert not target.exists()


def test_test_of_one_file_is_wrong_usage(model: Path, prompts: Path, tmp_path: Path) -> None:
    kinds = prompts / "happy.txt", prompts / "river.txt"
    target = tmp_path / "c.gguf"
    result = pyemo("condition", "fit", *kinds, "-m", model, "-o", target, "--test", kinds[0])
    assert result.exit_code == 2
    assert "two files joined by a comma" in result.stderr
