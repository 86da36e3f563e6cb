"""The engine's scores are those computed from transformers' logits, steered and unsteered."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from engines import (
    WITH_GELU,
    log_softmax,
    needs_torch,
    random_directions,
    random_vector,
    steering_of,
)
from tiny_models import ARCHITECTURES, TinyModel

from pyemo import Engine, Steering
from pyemo.errors import ContextFullError, DecodeAbortedError, InputError
from pyemo.measures.perplexity import perplexity_ratio

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.fixture
def model(tiny: Callable[[str], TinyModel], architecture: str) -> TinyModel:
    return tiny(architecture)


@pytest.fixture
def engine(new_engine: Callable[..., Engine], architecture: str) -> Engine:
    return new_engine(architecture)


def reference(
    model: TinyModel, tokens: list[int], n_given: int, steer: dict[int, np.ndarray] | None = None
) -> float:
    """Perplexity of tokens[n_given:] from transformers' logits, in float64."""
    logprobs = log_softmax(model.reference_logits(tokens, steer))
    scored = [logprobs[i - 1, tokens[i]] for i in range(max(1, n_given), len(tokens))]
    return float(np.exp(-np.mean(scored)))


def allowed(architecture: str) -> float:
    """Relative error: ggml's GELU is computed in halves (tests/engine/test_parity.py)."""
    return 1e-3 if architecture in WITH_GELU else 1e-5


@needs_torch
@every_architecture
def test_perplexity_of_a_text_is_that_of_transformers(
    engine: Engine, model: TinyModel, architecture: str
) -> None:
    tokens = model.random_tokens(70)
    begin = engine.model.tokenize("", add_special=True)  # BOS, where the model expects one
    found = engine.score(tokens)
    assert found.n_tokens == 69 + len(begin)
    expected = reference(model, begin + tokens, len(begin))
    assert found.perplexity == pytest.approx(expected, rel=allowed(architecture))


@needs_torch
@every_architecture
def test_perplexity_of_a_continuation_is_that_of_transformers(
    engine: Engine, model: TinyModel, architecture: str
) -> None:
    tokens = model.random_tokens(70)
    found = engine.score(tokens[20:], given=tokens[:20])
    assert found.n_tokens == 50
    expected = reference(model, tokens, 20)
    assert found.perplexity == pytest.approx(expected, rel=allowed(architecture))


@needs_torch
@every_architecture
def test_steered_perplexity_is_that_of_transformers(
    engine: Engine, model: TinyModel, architecture: str
) -> None:
    tokens = model.random_tokens(40)
    steer = dict(enumerate(random_directions(model, length=1.0)))
    found = engine.score(tokens[10:], given=tokens[:10], steering=steering_of(steer))
    expected = reference(model, tokens, 10, steer)
    assert found.perplexity == pytest.approx(expected, rel=10 * allowed(architecture))
    assert (
        abs(found.perplexity / engine.score(tokens[10:], given=tokens[:10]).perplexity - 1) > 0.01
    )


@needs_torch
@every_architecture
def test_perplexity_ratio_is_that_of_transformers(
    engine: Engine, model: TinyModel, architecture: str
) -> None:
    pairs = [
        (model.random_tokens(30, seed=i), model.random_tokens(30, seed=50 + i)) for i in range(4)
    ]
    scores = [
        engine.score_many([(t[6:], t[:6]) for t in side]) for side in zip(*pairs, strict=True)
    ]
    logs = [np.log(reference(model, a, 6) / reference(model, b, 6)) for a, b in pairs]
    found = perplexity_ratio(*scores)
    assert found.value == pytest.approx(np.exp(np.mean(logs)), rel=10 * allowed(architecture))


@pytest.mark.parametrize("architecture", ["llama"])
def test_many_texts_at_once_score_as_each_alone(engine: Engine, model: TinyModel) -> None:
    texts = [model.random_tokens(n, seed=n) for n in (5, 40, 17, 60, 2, 33)]
    moods = [Steering({random_vector(model, seed=i): 0.3 * i}) for i in range(6)]
    many = engine.score_many([(t[1:], t[:1]) for t in texts], steering=moods)
    for text, mood, together in zip(texts, moods, many, strict=True):
        alone = engine.score(text[1:], given=text[:1], steering=mood)
        np.testing.assert_allclose(together.logprobs, alone.logprobs, atol=2e-5)


@every_architecture
def test_texts_after_the_same_prompt_score_as_each_alone(engine: Engine, model: TinyModel) -> None:
    """Prompts are mixed, some texts are steered: only unsteered ones may share a beginning."""
    rng = np.random.default_rng(0)
    prompts = [model.random_tokens(n, seed=n) for n in (20, 21, 1)]
    vector = random_vector(model, seed=3)
    jobs = [(rng.integers(3, 200, n).tolist(), prompts[i % 3]) for i, n in enumerate((9, 4, 7) * 4)]
    moods = [Steering({vector: 0.5}) if i % 4 == 3 else Steering() for i in range(len(jobs))]
    alone = [
        engine.score(text, given=given, steering=mood)
        for (text, given), mood in zip(jobs, moods, strict=True)
    ]
    together = engine.score_many(jobs, steering=moods)
    for one, many in zip(alone, together, strict=True):
        assert many.logprobs.shape == one.logprobs.shape
        np.testing.assert_allclose(many.logprobs, one.logprobs, atol=2e-3)
    assert engine.native.n_free_sequences == engine.n_seq_max


@pytest.mark.parametrize("architecture", ["llama"])
def test_score_says_the_chunk_and_kv_type_it_was_computed_with(
    new_engine: Callable[..., Engine], model: TinyModel
) -> None:
    found = new_engine("llama", n_outputs_max=8, kv_type="f16").score(model.random_tokens(20))
    assert (found.chunk, found.kv_type) == (8, "f16")


@pytest.mark.parametrize("architecture", ["llama"])
def test_smaller_chunks_score_the_same_up_to_rounding(
    new_engine: Callable[..., Engine], model: TinyModel
) -> None:
    tokens = model.random_tokens(70)
    whole = new_engine("llama", n_outputs_max=128).score(tokens)
    parts = new_engine("llama", n_outputs_max=1).score(tokens)
    np.testing.assert_allclose(parts.logprobs, whole.logprobs, atol=2e-5)


@pytest.mark.parametrize("architecture", ["llama"])
@pytest.mark.parametrize("given", [None, [3, 4, 5]])
def test_text_without_a_token_to_score_is_refused(engine: Engine, given: list[int] | None) -> None:
    with pytest.raises(InputError, match="no token to score"):
        engine.score([], given=given)


@pytest.mark.parametrize("architecture", ["llama"])
def test_prompt_that_fills_the_context_is_refused(
    new_engine: Callable[..., Engine], model: TinyModel
) -> None:
    engine = new_engine("llama", n_ctx=256)
    with pytest.raises(ContextFullError, match="n_ctx = 256"):
        engine.score(model.random_tokens(10), given=model.random_tokens(engine.n_ctx))


@pytest.mark.parametrize("architecture", ["llama"])
def test_steering_past_float32_aborts_by_name(engine: Engine, model: TinyModel) -> None:
    huge = random_vector(model, length=1e15)
    with pytest.raises(DecodeAbortedError, match="lower the strength"):
        engine.score(model.random_tokens(20), steering=Steering({huge: 1e6}))
