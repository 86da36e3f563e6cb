"""What docs/measurements/regimes.md says of the rule for texts holds on the stored labels.

No model is run.
"""

from __future__ import annotations

from collections import Counter

import pytest
from fit.labels import (
    HELD_OUT_EMOTIONS,
    ORDER,
    LabelledText,
    judged,
    kappa,
    labelled_texts,
    readers_agreement,
)
from fit.regimes import fit, fitted_ratio_rule, packaged_rule, proxy, rule_of, splits

from pyemo.measures.regimes import COLLAPSE_WEIGHTS, EXPLOSION_WEIGHTS

SPLITS = ["emotions", "gemma-3-270m", "qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct"]

Split = tuple[list[LabelledText], list[LabelledText]]


@pytest.fixture(scope="module")
def texts() -> tuple[LabelledText, ...]:
    return labelled_texts()


@pytest.fixture(scope="module")
def by_name(texts: tuple[LabelledText, ...]) -> dict[str, Split]:
    return splits(texts)


def test_each_class_has_two_hundred_texts(texts: tuple[LabelledText, ...]) -> None:
    counts = Counter(text.gold for text in texts)
    assert min(counts[kind] for kind in ORDER) >= 200


def test_each_text_was_labelled_once_by_each_reader_and_none_is_double(
    texts: tuple[LabelledText, ...],
) -> None:
    assert len({text.id for text in texts}) == len(texts)
    assert len({(text.prompt, text.text) for text in texts}) == len(texts)
    assert {len(text.labels) for text in texts} == {3}


def test_readers_agree(texts: tuple[LabelledText, ...]) -> None:
    one, other = ([text.labels[i] for text in texts] for i in (0, 1))
    assert kappa(one, other) >= 0.89


def test_no_held_out_text_was_fitted(by_name: dict[str, Split]) -> None:
    train, test = by_name["emotions"]
    assert not {text.emotion for text in train} & set(HELD_OUT_EMOTIONS)
    assert {text.emotion for text in test} == set(HELD_OUT_EMOTIONS)
    for name in SPLITS[1:]:
        train, test = by_name[name]
        assert {text.model for text in test} == {name}
        assert name not in {text.model for text in train}


def test_shipped_weights_are_those_fitted_on_the_training_emotions(
    by_name: dict[str, Split],
) -> None:
    fitted = fit(by_name["emotions"][0])
    for found, shipped in zip(fitted, (COLLAPSE_WEIGHTS, EXPLOSION_WEIGHTS), strict=True):
        assert found == pytest.approx(shipped, abs=0.05)


@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("emotions", 0.04),
        ("gemma-3-270m", 0.03),
        ("qwen2.5-coder-0.5b-instruct", 0.08),
        ("smollm2-135m-instruct", 0.03),
    ],
)
def test_rule_is_this_close_to_the_readers_agreement(
    by_name: dict[str, Split], name: str, below: float
) -> None:
    train, test = by_name[name]
    rule = packaged_rule if name == "emotions" else rule_of(fit(train))
    assert judged(test, rule).value >= readers_agreement(test) - below


@pytest.mark.parametrize("name", SPLITS)
def test_rule_is_above_ratio_and_proxy_with_intervals_apart(
    by_name: dict[str, Split], name: str
) -> None:
    train, test = by_name[name]
    low = judged(test, rule_of(fit(train))).low
    assert low > judged(test, fitted_ratio_rule(train)).high
    assert low > judged(test, proxy).high
