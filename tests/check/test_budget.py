"""Budgets: read, merged, and refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyemo.check.budget import Budget
from pyemo.errors import InputError


def load(tmp_path: Path, text: str) -> Budget:
    path = tmp_path / "budget.toml"
    path.write_text(text)
    return Budget.load(path)


def test_a_file_gives_its_limits_and_no_others(tmp_path: Path) -> None:
    budget = load(tmp_path, 'min_tokens_per_s = 20\nmax_memory = "250 MB"\nregime = "surgical"\n')
    assert budget.limits == {
        "min_tokens_per_s": 20.0,
        "max_memory": 250_000_000,
        "regime": "surgical",
    }


def test_options_override_the_file(tmp_path: Path) -> None:
    budget = load(tmp_path, "min_tokens_per_s = 20\nmax_load_s = 3\n")
    merged = budget.merged({"min_tokens_per_s": 5.0, "max_load_s": None}, "the options")
    assert merged.limits == {"min_tokens_per_s": 5.0, "max_load_s": 3.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("250", 250_000_000), ("1.5", 1_500_000), ('"0.5GB"', 500_000_000), ('"900kb"', 900_000)],
)
def test_memory_is_mb_unless_it_says_otherwise(tmp_path: Path, text: str, expected: int) -> None:
    assert load(tmp_path, f"max_memory = {text}").max_memory == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min_tokens_per_s = ", "is not TOML"),
        ("min_token_per_s = 3", "unknown key 'min_token_per_s'; did you mean min_tokens_per_s"),
        ("[limits]\nmax_load_s = 3", "unknown key 'limits'"),
        ('max_load_s = "fast"', "max_load_s is 'fast'; it must be a number from 0 on"),
        ("max_load_s = -1", "it must be a number from 0 on"),
        ("max_load_s = nan", "it must be a number from 0 on"),
        ("max_load_s = true", "it must be a number from 0 on"),
        ("min_top1 = 97", "it is a share, from 0 to 1"),
        ('max_memory = "much"', "write a number of MB"),
        ("max_memory = 0", "write a number of MB"),
        ('regime = "angry"', "one of inert, surgical"),
        ("same_text = 1", "must be true or false"),
    ],
)
def test_what_cannot_be_a_budget_is_refused_by_name(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the budget .*nowhere' cannot be read"):
        Budget.load(tmp_path / "nowhere")
