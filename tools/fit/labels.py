"""The labelled texts of the regimes, and how well readers and rules agree on them.

Owns the stored texts (``quality/data/regimes``), their splits, Cohen's kappa and balanced
accuracy. The rule under test is the package's; ``fit.regimes`` says how it was fitted.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyemo.measures.bootstrap import Interval, bootstrap_interval
from pyemo.measures.regimes import TextMeasures, TextRegime, measure_text

DATA = Path(__file__).parents[2] / "tests" / "quality" / "data" / "regimes"
READERS = ("reader_a", "reader_b", "reader_c")
LABELS = {
    "coherent": TextRegime.COHERENT,
    "repetitive": TextRegime.REPETITIVE_COLLAPSE,
    "explosive": TextRegime.EXPLOSIVE,
}
ORDER = tuple(LABELS.values())

# Never used to choose a threshold: six emotions of both signs of valence and arousal, taken before
# any label was read. Random directions stand among the training texts.
HELD_OUT_EMOTIONS = ("afraid", "blissful", "brooding", "enthusiastic", "grateful", "hostile")


@dataclass(frozen=True)
class LabelledText:
    """One text with its measures, those of its twin, and what readers called it.

    ``labels`` are the readings in the order of READERS; ``gold`` is what most say, and the last
    reading where no two agree.
    """

    id: str
    model: str
    emotion: str
    strength: float
    sampler: str
    length: int
    prompt: str
    text: str
    measures: TextMeasures
    twin: TextMeasures
    labels: tuple[TextRegime, ...]
    gold: TextRegime

    @property
    def is_held_out_emotion(self) -> bool:
        """True if no threshold has seen a text of this emotion."""
        return self.emotion in HELD_OUT_EMOTIONS


def lines(name: str) -> list[dict[str, Any]]:
    """Return the records of one stored file."""
    text = (DATA / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def labels(reader: str) -> dict[str, TextRegime]:
    """Return id -> label of one reader."""
    return {record["id"]: LABELS[record["label"]] for record in lines(f"{reader}.jsonl")}


def measures_of(record: dict[str, Any], known: Sequence[str] = ()) -> TextMeasures:
    """Return the measures of a stored text; ``known`` are its prompt and its twin's text."""
    return measure_text(
        record["tokens"],
        record["text"],
        record["logprobs"],
        known=known,
        entropies=record["entropies"],
    )


def cut(twin: dict[str, Any], n_tokens: int) -> dict[str, Any]:
    """Return the first ``n_tokens`` tokens of a twin: the same draw, had it been stopped there."""
    text = twin["short_text"] if n_tokens == 48 else twin["text"]
    rows = {name: twin[name][:n_tokens] for name in ("tokens", "logprobs", "entropies")}
    return twin | rows | {"text": text}


def majority(given: Sequence[TextRegime]) -> TextRegime:
    """Return what most readers say; the last of them decides where none has more than one vote."""
    return max(reversed(given), key=given.count)


@functools.cache
def labelled_texts() -> tuple[LabelledText, ...]:
    """Return all texts, sorted by id."""
    by_reader = [labels(reader) for reader in READERS]
    twins = {record["twin"]: record for record in lines("twins.jsonl")}
    found = []
    for record in lines("texts.jsonl"):
        twin = cut(twins[record["twin"]], record["length"])
        given = tuple(reader[record["id"]] for reader in by_reader)
        found.append(
            LabelledText(
                **{key: record[key] for key in ("id", "model", "emotion", "strength", "sampler")},
                **{key: record[key] for key in ("length", "prompt", "text")},
                measures=measures_of(record, (record["prompt"], twin["text"])),
                twin=measures_of(twin),
                labels=given,
                gold=majority(given),
            )
        )
    return tuple(found)


# --- agreement ---


def confusion(truth: Sequence[TextRegime], found: Sequence[TextRegime]) -> NDArray[np.int64]:
    """Return counts (3, 3), rows the truth and columns what was found, in the order of ORDER."""
    counts = np.zeros((3, 3), np.int64)
    for true, called in zip(truth, found, strict=True):
        counts[ORDER.index(true), ORDER.index(called)] += 1
    return counts


def balanced_accuracy(counts: NDArray[np.int64]) -> float:
    """Return the mean over classes of the share found; classes without texts are left out."""
    totals = counts.sum(axis=1)
    return float((np.diag(counts)[totals > 0] / totals[totals > 0]).mean())


def accuracy_interval(truth: Sequence[TextRegime], found: Sequence[TextRegime]) -> Interval:
    """Return balanced accuracy with its bootstrap interval over texts."""
    rows = np.array([(ORDER.index(t), ORDER.index(f)) for t, f in zip(truth, found, strict=True)])

    def statistic(drawn: NDArray[Any]) -> float:
        return balanced_accuracy(
            np.bincount(3 * drawn[:, 0] + drawn[:, 1], minlength=9).reshape(3, 3)
        )

    return bootstrap_interval(rows, statistic)


def kappa(one: Sequence[TextRegime], other: Sequence[TextRegime]) -> float:
    """Return Cohen's kappa (Cohen 1960): agreement above that of chance."""
    counts = confusion(one, other)
    n = counts.sum()
    by_chance = float((counts.sum(axis=0) * counts.sum(axis=1)).sum()) / n**2
    return (float(np.trace(counts)) / n - by_chance) / (1 - by_chance)


def readers_agreement(texts: Sequence[LabelledText]) -> float:
    """Return the mean balanced accuracy of a first reading by the second, both ways round."""
    one, other = ([text.labels[i] for text in texts] for i in (0, 1))
    counts = confusion(one, other)
    return (balanced_accuracy(counts) + balanced_accuracy(counts.T)) / 2


Rule = Callable[[LabelledText], TextRegime]


def judged(texts: Sequence[LabelledText], rule: Rule) -> Interval:
    """Return a rule's balanced accuracy on the gold labels."""
    return accuracy_interval([text.gold for text in texts], [rule(text) for text in texts])
