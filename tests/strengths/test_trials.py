"""Trials and sweeps on a tiny model, with a judge whose scores are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from engines import open_engine, random_vector
from tiny_models import TinyModel

from pyemo import ControlVector, Engine, Model, SamplerParams, Steering
from pyemo.engine.sampling import GREEDY
from pyemo.engine.schedules import HalfLife
from pyemo.errors import ContextFullError, InputError
from pyemo.measures.regimes import Regime
from pyemo.strengths.sweeps import check_sweep, n_texts_of_sweep, parse_strengths, sweep
from pyemo.strengths.trials import Trials, emotion_of, random_direction
from pyemo.vectors.metadata import VectorMetadata

PROMPTS = ("the happy story", "a sad dog", "the", "one day the")
N = 8


class LetterJudge:
    """Scores a text by its share of one letter; counts what it was asked."""

    name = "letters"

    def __init__(self) -> None:
        self.n_texts = 0

    def scores(self, texts: Sequence[str], emotions: Sequence[str]) -> np.ndarray:
        self.n_texts += len(texts)
        shares = [[text.count("e") / (1 + len(text))] * len(emotions) for text in texts]
        return np.array(shares, np.float64).reshape(len(texts), len(emotions))


@pytest.fixture(scope="module")
def engine(tiny: Callable[[str], TinyModel]) -> Iterator[Engine]:
    with open_engine(Model.load(tiny("llama").path), n_seq_max=4) as opened:
        yield opened


def vector(engine: Engine, emotion: str = "happy", seed: int = 0) -> ControlVector:
    metadata = VectorMetadata(emotion=emotion, architecture="llama")
    return random_vector(engine.model, seed=seed, metadata=metadata).with_metadata(
        metadata, name=emotion
    )


def test_a_random_direction_is_as_long_at_the_same_layers(engine: Engine) -> None:
    own = vector(engine)
    other = random_direction(own, seed=1)
    assert other.layers == own.layers
    for layer, row in own.directions.items():
        assert np.linalg.norm(other.directions[layer]) == pytest.approx(np.linalg.norm(row), 1e-3)
        cosine = row @ other.directions[layer] / np.linalg.norm(row) ** 2
        assert abs(cosine) < 0.5
    again = random_direction(own, seed=1)
    assert all((other.directions[i] == again.directions[i]).all() for i in own.layers)


def test_vectors_that_differ_by_rounding_share_their_random_directions(engine: Engine) -> None:
    own = vector(engine)
    other = ControlVector({i: row * np.float32(1 + 1e-6) for i, row in own.directions.items()})
    mine, its = (random_direction(one, seed=1).directions for one in (own, other))
    assert all((mine[i] == its[i]).all() for i in own.layers)


def test_strength_zero_is_the_unsteered_twin(engine: Engine) -> None:
    result = sweep(
        engine, [vector(engine)], [0.0], PROMPTS, max_tokens=N, judge=LetterJudge(), n_rows=4
    )
    (trial,) = result.trials
    assert trial.report.ratio == (1.0, 1.0, 1.0)
    assert trial.report.coherent_share == 1
    assert trial.report.regime is Regime.INERT
    assert trial.effect == trial.noise == 0


def test_a_sweep_is_the_same_again_and_in_another_order(engine: Engine) -> None:
    vectors = [vector(engine, "happy", 0), vector(engine, "sad", 1)]
    first = sweep(
        engine, vectors, [0.0, 0.2, 0.4], PROMPTS, max_tokens=N, judge=LetterJudge(), n_rows=4
    )
    again = sweep(
        engine, vectors, [0.4, 0.0, 0.2], PROMPTS, max_tokens=N, judge=LetterJudge(), n_rows=4
    )
    assert first.trials == again.trials
    assert first.vectors == ("happy", "sad")
    assert [trial.strength for trial in first.of("sad")] == [0.0, 0.2, 0.4]


def test_texts_are_those_of_generate(engine: Engine) -> None:
    own = vector(engine)
    result = sweep(engine, [own], [0.3], PROMPTS, max_tokens=N, n_rows=1, raw=True)
    for text, prompt in zip(result.trials[0].texts, PROMPTS, strict=True):
        reply = engine.generate(
            prompt, steering=own_mood(own, 0.3), max_tokens=N, sampler=GREEDY, raw=True
        )
        list(reply)
        assert text.text == reply.text


def own_mood(own: ControlVector, strength: float):  # type: ignore[no-untyped-def]
    return Steering({own: strength})


def test_a_schedule_acts_on_the_texts_alone(engine: Engine) -> None:
    own, fading = vector(engine), HalfLife(2)
    ((trial,),) = Trials(engine, PROMPTS, max_tokens=N, n_rows=1, schedule=fading).run([(own, 0.3)])
    mood = Steering({own: 0.3}, schedule=fading)
    written = [
        engine.generate(prompt, steering=mood, max_tokens=N, sampler=GREEDY) for prompt in PROMPTS
    ]
    for reply in written:
        list(reply)
    assert [text.text for text in trial.texts] == [reply.text for reply in written]
    ((constant,),) = Trials(engine, PROMPTS, max_tokens=N, n_rows=1).run([(own, 0.3)])
    assert [text.text for text in trial.texts] != [text.text for text in constant.texts]


def test_a_system_line_is_before_steered_texts_alone(engine: Engine) -> None:
    own = vector(engine)
    line = "you are happy"
    asked = PROMPTS[:2]
    trials = Trials(engine, asked, max_tokens=N, n_rows=1, system_line=line)
    ((trial,),) = trials.run([(own, 0.3)])
    for text, prompt in zip(trial.texts, asked, strict=True):
        reply = engine.generate(
            prompt, system=line, steering=own_mood(own, 0.3), max_tokens=N, sampler=GREEDY
        )
        list(reply)
        assert text.text == reply.text
    plain = Trials(engine, asked, max_tokens=N, n_rows=1)
    assert trials.twins(N).written(N) == plain.twins(N).written(N)


def test_without_a_judge_nothing_is_inert_and_no_control_is_written(engine: Engine) -> None:
    seen: list[int] = []
    result = sweep(
        engine,
        [vector(engine)],
        [0.0, 1e-6],
        PROMPTS,
        max_tokens=N,
        n_rows=4,
        on_progress=seen.append,
    )
    assert all(trial.effect is None for trial in result.trials)
    assert all(trial.report.regime is not Regime.INERT for trial in result.trials)
    assert sum(seen) == n_texts_of_sweep([vector(engine)], [0.0, 1e-6], len(PROMPTS), False) == 8


def test_vectors_of_equal_norms_share_their_controls(engine: Engine) -> None:
    vectors = [vector(engine, "happy", 0), vector(engine, "sad", 1)]
    seen: list[int] = []
    sweep(
        engine,
        vectors,
        [0.1, 0.2],
        PROMPTS,
        max_tokens=N,
        judge=LetterJudge(),
        n_rows=4,
        on_progress=seen.append,
    )
    # twins, two strengths of two vectors, two strengths of the random directions
    assert sum(seen) == len(PROMPTS) * (1 + 4 + 2)


def test_a_shorter_length_is_a_shorter_trial(engine: Engine) -> None:
    own = vector(engine)
    samplers = (GREEDY, SamplerParams())
    long = Trials(engine, PROMPTS, samplers=samplers, max_tokens=N, n_rows=4, judge=LetterJudge())
    short = Trials(engine, PROMPTS, samplers=samplers, max_tokens=4, n_rows=4, judge=LetterJudge())
    first, whole = long.run([(own, 0.3)], lengths=[4, N])[0]
    (alone,) = short.run([(own, 0.3)])[0]
    assert [text.text for text in first.texts] == [text.text for text in alone.texts]
    assert first.effect == alone.effect
    # scored in other chunks, so the last bits may differ
    assert first.report.ratio == pytest.approx(alone.report.ratio, rel=1e-4)
    assert whole.n_tokens == N
    assert len(whole.texts) == len(PROMPTS) * 2


def test_samplers_take_turns(engine: Engine) -> None:
    trials = Trials(
        engine, PROMPTS, samplers=(GREEDY, SamplerParams()), alternate=True, max_tokens=4, n_rows=4
    )
    (trial,) = trials.run([(vector(engine), 0.1)])[0]
    assert [(text.prompt, text.sampler) for text in trial.texts] == [(0, 0), (2, 0), (1, 1), (3, 1)]


def test_one_token_continuations_are_a_stated_result(engine: Engine) -> None:
    result = sweep(engine, [vector(engine)], [0.0, 0.2], PROMPTS, max_tokens=1, n_rows=4)
    for trial in result.trials:
        assert np.isnan(trial.report.ratio.value)
        assert trial.report.coherent_share == 1  # as short as their twins
    text = json.dumps(result.as_json(), allow_nan=False)
    assert json.loads(text)["strengths"][1]["ratio"]["value"] is None


def test_json_says_what_was_measured_and_how(engine: Engine) -> None:
    result = sweep(
        engine, [vector(engine)], [0.0, 0.2], PROMPTS, max_tokens=N, judge=LetterJudge(), n_rows=4
    )
    value = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert value["model"]["sha256"] == engine.model.file_sha256
    assert value["judge"] == "letters"
    assert value["prompts"] == list(PROMPTS)
    assert [row["strength"] for row in value["strengths"]] == [0.0, 0.2]
    assert len(value["strengths"][1]["texts"]) == len(PROMPTS)


def test_prompts_that_fill_the_context_are_named(engine: Engine) -> None:
    with pytest.raises(ContextFullError, match="prompt 2 has"):
        sweep(engine, [vector(engine)], [0.1], ["the", "the dog " * 200], max_tokens=N, n_rows=4)


def test_a_vector_without_an_emotion_is_swept_but_not_judged(engine: Engine) -> None:
    nameless = random_vector(engine.model)
    assert emotion_of(nameless) is None
    assert emotion_of(ControlVector(dict(nameless.directions), name="anger")) == "angry"
    with pytest.raises(InputError, match=r"does not say its emotion.*--judge none"):
        check_sweep([nameless], [0.1], True)
    assert sweep(engine, [nameless], [0.1], PROMPTS, max_tokens=N, n_rows=4).judge == ""


def test_wrong_calls_are_refused(engine: Engine) -> None:
    own = vector(engine)
    for vectors, strengths in (
        ([], [0.1]),
        ([own], []),
        ([own], [float("nan")]),
        ([own, own], [0.1]),
    ):
        with pytest.raises(InputError):
            sweep(engine, vectors, strengths, PROMPTS)
    with pytest.raises(InputError, match="at least one prompt"):
        sweep(engine, [own], [0.1], [])


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0:0.06:13", [0.005 * i for i in range(13)]),
        ("0.01,0.02", [0.01, 0.02]),
        ("-0.02:0.02:3", [-0.02, 0.0, 0.02]),
        ("0.5", [0.5]),
        ("0.1:0.1:1", [0.1]),
    ],
)
def test_strengths_are_read(text: str, values: list[float]) -> None:
    assert parse_strengths(text) == pytest.approx(values, abs=1e-12)


@pytest.mark.parametrize("text", ["", "a", "0:1", "0:1:0", "0:1:1", "0:1:2:3", "0:inf:3", "nan"])
def test_what_is_no_list_of_strengths_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"strengths '.*'"):
        parse_strengths(text)
