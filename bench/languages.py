"""How often a steered model leaves its prompt's script, with each cure and without.

    python bench/languages.py --vectors build/qwen-vectors --output bench/results/languages.json

English prompts, `qwen2.5-coder-0.5b-instruct`, vectors read from vignettes at strengths that leak.
Cures: none; ``script``, the sampler that stays in its script; ``clean``, the vector without the
direction of Chinese; ``cap``, rows kept at the other languages' coordinate in the last third of
the blocks. For each the share of letters in new scripts, of texts that have any, of texts that are
coherent by the rule, and the voice judge's score of the emotion among those tried.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pyemo import ControlVector, Engine, Model, Steering
from pyemo.engine.batches import Job, continue_many, n_ctx_for, score_unsteered
from pyemo.engine.sampling import STANDARD
from pyemo.extract.engine_backend import EngineBackend
from pyemo.extract.extraction import extract
from pyemo.extract.languages import language_vector, without
from pyemo.extract.recipe import Recipe
from pyemo.judges import load_judge
from pyemo.measures.regimes import TextRegime, classify_text
from pyemo.measures.repetition import new_script_share
from pyemo.measures.text import MIN_TOKENS, measure_text
from pyemo.texts.sources import prompts

EMOTIONS = ("calm", "happy", "sad", "angry")
STRENGTHS = (0.08, 0.12)
CURES = ("none", "script", "clean", "cap")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of cures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--emotions", nargs="+", default=list(EMOTIONS))
    parser.add_argument("--strengths", nargs="+", type=float, default=list(STRENGTHS))
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--vectors", type=Path, required=True, help="Made where it is missing.")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args(arguments)
    model = Model.load(chosen.model)
    folder = chosen.vectors
    make(model, chosen.emotions, folder)
    asked = prompts("selection")
    given = [tuple(model.prompt_tokens(text)) for text in asked]
    chinese = ControlVector.load(folder / "zh.gguf", model=model)
    last = range(2 * model.n_layer // 3, model.n_layer)
    judge = load_judge("voice")
    rows = []
    n_ctx = n_ctx_for(given, chosen.tokens, len(asked))
    with Engine(model, n_ctx=n_ctx, n_seq_max=len(asked), n_threads=1) as engine:
        for emotion in chosen.emotions:
            vector = ControlVector.load(folder / f"{emotion}.gguf", model=model)
            clean, cosines = without(vector, chinese)
            print(emotion, min(cosines.values()), max(cosines.values()), file=sys.stderr)
            for strength in chosen.strengths:
                for cure in CURES:
                    mood = Steering({clean if cure == "clean" else vector: strength})
                    if cure == "cap":
                        mood += Steering({chinese: 0.0}, operator="cap", layers=last)
                    samplers = [
                        replace(STANDARD, seed=i, stay_in_script=cure == "script")
                        for i in range(len(asked))
                    ]
                    jobs = [Job(ids, mood, s) for ids, s in zip(given, samplers, strict=True)]
                    texts = continue_many(engine, jobs, max_tokens=chosen.tokens, n_rows=len(asked))
                    likely = score_unsteered(engine, given, texts)
                    scores = judge.scores([t.text for t in texts], tuple(chosen.emotions))
                    for i, (text, row) in enumerate(zip(texts, likely, strict=True)):
                        is_whole = len(text.tokens) >= MIN_TOKENS and (
                            classify_text(
                                measure_text(text.tokens, text.text, row, known=(asked[i],))
                            )
                            is TextRegime.COHERENT
                        )
                        rows.append(
                            {
                                "emotion": emotion,
                                "strength": strength,
                                "cure": cure,
                                "new": new_script_share(text.text, asked[i]),
                                "coherent": is_whole,
                                "score": float(scores[i, chosen.emotions.index(emotion)]),
                                "text": text.text,
                            }
                        )
                    print(emotion, strength, cure, file=sys.stderr, flush=True)
    print("| strength | cure | texts | letters in new scripts | texts with | coherent | score |")
    print("|---" * 7 + "|")
    for strength in chosen.strengths:
        for cure in CURES:
            own = [r for r in rows if (r["strength"], r["cure"]) == (strength, cure)]
            new = np.array([r["new"] for r in own])
            whole, score = (float(np.mean([r[k] for r in own])) for k in ("coherent", "score"))
            print(
                f"| {strength} | {cure} | {len(own)} | {new.mean():.4f} | {(new > 0).mean():.2f} "
                f"| {whole:.2f} | {score:.2f} |"
            )
    if chosen.output is not None:
        chosen.output.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return 0


def make(model: Model, emotions: Sequence[str], folder: Path) -> None:
    """Extract what the folder has not yet: the emotions among themselves, and Chinese."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "zh.gguf").is_file():
        with Engine(model, n_ctx=512, n_batch=512, n_threads=1) as engine:
            language_vector(engine, "zh").save(folder / "zh.gguf")
    if any(not (folder / f"{emotion}.gguf").is_file() for emotion in emotions):
        recipe = Recipe.load("reading")
        with EngineBackend.open(str(model.path), recipe, parallel=4, n_threads=1) as backend:
            extract(backend, list(emotions), recipe=recipe, among=list(emotions)).save(folder)


if __name__ == "__main__":
    sys.exit(main())
