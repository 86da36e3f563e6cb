"""How near the two back ends' directions are, on the same texts: cosine for each emotion and layer.

    python bench/backends.py [--models ...] [--output bench/results/backends]

transformers computes the dequantized file in float32, so it has the very weights of the engine.
What is left
is the engine's rounding: activations in 8 bits before each product with quantized weights, and
keys and values
in float16. The engine therefore also computes the same weights from an F32 file with F32 keys and
values.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from corpus import Cache, Texts, cosines, directions, stories, vignettes
from harness import save

from pyemo import Engine
from pyemo.extract.backend import Backend
from pyemo.extract.engine_backend import EngineBackend
from pyemo.extract.transformers_backend import TransformersBackend
from pyemo.formats.quantize import requantize

MODELS = ("smollm2-135m-instruct", "gemma-3-270m", "qwen2.5-coder-0.5b-instruct")
STORY_EMOTIONS = ("happy", "sad", "calm", "angry", "afraid", "loving")
N_VIGNETTES, N_STORIES, STORY_TOKENS = 2, 2, 48
HEADER = (
    "| model | engine | texts | layers | mean cosine | least | emotion, layer of the least | "
    "below 0.99 |\n"
    "|---|---|---|---|---|---|---|---|"
)


def all_directions(backend: Backend, texts: Texts) -> dict[str, np.ndarray]:
    """Return the directions at all layers; the last block costs logits, so only of stories."""
    n_layer = backend.source.n_layer
    layers = range(n_layer) if texts.name == "stories" else range(n_layer - 1)
    begin = time.perf_counter()
    states = texts.read(backend, layers)
    speed = texts.n_tokens / (time.perf_counter() - begin)
    print(
        f"<!-- {backend.name}: {texts.name}, {texts.n_tokens} tokens, {speed:.0f} a second -->",
        flush=True,
    )
    return directions(states, texts.emotions)


def open_engine(model: str | Path, kv_type: str, n_threads: int) -> Engine:
    """Return an engine for eight texts at a time."""
    return Engine(model, n_ctx=4096, n_seq_max=8, n_threads=n_threads, kv_type=kv_type)


def compare(model: str, cache: Cache, n_threads: int) -> list[dict[str, object]]:
    """Return a row of the table for each engine and kind of text, with all cosines."""

    def write() -> list[Texts]:
        with open_engine(model, "f16", n_threads) as engine:
            backend = EngineBackend(engine)
            return [
                vignettes(backend, "train", N_VIGNETTES),
                stories(backend, STORY_EMOTIONS, N_STORIES, STORY_TOKENS),
            ]

    def shipped(part: Texts) -> dict[str, np.ndarray]:
        with open_engine(model, "f16", n_threads) as engine:
            return all_directions(EngineBackend(engine), part)

    def unrounded(kv_type: str) -> dict[str, np.ndarray]:
        with tempfile.TemporaryDirectory() as folder:
            made = requantize(model, "F32", target=Path(folder) / "F32.gguf")
            with open_engine(made.path, kv_type, n_threads) as engine:
                return all_directions(EngineBackend(engine), texts[0])

    def torch_backend() -> TransformersBackend:
        return TransformersBackend.load(model, device="cpu", dtype="float32", batch_size=8)

    texts = cache.texts(f"{model}-texts", write)
    found = {
        "as shipped, KV f16": [
            cache.arrays(f"{model}-shipped-{i}", lambda p=part: shipped(p))
            for i, part in enumerate(texts)
        ],
        **{
            f"F32, KV {kv}": [cache.arrays(f"{model}-F32-{kv}", lambda kv=kv: unrounded(kv))]
            for kv in ("f16", "f32")
        },
    }
    reference = [
        cache.arrays(f"{model}-transformers-{i}", lambda p=part: all_directions(torch_backend(), p))
        for i, part in enumerate(texts)
    ]
    rows = []
    for engine_name, parts in found.items():
        for part, ours, theirs in zip(texts, parts, reference, strict=False):
            table = cosines(ours, theirs)
            emotion, layer = np.unravel_index(table.argmin(), table.shape)
            names = list(ours)
            rows.append(
                {
                    "model": model,
                    "engine": engine_name,
                    "texts": part.name,
                    "mean": float(table.mean()),
                    "least": float(table.min()),
                    "least_at": f"{names[emotion]}, {layer}",
                    "n_below": int((table < 0.99).sum()),
                    "n": table.size,
                    "n_layers": table.shape[1],
                    "by_emotion": dict(zip(names, table.min(axis=1).tolist(), strict=True)),
                    "by_layer": table.min(axis=0).tolist(),
                    "by_layer_mean": table.mean(axis=0).tolist(),
                }
            )
            print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, object]) -> str:
    """Return a row in Markdown."""
    return (
        f"| {row['model']} | {row['engine']} | {row['texts']} | {row['n_layers']} | "
        f"{row['mean']:.5f} "
        f"| {row['least']:.5f} | {row['least_at']} | {row['n_below']} of {row['n']} |"
    )


def main() -> None:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, help="keep what was computed here, and go on from it")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "backends"
    )
    options = parser.parse_args()
    print(HEADER)
    rows = []
    for model in options.models:
        rows += compare(model, Cache(options.cache), options.threads)
        save(options.output, {"rows": rows}, [HEADER, *map(line, rows)])


if __name__ == "__main__":
    main()
