"""The recommended strengths hold on other prompts than they were chosen with.

    python -m pytest -m quality -s tests/quality/test_windows.py

prints the tables of docs/measurements/windows.md. Each emotion is tried at the strength that it
recommends, on prompts for evaluation: with texts of 48 tokens and either sampler, and with long
ones as the manual recommends them, by a strength that fades. ``WINDOWS_MODELS``,
``WINDOWS_EMOTIONS=angry,sad`` and ``WINDOWS_PROMPTS=8`` make it shorter; the page says what was
run.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from pyemo import ControlVector, Engine
from pyemo.choices import VectorUse
from pyemo.emotions import EMOTIONS
from pyemo.engine.batches import n_ctx_for
from pyemo.engine.sampling import STANDARD
from pyemo.engine.schedules import HalfLife
from pyemo.files.catalog import list_vectors
from pyemo.judges import load_judge
from pyemo.measures.proportion import Proportion
from pyemo.measures.regimes import Regime, TextRegime
from pyemo.strengths.trials import Trial, Trials
from pyemo.texts import sources

pytestmark = pytest.mark.quality

MODELS = ("smollm2-135m-instruct", "gemma-3-270m")
CHOSEN_MODELS = tuple(filter(None, os.environ.get("WINDOWS_MODELS", "").split(","))) or MODELS
CHOSEN = tuple(filter(None, os.environ.get("WINDOWS_EMOTIONS", "").split(","))) or tuple(EMOTIONS)
PROMPTS = sources.prompts("evaluation")[: int(os.environ.get("WINDOWS_PROMPTS", "20"))]
SAMPLERS = {"greedy": replace(STANDARD, temperature=0), "default sampler": STANDARD}
SHORT, LONG = 48, 256
FADING = HalfLife(64)
LONGEST_PROMPT = 64  # tokens, template included
N_ROWS = 8


@pytest.mark.parametrize("use", ["writing", "reading"])
def test_at_least_15_of_20_emotions_have_a_window_on_smollm2(use: VectorUse) -> None:
    name = "smollm2-135m-instruct"
    with Engine(name, n_ctx=256) as engine:
        model = engine.model
        loaded = {e: ControlVector.load(e, model, use=use) for e in list_vectors(name)}
    found = [e for e, v in loaded.items() if v.calibration_for(model.file_sha256) is not None]
    print("\n" + ", ".join(found))
    assert len(found) >= 15


def open_engine(name: str, n_tokens: int) -> Engine:
    n_ctx = n_ctx_for([[0] * LONGEST_PROMPT], n_tokens, N_ROWS)
    return Engine(name, n_threads=1, n_seq_max=N_ROWS, n_ctx=n_ctx)


@pytest.mark.parametrize("label", SAMPLERS)
@pytest.mark.parametrize("name", CHOSEN_MODELS)
def test_recommended_strengths_are_surgical_on_other_prompts(name: str, label: str) -> None:
    with open_engine(name, SHORT) as engine:
        trials = Trials(
            engine,
            PROMPTS,
            samplers=(SAMPLERS[label],),
            max_tokens=SHORT,
            judge=load_judge(),
            n_rows=N_ROWS,
            emotions=CHOSEN,
        )
        hits = []
        for emotion in CHOSEN:
            ((trial,),) = trials.run([recommended(engine, emotion, SHORT)])
            hits.append(trial.report.regime is Regime.SURGICAL)
            print(row(name, emotion, label, trial), flush=True)
    share = Proportion(sum(hits), len(hits))
    print(f"{name}, {label}, {SHORT} tokens: surgical {share}")
    assert share.value >= 0.9


@pytest.mark.parametrize("name", CHOSEN_MODELS)
def test_long_texts_under_a_fading_strength_are_nearly_as_coherent_as_unsteered_ones(
    name: str,
) -> None:
    with open_engine(name, LONG) as engine:
        trials = Trials(
            engine,
            PROMPTS,
            samplers=(STANDARD,),
            max_tokens=LONG,
            schedule=FADING,
            n_rows=N_ROWS,
        )
        ((plain,),) = trials.run([(ControlVector.load(CHOSEN[0], engine.model), 0.0)])
        twins = plain.report.shares[TextRegime.COHERENT]
        print(f"\n{name}: {twins:.0%} of {len(PROMPTS)} unsteered texts coherent")
        hits = []
        for emotion in CHOSEN:
            ((trial,),) = trials.run([recommended(engine, emotion, SHORT)])
            share = trial.report.shares[TextRegime.COHERENT]
            hits.append(share >= twins - 0.1)
            print(f"| {name} | {emotion} | {trial.strength:g} | {share:.0%} |", flush=True)
    print(f"{name}, {LONG} tokens: within ten points {Proportion(sum(hits), len(hits))}")
    assert sum(hits) >= 0.7 * len(hits)


def recommended(engine: Engine, emotion: str, n_tokens: int) -> tuple[ControlVector, float]:
    vector = ControlVector.load(emotion, engine.model)
    return vector, vector.recommended(engine.model, n_tokens).strength


def row(name: str, emotion: str, sampler: str, trial: Trial) -> str:
    """Return the line of a Markdown table."""
    report = trial.report
    return (
        f"| {name} | {emotion} | {trial.strength:g} | {sampler} | {trial.n_tokens} | "
        f"{report.regime.value} | {report.coherent_share:.0%} | {report.ratio.value:.2f} | "
        f"{trial.effect:+.3f} | {trial.noise:+.3f} |"
    )
