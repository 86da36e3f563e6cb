"""How the labelled texts of the regimes were made: steered texts of real models, drawn for reading.

Not a test. `pool` lets a model write texts over emotions, strengths, layers, samplers and lengths;
`draw` picks about as many of each kind as a rough rule proposes and writes what readers see: an
opaque id, the prompt and the text, in random order; `score` adds the unsteered twins and what the
unsteered model finds of texts and twins. docs/measurements/regimes.md says what came of it.

    python tests/quality/regime_texts.py pool MODEL VECTORS POOL.jsonl
    python tests/quality/regime_texts.py draw POOL.jsonl... --drawn DRAWN.jsonl --blind FOLDER
    python tests/quality/regime_texts.py score MODEL DRAWN.jsonl SCORED.jsonl
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pyemo import ControlVector, Engine, Reply, SamplerParams, Steering
from pyemo.emotions import EMOTIONS
from pyemo.measures.repetition import distinct_ngrams, longest_loop
from pyemo.texts import sources

Record = dict[str, Any]

N_PROMPTS = 10  # each with two unsteered twins: greedy, and one draw of the default sampler
LENGTHS = (48, 256)
RANDOM = "random"  # a random direction in an emotion's place
N_RANDOM = 3
# Strengths are drawn log-uniformly around a scale: where each model's text was seen to break.
SPREAD = 4.0
SIDE_BY_SIDE = {48: 24, 256: 8}
CHUNK = 120


@dataclass(frozen=True)
class Plan:
    """What is asked of one model."""

    scale: dict[str, float]  # layers -> strength at which texts begin to break
    n_short: int
    n_long: int
    n_strong: int  # further short texts, sampled and strong: few of the others explode
    more: tuple[int, int] = (0, 0)  # and again, short and long, when readers had found too few


PLANS = {
    "smollm2-135m-instruct": Plan(
        {"all": 0.03, "middle": 0.07, "upper": 0.055}, 312, 48, 72, (48, 16)
    ),
    "gemma-3-270m": Plan({"all": 0.022, "middle": 0.045, "upper": 0.035}, 264, 48, 96, (24, 8)),
    "qwen2.5-coder-0.5b-instruct": Plan(
        {"all": 0.035, "middle": 0.07, "upper": 0.06}, 168, 16, 96, (24, 0)
    ),
}


def layers_of(name: str, n_layer: int) -> range:
    """Return the layers a text is steered at."""
    return {
        "all": range(1, n_layer - 1),
        "middle": range(n_layer // 4, 3 * n_layer // 4),
        "upper": range(n_layer // 2, n_layer - 1),
    }[name]


def prompts_of(model: str) -> list[str]:
    """Return requests; for the base model also beginnings of sentences, which it can continue."""
    requests = [*sources.prompts("evaluation"), *sources.prompts("selection")]
    openings = list(sources.sentence_openings())[::4] if model == "gemma-3-270m" else []
    return random.Random(f"prompts {model}").sample([*requests, *openings], N_PROMPTS)


def random_vector(like: ControlVector, seed: int) -> ControlVector:
    """Return random directions as long as the given vector's, at its layers."""
    rng = np.random.default_rng(seed)
    rows = {}
    for layer, direction in like.directions.items():
        row = rng.standard_normal(direction.size)
        rows[layer] = row * np.linalg.norm(direction) / np.linalg.norm(row)
    return ControlVector(rows, name=f"{RANDOM}{seed}", metadata=like.metadata)


def tasks(model: str, plan: Plan, rng: random.Random) -> Iterator[Record]:
    """Yield what each text is to be; its twin has the same prompt and sampler."""
    prompts = prompts_of(model)
    for n_tokens, n_texts in zip(LENGTHS, (plan.n_short, plan.n_long), strict=True):
        for i in range(n_texts):
            layers = rng.choice(list(plan.scale))
            strength = plan.scale[layers] * SPREAD ** rng.uniform(-1, 1)
            is_random = rng.random() < 0.1
            emotion = f"{RANDOM}{rng.randrange(N_RANDOM)}" if is_random else rng.choice([*EMOTIONS])
            task = {
                "model": model,
                "emotion": emotion,
                "strength": 0.0 if i % 10 == 0 else round(strength, 4),
                "layers": layers,
                "sampler": rng.choice(["greedy", "default"]),
                "length": n_tokens,
                "prompt": rng.choice(prompts),
                "is_twin": False,
            }
            yield task | {"twin": twin_key(task)}


def strong_tasks(
    model: str, plan: Plan, rng: random.Random, n_short: int, n_long: int, low: float, high: float
) -> list[Record]:
    """Return further texts, with the default sampler and low to high times the scale."""
    drawn = list(tasks(model, replace(plan, n_short=10 * n_short, n_long=10 * n_long), rng))
    strong = [
        task
        for task in drawn
        if task["sampler"] == "default"
        and low < task["strength"] / plan.scale[task["layers"]] < high
    ]
    return [
        task
        for length, n in zip(LENGTHS, (n_short, n_long), strict=True)
        for task in [task for task in strong if task["length"] == length][:n]
    ]


def twin_key(task: Record) -> str:
    """Name the unsteered text of this prompt and sampler; its first 48 tokens serve short texts."""
    return f"{task['model']}|{task['prompt']}|{task['sampler']}"


def sampler_of(task: Record) -> SamplerParams:
    """Return the sampler; an unsteered text that is no twin has a seed of its own."""
    if task["sampler"] == "greedy":
        return SamplerParams(temperature=0)
    return SamplerParams(seed=0 if task["is_twin"] or task["strength"] else 100)


def write(engine: Engine, part: Sequence[Record], moods: Sequence[Steering]) -> list[Reply]:
    """Generate side by side."""
    return engine.generate_many(
        [task["prompt"] for task in part],
        steering=moods,
        sampler=[sampler_of(task) for task in part],
        max_tokens=part[0]["length"],
        fixed_shape=False,
    )


def with_text(records: Sequence[Record], replies: Sequence[Reply]) -> list[Record]:
    """Add what was written, without the end-of-generation token; drop texts below 8 tokens."""
    full = []
    for record, reply in zip(records, replies, strict=True):
        tokens = reply.tokens[:-1] if reply.stop_reason == "end" else reply.tokens
        written = {
            "n_tokens": len(tokens),
            "text": reply.text,
            "short_text": "".join(token.text for token in tokens[: min(LENGTHS)]),
            "tokens": [token.id for token in tokens],
            "entropies": [round(token.entropy, 2) for token in tokens],
        }
        if len(tokens) >= 8:
            full.append(record | written)
    return full


def pool(model: str, file: str, vectors: Path, out: Path, seconds: float) -> None:
    """Write one model's texts; what ``out`` holds already is not written again."""
    plan, rng = PLANS[model], random.Random(f"regimes {model}")
    todo = list(tasks(model, plan, rng))
    rng.shuffle(todo)
    parts = in_parts(todo)
    rng.shuffle(parts)
    parts += in_parts(strong_tasks(model, plan, rng, plan.n_strong, 0, 1, 3))
    parts += in_parts(strong_tasks(model, plan, rng, *plan.more, 1.7, 4))
    done = {record["part"] for record in read_lines(out)} if out.exists() else set()
    until = time.monotonic() + seconds
    with Engine(file, n_ctx=3072, n_seq_max=24, n_threads=1) as engine:
        known = {name: ControlVector.load(vectors / f"{name}.gguf") for name in EMOTIONS}
        known |= {v.name: v for v in (random_vector(known["sad"], i) for i in range(N_RANDOM))}
        for number, part in enumerate(parts):
            if number in done or time.monotonic() > until:
                continue
            moods = [mood_of(task, known, engine.model.n_layer) for task in part]
            records = with_text(part, write(engine, part, moods))
            with out.open("a", encoding="utf-8") as lines:
                lines.writelines(json.dumps(record | {"part": number}) + "\n" for record in records)
            print(f"{model}: part {number} of {len(parts)}", flush=True)


def in_parts(todo: Sequence[Record]) -> list[list[Record]]:
    """Return what is written side by side: equal lengths, long texts fewer at a time."""
    parts = []
    for length, size in SIDE_BY_SIDE.items():
        group = [task for task in todo if task["length"] == length]
        parts += [group[first : first + size] for first in range(0, len(group), size)]
    return parts


def score(model: str, file: str, drawn: Path, out: Path, seconds: float) -> None:
    """Write a model's twins and drawn texts with the unsteered log-probabilities; resumes."""
    records = [record for record in read_lines(drawn) if record["model"] == model]
    done = {(r["twin"], r.get("id")) for r in read_lines(out)} if out.exists() else set()
    unsteered = {"emotion": "", "strength": 0.0, "length": max(LENGTHS), "is_twin": True}
    asked = ("model", "sampler", "prompt", "twin")
    twins = {r["twin"]: {key: r[key] for key in asked} | unsteered for r in records}
    todo = in_parts([twin for key, twin in twins.items() if (key, None) not in done])
    todo += in_parts([record for record in records if (record["twin"], record["id"]) not in done])
    until = time.monotonic() + seconds
    with Engine(file, n_ctx=3072, n_seq_max=24, n_threads=1, n_outputs_max=64) as engine:
        for number, part in enumerate(todo):
            if time.monotonic() > until:
                break
            if part[0]["is_twin"]:
                part = with_text(part, write(engine, part, [Steering()] * len(part)))
            pairs = [(record["tokens"], engine.prompt_tokens(record["prompt"])) for record in part]
            for record, found in zip(part, engine.score_many(pairs), strict=True):
                record["logprobs"] = [round(float(p), 2) for p in found.logprobs]
            with out.open("a", encoding="utf-8") as lines:
                lines.writelines(json.dumps(record) + "\n" for record in part)
            print(f"{model}: scored part {number} of {len(todo)}", flush=True)


def mood_of(task: Record, known: dict[str, ControlVector], n_layer: int) -> Steering:
    """Return the steering of a text; off for a twin."""
    if task["is_twin"]:
        return Steering()
    vector, layers = known[task["emotion"]], layers_of(task["layers"], n_layer)
    return Steering({vector: task["strength"]}, layers=layers)


def read_lines(path: Path) -> list[Record]:
    """Return the records of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def proposed(record: Record) -> str:
    """Return a rough guess that balances the draw and decides no label."""
    tokens = record["tokens"]
    if distinct_ngrams(tokens[-48:], 3) < 0.6 or longest_loop(tokens[-48:]).length > 24:
        return "repetitive"
    is_strong = record["strength"] > 1.2 * PLANS[record["model"]].scale[record["layers"]]
    return "explosive" if is_strong or np.mean(record["entropies"]) > 3.5 else "coherent"


def draw(pools: Sequence[Path], drawn: Path, blind: Path, n_short: int, n_long: int) -> None:
    """Pick texts about evenly over guesses and models; write them and what readers see."""
    rng = random.Random("draw")
    strata: dict[tuple[Any, ...], list[Record]] = {}
    unique = {record["text"]: record for path in pools for record in read_lines(path)}
    for record in unique.values():
        source = f"{record['twin']}|{record['tokens']}"
        record["id"] = hashlib.sha256(source.encode()).hexdigest()[:8]
        strata.setdefault((record["length"], record["model"], proposed(record)), []).append(record)
    n_kinds = len({model for _, model, _ in strata}) * 3
    chosen: dict[str, Record] = {}
    for (length, model, kind), group in sorted(strata.items()):
        wanted = round((n_short if length == min(LENGTHS) else n_long) / n_kinds)
        picked = rng.sample(group, min(wanted, len(group)))
        print(f"{length} {model} {kind}: {len(picked)} of {len(group)}")
        chosen |= {record["id"]: record for record in picked}
    order = list(chosen.values())
    rng.shuffle(order)
    write_lines(drawn, order)
    for number, first in enumerate(range(0, len(order), CHUNK)):
        part = order[first : first + CHUNK]
        shown = [{key: record[key] for key in ("id", "prompt", "text")} for record in part]
        write_lines(blind / f"chunk_{number:02}.jsonl", shown)


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """Write JSON lines."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Run the command line above."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    make = commands.add_parser("pool")
    make.add_argument("model")
    make.add_argument("vectors", type=Path)
    make.add_argument("out", type=Path)
    make.add_argument("--file", help="another quantization of the model")
    make.add_argument("--seconds", type=float, default=math.inf, help="stop after; may be resumed")
    pick = commands.add_parser("draw")
    pick.add_argument("pools", type=Path, nargs="+")
    pick.add_argument("--drawn", type=Path, required=True)
    pick.add_argument("--blind", type=Path, required=True)
    pick.add_argument("--n-short", type=int, default=660)
    pick.add_argument("--n-long", type=int, default=120)
    add = commands.add_parser("score")
    add.add_argument("model")
    add.add_argument("drawn", type=Path)
    add.add_argument("out", type=Path)
    add.add_argument("--file", help="another quantization of the model")
    add.add_argument("--seconds", type=float, default=math.inf, help="stop after; may be resumed")
    given = parser.parse_args()
    if given.command == "pool":
        file = given.file or given.model
        pool(given.model, file, given.vectors, given.out, given.seconds)
    elif given.command == "score":
        file = given.file or given.model
        score(given.model, file, given.drawn, given.out, given.seconds)
    else:
        draw(given.pools, given.drawn, given.blind, given.n_short, given.n_long)


if __name__ == "__main__":
    main()
