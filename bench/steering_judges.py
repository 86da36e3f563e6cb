"""The study's steering check for both kinds of bundled vectors, by two judges.

    python bench/steering_judges.py

Six emotions on SmolLM2, 10 prompts that chose no strength, 48 tokens, the likeliest token. Each
vector, the trained and the extracted, at the strength it recommends, and random directions as long
as the trained ones. A text counts where the judge finds it nearer its emotion than the unsteered
one, it is coherent, and it is on its prompt's subject (``pyemo.study.steering_check``). *First*:
of the six emotions the judge gives it its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from pyemo import ControlVector, Engine
from pyemo.choices import VectorUse
from pyemo.engine.batches import n_ctx_for
from pyemo.judges import Embedder, Judge, MiniLMJudge, VoiceJudge, nearer
from pyemo.measures.proportion import Proportion
from pyemo.measures.regimes import TextRegime
from pyemo.strengths.trials import Trial, Trials, random_direction
from pyemo.study.steering_check import subject_threshold
from pyemo.texts.sources import prompts

SIX = ("angry", "sad", "calm", "enthusiastic", "afraid", "loving")
USES: dict[str, VectorUse] = {"trained": "writing", "extracted": "reading"}
N_TOKENS, N_ROWS, LONGEST_PROMPT = 48, 8, 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of conditions and judges."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--prompts", type=int, default=10)
    chosen = parser.parse_args(arguments)
    asked = prompts("evaluation")[: chosen.prompts]
    embedder = Embedder()
    judges: tuple[Judge, ...] = (MiniLMJudge(embedder), VoiceJudge(embedder))
    written: dict[str, list[tuple[str, Trial]]] = {"trained": [], "extracted": [], "random": []}
    n_ctx = n_ctx_for([[0] * LONGEST_PROMPT], N_TOKENS, N_ROWS)
    with Engine(chosen.model, n_ctx=n_ctx, n_seq_max=N_ROWS, n_threads=1) as engine:
        trials = Trials(engine, asked, max_tokens=N_TOKENS, n_rows=N_ROWS)
        for seed, emotion in enumerate(SIX):
            for name, use in USES.items():
                vector = ControlVector.load(emotion, engine.model, use=use)
                strength = vector.recommended(engine.model, N_TOKENS).strength
                pairs = [(vector, strength)]
                if use == "writing":
                    pairs.append((random_direction(vector, seed), strength))
                for (trial,), condition in zip(trials.run(pairs), (name, "random"), strict=False):
                    written[condition].append((emotion, trial))
        twins = trials.twins(N_TOKENS).written(N_TOKENS)
    of_prompts = embedder.embed(asked)
    threshold = subject_threshold(embedder.embed(twins), of_prompts)
    print("| vectors | judge | nearer | coherent | on subject | all three | first |")
    print("|---" * 7 + "|")
    for condition, group in written.items():
        for judge in judges:
            near: list[bool] = []
            sound: list[bool] = []
            subject: list[bool] = []
            first: list[bool] = []
            for emotion, trial in group:
                texts = [text.text for text in trial.texts]
                near += nearer(judge, texts, twins, emotion).tolist()
                sound += [text.regime is TextRegime.COHERENT for text in trial.texts]
                subject += ((embedder.embed(texts) * of_prompts).sum(1) >= threshold).tolist()
                first += (judge.scores(texts, SIX).argmax(axis=1) == SIX.index(emotion)).tolist()
            every = np.all([near, sound, subject], axis=0)
            shown = " | ".join(_share(row) for row in (near, sound, subject, every, first))
            print(f"| {condition} | {judge.name} | {shown} |", flush=True)
    return 0


def _share(hits: Sequence[bool]) -> str:
    return str(Proportion(int(np.sum(hits)), len(hits)))


if __name__ == "__main__":
    sys.exit(main())
