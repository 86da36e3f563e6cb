"""What each way to steer does: effect, damage, coherence of short and long texts.

    python bench/methods.py --output bench/results/methods.json

Emotions in turn, each method at its strengths. Gain and the fall of plain replies by the yardstick
of voices (nothing is generated); then a text of up to 256 tokens for each of the 8 selection
prompts, the likeliest token with DRY: the share that the judge of voices gives to the emotion, of
the emotions tried, at 48 tokens, and the share that is coherent by the rule at 48 and at all.
`raise` and `cap` need to know where the emotion's own texts lie: measured here on its vignettes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyemo import ControlVector, Engine, Model, Steering
from pyemo.choices import Operator
from pyemo.engine.batches import Continuation, Job, continue_many, n_ctx_for, score_unsteered
from pyemo.engine.sampling import STANDARD
from pyemo.extract.ellipsoids import ellipsoids
from pyemo.extract.neutral import neutral_statistics
from pyemo.judges import load_judge
from pyemo.measures.regimes import TextRegime, classify_text
from pyemo.measures.text import MIN_TOKENS, measure_text
from pyemo.strengths.voice import VoiceYardstick
from pyemo.texts.sources import neutral_texts, prompts, vignettes

EMOTIONS = ("angry", "sad", "enthusiastic", "loving")
SHORT, N_COMPONENTS = 48, 32
# Of the recommended strength; for raise and clamp as they are.
METHODS: dict[str, tuple[Operator, str, tuple[float, ...]]] = {
    "add": ("add", "both", (0.5, 0.75, 1.0)),
    "add, prompt only": ("add", "prompt", (2.0,)),
    "add_keep_norm": ("add_keep_norm", "both", (1.0,)),
    "raise": ("raise", "both", (0.5, 1.0, 1.5)),
    "add_within": ("add_within", "both", (1.0, 1.5)),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of methods and strengths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--emotions", nargs="+", default=list(EMOTIONS))
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args(arguments)
    model = Model.load(chosen.model)
    asked = prompts("selection")
    given = [tuple(model.prompt_tokens(text)) for text in asked]
    n_ctx = max(n_ctx_for(given, chosen.tokens, len(asked)), 1024)
    judge = load_judge("voice")
    rows: dict[str, list[list[float]]] = {}
    with Engine(model, n_ctx=n_ctx, n_seq_max=len(asked), n_threads=1) as engine:
        yardstick = VoiceYardstick(engine, others=())
        for emotion in chosen.emotions:
            vector = measured(engine, ControlVector.load(emotion, model), emotion)
            recommended = vector.recommended(model).strength
            for name, (operator, scope, strengths) in METHODS.items():
                for share in strengths:
                    strength = share if operator == "raise" else share * recommended
                    mood = Steering({vector: strength}, operator=operator, scope=scope)
                    reading = yardstick.measure(mood, emotion)
                    jobs = [Job(ids, mood, replace(STANDARD, temperature=0)) for ids in given]
                    texts = continue_many(engine, jobs, max_tokens=chosen.tokens, n_rows=len(asked))
                    likely = score_unsteered(engine, given, texts)
                    scores = judge.scores(
                        [text.first(SHORT).text for text in texts], tuple(chosen.emotions)
                    )
                    heard = scores.argmax(axis=1) == chosen.emotions.index(emotion)
                    row = [
                        reading.gain.value,
                        -reading.damage.value,
                        float(heard.mean()),
                        coherent(texts, likely, asked, SHORT),
                        coherent(texts, likely, asked, chosen.tokens),
                    ]
                    rows.setdefault(f"{name} {share:g}", []).append(row)
                    print(emotion, name, share, *row, file=sys.stderr, flush=True)
    print(f"| method | gain | plain replies | heard | coherent at {SHORT} | at {chosen.tokens} |")
    print("|---" * 6 + "|")
    for name, own in rows.items():
        print(f"| {name} | " + " | ".join(f"{x:.2f}" for x in np.mean(own, axis=0)) + " |")
    if chosen.output is not None:
        chosen.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


def measured(engine: Engine, vector: ControlVector, emotion: str) -> ControlVector:
    """Return the vector with where its own texts lie, and real rows."""
    own, plain = [scene.text for scene in vignettes(emotion)], list(neutral_texts())
    along = neutral_statistics(engine, own, vector).neutral_projections
    within = ellipsoids(engine, plain, own, vector, N_COMPONENTS)
    return vector.with_own_projections(vector.metadata.neutral_projections, along, within)


def coherent(
    texts: Sequence[Continuation],
    likely: Sequence[npt.NDArray[np.float32]],
    asked: Sequence[str],
    n_tokens: int,
) -> float:
    """Return the share of texts whose first tokens are coherent."""
    n_whole = 0
    for text, row, prompt in zip(texts, likely, asked, strict=True):
        cut = text.first(n_tokens)
        if len(cut.tokens) >= MIN_TOKENS:
            found = measure_text(cut.tokens, cut.text, row[: len(cut.tokens)], known=(prompt,))
            n_whole += classify_text(found) is TextRegime.COHERENT
    return n_whole / len(texts)


if __name__ == "__main__":
    sys.exit(main())
