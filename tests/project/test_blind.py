"""``bench/blind.py`` hides what it mixes and counts what readers said."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pages import ROOT, script

from pyemo.errors import InputError


@pytest.fixture(scope="module")
def blind() -> ModuleType:
    return script(ROOT / "bench" / "blind.py")


def lines() -> list[dict[str, Any]]:
    return [
        {
            "condition": condition,
            "emotion": emotion,
            "strength": 0.02,
            "prompt": f"Write a note {n}.",
            "text": f"{condition[::-1]} {emotion[::-1]} {n}",
        }
        for condition in ("steered", "plain")
        for emotion in ("angry", "sad")
        for n in range(5)
    ]


def answers(sheet: list[dict[str, str]], key: dict[str, Any], heard: str | None = None) -> str:
    rows = [
        {
            "id": line["id"],
            "emotion": heard or key[line["id"]]["emotion"],
            "coherent": True,
            "on_subject": line["prompt"] != "Write a note 0.",
        }
        for line in sheet
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_the_sheet_tells_nothing_but_prompt_and_text(blind: ModuleType) -> None:
    sheet, key = blind.prepare(lines(), seed=1)
    assert all(set(line) == {"id", "prompt", "text"} for line in sheet)
    assert [line["id"] for line in sheet] == [f"t{n:02d}" for n in range(1, 21)]
    conditions = [key[line["id"]]["from"][0]["condition"] for line in sheet]
    assert conditions not in (sorted(conditions), sorted(conditions, reverse=True))
    assert "steered" not in json.dumps(sheet)
    assert "0.02" not in json.dumps(sheet)


def test_a_seed_gives_one_order_whatever_that_of_the_input(blind: ModuleType) -> None:
    assert blind.prepare(lines(), seed=1)[0] == blind.prepare(lines()[::-1], seed=1)[0]
    assert blind.prepare(lines(), seed=1)[0] != blind.prepare(lines(), seed=2)[0]


def test_equal_texts_are_read_once_and_count_for_each_condition(blind: ModuleType) -> None:
    same = [{**line, "text": f"the same {line['emotion'][::-1]}"} for line in lines()]
    sheet, key = blind.prepare(same, seed=0)
    assert len(sheet) == 10
    reader = blind.read_answers(answers(sheet, key).splitlines(), "reader", key)
    scores = blind.score(key, [reader])
    assert scores["plain"]["texts"] == scores["steered"]["texts"] == 10


def test_shares_are_counted_for_conditions_and_emotions(blind: ModuleType) -> None:
    sheet, key = blind.prepare(lines(), seed=3)
    right = blind.read_answers(answers(sheet, key).splitlines(), "one", key)
    furious = blind.read_answers(answers(sheet, key, "hostile").splitlines(), "two", key)
    scores = blind.score(key, [right, furious])
    found = {m: (scores["steered"][m].k, scores["steered"][m].n) for m in blind.MEASURES}
    assert found == {
        "heard": (10, 20),
        "near": (15, 20),  # hostile is near angry, not near sad
        "coherent": (20, 20),
        "on subject": (16, 20),
        "all three": (8, 20),
    }
    assert scores["steered / sad"]["near"].k == 5


def test_texts_without_a_meant_emotion_are_heard_as_none(blind: ModuleType) -> None:
    plain = [{**line, "emotion": "none"} for line in lines()]
    sheet, key = blind.prepare(plain, seed=3)
    reader = blind.read_answers(answers(sheet, key).splitlines(), "one", key)
    scores = blind.score(key, [reader])
    assert scores["plain / none"]["heard"].k == scores["plain / none"]["near"].k == 10


def test_kappa_is_one_for_agreement_and_nought_for_chance(blind: ModuleType) -> None:
    assert blind.kappa(["a", "b", "a"], ["a", "b", "a"]) == 1
    assert blind.kappa(["a", "a", "b", "b"], ["a", "b", "a", "b"]) == 0
    assert blind.kappa(["a", "a"], ["a", "a"]) == 1
    # Cohen 1960's arithmetic: 0.7 agreed, 0.5 by chance
    one = ["y"] * 25 + ["n"] * 25
    other = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert blind.kappa(one, other) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line 1: not JSON"),
        ('{"id": "t01"}', "an answer has id, emotion"),
        ('{"id": "t99", "emotion": "sad", "coherent": true, "on_subject": true}', "not on the"),
        ('{"id": "t01", "emotion": "sad", "coherent": 1, "on_subject": true}', "true or false"),
        ('{"id": "t01", "emotion": "sad", "coherent": true, "on_subject": true}', "19 texts are"),
    ],
)
def test_answers_that_are_none_are_refused(blind: ModuleType, line: str, why: str) -> None:
    _sheet, key = blind.prepare(lines(), seed=0)
    with pytest.raises(InputError, match=why):
        blind.read_answers([line], "reader", key)


def test_both_commands_work_on_files(
    blind: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, sheet, key = (tmp_path / name for name in ("texts.jsonl", "sheet.jsonl", "key.json"))
    texts.write_text("".join(json.dumps(line) + "\n" for line in lines()), encoding="utf-8")
    files = ["--sheet", str(sheet), "--key", str(key)]
    assert blind.main(["prepare", str(texts), *files, "--seed", "7"]) == 0
    read = [json.loads(line) for line in sheet.read_text(encoding="utf-8").splitlines()]
    reader = tmp_path / "reader.jsonl"
    reader.write_text(answers(read, json.loads(key.read_text(encoding="utf-8"))), encoding="utf-8")
    capsys.readouterr()
    assert blind.main(["score", "--key", str(key), str(reader), str(reader)]) == 0
    out = capsys.readouterr().out
    assert "| steered | 10 | 1.00 [" in out
    assert "readers 1 and 2: kappa 1.00 (emotion)" in out
    reader.write_text("{", encoding="utf-8")
    assert blind.main(["score", "--key", str(key), str(reader)]) == 2
    assert "line 1" in capsys.readouterr().err
