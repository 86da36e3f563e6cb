"""Rules that pyemo's own is compared with: the follow-up's, and the perplexity ratio alone."""

from __future__ import annotations

from collections.abc import Sequence

from pyemo.errors import InputError
from pyemo.measures.perplexity import ratio_of
from pyemo.measures.regimes import Regime, TextRegime
from pyemo.measures.text import TextMeasures

PROXY_REPEATS = 3
PROXY_MIN_WORDS = 3
PROXY_REPETITIVE_SHARE = 0.5
PROXY_EXPLOSIVE_SHARE = 0.3
RATIO_COLLAPSE = 0.6
RATIO_EXPLOSION = 3.0


def proxy_rule(measures: TextMeasures) -> TextRegime:
    """Return what the code beside the paper's follow-up says of a text.

    Repetitive where any word trigram comes 3 times or more, explosive where there are fewer than 3
    words (Jeong 2026, arXiv 2604.11050; its public code, scripts/paper5_extract.py of Neural-MRI).
    """
    if measures.repeated_words >= PROXY_REPEATS:
        return TextRegime.REPETITIVE_COLLAPSE
    if measures.n_words < PROXY_MIN_WORDS:
        return TextRegime.EXPLOSIVE
    return TextRegime.COHERENT


def proxy_rule_strength(texts: Sequence[TextMeasures]) -> Regime:
    """Return what that code says of texts: > 50% repetitive, else > 30% explosive, else surgical.

    Raises:
        InputError: no texts.
    """
    if not texts:
        raise InputError("no texts to classify; pass at least one")
    found = [proxy_rule(measures) for measures in texts]
    if found.count(TextRegime.REPETITIVE_COLLAPSE) > PROXY_REPETITIVE_SHARE * len(found):
        return Regime.REPETITIVE_COLLAPSE
    if found.count(TextRegime.EXPLOSIVE) > PROXY_EXPLOSIVE_SHARE * len(found):
        return Regime.EXPLOSIVE
    return Regime.SURGICAL


def ratio_rule(
    measures: TextMeasures,
    twin: TextMeasures,
    *,
    collapse: float = RATIO_COLLAPSE,
    explosion: float = RATIO_EXPLOSION,
) -> TextRegime:
    """Return what the ratio alone says: stuck below one bound, broken above the other."""
    ratio = ratio_of([measures.surprise - twin.surprise])
    if ratio < collapse:
        return TextRegime.REPETITIVE_COLLAPSE
    return TextRegime.EXPLOSIVE if ratio > explosion else TextRegime.COHERENT
