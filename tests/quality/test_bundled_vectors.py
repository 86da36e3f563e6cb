"""The bundled vectors move text towards their emotion; a random direction of equal norm does not.

    python -m pytest -m quality -s tests/quality/test_bundled_vectors.py

prints the tables. Six emotions, eight prompts that chose no strength, the
strength each vector recommends for its model file, greedy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from pyemo import ControlVector, Engine
from pyemo.engine.batches import n_ctx_for
from pyemo.judges import ForcedChoiceJudge, Judge, MiniLMJudge, PairJudge, nearer
from pyemo.measures.proportion import Proportion
from pyemo.strengths.trials import Trial, Trials, random_direction
from pyemo.texts import sources

pytestmark = pytest.mark.quality

EMOTIONS = ("happy", "sad", "calm", "angry", "afraid", "loving")
PROMPTS = sources.prompts("evaluation")[:8]
N_TOKENS = 48
LONGEST_PROMPT = 64  # tokens, template included
MODELS = ("smollm2-135m-instruct", "gemma-3-270m")
RANDOM_SEEDS = (101, 102)


@dataclass(frozen=True)
class Effects:
    """One model's texts: of each emotion, of random directions as long, and the unsteered ones."""

    model: str
    steered: dict[str, Trial]
    random: dict[str, list[Trial]]
    unsteered: list[str]

    def texts(self, trials: list[Trial]) -> list[str]:
        return [text.text for trial in trials for text in trial.texts]


@pytest.fixture(scope="module")
def minilm() -> MiniLMJudge:
    return MiniLMJudge()


@pytest.fixture(scope="module", params=MODELS)
def effects(request: pytest.FixtureRequest) -> Iterator[Effects]:
    """The texts of one model, written once."""
    n_rows = len(PROMPTS) * (1 + len(RANDOM_SEEDS))  # a vector and its random directions together
    n_ctx = n_ctx_for([[0] * LONGEST_PROMPT], N_TOKENS, n_rows)
    with Engine(request.param, n_seq_max=n_rows, n_ctx=n_ctx) as engine:
        trials = Trials(engine, PROMPTS, max_tokens=N_TOKENS, n_rows=n_rows)
        steered, random = {}, {}
        for emotion in EMOTIONS:
            vector = ControlVector.load(emotion, model=engine.model)
            found_at = vector.recommended(engine.model, N_TOKENS)
            assert found_at.source != "default", f"{emotion} recommends nothing: make vectors"
            strength = found_at.strength
            pairs = [(vector, strength)]
            pairs += [(random_direction(vector, seed), strength) for seed in RANDOM_SEEDS]
            found = [trial for (trial,) in trials.run(pairs)]
            steered[emotion], random[emotion] = found[0], found[1:]
        yield Effects(request.param, steered, random, trials.twins(N_TOKENS).written(N_TOKENS))


def moved(judge: Judge | PairJudge, trials: dict[str, list[Trial]], twins: list[str]) -> Proportion:
    """Return how many texts lie nearer their emotion than the unsteered text to the same prompt."""
    hits = [
        hit
        for emotion, own in trials.items()
        for trial in own
        for hit in nearer(judge, [text.text for text in trial.texts], twins, emotion)
    ]
    return Proportion(sum(hits), len(hits))


def own_first(judge: Judge, trials: dict[str, list[Trial]]) -> Proportion:
    """Return how many texts lie nearest their own emotion of the six."""
    hits: list[bool] = []
    for index, own in enumerate(trials.values()):
        for trial in own:
            scores = judge.scores([text.text for text in trial.texts], EMOTIONS)
            hits += (scores.argmax(axis=1) == index).tolist()
    return Proportion(sum(hits), len(hits))


def test_steered_texts_lie_nearer_their_emotion_and_random_ones_do_not(
    effects: Effects, minilm: MiniLMJudge
) -> None:
    steered = {emotion: [trial] for emotion, trial in effects.steered.items()}
    twins = effects.unsteered
    rows = []
    for emotion in EMOTIONS:
        one = {emotion: steered[emotion]}
        trial = effects.steered[emotion]
        similarity = minilm.similarity([text.text for text in trial.texts], twins)
        first = sum(
            minilm.scores([text.text], EMOTIONS).argmax() == EMOTIONS.index(emotion)
            for text in trial.texts
        )
        rows.append(
            f"| {emotion} | {trial.strength:.4g} | {moved(minilm, one, twins).k} | {first} "
            f"| {trial.report.coherent_share * len(PROMPTS):.0f} | {trial.report.ratio.value:.2f} "
            f"| {np.mean(similarity):.2f} |"
        )
    random_moved = moved(minilm, effects.random, twins)
    steered_moved, first_of_six = moved(minilm, steered, twins), own_first(minilm, steered)
    print(f"\n{effects.model}: of {len(PROMPTS)} texts each")
    print("| emotion | strength | nearer | own first | coherent | ratio | similarity |")
    print("|---|---|---|---|---|---|---|\n" + "\n".join(rows))
    print(f"nearer: {steered_moved}; own emotion first: {first_of_six}")
    print(f"random: nearer {random_moved}; first {own_first(minilm, effects.random)}")
    for emotion, trial in effects.steered.items():
        print(f"{emotion}: {trial.texts[0].text!r}")
    print(f"unsteered: {twins[0]!r}")
    assert steered_moved.low > random_moved.high
    # 0.9 was the aim; docs/measurements/vectors.md says what misses it
    assert steered_moved.value >= 0.8
    assert first_of_six.value >= 0.5
    assert 0.4 <= random_moved.value <= 0.6


def test_the_recommended_strengths_keep_the_text_coherent(effects: Effects) -> None:
    shares = {emotion: trial.report.coherent_share for emotion, trial in effects.steered.items()}
    assert np.mean(list(shares.values())) >= 0.85, shares


def test_another_language_model_hears_it_too(effects: Effects, qwen: object) -> None:
    with Engine("qwen2.5-coder-0.5b-instruct", n_ctx=1024) as engine:
        judge = ForcedChoiceJudge(engine)
        steered = {emotion: [trial] for emotion, trial in effects.steered.items()}
        found = moved(judge, steered, effects.unsteered)
        random = moved(
            judge, {name: own[:1] for name, own in effects.random.items()}, effects.unsteered
        )
    print(f"\n{effects.model}, {judge.name}: nearer {found}; random {random}")
    assert found.low > 0.5
