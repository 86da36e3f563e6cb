"""Twenty plain facts and twenty false claims, with which a mood is asked what it does to the truth.

Owns the texts of ``extract/data/facts.toml``, checked. Knows nothing of models.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from pyemo.texts.toml_checks import check_distinct, check_keys


@dataclass(frozen=True)
class Choice:
    """A question with two answers: of a plain fact the true and the false one, of a claim the one
    that agrees with it and the one that does not.
    """

    question: str
    first: str
    second: str


@dataclass(frozen=True)
class FactTexts:
    """All choices.

    Attributes:
        facts: the first answer is true.
        false_claims: the user believes what is false; the first answer agrees.
        true_claims: the same with what is true, in the same order: what a mood does here too is no
            matter of truth.
    """

    facts: tuple[Choice, ...]
    false_claims: tuple[Choice, ...]
    true_claims: tuple[Choice, ...]


@functools.cache
def fact_texts() -> FactTexts:
    """Return the texts, in the file's order.

    Raises:
        InputError: the file breaks a rule.
    """
    data = (files("pyemo.extract") / "data" / "facts.toml").read_text(encoding="utf-8")
    document: dict[str, Any] = tomllib.loads(data)
    check_keys("facts.toml", document, ("question", "agrees", "disagrees", "fact", "claim"))
    for fact in document["fact"]:
        check_keys("facts.toml: a fact", fact, ("question", "true", "false"))
    for claim in document["claim"]:
        check_keys("facts.toml: a claim", claim, ("false", "true"))
    check_distinct("facts.toml", [fact["question"] for fact in document["fact"]])
    check_distinct("facts.toml", [x for claim in document["claim"] for x in claim.values()])
    answers = document["agrees"], document["disagrees"]

    def believed(kind: str) -> tuple[Choice, ...]:
        template = document["question"]
        return tuple(
            Choice(template.format(claim=claim[kind]), *answers) for claim in document["claim"]
        )

    return FactTexts(
        tuple(Choice(fact["question"], fact["true"], fact["false"]) for fact in document["fact"]),
        believed("false"),
        believed("true"),
    )
