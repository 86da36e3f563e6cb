"""What a system line ("You are angry.") adds to a vector, alone and with 2/3 of its strength.

    python bench/lines.py --output bench/results/lines.json

Six emotions, the 8 selection prompts, 48 tokens, the likeliest token with DRY. For each condition:
gain and the fall of plain replies (nats per token, against the model without line and vector, on
the watch replies); the share of texts that the judge of voices gives to the emotion, of six; and
the share that is coherent.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyemo import ControlVector, Engine, Model, Steering
from pyemo.engine.batches import Job, check_room, continue_many, n_ctx_for, score_unsteered
from pyemo.engine.sampling import STANDARD
from pyemo.judges import load_judge
from pyemo.measures.regimes import TextRegime, classify_text
from pyemo.measures.text import MIN_TOKENS, measure_text
from pyemo.texts.replies import reply_prompts
from pyemo.texts.sources import NEUTRAL, prompts

SIX = ("angry", "sad", "calm", "enthusiastic", "afraid", "loving")
CONDITIONS = {"vector": (1.0, False), "2/3 vector + line": (2 / 3, True), "line": (0.0, True)}
N_TOKENS, N_ROWS = 48, 8


def line_of(emotion: str) -> str:
    """Return the system line of an emotion."""
    return f"You are {emotion}."


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of the conditions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args(arguments)
    model = Model.load(chosen.model)
    asked = prompts("selection")
    given = [tuple(model.prompt_tokens(text, system=line_of("enthusiastic"))) for text in asked]
    n_ctx = max(n_ctx_for(given, N_TOKENS, N_ROWS), 1024)
    judge = load_judge("voice")
    rows = []
    with Engine(model, n_ctx=n_ctx, n_seq_max=N_ROWS, n_threads=1) as engine:
        check_room(engine, given, N_TOKENS, N_ROWS)
        plain = written(engine, asked, None, Steering())
        for emotion in SIX:
            vector = ControlVector.load(emotion, model)
            strength = vector.recommended(model).strength
            for name, (share, has_line) in CONDITIONS.items():
                mood = Steering({vector: share * strength}) if share else Steering()
                line = line_of(emotion) if has_line else None
                texts, coherent = written(engine, asked, line, mood)
                scores = judge.scores(texts, SIX)
                rows.append(
                    {
                        "emotion": emotion,
                        "condition": name,
                        "gain": rise(engine, emotion, line, mood),
                        "plain": -rise(engine, NEUTRAL, line, mood),
                        "heard": float(np.mean(scores.argmax(axis=1) == SIX.index(emotion))),
                        "score": float(scores[:, SIX.index(emotion)].mean()),
                        "coherent": coherent,
                        "texts": texts,
                    }
                )
                print(*(rows[-1][k] for k in ("emotion", "condition", "gain", "plain", "heard",
                                              "coherent")), file=sys.stderr)  # fmt: skip
    print("| condition | texts | gain | fall of plain | heard | log-prob. | coherent |")
    print("|---" * 7 + "|")
    for name in CONDITIONS:
        own = [row for row in rows if row["condition"] == name]
        means = [float(np.mean([row[key] for row in own]))
                 for key in ("gain", "plain", "heard", "score", "coherent")]  # fmt: skip
        shown = " | ".join(f"{value:.2f}" for value in means)
        print(f"| {name} | {len(own) * len(asked)} | {shown} |")
    print(f"unsteered: {plain[1]:.2f} coherent")
    if chosen.output is not None:
        chosen.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


def written(
    engine: Engine, asked: Sequence[str], line: str | None, mood: Steering
) -> tuple[list[str], float]:
    """Return a text for each prompt, and the share that is coherent."""
    model, sampler = engine.model, replace(STANDARD, temperature=0)
    given = [tuple(model.prompt_tokens(text, system=line)) for text in asked]
    jobs = [Job(tokens, mood, sampler) for tokens in given]
    found = continue_many(engine, jobs, max_tokens=N_TOKENS, n_rows=N_ROWS)
    without = [tuple(model.prompt_tokens(text)) for text in asked]
    logprobs = score_unsteered(engine, without, found)
    n_coherent = 0
    for text, row, prompt in zip(found, logprobs, asked, strict=True):
        if len(text.tokens) >= MIN_TOKENS:
            measures = measure_text(
                text.tokens, text.text, row, known=(prompt,), entropies=text.entropies
            )
            n_coherent += classify_text(measures) is TextRegime.COHERENT
    return [text.text for text in found], n_coherent / len(found)


def rise(engine: Engine, voice: str, line: str | None, mood: Steering) -> float:
    """Return by how much line and mood make a voice's watch replies likelier, nats per token."""
    return float(np.mean(levels(engine, voice, line, mood) - unsteered(engine, voice)))


@functools.cache
def unsteered(engine: Engine, voice: str) -> npt.NDArray[np.float64]:
    """Return how likely the model finds a voice's watch replies, (n_prompts,)."""
    return levels(engine, voice, None, Steering())


def levels(engine: Engine, voice: str, line: str | None, mood: Steering) -> npt.NDArray[np.float64]:
    """Return the mean log-probability of a token of each watch reply, (n_prompts,)."""
    given = [engine.model.prompt_tokens(p.text, system=line) for p in reply_prompts("watch")]
    replies = [p.replies[voice] for p in reply_prompts("watch")]
    scores = engine.score_many(list(zip(replies, given, strict=True)), steering=mood)
    return np.array([score.mean_logprob for score in scores])


if __name__ == "__main__":
    sys.exit(main())
