"""Facts under a mood: the numbers are the scores', and the sentences are the numbers'."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from engines import open_engine, random_vector
from tiny_models import TinyModel

from pyemo import ControlVector, Engine, Model, Steering
from pyemo.errors import SequenceLimitError
from pyemo.measures.bootstrap import Interval
from pyemo.strengths import facts as module
from pyemo.strengths.facts import N_CTX, N_SEQUENCES, Answers, FactReading, FactYardstick
from pyemo.strengths.trials import random_direction
from pyemo.texts.facts import Choice, FactTexts, fact_texts

FEW = FactTexts(
    *(
        tuple(Choice(f"{word} {x}?", f" {x} one", f" the other {x}") for x in ("a", "story", "day"))
        for word in ("is it", "I feel that", "I feel it is")
    )
)


@pytest.fixture(params=["llama", "gpt2"])
def engine(tiny: Callable[[str], TinyModel], request: pytest.FixtureRequest) -> Iterator[Engine]:
    model = Model.load(tiny(request.param).path)
    with open_engine(model, n_ctx=N_CTX, n_seq_max=N_SEQUENCES) as opened:
        yield opened


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fact_texts", lambda: FEW)


@pytest.fixture
def vector(engine: Engine) -> ControlVector:
    return random_vector(engine.model, layers=[1, 2], seed=3)


def log_odds(engine: Engine, choices: tuple[Choice, ...], mood: Steering) -> np.ndarray:
    is_chat = engine.model.chat_template is not None
    found = []
    for choice in choices:
        text = choice.question if is_chat else f"{choice.question}\n\n"
        given = engine.prompt_tokens(text)
        pairs = [(choice.first, given), (choice.second, given)]
        first, second = engine.score_many(pairs, steering=mood)
        found.append(first.logprobs.sum() - second.logprobs.sum())
    return np.array(found)


def test_numbers_are_those_of_the_scores(engine: Engine, vector: ControlVector) -> None:
    reading = FactYardstick(engine).measure(vector, 0.8)
    others = [random_direction(vector, seed) for seed in range(2)]
    for choices, answers in (
        (FEW.facts, reading.facts),
        (FEW.false_claims, reading.false_claims),
        (FEW.true_claims, reading.true_claims),
    ):
        plain = log_odds(engine, choices, Steering())
        steered = log_odds(engine, choices, Steering({vector: 0.8}))
        pushed = np.mean([log_odds(engine, choices, Steering({o: 0.8})) for o in others], axis=0)
        assert (answers.n, answers.unsteered, answers.steered) == (
            len(choices),
            (plain > 0).sum(),
            (steered > 0).sum(),
        )
        assert answers.change.value == pytest.approx((steered - plain).mean(), abs=1e-3)
        assert answers.beyond_random.value == pytest.approx((steered - pushed).mean(), abs=1e-3)


def test_no_strength_changes_nothing(engine: Engine, vector: ControlVector) -> None:
    reading = FactYardstick(engine).measure(vector, 0.0)
    for answers in (reading.facts, reading.false_claims, reading.true_claims):
        assert answers.unsteered == answers.steered
        assert answers.change == answers.beyond_random == (0, 0, 0)
    assert reading.sentences == ("changes facts no more than random directions of its length",)


def test_an_engine_without_room_is_refused_and_keeps_no_sequence(
    engine: Engine, vector: ControlVector
) -> None:
    with engine.sequence([1, 2]):
        with pytest.raises(SequenceLimitError):
            FactYardstick(engine).measure(vector, 0.1)
        assert engine.n_free_sequences == N_SEQUENCES - 1


def answers(low: float, high: float) -> Answers:
    change = Interval((low + high) / 2, low, high)
    return Answers(20, 10, 12, change, change)


@pytest.mark.parametrize(
    ("facts", "false", "true", "sentences"),
    [
        ((-1, 1), (0.2, 1), (-1, 1), ("agrees more with what is false",)),
        (
            (-1, 1),
            (0.2, 1),
            (0.1, 1),
            ("agrees more with what is false, and with what is true too",),
        ),
        (
            (-1, -0.5),
            (-1, -0.2),
            (0, 1),
            ("agrees less with what is false", "holds plain facts for less likely"),
        ),
        ((0.5, 1), (-1, 1), (0.5, 1), ("holds plain facts for likelier",)),
    ],
)
def test_sentences_say_what_random_directions_do_not_do(
    facts: tuple[float, float],
    false: tuple[float, float],
    true: tuple[float, float],
    sentences: tuple[str, ...],
) -> None:
    reading = FactReading(0.1, answers(*facts), answers(*false), answers(*true))
    assert reading.sentences == sentences
    assert reading.agrees_with_false == sentences[0].startswith("agrees more")


def test_there_are_twenty_of_each_and_a_true_claim_for_each_false_one() -> None:
    texts = fact_texts()
    for kind in (texts.facts, texts.false_claims, texts.true_claims):
        assert len({choice.question for choice in kind}) == 20
        assert all(choice.first != choice.second for choice in kind)
    answers = {(c.first, c.second) for c in (*texts.false_claims, *texts.true_claims)}
    assert len(answers) == 1


def test_answers_to_a_fact_differ_in_one_place_only() -> None:
    for choice in fact_texts().facts:
        one, other = choice.first.rstrip(".").split(), choice.second.rstrip(".").split()
        assert len(one) == len(other)
        n_alike = sum(a == b for a, b in zip(one, other, strict=True))
        assert len(one) - n_alike <= 2  # a name may have two words
