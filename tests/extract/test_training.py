"""A training computes what the whole model computes, raises what it is to raise, and stops well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engines import needs_torch, open_engine
from tiny_models import TinyModel

from pyemo import ControlVector, Model, Steering
from pyemo.errors import InputError
from pyemo.extract.steered_tail import ReplyTokens, SteeredTail
from pyemo.extract.training import TrainingChoices, VoiceTokens, train
from pyemo.extract.transformers_loading import load

pytestmark = needs_torch

ARCHITECTURES = ("llama", "gemma3", "gpt2", "qwen2")
LAYERS = range(1, 3)
CHOICES = TrainingChoices(
    steps=12,
    evaluate_every=3,
    batch=3,
    rate=0.02,
    cap=0.2,
    start=0.02,
    patience=4,
    damage=1.0,
    contrast=0.5,
)


def reply(begin: int, *tokens: int) -> ReplyTokens:
    return ReplyTokens(tokens, begin)


def texts(first: int, n: int) -> list[VoiceTokens]:
    """Return prompts of three tokens; the voice repeats one token, plain replies another."""
    return [
        VoiceTokens(
            own=reply(3, 5, 6 + i, 7, 40, 40, 41, 40),
            plain=reply(3, 5, 6 + i, 7, 20, 21, 22),
            contrasts=(reply(3, 5, 6 + i, 7, 30, 31),),
        )
        for i in range(first, first + n)
    ]


def tail_of(model: TinyModel) -> SteeredTail:
    return SteeredTail(load(model.path, "cpu", "float32", None).model, LAYERS)


@pytest.fixture(scope="module")
def tail(tiny: Callable[[str], TinyModel]) -> SteeredTail:
    return tail_of(tiny("llama"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_likelihoods_are_the_engines(tiny: Callable[[str], TinyModel], architecture: str) -> None:
    import torch

    model = tiny(architecture)
    tail = tail_of(model)
    rows = np.random.default_rng(1).normal(size=(2, tail.n_embd)).astype(np.float32) * 0.3
    given = [reply(3, 5, 6, 7, 20, 21, 22), reply(2, 9, 8, 40, 41, 42, 43, 44)]
    scales = [1.0, -0.5]
    found = tail.nll(tail.freeze(given), torch.tensor(scales), torch.from_numpy(rows))
    vector = ControlVector(dict(zip(LAYERS, rows, strict=True)))
    with open_engine(Model.load(model.path)) as engine:
        pairs = [(list(t.tokens[t.begin :]), list(t.tokens[: t.begin])) for t in given]
        moods = [Steering({vector: scale}) for scale in scales]
        expected = [-score.mean_logprob for score in engine.score_many(pairs, steering=moods)]
    assert found.numpy() == pytest.approx(expected, abs=2e-3)


def test_the_model_is_whole_again_afterwards(tiny: Callable[[str], TinyModel]) -> None:
    import torch

    loaded = load(tiny("llama").path, "cpu", "float32", None)
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = loaded.model(input_ids=tokens).logits
        tail = SteeredTail(loaded.model, LAYERS)
        tail.nll(tail.freeze([reply(2, 5, 6, 7, 8)]), torch.ones(1), torch.ones(2, tail.n_embd))
        assert torch.equal(loaded.model(input_ids=tokens).logits, before)


def test_logits_are_computed_for_the_replies_tokens_alone(
    tiny: Callable[[str], TinyModel],
) -> None:
    import torch

    loaded = load(tiny("llama").path, "cpu", "float32", None)
    tail = SteeredTail(loaded.model, LAYERS)
    given = tail.freeze([reply(3, 5, 6, 7, 20), reply(5, 9, 8, 40, 41, 42, 43, 44, 45)])
    shapes = []
    loaded.model.get_output_embeddings().register_forward_hook(
        lambda _module, _inputs, output: shapes.append(tuple(output.shape))
    )
    tail.nll(given, torch.ones(2), torch.ones(2, tail.n_embd))
    assert [shape[:2] for shape in shapes] == [(1, 1 + 3)]


def test_what_a_text_gives_does_not_depend_on_what_was_computed_before(
    tiny: Callable[[str], TinyModel],
) -> None:
    rng = np.random.default_rng(0)

    def some(n: int) -> list[ReplyTokens]:
        return [
            reply(2, *map(int, rng.integers(5, 60, size=size))) for size in rng.integers(6, 40, n)
        ]

    shared, first, own = some(4), some(13), some(9)
    fresh, used = tail_of(tiny("llama")), tail_of(tiny("llama"))
    used.freeze(first + shared)
    for one, other in zip(fresh.freeze(own + shared), used.freeze(own + shared), strict=True):
        assert np.array_equal(one.states.numpy(), other.states.numpy())
        assert np.array_equal(one.means, other.means)


def test_no_logits_are_computed_before_the_first_step_needs_them(
    tiny: Callable[[str], TinyModel],
) -> None:
    loaded = load(tiny("llama").path, "cpu", "float32", None)
    calls = []
    loaded.model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    SteeredTail(loaded.model, LAYERS).freeze([reply(3, 5, 6, 7, 20), reply(2, 9, 8, 40)])
    assert not calls


def test_the_head_gets_states_that_lie_together(tiny: Callable[[str], TinyModel]) -> None:
    import torch

    loaded = load(tiny("llama").path, "cpu", "float32", None)
    given = []
    loaded.model.get_output_embeddings().register_forward_hook(
        lambda _module, inputs, _output: given.append(inputs[0])
    )
    loaded.model(input_ids=torch.tensor([[5, 6, 7], [7, 8, 9]]), logits_to_keep=1)
    assert given[0].shape[:2] == (2, 1)
    assert given[0].is_contiguous()  # else torch copies the weights for each of the two


def test_a_voice_gains_on_prompts_it_has_not_seen(tail: SteeredTail) -> None:
    trained = train(tail, [10.0, 10.0], texts(0, 6), texts(6, 3), CHOICES)
    assert trained.best.gain > 0.1
    assert trained.best.merit == max(w.merit for w in trained.watched)
    assert np.linalg.norm(trained.directions, axis=1) == pytest.approx([1, 1], abs=1e-6)
    assert 0 < trained.dose <= CHOICES.cap * 1.0001


def test_the_same_seed_gives_the_same_rows(tail: SteeredTail) -> None:
    short = replace(CHOICES, steps=3)
    one, same = (train(tail, [10.0, 10.0], texts(0, 6), texts(6, 3), short) for _ in range(2))
    assert np.array_equal(one.directions, same.directions)
    other = train(tail, [10.0, 10.0], texts(0, 6), texts(6, 3), replace(short, seed=1))
    assert not np.array_equal(one.directions, other.directions)


def test_it_stops_when_the_watch_replies_gain_no_more(tail: SteeredTail) -> None:
    own = texts(0, 6)
    away = [VoiceTokens(own=text.plain, plain=text.own) for text in own]
    choices = replace(CHOICES, steps=100, evaluate_every=1, patience=2, damage=0.0, contrast=0.0)
    trained = train(tail, [10.0, 10.0], own, away, choices)
    assert trained.stopped == "the watch replies gained no more"
    assert trained.n_steps < 100


def test_numbers_that_are_not_finite_end_it_with_the_best_so_far(
    tail: SteeredTail, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    whole, steps = tail.nll, []

    def failing(*given: Any) -> torch.Tensor:
        losses = whole(*given)
        if torch.is_grad_enabled():
            steps.append(1)
        return losses * float("nan") if torch.is_grad_enabled() and len(steps) > 6 else losses

    monkeypatch.setattr(tail, "nll", failing)
    trained = train(tail, [10.0, 10.0], texts(0, 6), texts(6, 3), CHOICES)
    assert (trained.n_steps, trained.stopped) == (7, "step 7 gave numbers that are not finite")
    assert trained.best.step == max(trained.watched, key=lambda seen: seen.merit).step <= 6
    assert np.isfinite(trained.directions).all()


def test_progress_says_how_far_it_is(tail: SteeredTail) -> None:
    told: list[tuple[int, int, float]] = []
    train(
        tail,
        [10.0, 10.0],
        texts(0, 3),
        texts(6, 2),
        replace(CHOICES, steps=4),
        lambda *said: told.append(said),
    )
    assert [(step, steps) for step, steps, _ in told] == [(n, 4) for n in range(1, 5)]
    assert told[-1][2] == 0


def test_replies_like_the_plain_ones_are_refused(tail: SteeredTail) -> None:
    same = [VoiceTokens(own=text.plain, plain=text.plain) for text in texts(0, 4)]
    with pytest.raises(InputError, match="do not differ from the plain ones"):
        train(tail, [10.0, 10.0], same, texts(6, 2), CHOICES)
