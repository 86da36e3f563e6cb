"""How the weights of ``measures.regimes.classify_text`` were fitted, and what the rules reach.

    PYTHONPATH=tools python -m fit.regimes

Prints the weights of the training texts (every emotion that is not held out) and the tables of
docs/measurements/regimes.md. Held-out emotions, and each model in turn, are looked at only to
report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from fit.labels import (
    ORDER,
    LabelledText,
    Rule,
    accuracy_interval,
    balanced_accuracy,
    confusion,
    judged,
    kappa,
    labelled_texts,
    readers_agreement,
)
from fit.rules import proxy_rule, ratio_rule
from pyemo.measures.bootstrap import Interval
from pyemo.measures.regimes import TextRegime, Weights, classify_text

RIDGE = 1.0  # penalty on standardized weights

Pair = tuple[Weights, Weights]


def features(text: LabelledText) -> list[float]:
    """Return what ``measures.regimes.Weights`` weighs, in its order, without the bias."""
    units = (Weights(0, *row) for row in np.eye(len(Weights._fields) - 1))
    return [unit.score(text.measures) for unit in units]


def fit(texts: Sequence[LabelledText]) -> Pair:
    """Return the weights of collapse and of explosion, rounded to 2 decimals."""
    rows = fit_failures(np.array([features(text) for text in texts]), [t.gold for t in texts])
    return Weights(*rows[0]), Weights(*rows[1])


def fit_failures(x: NDArray[np.float64], gold: Sequence[TextRegime]) -> list[list[float]]:
    """Return bias and weights of collapse, and of explosion, rounded to 2 decimals.

    Multinomial logistic regression with coherence as the reference, every class counting the same.

    Args:
        x: (n_texts, n_measures).
        gold: (n_texts,), what each text is.
    """
    y = np.array([ORDER.index(kind) for kind in gold])
    mean, spread = x.mean(axis=0), x.std(axis=0)
    z = np.column_stack([np.ones(len(x)), (x - mean) / spread])
    share = len(y) / 3 / np.bincount(y, minlength=3)[y]
    is_failure = np.eye(3)[y][:, 1:]

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = flat.reshape(2, -1)
        scores = np.column_stack([np.zeros(len(z)), z @ weights.T])
        log_total = np.logaddexp.reduce(scores, axis=1)
        odds = np.exp(scores - log_total[:, None])
        value = (share * (log_total - scores[np.arange(len(y)), y])).sum()
        slope = ((odds[:, 1:] - is_failure) * share[:, None]).T @ z
        slope[:, 1:] += RIDGE * weights[:, 1:]
        return value + RIDGE / 2 * (weights[:, 1:] ** 2).sum(), slope.ravel()

    fitted = minimize(loss, np.zeros(2 * z.shape[1]), jac=True, method="L-BFGS-B").x.reshape(2, -1)
    slopes = fitted[:, 1:] / spread
    biases = fitted[:, 0] - slopes @ mean
    return np.column_stack([biases, slopes]).round(2).tolist()


def rule_of(pair: Pair) -> Rule:
    """Return ``classify_text`` with other weights."""

    def rule(text: LabelledText) -> TextRegime:
        scores = [0.0, *(weights.score(text.measures) for weights in pair)]
        return ORDER[int(np.argmax(scores))]

    return rule


def packaged_rule(text: LabelledText) -> TextRegime:
    """The rule as it is shipped."""
    return classify_text(text.measures)


def proxy(text: LabelledText) -> TextRegime:
    """The rule of the code beside the paper's follow-up."""
    return proxy_rule(text.measures)


def fitted_ratio_rule(texts: Sequence[LabelledText]) -> Rule:
    """Return the ratio-only rule with the two bounds that are best on ``texts``."""
    ratios = np.array([np.exp(text.measures.surprise - text.twin.surprise) for text in texts])
    truth = np.array([ORDER.index(text.gold) for text in texts])
    bounds = np.quantile(ratios, np.linspace(0, 1, 61))
    best = (-1.0, 0.0, np.inf)
    for low in bounds:
        for high in bounds[bounds >= low]:
            found = np.where(ratios < low, 1, np.where(ratios > high, 2, 0))
            counts = np.bincount(3 * truth + found, minlength=9).reshape(3, 3)
            best = max(best, (balanced_accuracy(counts), float(low), float(high)))
    _, low, high = best
    return lambda text: ratio_rule(text.measures, text.twin, collapse=low, explosion=high)


def splits(
    texts: Sequence[LabelledText],
) -> dict[str, tuple[list[LabelledText], list[LabelledText]]]:
    """Return name -> (training texts, test texts): held-out emotions, then each model held out."""
    found = {
        "emotions": (
            [text for text in texts if not text.is_held_out_emotion],
            [text for text in texts if text.is_held_out_emotion],
        )
    }
    for model in sorted({text.model for text in texts}):
        others = [text for text in texts if text.model != model]
        found[model] = (others, [text for text in texts if text.model == model])
    return found


# --- the tables ---


def shown(interval: Interval) -> str:
    """Write a share with its interval."""
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def table(counts: NDArray[Any]) -> str:
    """Write a confusion matrix in Markdown."""
    names = [kind.value for kind in ORDER]
    rows = [f"| | {' | '.join(names)} |", "|---|---:|---:|---:|"]
    rows += [
        f"| {name} | {' | '.join(map(str, row))} |" for name, row in zip(names, counts, strict=True)
    ]
    return "\n".join(rows)


def main() -> None:
    """Print weights and tables."""
    texts = labelled_texts()
    print(len(texts), Counter(text.gold.value for text in texts))
    one, other = ([text.labels[i] for text in texts] for i in (0, 1))
    print(f"kappa {kappa(one, other):.3f}; agreement ", end="")
    print(f"{np.mean([a is b for a, b in zip(one, other, strict=True)]):.3f}, balanced ", end="")
    print(f"{readers_agreement(texts):.3f}\n{table(confusion(one, other))}\n")
    for name, (train, test) in splits(texts).items():
        pair = fit(train)
        print(f"## {name}: {len(train)} to fit, {len(test)} held out")
        print(*pair, sep="\n")
        one, other = ([text.labels[i] for text in test] for i in (0, 1))
        print(f"readers {readers_agreement(test):.3f}, kappa {kappa(one, other):.3f}")
        print("fitted    ", shown(judged(test, rule_of(pair))))
        for i in (0, 1):  # the first two readings, which are independent of the rule
            truth = [text.labels[i] for text in test]
            found = [rule_of(pair)(text) for text in test]
            print(f"  by reading {i + 1}", shown(accuracy_interval(truth, found)))
        print("ratio only", shown(judged(test, fitted_ratio_rule(train))))
        print("proxy     ", shown(judged(test, proxy)))
        counts = confusion([t.gold for t in test], [rule_of(pair)(t) for t in test])
        print(f"{table(counts)}\n")
    print("## as shipped, on the held-out emotions")
    test = splits(texts)["emotions"][1]
    print(shown(judged(test, packaged_rule)))
    for length in (48, 256):
        for sampler in ("greedy", "default"):
            part = [t for t in texts if (t.length, t.sampler) == (length, sampler)]
            print(length, sampler, len(part), shown(judged(part, packaged_rule)))


if __name__ == "__main__":
    main()
