"""How the weights of ``pyemo.guard.watch`` were fitted, and what the watch sees.

    PYTHONPATH=tools python -m fit.watch

Fitted to the last 16, 32 and 48 tokens of the labelled texts of 48 tokens, every emotion that is
not held out. Prints the weights, and the table of docs/guard.md: what is seen of held-out emotions
and of texts of 256 tokens, which no weight has seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fit.labels import ORDER, labelled_texts, lines, measures_of
from fit.regimes import fit_failures
from pyemo.guard import watch
from pyemo.guard.watch import STRIDE, WatchWeights, measures, trouble
from pyemo.measures.proportion import Proportion
from pyemo.measures.regimes import TextRegime, classify_text

LENGTHS = (16, 32, 48)
FITTED_LENGTH = 48


def end_of(record: dict[str, Any], stop: int, length: int, *, exact: bool) -> Any:
    """Return the measures of the ``length`` tokens before ``stop``."""
    part = slice(stop - length, stop)
    surprises = [-x for x in record["logprobs"][part]] if exact else None
    return measures(record["tokens"][part], record["entropies"][part], surprises)


def fit(length: int, *, exact: bool) -> tuple[WatchWeights, WatchWeights]:
    """Return the weights of collapse and of explosion for the last ``length`` tokens."""
    records = {record["id"]: record for record in lines("texts.jsonl")}
    rows, gold = [], []
    for text in labelled_texts():
        record = records[text.id]
        n = len(record["tokens"])
        if text.length == FITTED_LENGTH and n >= length and not text.is_held_out_emotion:
            rows.append(end_of(record, n, length, exact=exact))
            gold.append(text.gold)
    collapse, explosion = fit_failures(np.array(rows), gold)
    return WatchWeights(*collapse), WatchWeights(*explosion)


def looks(record: dict[str, Any], *, exact: bool) -> Iterator[watch.Trouble | None]:
    """Yield what the watch says at each look of a text."""
    surprises = [-x for x in record["logprobs"]]
    for stop in range(min(LENGTHS), len(record["tokens"]) + 1, STRIDE):
        yield trouble(
            record["tokens"][:stop],
            record["entropies"][:stop],
            surprises[:stop] if exact else None,
        )


def seen(records: Sequence[dict[str, Any]], *, exact: bool) -> tuple[Proportion, float]:
    """Return how many texts are seen at all, and the median token of the first sight."""
    firsts = []
    for record in records:
        at = [i for i, what in enumerate(looks(record, exact=exact)) if what is not None]
        if at:
            firsts.append(min(LENGTHS) + STRIDE * at[0])
    return Proportion(len(firsts), len(records)), float(np.median(firsts)) if firsts else np.nan


def groups() -> dict[str, list[dict[str, Any]]]:
    """Return the texts to test on by what they are."""
    labelled = {text.id: text for text in labelled_texts()}
    found: dict[str, list[dict[str, Any]]] = {}
    for record in lines("texts.jsonl"):
        text = labelled[record["id"]]
        if len(record["tokens"]) < min(LENGTHS):
            continue
        if text.length == FITTED_LENGTH and text.is_held_out_emotion:
            found.setdefault(f"48 tokens, held-out emotions: {text.gold.value}", []).append(record)
        elif text.length > FITTED_LENGTH:
            name = f"256 tokens, {text.sampler}: {text.gold.value}"
            found.setdefault(name, []).append(record)
    for record in lines("twins.jsonl"):
        if len(record["tokens"]) > FITTED_LENGTH:
            fine = classify_text(measures_of(record)) is TextRegime.COHERENT
            name = f"unsteered, {record['sampler']}: {'coherent' if fine else 'failing'} by rule"
            found.setdefault(name, []).append(record)
    return found


def main() -> None:
    """Print weights and tables."""
    for exact in (False, True):
        print("EXACT_WEIGHTS = {" if exact else "WEIGHTS = {")
        for length in LENGTHS:
            rows = ", ".join(
                f"WatchWeights{tuple(w[: None if exact else 5])}" for w in fit(length, exact=exact)
            )
            print(f"    {length}: ({rows}),")
        print("}")
    print(f"as shipped, margin {watch.MARGIN}; classes {[kind.value for kind in ORDER]}")
    for name, records in sorted(groups().items()):
        fast, first = seen(records, exact=False)
        exactly, at = seen(records, exact=True)
        print(f"| {name} | {fast} at {first:.0f} | {exactly} at {at:.0f} |")


if __name__ == "__main__":
    main()
