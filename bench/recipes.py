"""Which recipe on which layers steers best: the comparison that chose the default recipe.

    python bench/recipes.py [--model smollm2-135m-instruct] [--use selection] [--output bench/results/recipes]

For each recipe, layer range and strength, 6 emotions x the prompts of that use are answered greedily and judged
by MiniLM. A text is moved if it lies nearer its own emotion than the unsteered answer to the same prompt does, and
coherent if its word trigrams are distinct (> 0.6) and the unsteered model finds it likely (perplexity ratio < 6).
The strength of a row is the one with the most texts that are both. The same for random directions.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from pyemo import ControlVector, Engine, SamplerParams, Steering
from pyemo.emotions import EMOTIONS
from pyemo.extract import sources
from pyemo.extract.engine_backend import EngineBackend
from pyemo.extract.extraction import VectorSet, extract
from pyemo.extract.recipe import Recipe
from pyemo.judges import MiniLMJudge

JUDGED = ("happy", "sad", "calm", "angry", "afraid", "loving")
RANGES = {"all": (0.0, 1.0), "lower third": (0.03, 0.33), "middle third": (0.27, 0.67), "upper third": (0.6, 0.97)}
DOSES = (0.02, 0.04, 0.07, 0.11, 0.16)  # strengths are compared at equal dose, whatever the range
N_TOKENS = 48
GREEDY = SamplerParams(temperature=0)


@dataclass(frozen=True)
class Row:
    """One recipe on one layer range at its best dose."""

    recipe: str
    layers: str
    dose: float
    n: int
    moved: int
    own_first: int
    coherent: int
    both: int
    similarity: float


@dataclass(frozen=True)
class Texts:
    """Answers to the prompts and their negative log-likelihood under the unsteered model."""

    texts: list[str]
    nll: np.ndarray


def answer(engine: Engine, prompts: list[str], moods: list[Steering]) -> Texts:
    """Answer each prompt under its mood, and score the answers unsteered."""
    replies = engine.generate_many(prompts, steering=moods, max_tokens=N_TOKENS, sampler=GREEDY)
    texts = [reply.text for reply in replies]
    given = [engine.prompt_tokens(prompt) for prompt in prompts]
    pairs = [([token.id for token in reply.tokens], before) for reply, before in zip(replies, given, strict=True)]
    scores = engine.score_many(pairs)
    return Texts(texts, np.array([-score.mean_logprob for score in scores]))


def distinct_trigrams(text: str) -> float:
    """Share of the words' trigrams that are different."""
    words = text.lower().split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(trigrams)) / len(trigrams) if trigrams else 0.0


class Comparison:
    """Prompts, the unsteered answers and the judge, once for all rows."""

    def __init__(self, engine: Engine, use: str) -> None:
        self.engine = engine
        self.prompts = list(sources.prompts(use))
        self.judge = MiniLMJudge()
        self.plain = answer(engine, self.prompts, [Steering()] * len(self.prompts))
        self.plain_scores = self.judge.scores(self.plain.texts, JUDGED)

    def judge_cell(self, vectors: dict[str, ControlVector], layers: range, dose: float) -> dict[str, float]:
        """Answer all prompts in all moods at one dose."""
        n_layer = self.engine.model.n_layer
        moods, prompts = [], []
        for emotion in JUDGED:
            unit = Steering({vectors[emotion]: 1.0}, layers=layers)
            moods += [unit * (dose / unit.dose(n_layer))] * len(self.prompts)
            prompts += self.prompts
        steered = answer(self.engine, prompts, moods)
        scores = self.judge.scores(steered.texts, JUDGED)
        own = np.repeat(np.arange(len(JUDGED)), len(self.prompts))
        row = np.arange(len(own))
        plain = np.tile(self.plain_scores, (len(JUDGED), 1))
        moved = scores[row, own] > plain[row, own]
        first = scores.argmax(axis=1) == own
        ratio = np.exp(steered.nll - np.tile(self.plain.nll, len(JUDGED)))
        coherent = np.array([distinct_trigrams(text) > 0.6 for text in steered.texts]) & (ratio < 6)
        similar = self.judge.similarity(steered.texts, self.plain.texts * len(JUDGED))
        return {
            "n": len(own),
            "moved": int(moved.sum()),
            "own_first": int(first.sum()),
            "coherent": int(coherent.sum()),
            "both": int((moved & coherent).sum()),
            "similarity": float(np.mean(similar)),
        }


def candidates() -> dict[str, Recipe]:
    """The bundled recipes and variations of them."""
    stories = Recipe(
        "stories", "stories", story_prompts="paper", n_stories=8, max_tokens=128, pooling="mean", baseline="emotions"
    )
    vignettes = Recipe("vignettes", "vignettes", pooling="mean")
    return {
        "paper-generation": Recipe.load("paper-generation"),
        "paper-comprehension": Recipe.load("paper-comprehension"),
        "contrast": Recipe.load("contrast"),
        "anthropic": Recipe.load("anthropic"),
        "stories": stories,
        "stories, denoised": replace(stories, denoise=0.5),
        "vignettes": vignettes,
        "vignettes, denoised": replace(vignettes, denoise=0.5),
    }


def random_set(like: VectorSet) -> dict[str, ControlVector]:
    """Random directions of the same length at each layer."""
    rng = np.random.default_rng(0)
    out = {}
    for name, vector in like.vectors.items():
        rows = {}
        for layer, row in vector.directions.items():
            random = rng.standard_normal(row.shape)
            rows[layer] = random * (np.linalg.norm(row) / np.linalg.norm(random))
        out[name] = ControlVector(rows, name=name, metadata=vector.metadata)
    return out


def main() -> None:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--use", default="selection", choices=("selection", "evaluation"))
    parser.add_argument("--recipes", nargs="+", default=list(candidates()))
    parser.add_argument("--layers", nargs="+", default=list(RANGES))
    parser.add_argument("--doses", nargs="+", type=float, default=list(DOSES))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "recipes")
    options = parser.parse_args()
    rows: list[Row] = []
    cells = []
    print("| recipe | layers | dose | moved | own emotion first | coherent | moved and coherent | of | similarity |")
    print("|---|---|---|---|---|---|---|---|---|")
    with Engine(options.model, n_seq_max=16, n_ctx=16 * 320) as engine:
        comparison = Comparison(engine, options.use)
        backend = EngineBackend(engine)
        sets: dict[str, dict[str, ControlVector]] = {}
        for name in options.recipes:
            found = extract(backend, list(EMOTIONS), recipe=candidates()[name], fallback_to_vignettes=True)
            sets[name] = dict(found.vectors)
        sets["random"] = random_set(found)
        for name, vectors in sets.items():
            for label in options.layers:
                shares = RANGES[label]
                layers = replace(Recipe("x", "vignettes"), layers=shares).layer_range(engine.model.n_layer)
                best: Row | None = None
                for dose in options.doses:
                    cell = comparison.judge_cell(vectors, layers, dose)
                    row = Row(name, label, dose, **cell)
                    cells.append(asdict(row))
                    if best is None or row.both > best.both:
                        best = row
                rows.append(best)
                print(
                    f"| {best.recipe} | {best.layers} | {best.dose:.2f} | {best.moved} | {best.own_first} | "
                    f"{best.coherent} | **{best.both}** | {best.n} | {best.similarity:.2f} |",
                    flush=True,
                )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps(cells, indent=1) + "\n")


if __name__ == "__main__":
    main()
