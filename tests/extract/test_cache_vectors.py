"""Cache vectors: a contrast turns one prompt's cells into another's, and training raises replies.

What the trainer computes with transformers is held against the engine's edit of the same cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engines import needs_torch
from tiny_models import TinyModel

from pyemo import Engine, Steering
from pyemo.errors import InputError
from pyemo.extract import cache_vectors
from pyemo.extract.cache_vectors import (
    CacheChoices,
    CacheTrainer,
    contrast,
    emotion_contrast,
    tail_cells,
)
from pyemo.extract.recipe import parse_recipe
from pyemo.strengths.voice import VoiceYardstick
from pyemo.texts.replies import reply_prompts


@pytest.fixture
def engine(new_engine: Callable[..., Engine]) -> Engine:
    return new_engine(n_ctx=1024)


def test_the_cells_are_the_templates_last_but_for_the_very_last(engine: Engine) -> None:
    cells = tail_cells(engine)
    first, second = (engine.prompt_tokens(text) for text in ("the story", "a happy day"))
    assert cells[-1] == -2
    assert len(cells) >= 2
    assert first[cells[0] :] == second[cells[0] :]


def test_without_a_template_the_cells_are_those_of_the_blank_line(
    new_engine: Callable[..., Engine],
) -> None:
    engine = new_engine("gpt2")
    n = len(engine.model.tokenize("\n\n"))
    assert tail_cells(engine) == tuple(range(-n, -1))


def test_a_prompt_that_ends_in_one_common_token_has_no_such_cells() -> None:
    class Words:
        def prompt_tokens(self, prompt: str) -> list[int]:
            return [*range(len(prompt)), 99]

    words: Any = Words()
    with pytest.raises(InputError, match="end with fewer than two common tokens"):
        tail_cells(words)


@pytest.mark.parametrize("with_keys", [False, True])
def test_a_contrast_turns_one_prompts_cells_into_the_others(
    engine: Engine, with_keys: bool
) -> None:
    cells = tail_cells(engine)
    positive, negative = engine.prompt_tokens("a happy day"), engine.prompt_tokens("a gloomy day")
    vector = contrast(engine, [positive], [negative], cells, with_keys=with_keys)
    assert vector.tokens == tuple(negative[cells[0] : -1])
    n_positive, n_negative = len(positive), len(negative)
    with engine.sequence(positive) as wanted, engine.sequence(negative) as edited:
        edited.edit_cache(vector)
        expected = wanted.read_cache(n_positive + cells[0], n_positive - 1)
        found = edited.read_cache(n_negative + cells[0], n_negative - 1)
    for layer, rows in expected.values.items():
        assert np.abs(found.values[layer] - rows).max() <= 1e-4
        if with_keys:
            assert np.abs(found.keys[layer] - expected.keys[layer]).max() <= 1e-4


def test_an_emotions_contrast_says_what_it_is_of(engine: Engine) -> None:
    vector = emotion_contrast(engine, "anger", ["the story", "a day"])
    vector.check(engine.model)
    assert vector.metadata.emotion == "angry"
    assert "{0}" in parse_recipe(vector.metadata.recipe)["system"]
    assert max(np.abs(rows).max() for rows in vector.values.values()) > 0


def test_contrasts_of_unlike_numbers_are_refused(engine: Engine) -> None:
    with pytest.raises(InputError, match="1 positive and 2 negative"):
        contrast(engine, [[5, 6, 7]], [[5, 6, 7]] * 2, [-2])


@needs_torch
def test_training_raises_replies_not_trained_on_by_what_the_engine_sees(
    engine: Engine, tiny: Callable[[str], TinyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = reply_prompts("watch")[:4]
    monkeypatch.setattr(cache_vectors, "reply_prompts", lambda split, style="vivid": prompts)
    trainer = CacheTrainer(tiny("llama").path, device="cpu", dtype="float32")
    trained = trainer.emotion("angry", CacheChoices(steps=6, batch=4, evaluate_every=3, rate=0.3))
    best = max(trained.watched, key=lambda seen: seen.merit)
    assert best.gain >= 0.01
    assert trained.n_steps == 6
    trained.vector.check(engine.model)
    assert trained.vector.tokens == tuple(engine.prompt_tokens("a")[trainer.cells[0] : -1])

    yardstick = VoiceYardstick(engine, prompts, others=())
    seen = yardstick.measure(Steering(), "angry", cache=[(trained.vector, 1.0)])
    assert seen.gain.value == pytest.approx(best.gain, abs=1e-3)
    assert seen.damage.value == pytest.approx(best.damage, abs=1e-3)
    unmoved = yardstick.measure(Steering(), "angry", cache=[(trained.vector, 0.0)])
    assert unmoved.gain.value == pytest.approx(0.0, abs=1e-5)


@needs_torch
def test_a_model_with_sliding_windows_is_refused_for_training(
    tiny: Callable[[str], TinyModel],
) -> None:
    with pytest.raises(InputError, match="has sliding windows"):
        CacheTrainer(tiny("gemma3").path, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"rate": float("nan")}, {"batch": 1.5}, {"cap": True}, {"seed": -1}]
)
def test_what_is_no_choice_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} = .*number from"):
        CacheChoices(**wrong)
