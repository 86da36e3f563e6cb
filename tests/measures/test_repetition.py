"""Repetition and scripts are measured as the formulas say, against slow and plain computations."""

from __future__ import annotations

import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyemo.measures.repetition import (
    Loop,
    compression_ratio,
    distinct_ngrams,
    longest_loop,
    most_repeated_ngram,
    new_script_share,
    script,
    words,
)

few_tokens = st.lists(st.integers(0, 3), max_size=24)


def test_distinct_ngrams_counts_each_once() -> None:
    assert distinct_ngrams([1, 2, 1, 2, 1], 2) == 2 / 4  # (1,2) (2,1) (1,2) (2,1)
    assert distinct_ngrams([1, 2, 3, 4], 3) == 1.0
    assert distinct_ngrams([7] * 10, 3) == 1 / 8


@pytest.mark.parametrize("items", [[], [1], [1, 1]])
def test_too_few_items_repeat_nothing(items: list[int]) -> None:
    assert distinct_ngrams(items, 3) == 1.0
    assert most_repeated_ngram(items, 3) == 0


def test_most_repeated_ngram_is_counted_with_overlaps() -> None:
    assert most_repeated_ngram([*"abcabcabc"], 3) == 3
    assert most_repeated_ngram([1] * 5, 3) == 3


@given(few_tokens)
def test_longest_loop_is_the_longest_of_all_stretches(tokens: list[int]) -> None:
    def is_loop(begin: int, end: int, period: int) -> bool:
        inside = tokens[begin:end]
        return len(inside) >= 2 * period and inside[period:] == inside[:-period]

    lengths = [
        end - begin
        for begin, end in itertools.combinations(range(len(tokens) + 1), 2)
        for period in range(1, (end - begin) // 2 + 1)
        if is_loop(begin, end, period)
    ]
    found = longest_loop(tokens)
    assert found.length == max(lengths, default=0)
    if found.length:
        assert is_loop(found.begin, found.begin + found.length, found.period)


def test_loop_says_where_how_long_and_how_often() -> None:
    found = longest_loop([9, 8, 1, 2, 3, 1, 2, 3, 1, 7])
    assert found == Loop(begin=2, length=7, period=3)
    assert found.n_cycles == pytest.approx(7 / 3)
    assert longest_loop([9, 8, 1, 2, 3, 1, 2, 3, 1, 7], min_cycles=3) == Loop(0, 0, 0)


def test_compression_ratio_is_that_of_zlib_over_bytes() -> None:
    text = "naïve café " * 20
    assert compression_ratio(text) == len(text.encode()) / len(zlib.compress(text.encode(), 9))
    assert compression_ratio(text) > 2.4 > compression_ratio("A line of plain words, said once.")
    assert compression_ratio("") == 0.0
    assert compression_ratio("\ud800") > 0  # half a surrogate pair, which UTF-8 cannot write


def test_words_are_case_folded_and_letters_of_unspaced_scripts_count_each() -> None:
    assert words("Don't STOP, naïve_one!") == ["don't", "stop", "naïve_one"]
    assert words("我很好 ok") == ["我", "很", "好", "ok"]
    assert words("¿?!…") == []


@pytest.mark.parametrize(
    ("letter", "name"),
    [
        ("a", "LATIN"),
        ("é", "LATIN"),
        ("\uff21", "LATIN"),  # full width
        ("ж", "CYRILLIC"),
        ("\u03b1", "GREEK"),
        ("找", "CJK"),
        ("か", "HIRAGANA"),
        ("\uff71", "KATAKANA"),  # half width
        ("\u30fc", "KATAKANA"),  # the sign that makes a vowel long
        ("\u3005", "CJK"),  # the sign that repeats a character
        ("한", "HANGUL"),
        ("ب", "ARABIC"),
        ("1", ""),
        ("!", ""),
        ("😀", ""),
    ],
)
def test_script_is_that_of_the_letter(letter: str, name: str) -> None:
    assert script(letter) == name


def test_new_scripts_are_those_of_neither_prompt_nor_twin() -> None:
    assert new_script_share("ab找摸", "Hello") == 0.5
    assert new_script_share("ab找摸", "Hello", "你好") == 0.0
    assert new_script_share("Привет", "Как дела?") == 0.0
    assert new_script_share("123 !", "Hello") == 0.0
    assert new_script_share("ab", "123") == 0.0
    assert new_script_share("", "Hello") == 0.0
