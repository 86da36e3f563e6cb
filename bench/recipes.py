"""Which recipe on which layers steers best: the comparison that chose the recipe ``reading``.

    python bench/recipes.py [--model MODEL] [--recipes NAME ...] [--layers NAME ...] [--doses X ...]

For each recipe, layer range and dose, prompts of the use `selection` are answered greedily in each
mood and judged by MiniLM. A text is moved if it lies nearer its emotion than the unsteered answer
to the same prompt does; own first if it is nearest its own emotion of those judged; coherent if its
word trigrams are distinct (> 0.6) and the unsteered model finds it likely (perplexity ratio < 4).
Ranges are compared at equal dose. A row of the table is a recipe's range at the dose with the most
texts that are both moved and coherent. A random direction for each emotion, of the same lengths,
goes through the same.

Vectors and finished cells are kept in the output folder, so a run that was cut off goes on there.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from pyemo import ControlVector, Engine, SamplerParams, Steering
from pyemo.emotions import EMOTIONS
from pyemo.extract.engine_backend import EngineBackend
from pyemo.extract.extraction import extract
from pyemo.extract.recipe import Recipe
from pyemo.judges import MiniLMJudge
from pyemo.texts import sources

RESULTS = Path(__file__).parent / "results"
JUDGED = ("happy", "sad", "calm", "angry")
RANGES = {
    "all": (0.0, 1.0),
    "lower half": (0.0, 0.5),
    "0.33 to 0.67": (0.33, 0.67),
    "0.33 to 0.83": (0.33, 0.83),
    "upper half": (0.5, 1.0),
}
DOSES = (0.06, 0.08, 0.1)
RANDOM = "random"
MIN_DISTINCT, MAX_RATIO = 0.6, 4.0
GREEDY = SamplerParams(temperature=0)


@dataclass(frozen=True)
class Cell:
    """One recipe on one layer range at one dose; counts are of ``n`` texts."""

    recipe: str
    layers: str
    dose: float
    strength: float
    n: int
    moved: int
    own_first: int
    coherent: int
    both: int
    similarity: float

    @property
    def row(self) -> str:
        """The cell as a row of the table."""
        return (
            f"| {self.recipe} | {self.layers} | {self.dose:.2f} | {self.strength:.3f} "
            f"| {self.moved} | {self.own_first} | {self.coherent} | **{self.both}** | {self.n} "
            f"| {self.similarity:.2f} |"
        )


HEADER = (
    "| recipe | layers | dose | strength | moved | own first | coherent | moved and coherent | of "
    "| similarity |\n|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Answers:
    """Answers to prompts, and their mean negative log-likelihood under the unsteered model."""

    texts: list[str]
    nll: np.ndarray


def distinct_trigrams(text: str) -> float:
    """Share of the words' trigrams that are different."""
    words = text.lower().split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(trigrams)) / len(trigrams) if trigrams else 0.0


class Comparison:
    """Prompts, the unsteered answers and the judge, once for all cells."""

    def __init__(
        self, engine: Engine, prompts: Sequence[str], emotions: Sequence[str], n_tokens: int
    ) -> None:
        self.engine = engine
        self.emotions = list(emotions)
        self.prompts = list(prompts)
        self.n_tokens = n_tokens
        self.judge = MiniLMJudge()
        self.plain = self.answer(self.prompts, [Steering()] * len(self.prompts))
        self.plain_scores = self.judge.scores(self.plain.texts, self.emotions)

    def answer(self, prompts: list[str], moods: list[Steering]) -> Answers:
        """Answer each prompt under its mood, and score the answers unsteered."""
        replies = self.engine.generate_many(
            prompts, steering=moods, max_tokens=self.n_tokens, sampler=GREEDY
        )
        scores = self.engine.score_many(
            [
                ([token.id for token in reply.tokens], self.engine.prompt_tokens(prompt))
                for reply, prompt in zip(replies, prompts, strict=True)
            ]
        )
        return Answers(
            [reply.text for reply in replies], np.array([-score.mean_logprob for score in scores])
        )

    def cell(
        self, recipe: str, vectors: dict[str, ControlVector], layers: str, dose: float
    ) -> Cell:
        """Answer all prompts in all moods at one dose."""
        n_layer = self.engine.model.n_layer
        steered = replace(Recipe("range", "vignettes"), layers=RANGES[layers]).layer_range(n_layer)
        moods, strengths = [], []
        for emotion in self.emotions:
            unit = Steering({vectors[emotion]: 1.0}, layers=steered)
            strengths.append(dose / unit.dose(n_layer))
            moods += [unit * strengths[-1]] * len(self.prompts)
        n = len(self.emotions)
        found = self.answer(self.prompts * n, moods)
        scores = self.judge.scores(found.texts, self.emotions)
        own = np.repeat(np.arange(n), len(self.prompts))
        every = np.arange(len(own))
        moved = scores[every, own] > np.tile(self.plain_scores, (n, 1))[every, own]
        ratio = np.exp(found.nll - np.tile(self.plain.nll, n))
        distinct = np.array([distinct_trigrams(text) for text in found.texts])
        coherent = (distinct > MIN_DISTINCT) & (ratio < MAX_RATIO)
        return Cell(
            recipe=recipe,
            layers=layers,
            dose=dose,
            strength=float(np.mean(strengths)),
            n=len(own),
            moved=int(moved.sum()),
            own_first=int((scores.argmax(axis=1) == own).sum()),
            coherent=int(coherent.sum()),
            both=int((moved & coherent).sum()),
            similarity=float(self.judge.similarity(found.texts, self.plain.texts * n).mean()),
        )


def candidates() -> dict[str, Recipe]:
    """The bundled recipes and variations of them."""
    stories = Recipe("stories", "stories", n_stories=8, max_tokens=128)
    vignettes = Recipe("vignettes", "vignettes")
    found = {
        "paper-generation": Recipe.load("paper-generation"),
        "paper-comprehension": Recipe.load("paper-comprehension"),
        "contrast": Recipe.load("contrast"),
        "anthropic": Recipe.load("anthropic"),
        "stories": stories,
        "vignettes": vignettes,
        "vignettes from token 10": replace(vignettes, skip=10),
        "the same, denoised": replace(vignettes, skip=10, denoise=0.5),
    }
    return {name: replace(recipe, name=name) for name, recipe in found.items()}


def load_set(folder: Path) -> dict[str, ControlVector]:
    """Return the vectors of a folder by emotion; empty if there are none."""
    return {path.stem: ControlVector.load(path) for path in sorted(folder.glob("*.gguf"))}


def random_like(vectors: dict[str, ControlVector]) -> dict[str, ControlVector]:
    """Return a random direction of the same length at each layer for each emotion."""
    out = {}
    for name, vector in vectors.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        rows = {}
        for layer, row in vector.directions.items():
            random = rng.standard_normal(row.shape)
            rows[layer] = random * (np.linalg.norm(row) / np.linalg.norm(random))
        out[name] = ControlVector(rows, name=name, metadata=vector.metadata)
    return out


def vectors_of(source: str, name: str, folder: Path) -> dict[str, ControlVector]:
    """Return a recipe's vectors, at all layers: kept ones, or extracted now."""
    if name == RANDOM:
        return random_like(vectors_of(source, "vignettes from token 10", folder))
    if not load_set(folder / name):
        recipe = replace(candidates()[name], layers=(0.0, 1.0))
        with EngineBackend.open(source, recipe) as backend:
            found = extract(backend, list(EMOTIONS), recipe=recipe, fallback_to_vignettes=True)
        found.save(folder / name)
    return load_set(folder / name)


def kept_cells(path: Path) -> list[Cell]:
    """Return the cells of an earlier run."""
    return [Cell(**cell) for cell in json.loads(path.read_text())] if path.exists() else []


def main() -> None:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--source", help="model to extract on; by default the steered one")
    parser.add_argument("--recipes", nargs="+", default=[*candidates(), RANDOM])
    parser.add_argument("--layers", nargs="+", default=list(RANGES))
    parser.add_argument("--doses", nargs="+", type=float, default=list(DOSES))
    parser.add_argument("--emotions", nargs="+", default=list(JUDGED))
    parser.add_argument("--prompts", type=int, default=8, help="how many of the selection prompts")
    parser.add_argument("--tokens", type=int, default=40, help="tokens of an answer")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--output", type=Path, default=None, help="folder of results")
    options = parser.parse_args()
    folder = options.output or RESULTS / "recipes" / Path(options.model).stem
    kept = folder / (
        f"{'-'.join(options.emotions)}-{options.prompts}-prompts-{options.tokens}-tokens.json"
    )
    folder.mkdir(parents=True, exist_ok=True)
    cells = kept_cells(kept)
    prompts = sources.prompts("selection")[: options.prompts]
    n_texts = len(prompts) * len(options.emotions)
    with Engine(
        options.model,
        n_seq_max=min(n_texts, 48),
        n_ctx=max(min(n_texts, 48) * (60 + options.tokens), 4096),
        n_outputs_max=128,
        n_threads=options.threads,
    ) as engine:
        comparison = Comparison(engine, prompts, options.emotions, options.tokens)
        print(HEADER)
        for name in options.recipes:
            vectors = vectors_of(options.source or options.model, name, folder)
            for layers in options.layers:
                row = []
                for dose in options.doses:
                    done = [
                        c for c in cells if (c.recipe, c.layers, c.dose) == (name, layers, dose)
                    ]
                    if not done:
                        done = [comparison.cell(name, vectors, layers, dose)]
                        cells += done
                        kept.parent.mkdir(parents=True, exist_ok=True)
                        kept.write_text(
                            json.dumps([asdict(cell) for cell in cells], indent=1) + "\n"
                        )
                    row += done
                print(max(row, key=lambda cell: (cell.both, cell.own_first)).row, flush=True)


if __name__ == "__main__":
    main()
