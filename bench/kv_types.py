"""What a quantized KV cache does to steered texts: coherence, and how far predictions move.

    python bench/kv_types.py [--model smollm2-135m-instruct] [--emotions happy angry sad]

Each mood answers the 16 evaluation prompts, greedily, with 48 tokens for each type of cache: at
its recommended strength and at twice that. Predictions are compared along two texts that the f16
cache wrote, token by token, given the same tokens: Kullback-Leibler divergence from f16's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyemo import ControlVector, Engine, Model, Steering
from pyemo.choices import KVType
from pyemo.engine.batches import Continuation, Job, continue_many, n_ctx_for, score_unsteered
from pyemo.measures.regimes import TextRegime, classify_text
from pyemo.measures.text import MIN_TOKENS, measure_text
from pyemo.texts.sources import prompts as bundled_prompts

KV_TYPES: tuple[KVType, ...] = ("f16", "q8_0", "q4_0")
N_TOKENS = 48
N_FOLLOWED = 2

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Written:
    """The texts of one mood on one cache, and the predictions along the f16 cache's first ones."""

    texts: list[Continuation]
    regimes: list[TextRegime]
    predictions: Floats


def moods_of(model: Model, emotions: Sequence[str]) -> dict[str, Steering]:
    """No mood, and each emotion's at the recommended strength and at twice that."""
    moods = {"none": Steering()}
    for emotion in emotions:
        vector = ControlVector.load(emotion, model=model)
        recommended = vector.recommended(model, N_TOKENS).strength
        for strength in (recommended, 2 * recommended):
            moods[f"{emotion} {strength:.3g}"] = Steering({vector: strength})
    return moods


def predictions(
    engine: Engine, mood: Steering, prompt: Sequence[int], text: Continuation
) -> Floats:
    """Log-probabilities before each token of ``text``, float64 (n_tokens, n_vocab)."""
    rows = []
    with engine.sequence(list(prompt), steering=mood) as sequence:
        for token in text.tokens:
            logits = sequence.logits().astype(np.float64)
            logits -= logits.max()
            rows.append(logits - np.log(np.exp(logits).sum()))
            sequence.append([token], is_reply=True)
    return np.stack(rows)


def regime_of(
    text: Continuation, logprobs: npt.NDArray[np.float32], question: str, twin: Continuation
) -> TextRegime:
    """Return a text's regime; one too short to measure is noise."""
    if len(text.tokens) < MIN_TOKENS:
        return TextRegime.EXPLOSIVE
    known = question, twin.text
    return classify_text(
        measure_text(text.tokens, text.text, logprobs, known=known, entropies=text.entropies)
    )


def write(
    engine: Engine,
    mood: Steering,
    asked: Sequence[str],
    twins: Sequence[Continuation] | None,
    followed: Sequence[Continuation] | None,
) -> Written:
    """Return what ``mood`` writes; without ``twins`` the texts are their own."""
    prompts = [tuple(engine.model.answer_tokens(text)) for text in asked]
    jobs = [Job(prompt, mood) for prompt in prompts]
    texts = continue_many(engine, jobs, max_tokens=N_TOKENS, n_rows=len(jobs))
    scores = score_unsteered(engine, prompts, texts)
    regimes = [
        regime_of(text, score, question, twin)
        for text, score, question, twin in zip(texts, scores, asked, twins or texts, strict=True)
    ]
    pairs = zip(prompts, (followed or texts)[:N_FOLLOWED], strict=False)
    rows = [predictions(engine, mood, prompt, text) for prompt, text in pairs]
    return Written(texts, regimes, np.concatenate(rows))


def row(name: str, kv_type: str, found: Written, exact: Written) -> str:
    """Return the line of a Markdown table."""
    n = {kind: found.regimes.count(kind) for kind in TextRegime}
    same = sum(a.tokens == b.tokens for a, b in zip(found.texts, exact.texts, strict=True))
    p = exact.predictions
    divergence = (np.exp(p) * (p - found.predictions)).sum(axis=1).mean()
    best = (p.argmax(axis=1) == found.predictions.argmax(axis=1)).mean()
    return (
        f"| {name} | {kv_type} | {n[TextRegime.COHERENT]} | {n[TextRegime.REPETITIVE_COLLAPSE]} | "
        f"{n[TextRegime.EXPLOSIVE]} | {same} | {divergence:.4f} | {best:.0%} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--emotions", nargs="+", default=["happy", "angry", "sad"])
    chosen = parser.parse_args(arguments)
    model = Model.load(chosen.model)
    asked = bundled_prompts("evaluation")[:16]
    n_ctx = n_ctx_for([model.answer_tokens(text) for text in asked], N_TOKENS, len(asked))
    print(f"| mood | cache | coherent of {len(asked)} | loops | noise | same | divergence | best |")
    print("|---" * 8 + "|")
    with ExitStack() as opened:
        settings = {"n_ctx": n_ctx, "n_seq_max": len(asked), "n_threads": 1}
        engines = {
            kv_type: opened.enter_context(Engine(model, kv_type=kv_type, **settings))
            for kv_type in KV_TYPES
        }
        twins: dict[KVType, list[Continuation]] = {}
        for name, mood in moods_of(model, chosen.emotions).items():
            exact: Written | None = None
            for kv_type, engine in engines.items():
                found = write(engine, mood, asked, twins.get(kv_type), exact and exact.texts)
                twins.setdefault(kv_type, found.texts)
                exact = exact or found
                print(row(name, kv_type, found, exact), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
