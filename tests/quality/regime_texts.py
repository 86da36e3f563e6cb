"""How the labelled texts of the regimes were made: steered texts of real models, drawn for reading.

Not a test. `pool` lets a model write texts over emotions, strengths, layers, samplers and lengths;
`draw` picks as many of each kind as the rule of the day proposes and writes what readers see: an
opaque id, the prompt and the text, in random order. docs/regimes.md says what came of it.

    python tests/quality/regime_texts.py pool MODEL VECTORS POOL.jsonl
    python tests/quality/regime_texts.py draw POOL.jsonl... --texts FOLDER --blind FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyemo import ControlVector, Engine, Reply, SamplerParams, Steering
from pyemo.emotions import EMOTIONS
from pyemo.extract import sources
from pyemo.regimes import TextMeasures, TextRegime, classify_text, measure_text

Record = dict[str, Any]

N_SEEDS = 2  # draws of the default sampler for each prompt
LENGTHS = (48, 256)
RANDOM = "random"  # a random direction in an emotion's place
N_RANDOM = 3
# Strengths are drawn log-uniformly around a scale: where each model's text was seen to break.
SPREAD = 4.0
CHUNK = 120


@dataclass(frozen=True)
class Plan:
    """What is asked of one model."""

    scale: dict[str, float]  # layers -> strength at which texts begin to break
    n_short: int
    n_long: int


PLANS = {
    "smollm2-135m-instruct": Plan({"all": 0.03, "middle": 0.07, "upper": 0.055}, 480, 120),
    "gemma-3-270m": Plan({"all": 0.022, "middle": 0.045, "upper": 0.035}, 480, 120),
    "qwen2.5-coder-0.5b-instruct": Plan({"all": 0.06, "middle": 0.12, "upper": 0.15}, 400, 90),
}


def layers_of(name: str, n_layer: int) -> range:
    """Return the layers a text is steered at."""
    return {
        "all": range(1, n_layer - 1),
        "middle": range(n_layer // 4, 3 * n_layer // 4),
        "upper": range(n_layer // 2, n_layer - 1),
    }[name]


def prompts_of(model: str) -> list[str]:
    """Return requests; for the base model also beginnings of sentences, which it can go on with."""
    requests = [*sources.prompts("selection"), *sources.prompts("evaluation")]
    if model != "gemma-3-270m":
        return requests
    return requests[::2] + list(sources.sentence_openings())[::4]


def random_vector(like: ControlVector, seed: int) -> ControlVector:
    """Return random directions as long as the given vector's, at its layers."""
    rng = np.random.default_rng(seed)
    rows = {}
    for layer, direction in like.directions.items():
        row = rng.standard_normal(direction.size)
        rows[layer] = row * np.linalg.norm(direction) / np.linalg.norm(row)
    return ControlVector(rows, name=f"{RANDOM}{seed}", metadata=like.metadata)


def tasks(model: str, plan: Plan, prompts: Sequence[str], rng: random.Random) -> Iterator[Record]:
    """Yield what each text is to be; the twins' share their prompt, sampler and seed."""
    for n_tokens, n_texts in zip(LENGTHS, (plan.n_short, plan.n_long), strict=True):
        for i in range(n_texts):
            layers = rng.choice(list(plan.scale))
            strength = plan.scale[layers] * SPREAD ** rng.uniform(-1, 1)
            is_random = rng.random() < 0.1
            yield {
                "model": model,
                "emotion": f"{RANDOM}{rng.randrange(N_RANDOM)}"
                if is_random
                else rng.choice([*EMOTIONS]),
                "strength": 0.0 if i % 10 == 0 else round(strength, 4),
                "layers": layers,
                "sampler": rng.choice(["greedy", "default"]),
                "seed": rng.randrange(N_SEEDS),
                "length": n_tokens,
                "prompt": rng.choice(prompts),
            }


def twin_key(task: Record) -> str:
    """Name the unsteered text of this prompt and sampler; its first 48 tokens serve short texts."""
    seed = task["seed"] if task["sampler"] == "default" else 0
    return f"{task['model']}|{task['prompt']}|{task['sampler']}|{seed}"


def sampler_of(task: Record, own_seed: int = 0) -> SamplerParams:
    """Return the sampler; a text's own seed keeps an unsteered text from being its twin."""
    if task["sampler"] == "greedy":
        return SamplerParams(temperature=0)
    return SamplerParams(seed=task["seed"] + own_seed)


def write(engine: Engine, jobs: Sequence[tuple[Record, Steering, SamplerParams]]) -> list[Reply]:
    """Generate, equal lengths side by side."""
    replies: list[Reply] = []
    for n_tokens in sorted({job[0]["length"] for job in jobs}):
        part = [job for job in jobs if job[0]["length"] == n_tokens]
        replies += engine.generate_many(
            [task["prompt"] for task, _, _ in part],
            steering=[mood for _, mood, _ in part],
            sampler=[sampler for _, _, sampler in part],
            max_tokens=n_tokens,
            fixed_shape=False,
        )
    return replies


def with_text(engine: Engine, records: Sequence[Record], replies: Sequence[Reply]) -> list[Record]:
    """Add what was written and the unsteered log-probabilities; drop texts below 8 tokens."""
    full = []
    for record, reply in zip(records, replies, strict=True):
        tokens = reply.tokens[:-1] if reply.stop_reason == "end" else reply.tokens
        if len(tokens) >= 8:
            full.append((record, reply.text, tokens))
    scores = engine.score_many(
        [([t.id for t in tokens], engine.prompt_tokens(r["prompt"])) for r, _, tokens in full]
    )
    return [
        record
        | {
            "n_tokens": len(tokens),
            "text": text,
            "short_text": "".join(token.text for token in tokens[: min(LENGTHS)]),
            "tokens": [token.id for token in tokens],
            "logprobs": [round(float(p), 2) for p in score.logprobs],
            "entropies": [round(token.entropy, 2) for token in tokens],
        }
        for (record, text, tokens), score in zip(full, scores, strict=True)
    ]


def pool(model: str, file: str, vectors: Path, out: Path, n_seq_max: int = 24) -> None:
    """Write one model's texts and their twins."""
    plan, rng = PLANS[model], random.Random(f"regimes {model}")
    prompts = prompts_of(model)
    with Engine(
        file, n_ctx=n_seq_max * 340, n_seq_max=n_seq_max, n_threads=1, n_outputs_max=64
    ) as engine:
        known = {name: ControlVector.load(vectors / f"{name}.gguf") for name in EMOTIONS}
        known |= {v.name: v for v in (random_vector(known["sad"], i) for i in range(N_RANDOM))}
        todo = list(tasks(model, plan, prompts, rng))
        twins = {
            twin_key(task): {**task, "emotion": "", "strength": 0.0, "length": max(LENGTHS)}
            for task in todo
        }
        for task in todo:
            task["twin"] = twin_key(task)
        for key, twin in twins.items():
            twin["twin"] = key
        n_layer = engine.model.n_layer
        jobs = [
            (
                task,
                Steering(
                    {known[task["emotion"]]: task["strength"]},
                    layers=layers_of(task["layers"], n_layer),
                ),
                sampler_of(task, own_seed=0 if task["strength"] else 100),
            )
            for task in todo
        ]
        jobs.sort(key=lambda job: job[0]["length"])
        with out.open("w", encoding="utf-8") as lines:
            for is_twin, group in ((True, list(twins.values())), (False, [])):
                chosen = [(t, Steering(), sampler_of(t)) for t in group] if is_twin else jobs
                for first in range(0, len(chosen), 4 * n_seq_max):
                    part = chosen[first : first + 4 * n_seq_max]
                    records = with_text(engine, [job[0] for job in part], write(engine, part))
                    for record in records:
                        lines.write(json.dumps({"is_twin": is_twin} | record) + "\n")
                    lines.flush()
                    print(f"{model}: {first + len(part)} of {len(chosen)}", flush=True)


def proposed(record: Record, twins: dict[str, Record]) -> TextRegime:
    """Return the label that today's rule proposes, which balances the draw and decides no label."""
    twin = measures_of(twin_of(record, twins))
    return classify_text(measures_of(record, known=(record["prompt"],)), twin)


def twin_of(record: Record, twins: dict[str, Record]) -> Record:
    """Return the unsteered twin, cut to the text's length in tokens."""
    twin = twins[record["twin"]]
    n = record["length"]
    text = twin["short_text"] if n == min(LENGTHS) else twin["text"]
    cut = {name: twin[name][:n] for name in ("tokens", "logprobs", "entropies")}
    return twin | cut | {"text": text}


def measures_of(record: Record, known: Sequence[str] = ()) -> TextMeasures:
    """Return the measures of a stored text."""
    return measure_text(
        record["tokens"],
        record["text"],
        record["logprobs"],
        known=known,
        entropies=record["entropies"],
    )


def draw(pools: Sequence[Path], texts: Path, blind: Path, n_short: int, n_long: int) -> None:
    """Pick texts evenly over proposed labels and models; write them, their twins and the chunks."""
    rng = random.Random("draw")
    records = [json.loads(line) for path in pools for line in path.read_text("utf-8").splitlines()]
    twins = {record["twin"]: record for record in records if record["is_twin"]}
    strata: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        if not record["is_twin"] and record["twin"] in twins:
            kind = record["length"], record["model"], proposed(record, twins)
            strata.setdefault(kind, []).append(record)
    n_kinds = len({model for _, model, _ in strata}) * len(TextRegime)
    chosen: list[Record] = []
    for (length, model, kind), group in sorted(strata.items(), key=str):
        wanted = round((n_short if length == min(LENGTHS) else n_long) / n_kinds)
        picked = rng.sample(group, min(wanted, len(group)))
        print(f"{length} {model} {kind.value}: {len(picked)} of {len(group)}")
        chosen += picked
    rng.shuffle(chosen)
    for record in chosen:
        source = f"{record['twin']}|{record['emotion']}|{record['strength']}|{record['layers']}"
        record["id"] = hashlib.sha256(f"{source}|{record['tokens']}".encode()).hexdigest()[:8]
        del record["is_twin"], record["short_text"]
    chosen = list({record["id"]: record for record in chosen}.values())
    write_lines(texts / "texts.jsonl", sorted(chosen, key=lambda record: record["id"]))
    used = {record["twin"] for record in chosen}
    write_lines(texts / "twins.jsonl", [twins[key] for key in sorted(used)])
    for number, first in enumerate(range(0, len(chosen), CHUNK)):
        part = chosen[first : first + CHUNK]
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
    pick = commands.add_parser("draw")
    pick.add_argument("pools", type=Path, nargs="+")
    pick.add_argument("--texts", type=Path, required=True)
    pick.add_argument("--blind", type=Path, required=True)
    pick.add_argument("--n-short", type=int, default=660)
    pick.add_argument("--n-long", type=int, default=240)
    given = parser.parse_args()
    if given.command == "pool":
        pool(given.model, given.file or given.model, given.vectors, given.out)
    else:
        draw(given.pools, given.texts, given.blind, given.n_short, given.n_long)


if __name__ == "__main__":
    main()
