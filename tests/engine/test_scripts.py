"""Staying in a text's scripts: which tokens leave them, and what is drawn instead."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from pyemo import Engine, SamplerParams
from pyemo.engine.scripts import script_numbers, script_table
from pyemo.errors import InputError
from pyemo.extract import numpy_sampler

WILD = SamplerParams(temperature=4.0, top_k=0, top_p=1, min_p=0)
KEPT = replace(WILD, stay_in_script=True)
N_TOKENS = 12
FOREIGN = 'Я. "'  # what the model says next is Latin


@pytest.fixture(scope="module")
def smollm2_engine() -> Iterator[Engine]:
    """A vocabulary of many scripts that cuts rare letters into bytes."""
    with Engine("smollm2-135m-instruct", n_ctx=256, n_threads=1) as engine:
        yield engine


@pytest.fixture
def fits(smollm2_engine: Engine) -> Callable[..., bool]:
    """Whether a token may follow a text."""

    def fits(text: str, token: int, *more: str) -> bool:
        model = smollm2_engine.model
        return model.scripts.fits(model.tokenize(text), token, script_numbers(more))

    return fits


def words_of(text: str) -> set[str]:
    """First words of the names of a text's letters."""
    return {unicodedata.name(letter).split(" ")[0] for letter in text if letter.isalpha()}


def test_tokens_of_whole_letters_are_judged_by_unicode_s_names(
    smollm2_engine: Engine, fits: Callable[..., bool]
) -> None:
    scripts = {"LATIN", "CYRILLIC", "GREEK", "CJK", "HIRAGANA", "ARABIC", "HEBREW", "HANGUL"}
    n_refused = 0
    for token in range(0, smollm2_engine.model.n_vocab, 7):
        try:
            text = smollm2_engine.model.native.piece(token).decode("utf-8")
        except UnicodeDecodeError:
            continue
        words = words_of(text)
        if words <= scripts and not any(unicodedata.combining(mark) for mark in text):
            assert fits("How was it?", token) == (words <= {"LATIN"}), token
            n_refused += not words <= {"LATIN"}
    assert n_refused > 20


@pytest.mark.parametrize("text", ["42!", " 😀", "é", "…", "µ", "\n"])
def test_every_text_may_have_signs(
    smollm2_engine: Engine, fits: Callable[..., bool], text: str
) -> None:
    for token in smollm2_engine.model.tokenize(text, add_special=False):
        assert fits("Hello", token)


@pytest.mark.parametrize(
    ("before", "text", "holds"),
    [("Hello", "安", False), ("你好", "安", True), ("ひ", "安", True), ("Hello", "。", True)],
)
def test_a_letter_cut_into_bytes_is_judged_at_its_first(
    smollm2_engine: Engine, before: str, text: str, holds: bool
) -> None:
    model = smollm2_engine.model
    tokens = model.tokenize(before)
    pieces = [model.native.byte_token(byte) for byte in text.encode()]
    found = []
    for piece in pieces:
        found.append(model.scripts.fits(tokens, piece))
        tokens.append(piece)
    assert found == [True, True, True] if holds else not found[0]


def test_bytes_that_could_end_either_way_are_judged_at_the_last(smollm2_engine: Engine) -> None:
    model = smollm2_engine.model
    stop, kana = "。".encode(), "あ".encode()  # E3 80 82 and E3 81 82
    assert stop[0] == kana[0]
    begun = [*model.tokenize("Hello"), model.native.byte_token(stop[0])]
    assert model.scripts.fits(begun, model.native.byte_token(stop[1]))
    assert not model.scripts.fits(begun, model.native.byte_token(kana[1]))


def test_named_scripts_may_come(fits: Callable[..., bool], smollm2_engine: Engine) -> None:
    token = smollm2_engine.model.tokenize("и", add_special=False)[0]
    assert not fits("Hello", token)
    assert fits("Hello", token, "Cyrillic")


def test_replies_stay_in_the_prompt_s_script(smollm2_engine: Engine) -> None:
    def text(sampler: SamplerParams) -> str:
        reply = smollm2_engine.generate(FOREIGN, sampler=sampler, raw=True, max_tokens=N_TOKENS)
        return "".join(token.text for token in reply)

    assert "LATIN" in words_of(text(WILD))
    assert words_of(text(KEPT)) <= {"CYRILLIC"}


def test_a_text_without_letters_may_go_on_in_any_script(fits: Callable[..., bool]) -> None:
    assert fits("1 + 1 = ", 2000)
    assert not fits("Я: 1 + 1 = ", 2000)


def test_a_text_is_the_same_up_to_the_first_token_that_leaves(smollm2_engine: Engine) -> None:
    scripts = smollm2_engine.model.scripts
    for seed in range(3):
        ids = []
        for sampler in (WILD, KEPT):
            drawn = replace(sampler, seed=seed)
            with smollm2_engine.sequence(FOREIGN, raw=True, sampler=drawn) as sequence:
                n_prompt = sequence.n_tokens
                list(sequence.generate(max_tokens=N_TOKENS))
                ids.append(sequence.tokens)
        plain, kept = ids
        leaves = [i for i in range(n_prompt, len(plain)) if not scripts.fits(plain[:i], plain[i])]
        first = leaves[0]
        assert kept[:first] == plain[:first]
        assert kept[first] != plain[first]


@pytest.fixture(scope="module")
def fitting(smollm2_engine: Engine) -> npt.NDArray[np.bool_]:
    """Which tokens may follow :data:`FOREIGN`, (n_vocab,)."""
    model = smollm2_engine.model
    tokens = model.tokenize(FOREIGN)
    return np.array([model.scripts.fits(tokens, token) for token in range(model.n_vocab)])


@pytest.mark.parametrize("top_k", [0, 40])
@pytest.mark.parametrize("temperature", [0.0, 8.0])
def test_what_is_drawn_instead_is_numpy_s_from_the_tokens_that_fit(
    smollm2_engine: Engine, fitting: npt.NDArray[np.bool_], temperature: float, top_k: int
) -> None:
    sampler = SamplerParams(
        temperature=temperature, top_k=top_k, top_p=1, min_p=0, stay_in_script=True
    )
    model = smollm2_engine.model
    n_redrawn = 0
    prompt = model.tokenize(FOREIGN)
    with smollm2_engine.sequence(prompt) as sequence:
        logits = sequence.logits()
        masked = np.where(fitting, logits, -np.inf).astype(np.float32)
        for seed in range(6):
            drawn = replace(sampler, seed=seed)
            first = numpy_sampler.draw(
                *numpy_sampler.most_likely(logits, drawn), drawn, len(prompt)
            )
            again = replace(drawn, seed=2**64 - 1 - seed)
            second = numpy_sampler.draw(
                *numpy_sampler.most_likely(masked, again), again, len(prompt)
            )
            n_redrawn += not fitting[first]
            sequence.sampler = drawn
            assert sequence.step().id == (first if fitting[first] else second)
            sequence.rollback(1)
    assert n_redrawn > 0


def test_a_twin_stays_too(smollm2_engine: Engine) -> None:
    with (
        Engine(smollm2_engine.model, n_ctx=256, n_seq_max=2, n_threads=1) as engine,
        engine.sequence("Hi", sampler=KEPT) as sequence,
        sequence.fork() as twin,
    ):
        texts = ["".join(t.text for t in s.generate(max_tokens=8)) for s in (sequence, twin)]
    assert texts[0] == texts[1]


def test_the_table_names_each_code_point_once() -> None:
    table = script_table()
    ends = [end for _, end, _, _ in table.ranges]
    begins = [begin for begin, _, _, _ in table.ranges]
    assert all(end <= begin for end, begin in zip(ends, begins[1:], strict=False))
    for letter, name in {"ñ": "LATIN", "щ": "CYRILLIC", "ｶ": "KATAKANA", "々": "CJK"}.items():
        held = [r for r in table.ranges if r[0] <= ord(letter) < r[1]]
        assert [(table.names[r[2]], r[3]) for r in held] == [(name, True)]


@pytest.mark.parametrize("name", ["", "klingon", "latinn"])
def test_unknown_script_is_refused_by_name(engine: Engine, name: str) -> None:
    with pytest.raises(InputError, match=f"no script '{name}'"):
        engine.sequence([1], sampler=replace(KEPT, scripts=(name,)))


@pytest.mark.parametrize(
    "values",
    [{"stay_in_script": 1}, {"scripts": ("latin",)}, {"stay_in_script": True, "scripts": "latin"}],
)
def test_wrong_values_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(InputError, match="script"):
        SamplerParams(**values)  # type: ignore[arg-type]


def test_tokens_outside_the_vocabulary_are_refused(smollm2_engine: Engine) -> None:
    for token in (-1, smollm2_engine.model.n_vocab):
        with pytest.raises(InputError, match="token"):
            smollm2_engine.model.scripts.fits([token], 5)
