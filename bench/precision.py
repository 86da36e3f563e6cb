"""The precision ladder: what an emotion direction loses when the same weights are rounded further.

    python bench/precision.py [--model MODEL] [--cache FOLDER] [--output bench/results/precision]

One set of weights: the model's file, dequantized to F32. transformers computes them in float32, the
reference; llama.cpp's quantizer makes every other format from the F32 file, and the engine reads
the same texts, token by token, from each. Against the reference, with 95% bootstrap intervals over
texts:

    cosine      of each emotion's direction (stories; class mean less mean over classes): median
                over layers and emotions, and the least
    Spearman    of the dissimilarities (1 - cosine) between the 20 directions, median over layers
    accuracy    on held-out vignettes, nearest centroid of the training vignettes (centred,
                cosine), at the layer that is best inside the training half of the reference; the
                interval is that of the difference
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from corpus import Cache, Texts, cosines, directions, stories, vignettes
from harness import save
from scipy.stats import rankdata

from pyemo import Engine
from pyemo.emotions import EMOTIONS
from pyemo.extract.backend import Backend
from pyemo.extract.engine_backend import EngineBackend
from pyemo.extract.transformers_backend import TransformersBackend
from pyemo.formats.quantize import requantize, tensor_types

FORMATS = ("F32", "F16", "Q8_0", "Q6_K", "Q5_1", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
SHIPPED = "as shipped"
N_STORIES, STORY_TOKENS = 3, 64
N_BOOTSTRAP = 200
HEADER = (
    "| format | tensor types, share of the weights | MB | cosine, median | least | Spearman | "
    "accuracy "
    "| less the reference's |\n|---|---|---|---|---|---|---|---|"
)

States = npt.NDArray[np.float32]
PARTS = ("stories", "train", "held_out")


@dataclass(frozen=True)
class Reading:
    """What one format made of the texts, float32 (n_texts, n_layers, n_embd) each."""

    stories: States
    train: States
    held_out: States


@dataclass(frozen=True)
class Interval:
    """A number and its 95% bootstrap interval."""

    value: float
    low: float
    high: float

    def text(self, form: str = ".3f") -> str:
        """Return the number with its interval in brackets."""
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


@dataclass(frozen=True)
class Rung:
    """One format of the ladder."""

    format: str
    tensor_types: dict[str, float]
    megabytes: float
    cosine: Interval
    least_cosine: float
    spearman: Interval
    accuracy: float
    accuracy_difference: Interval
    tokens_per_s: float

    def row(self) -> str:
        """Return the line of a Markdown table."""
        types = ", ".join(
            f"{name} {share:.0%}" for name, share in self.tensor_types.items() if share >= 0.005
        )
        return (
            f"| {self.format} | {types} | {self.megabytes:.0f} | {self.cosine.text('.4f')} | "
            f"{self.least_cosine:.4f} "
            f"| {self.spearman.text()} | {self.accuracy:.3f} | "
            f"{self.accuracy_difference.text('+.3f')} |"
        )


class Ladder:
    """The texts, the reference's reading of them, and what is compared with it."""

    def __init__(self, texts: tuple[Texts, Texts, Texts], reference: Reading) -> None:
        self.texts = texts
        self.reference = reference
        self.labels = [np.array(part.emotions) for part in texts]
        self.layer = self._best_layer()
        self.hits = self._hits(reference)

    def rung(self, name: str, path: Path, reading: Reading, tokens_per_s: float) -> Rung:
        """Compare one format's reading with the reference."""
        table = self._cosines(reading)
        rng = np.random.default_rng(0)
        cosine, spearman = [], []
        for _ in range(N_BOOTSTRAP):
            rows = self._resample(rng, self.labels[0])
            a = directions(reading.stories[rows], self.texts[0].emotions)
            b = directions(self.reference.stories[rows], self.texts[0].emotions)
            cosine.append(np.median(cosines(a, b)))
            spearman.append(self._spearman(a, b))
        a = directions(reading.stories, self.texts[0].emotions)
        b = directions(self.reference.stories, self.texts[0].emotions)
        hits = self._hits(reading)
        drawn = rng.integers(0, len(hits), (10_000, len(hits)))
        difference = (hits.astype(float) - self.hits)[drawn].mean(axis=1)
        types = tensor_types(path)
        total = sum(part.n_values for part in types)
        return Rung(
            format=name,
            tensor_types={part.type: part.n_values / total for part in types},
            megabytes=path.stat().st_size / 1e6,
            cosine=_interval(float(np.median(table)), cosine),
            least_cosine=float(table.min()),
            spearman=_interval(self._spearman(a, b), spearman),
            accuracy=float(hits.mean()),
            accuracy_difference=_interval(float(hits.mean() - self.hits.mean()), difference),
            tokens_per_s=tokens_per_s,
        )

    def _cosines(self, reading: Reading) -> npt.NDArray[np.float64]:
        emotions = self.texts[0].emotions
        return cosines(
            directions(reading.stories, emotions), directions(self.reference.stories, emotions)
        )

    @staticmethod
    def _resample(rng: np.random.Generator, labels: npt.NDArray[np.str_]) -> npt.NDArray[np.int64]:
        """Draw texts within each class, in the classes' order: the same texts for both sides."""
        rows = np.arange(len(labels))
        for name in np.unique(labels):
            own = np.flatnonzero(labels == name)
            rows[own] = rng.choice(own, len(own))
        return rows

    @staticmethod
    def _spearman(
        a: dict[str, npt.NDArray[np.float64]], b: dict[str, npt.NDArray[np.float64]]
    ) -> float:
        """Return the rank correlation of the dissimilarities between directions.

        Median over layers.
        """
        upper = np.triu_indices(len(a), 1)
        ranks = []
        for side in (a, b):
            rows = np.stack(list(side.values()))
            rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
            alike = np.einsum("ale,ble->lab", rows, rows)
            ranks.append(rankdata(1 - alike[:, upper[0], upper[1]], axis=1))
        x, y = (r - r.mean(axis=1, keepdims=True) for r in ranks)
        return float(np.median((x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))))

    def _best_layer(self) -> int:
        """Return the layer with the best leave-one-out accuracy on the training half."""
        states, labels = self.reference.train, self.labels[1]
        hits = np.zeros(states.shape[1])
        for i in range(len(labels)):
            rest = np.arange(len(labels)) != i
            hits += nearest(states[rest], labels[rest], states[i : i + 1])[0] == labels[i]
        return int(np.argmax(hits))

    def _hits(self, reading: Reading) -> npt.NDArray[np.bool_]:
        guessed = nearest(reading.train, self.labels[1], reading.held_out)[:, self.layer]
        return np.asarray(guessed == self.labels[2])


def nearest(train: States, labels: npt.NDArray[np.str_], states: States) -> npt.NDArray[np.str_]:
    """Return the class of the nearest centroid by cosine, both centred, (n_texts, n_layers)."""
    names = np.unique(labels)
    centroids = np.stack([train[labels == name].mean(axis=0, dtype=np.float64) for name in names])
    centre = centroids.mean(axis=0)
    a, b = states - centre, centroids - centre
    a = a / np.linalg.norm(a, axis=-1, keepdims=True)
    b = b / np.linalg.norm(b, axis=-1, keepdims=True)
    return np.asarray(names[np.einsum("tle,cle->tlc", a, b).argmax(axis=-1)])


def read(backend: Backend, texts: Sequence[Texts]) -> dict[str, States]:
    """Return the reading of all texts at all layers but the last, and tokens a second."""
    begin = time.perf_counter()
    parts = [part.read(backend, range(backend.source.n_layer - 1)) for part in texts]
    speed = sum(part.n_tokens for part in texts) / (time.perf_counter() - begin)
    return {**dict(zip(PARTS, parts, strict=True)), "speed": np.array(speed)}


def read_file(model: str | Path, texts: Sequence[Texts], n_threads: int) -> dict[str, States]:
    """Read the texts in the engine."""
    with Engine(model, n_ctx=4096, n_seq_max=8, n_threads=n_threads) as engine:
        return read(EngineBackend(engine), texts)


def reading(found: dict[str, States]) -> tuple[Reading, float]:
    """Return what ``read`` returned as values."""
    return Reading(*(found[name] for name in PARTS)), float(found["speed"])


def write_texts(model: str, n_threads: int) -> tuple[Texts, Texts, Texts]:
    """Let the file as shipped write the stories; the vignettes are built in."""
    with Engine(model, n_ctx=8192, n_seq_max=32, n_threads=n_threads) as engine:
        backend = EngineBackend(engine)
        told = stories(backend, EMOTIONS, N_STORIES, STORY_TOKENS)
        return told, vignettes(backend, "train"), vignettes(backend, "held_out")


def _interval(value: float, drawn: Sequence[float] | npt.NDArray[np.float64]) -> Interval:
    """Return the interval, moved so that its median is the value.

    A class drawn with replacement has fewer different texts, which alone lowers a cosine.
    """
    low, middle, high = np.quantile(drawn, [0.025, 0.5, 0.975])
    return Interval(value, value + float(low - middle), min(1.0, value + float(high - middle)))


def main() -> None:
    """Climb the ladder, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, help="keep what was computed here, and go on from it")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "precision"
    )
    options = parser.parse_args()
    cache, threads = Cache(options.cache), options.threads
    texts = cache.texts(f"{options.model}-texts", lambda: write_texts(options.model, threads))

    def reference_reading() -> dict[str, States]:
        return read(
            TransformersBackend.load(options.model, device="cpu", dtype="float32", batch_size=8),
            texts,
        )

    reference, speed = reading(cache.arrays(f"{options.model}-transformers", reference_reading))
    ladder = Ladder((texts[0], texts[1], texts[2]), reference)
    n_texts = ", ".join(
        f"{len(part.passages)} {part.name} ({part.n_tokens} tokens)" for part in texts
    )
    facts = [
        f"{options.model}: {n_texts}; accuracy at layer {ladder.layer}, reference "
        f"{ladder.hits.mean():.3f}, "
        f"chance {1 / len(EMOTIONS):.3f}; transformers float32 reads {speed:.0f} tokens a second",
        "",
        HEADER,
    ]
    print("\n".join(facts), flush=True)
    rungs = []
    with tempfile.TemporaryDirectory() as folder:
        f32 = requantize(options.model, "F32", target=Path(folder) / "F32.gguf")
        paths = {SHIPPED: f32.source_path}
        for name in [*options.formats, SHIPPED]:
            if name not in paths:
                path = f32.path if name == "F32" else Path(folder) / f"{name}.gguf"
                paths[name] = (
                    f32.path if name == "F32" else requantize(f32.path, name, target=path).path
                )
            found = cache.arrays(
                f"{options.model}-{name}", lambda path=paths[name]: read_file(path, texts, threads)
            )
            rungs.append(ladder.rung(name, paths[name], *reading(found)))
            print(rungs[-1].row(), flush=True)
            if name not in ("F32", SHIPPED):
                paths[name].unlink()
    save(
        options.output,
        {"reference": facts[0], "rungs": [asdict(rung) for rung in rungs]},
        [*facts, *(rung.row() for rung in rungs)],
    )


if __name__ == "__main__":
    main()
