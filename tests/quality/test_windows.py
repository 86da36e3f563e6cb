"""The recommended strengths hold on other prompts than they were chosen with.

    python -m pytest -m quality -s tests/quality/test_windows.py

prints the tables of docs/measurements/windows.md. Each emotion that has a window is tried at the
strength it recommends for a length, on prompts for evaluation, each answered greedily and with the
default sampler: one verdict for each sampler and length. ``WINDOWS_MODELS``,
``WINDOWS_EMOTIONS=angry,sad`` and ``WINDOWS_PROMPTS=8`` make it shorter; the page says what was
run.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from pyemo import ControlVector, Engine
from pyemo.emotions import EMOTIONS
from pyemo.engine.batches import n_ctx_for
from pyemo.engine.model import Model
from pyemo.engine.sampling import STANDARD
from pyemo.files.catalog import list_vectors
from pyemo.judges import MiniLMJudge
from pyemo.measures.proportion import Proportion
from pyemo.measures.regimes import Regime
from pyemo.strengths.calibration import LENGTHS
from pyemo.strengths.trials import Trial, Trials
from pyemo.texts import sources

pytestmark = pytest.mark.quality

MODELS = ("smollm2-135m-instruct", "gemma-3-270m")
CHOSEN_MODELS = tuple(filter(None, os.environ.get("WINDOWS_MODELS", "").split(","))) or MODELS
CHOSEN = tuple(filter(None, os.environ.get("WINDOWS_EMOTIONS", "").split(","))) or tuple(EMOTIONS)
PROMPTS = sources.prompts("evaluation")[: int(os.environ.get("WINDOWS_PROMPTS", "20"))]
SAMPLERS = {"greedy": replace(STANDARD, temperature=0), "default sampler": STANDARD}


@pytest.fixture(scope="module")
def judge() -> MiniLMJudge:
    return MiniLMJudge()


def windows(name: str) -> dict[str, ControlVector]:
    """Return emotion -> bundled vector, of those that have a window on the catalog's file."""
    with Engine(name, n_ctx=256) as engine:
        loaded = {
            emotion: ControlVector.load(emotion, engine.model, use="reading")
            for emotion in list_vectors(name)
        }
        return {
            emotion: vector
            for emotion, vector in loaded.items()
            if vector.calibration_for(engine.model.file_sha256) is not None
        }


def test_at_least_15_of_20_emotions_have_a_window_on_smollm2() -> None:
    found = windows("smollm2-135m-instruct")
    print("\n" + ", ".join(found))
    assert len(found) >= 15


@pytest.mark.parametrize("name", CHOSEN_MODELS)
def test_recommended_strengths_are_surgical_on_other_prompts(name: str, judge: MiniLMJudge) -> None:
    verdicts: dict[int, list[bool]] = {length: [] for length in LENGTHS}
    with Engine(
        name, n_threads=1, n_seq_max=8, n_ctx=n_ctx_for([[0] * 64], LENGTHS[-1], 8)
    ) as engine:
        for label, sampler in SAMPLERS.items():
            trials = Trials(
                engine,
                PROMPTS,
                samplers=(sampler,),
                max_tokens=LENGTHS[-1],
                judge=judge,
                n_rows=8,
                emotions=CHOSEN,
            )
            for emotion in CHOSEN:
                vector = ControlVector.load(emotion, engine.model)
                for strength, lengths in asked(vector, engine.model).items():
                    (found,) = trials.run([(vector, strength)], lengths=lengths)
                    for trial in found:
                        verdicts[trial.n_tokens].append(trial.report.regime is Regime.SURGICAL)
                        print(row(name, emotion, label, trial), flush=True)
    for length, group in verdicts.items():
        print(f"{name}, {length} tokens: surgical {Proportion(sum(group), len(group))}")
    assert np.mean(list(verdicts.values())) >= 0.9


def asked(vector: ControlVector, model: Model) -> dict[float, list[int]]:
    """Return strength -> the lengths it is recommended for, or is the best known for."""
    found: dict[float, list[int]] = {}
    for length in LENGTHS:
        recommended = vector.recommended(model, length)
        if recommended.source != "default":
            found.setdefault(recommended.strength, []).append(length)
    return found


def row(name: str, emotion: str, sampler: str, trial: Trial) -> str:
    """Return the line of a Markdown table."""
    report = trial.report
    return (
        f"| {name} | {emotion} | {trial.strength:g} | {sampler} | {trial.n_tokens} | "
        f"{report.regime.value} | {report.coherent_share:.0%} | {report.ratio.value:.2f} | "
        f"{trial.effect:+.3f} | {trial.noise:+.3f} |"
    )
