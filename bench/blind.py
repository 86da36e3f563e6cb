"""Blind reading: mix texts of several conditions, hide which is which, score what readers heard.

    python bench/blind.py prepare TEXTS.jsonl... --sheet sheet.jsonl --key key.json [--seed N]
    python bench/blind.py score --key key.json READER.jsonl... [--json]

A line of TEXTS is {"condition", "emotion", "prompt", "text"} and may have "strength" and others,
which only the key keeps. The emotion is "none" where none was meant, as in unsteered texts. The
sheet has {"id", "prompt", "text"} in an order drawn with the seed, and its ids say nothing. A
reader sees the sheet alone and answers a line for each id:
{"id", "emotion", "coherent", "on_subject"}, emotion one of the choices or "none".

Scored for each condition, over texts and readers: the emotion was heard, the text is coherent, it
is on the prompt's subject, and all three, each with Wilson's interval; and Cohen's kappa between
each two readers. The interval takes a reader's every answer as one, so with several readers of the
same texts it is a little too narrow; `texts` is the number of different ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyemo.emotions import near_neighbours
from pyemo.errors import InputError
from pyemo.measures.proportion import Proportion

NONE = "none"
MEASURES = ("heard", "near", "coherent", "on subject", "all three")


@dataclass(frozen=True)
class Answer:
    """What one reader said of one text."""

    emotion: str
    coherent: bool
    on_subject: bool


def prepare(
    texts: Sequence[Mapping[str, Any]], seed: int
) -> tuple[list[dict[str, str]], dict[str, dict[str, Any]]]:
    """Return the readers' sheet and its key, id -> the line it comes from.

    Equal texts to one prompt under one emotion stand on the sheet once, and the key lists every
    condition they belong to.

    Raises:
        InputError: no texts, or a line without one of its fields.
    """
    if not texts:
        raise InputError("there is nothing to read; give texts")
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for number, line in enumerate(texts, start=1):
        for field in ("condition", "emotion", "prompt", "text"):
            if not isinstance(line.get(field), str):
                raise InputError(f"text {number} has no {field!r}; it is {dict(line)!r}")
        groups.setdefault((line["prompt"], line["text"], line["emotion"]), []).append(line)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    width = len(str(len(order)))
    ids = [f"t{number:0{width}d}" for number in range(1, len(order) + 1)]
    sheet = [
        {"id": name, "prompt": prompt, "text": text}
        for name, (prompt, text, _emotion) in zip(ids, order, strict=True)
    ]
    key = {
        name: {"emotion": group[2], "from": [dict(line) for line in groups[group]]}
        for name, group in zip(ids, order, strict=True)
    }
    return sheet, key


def read_answers(lines: Iterable[str], where: str, ids: Iterable[str]) -> dict[str, Answer]:
    """Return a reader's answers by id.

    Raises:
        InputError: a line that is no answer (number named), an id twice, unknown or missing.
    """
    answers: dict[str, Answer] = {}
    known = set(ids)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}, line {number}: not JSON: {error}") from None
        if not isinstance(value, dict) or set(value) != {
            "id",
            "emotion",
            "coherent",
            "on_subject",
        }:
            raise InputError(
                f"{where}, line {number}: an answer has id, emotion, coherent and on_subject; "
                f"got {line.strip()[:80]!r}"
            )
        name, emotion = value["id"], value["emotion"]
        flags = (value["coherent"], value["on_subject"])
        if name not in known or name in answers:
            state = "answered twice" if name in answers else "not on the sheet"
            raise InputError(f"{where}, line {number}: {name!r} is {state}")
        if not isinstance(emotion, str) or not all(isinstance(flag, bool) for flag in flags):
            raise InputError(
                f"{where}, line {number}: emotion is a word, coherent and on_subject true or false"
            )
        answers[name] = Answer(emotion.strip().casefold(), *flags)
    missing = sorted(known - set(answers))
    if missing:
        raise InputError(f"{where}: {len(missing)} texts are not answered, such as {missing[0]!r}")
    return answers


def score(
    key: Mapping[str, Mapping[str, Any]], readers: Sequence[Mapping[str, Answer]]
) -> dict[str, dict[str, Any]]:
    """Return condition -> {"texts": n, measure: Proportion}, pooled over readers; the measures of
    one emotion's texts stand under "condition / emotion"."""
    counts: dict[str, dict[str, list[bool]]] = {}
    n_texts: dict[str, int] = {}
    for name, entry in key.items():
        emotion = entry["emotion"]
        near = {emotion} if emotion == NONE else near_neighbours(emotion) | {emotion}
        for condition in sorted({line["condition"] for line in entry["from"]}):
            for row in (condition, f"{condition} / {emotion}"):
                n_texts[row] = n_texts.get(row, 0) + 1
                into = counts.setdefault(row, {measure: [] for measure in MEASURES})
                for answers in readers:
                    answer = answers[name]
                    heard = answer.emotion == emotion
                    said = (
                        heard,
                        answer.emotion in near,
                        answer.coherent,
                        answer.on_subject,
                        heard and answer.coherent and answer.on_subject,
                    )
                    for measure, value in zip(MEASURES, said, strict=True):
                        into[measure].append(value)
    return {
        row: {"texts": n_texts[row]}
        | {measure: Proportion(sum(said), len(said)) for measure, said in measures.items()}
        for row, measures in sorted(counts.items())
    }


def kappa(one: Sequence[object], other: Sequence[object]) -> float:
    """Return Cohen's kappa of two readers' answers to the same texts; 1 where both always say one
    and the same."""
    n = len(one)
    agreed = sum(a == b for a, b in zip(one, other, strict=True)) / n
    by_chance = sum(one.count(value) * other.count(value) for value in set(one)) / n**2
    return 1.0 if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)


def agreement(readers: Sequence[Mapping[str, Answer]]) -> list[dict[str, Any]]:
    """Return for each two readers kappa of the emotion, of coherent and of on subject."""
    rows = []
    for (i, one), (j, other) in itertools.combinations(enumerate(readers, start=1), 2):
        row: dict[str, Any] = {"readers": [i, j]}
        for field in ("emotion", "coherent", "on_subject"):
            pairs = [(getattr(one[name], field), getattr(other[name], field)) for name in one]
            row[field] = kappa([a for a, _ in pairs], [b for _, b in pairs])
        rows.append(row)
    return rows


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _texts(paths: Sequence[Path]) -> list[dict[str, Any]]:
    texts = []
    for path in paths:
        for number, line in enumerate(_lines(path), start=1):
            if not line.strip():
                continue
            try:
                texts.append(json.loads(line))
            except ValueError as error:
                raise InputError(f"{path}, line {number}: not JSON: {error}") from None
    return texts


def _table(scores: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    yield f"| condition | texts | {' | '.join(MEASURES)} |"
    yield "|---" * (2 + len(MEASURES)) + "|"
    for row, measures in scores.items():
        cells = (f"{measures[m].value:.2f} [{measures[m].low:.2f}, {measures[m].high:.2f}]"
                 for m in MEASURES)  # fmt: skip
        yield f"| {row} | {measures['texts']} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("prepare")
    one.add_argument("texts", nargs="+", type=Path)
    one.add_argument("--sheet", type=Path, required=True)
    one.add_argument("--key", type=Path, required=True)
    one.add_argument("--seed", type=int, default=0)
    other = commands.add_parser("score")
    other.add_argument("readers", nargs="+", type=Path)
    other.add_argument("--key", type=Path, required=True)
    other.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "prepare":
            sheet, key = prepare(_texts(chosen.texts), chosen.seed)
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in sheet)
            chosen.sheet.write_text(text, encoding="utf-8")
            chosen.key.write_text(json.dumps(key, ensure_ascii=False, indent=1), encoding="utf-8")
            print(f"{len(sheet)} texts on the sheet {chosen.sheet}")
            return 0
        key = json.loads(chosen.key.read_text(encoding="utf-8"))
        readers = [read_answers(_lines(path), str(path), key) for path in chosen.readers]
        scores, kappas = score(key, readers), agreement(readers)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    if chosen.json:
        rows = {
            row: {
                name: value if name == "texts" else [value.k, value.n, value.low, value.high]
                for name, value in measures.items()
            }
            for row, measures in scores.items()
        }
        print(json.dumps({"conditions": rows, "kappa": kappas}, indent=1))
        return 0
    print(*_table(scores), sep="\n")
    for row in kappas:
        print(
            f"readers {row['readers'][0]} and {row['readers'][1]}: kappa {row['emotion']:.2f} "
            f"(emotion), {row['coherent']:.2f} (coherent), {row['on_subject']:.2f} (on subject)"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
