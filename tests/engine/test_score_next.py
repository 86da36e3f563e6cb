"""Scoring as a text grows: the same log-probabilities as scoring it at once."""

from __future__ import annotations

import numpy as np
import pytest
from engines import random_vector

from pyemo import Engine, Steering
from pyemo.errors import ContextFullError

PROMPT = "the happy story"
TEXT = "the sad story of the happy dog and the sad cat"


def test_parts_are_scored_as_the_whole(engine: Engine) -> None:
    prompt, text = engine.prompt_tokens(PROMPT), engine.model.tokenize(TEXT)
    expected = engine.score(text, given=prompt).logprobs
    with engine.sequence(prompt) as sequence:
        parts = [sequence.score_next(text[:3]), sequence.score_next(text[3:])]
        np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-4)
        assert sequence.tokens == [*prompt, *text]


def test_the_mood_of_now_acts_on_what_is_scored(engine: Engine) -> None:
    prompt, text = engine.prompt_tokens(PROMPT), engine.model.tokenize(TEXT)
    mood = Steering({random_vector(engine.model): 0.5})
    expected = engine.score(text, given=prompt, steering=mood).logprobs
    with engine.sequence(prompt, steering=mood) as sequence:
        np.testing.assert_allclose(sequence.score_next(text), expected, atol=1e-4)


def test_a_sequence_goes_on_after_it_as_if_the_tokens_had_been_appended(engine: Engine) -> None:
    prompt, text = engine.prompt_tokens(PROMPT), engine.model.tokenize(TEXT)
    with engine.sequence(prompt) as scored, engine.sequence(prompt) as appended:
        scored.score_next(text)
        appended.append(text, is_reply=True)
        np.testing.assert_allclose(scored.logits(), appended.logits(), atol=1e-4)


def test_after_going_back_it_scores_again(engine: Engine) -> None:
    prompt, text = engine.prompt_tokens(PROMPT), engine.model.tokenize(TEXT)
    with engine.sequence(prompt) as sequence:
        first = sequence.score_next(text)
        sequence.rollback(4)
        np.testing.assert_allclose(sequence.score_next(text[-4:]), first[-4:], atol=1e-4)


def test_the_first_token_of_an_empty_sequence_has_no_score(engine: Engine) -> None:
    text = engine.model.tokenize(TEXT)
    with engine.sequence() as sequence:
        assert len(sequence.score_next(text)) == len(text) - 1


def test_more_tokens_than_the_context_holds_are_refused_and_none_is_appended(
    engine: Engine,
) -> None:
    with engine.sequence(PROMPT) as sequence:
        before = sequence.tokens
        with pytest.raises(ContextFullError):
            sequence.score_next([1] * engine.n_ctx)
        assert sequence.tokens == before
