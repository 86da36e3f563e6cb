"""What the guard keeps coherent, and what it costs.

    python bench/guard.py [--model MODEL] [--guards unguarded refreshed kept]
    python bench/guard.py --emotions happy calm --output A.json   # a part of it
    python bench/guard.py --read A.json B.json
    python bench/guard.py --part cost

The first writes replies at three times the upper end of each vector's window, which the guard does
not know: unsteered, unguarded, guarded with the KV cache refreshed or kept, and guarded under a
random direction. Regimes are by :func:`pyemo.measures.regimes.classify_text`. The last compares
decoding with a guard that never acts to decoding without one, in pairs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyemo import ControlVector, Engine, SamplerParams, Steering
from pyemo.emotions import EMOTIONS
from pyemo.guard import Guard
from pyemo.judges import MiniLMJudge, nearer
from pyemo.measures.proportion import Proportion
from pyemo.measures.regimes import TextRegime, classify_text
from pyemo.measures.text import MIN_TOKENS, TextMeasures, measure_text
from pyemo.study.inputs import turned
from pyemo.texts.sources import prompts

SAMPLERS = {"greedy": SamplerParams(temperature=0), "default": SamplerParams(seed=1)}


class Writer:
    """Replies with their regimes, unsteered ones remembered."""

    def __init__(self, engine: Engine, asked: Sequence[str], n_tokens: int) -> None:
        self.engine = engine
        self.asked = list(asked)
        self.n_tokens = n_tokens
        self._twins: dict[str, list[dict[str, Any]]] = {}

    def twins(self, sampler: str) -> list[dict[str, Any]]:
        """Return the unsteered reply to each prompt."""
        if sampler not in self._twins:
            self._twins[sampler] = self._measured(self._replies(sampler, Steering(), None))
        return self._twins[sampler]

    def write(self, sampler: str, mood: Steering, guard: Guard | None) -> list[dict[str, Any]]:
        """Return the reply to each prompt."""
        return self._measured(self._replies(sampler, mood, guard), self.twins(sampler))

    def _replies(self, sampler: str, mood: Steering, guard: Guard | None) -> list[Any]:
        settings: dict[str, Any] = {
            "steering": mood,
            "sampler": SAMPLERS[sampler],
            "max_tokens": self.n_tokens,
        }
        if guard is None:
            return self.engine.generate_many(self.asked, **settings)
        return guard.generate_many(self.engine, self.asked, **settings)

    def _measured(
        self, replies: list[Any], twins: list[dict[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        ids = [
            [t.id for t in (reply.tokens[:-1] if reply.stop_reason == "end" else reply.tokens)]
            for reply in replies
        ]
        long = [i for i, drawn in enumerate(ids) if len(drawn) >= MIN_TOKENS]
        scores = self.engine.score_many(
            [(ids[i], self.engine.prompt_tokens(self.asked[i])) for i in long]
        )
        measures: dict[int, TextMeasures] = {}
        for i, score in zip(long, scores, strict=True):
            known = (self.asked[i], replies[i].text if twins is None else twins[i]["text"])
            measures[i] = measure_text(ids[i], replies[i].text, score.logprobs, known=known)
        return [
            {
                "text": reply.text,
                "regime": classify_text(measures[i]) if i in measures else TextRegime.EXPLOSIVE,
                "n_back": sum(e.trouble is not None for e in getattr(reply, "events", [])),
                "factor": getattr(reply, "factor", 1.0),
            }
            for i, reply in enumerate(replies)
        ]


def strengths(engine: Engine, given: argparse.Namespace) -> dict[str, float]:
    """Return the strength of each emotion: as asked, or a multiple of its window's upper end.

    An emotion without a window takes the median of the others'.
    """
    if given.strength is not None:
        return dict.fromkeys(EMOTIONS, given.strength)
    ends = {}
    for name in EMOTIONS:
        vector = ControlVector.load(name, engine.model, use="reading")
        found = vector.calibration_for(engine.model.file_sha256)
        if found is not None:
            ends[name] = found.window[1]
    if not ends:
        raise SystemExit("no vector has a window here; say --strength")
    middle = float(np.median(list(ends.values())))
    return {name: given.times * ends.get(name, middle) for name in EMOTIONS}


def texts(engine: Engine, given: argparse.Namespace) -> dict[str, Any]:
    """Write and judge the texts of all emotions."""
    judge = MiniLMJudge()
    writer = Writer(engine, prompts("evaluation")[: given.prompts], given.tokens)
    guards = {
        "unguarded": None,
        "refreshed": Guard(mode=given.mode),
        "kept": Guard(mode=given.mode, refreshes=False),
    }
    rows: list[dict[str, Any]] = []
    at = strengths(engine, given)
    for name in given.emotions:
        vector = ControlVector.load(name, engine.model, use="reading")
        control = ControlVector(
            turned(vector.directions, list(EMOTIONS).index(name)), metadata=vector.metadata
        )
        moods = {"vector": Steering({vector: at[name]}), "random": Steering({control: at[name]})}
        for sampler in given.samplers:
            twins = writer.twins(sampler)
            for direction in given.directions:
                for label in given.guards:
                    if direction == "random" and label == "unguarded":
                        continue
                    found = writer.write(sampler, moods[direction], guards[label])
                    moved = nearer(
                        judge, [f["text"] for f in found], [t["text"] for t in twins], name
                    )
                    for prompt, f, t, m in zip(writer.asked, found, twins, moved, strict=True):
                        rows.append(
                            {
                                "emotion": name,
                                "strength": at[name],
                                "sampler": sampler,
                                "direction": direction,
                                "guard": label,
                                "prompt": prompt,
                                "text": f["text"],
                                "unsteered": t["text"],
                                "regime": f["regime"].value,
                                "coherent": f["regime"] in (TextRegime.COHERENT, t["regime"]),
                                "unsteered_coherent": t["regime"] is TextRegime.COHERENT,
                                "nearer": bool(m),
                                "n_back": f["n_back"],
                                "factor": f["factor"],
                            }
                        )
        print(name, f"{at[name]:.4g}", flush=True)
        write(given, {"settings": vars(given), "table": table(rows), "rows": rows})
    return {"settings": vars(given), "table": table(rows), "rows": rows}


def write(given: argparse.Namespace, result: dict[str, Any]) -> None:
    """Write what there is so far, if a file was named."""
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(result, indent=1, default=str) + "\n")


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["sampler"], row["direction"], row["guard"]), []).append(row)
    out = []
    for (sampler, direction, guard), group in groups.items():
        share = {
            key: str(Proportion(sum(row[key] for row in group), len(group)))
            for key in ("coherent", "nearer", "unsteered_coherent")
        }
        both = str(Proportion(sum(r["coherent"] and r["nearer"] for r in group), len(group)))
        plain = str(Proportion(sum(r["regime"] == "coherent" for r in group), len(group)))
        back = sum(row["n_back"] for row in group) / len(group)
        out.append(
            {
                "sampler": sampler,
                "direction": direction,
                "guard": guard,
                "coherent": plain,
                "as coherent as unsteered": share["coherent"],
                "unsteered coherent": share["unsteered_coherent"],
                "nearer": share["nearer"],
                "both": both,
                "steps back a text": round(back, 2),
            }
        )
    return out


def cost(engine: Engine, given: argparse.Namespace) -> dict[str, Any]:
    from harness import paired

    from pyemo.guard import watch

    # A watch that looks as it does and sees nothing.
    original = watch.trouble
    watch.trouble = lambda *seen, **how: original(*seen, **how) and None  # type: ignore[assignment]
    mood = Steering({ControlVector.load("angry", engine.model, use="reading"): 0.01})
    settings: dict[str, Any] = {
        "steering": mood,
        "sampler": SAMPLERS["greedy"],
        "max_tokens": given.tokens,
    }
    prompt = prompts("evaluation")[0]
    n = len(list(engine.generate(prompt, **settings)))

    def plain() -> None:
        list(engine.generate(prompt, **settings))

    def guarded(mode: Any) -> Callable[[], object]:
        return lambda: list(Guard(mode=mode).generate(engine, prompt, **settings))

    ratios = [
        paired(f"guard, {mode}, idle / no guard", guarded(mode), plain, work=n, n_pairs=given.pairs)
        for mode in ("fast", "exact")
    ]
    return {"settings": vars(given), "ratios": [ratio.row() for ratio in ratios]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--read", nargs="+", type=Path, help="print the table of these results")
    parser.add_argument("--part", choices=("texts", "cost"), default="texts")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--strength", type=float, help="of all, instead of a multiple")
    parser.add_argument("--times", type=float, default=3.0, help="the window's upper end")
    parser.add_argument(
        "--guards",
        nargs="+",
        default=["unguarded", "refreshed"],
        choices=("unguarded", "refreshed", "kept"),
    )
    directions = ["vector", "random"]
    parser.add_argument("--directions", nargs="+", default=directions, choices=directions)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--emotions", nargs="+", default=list(EMOTIONS), choices=list(EMOTIONS))
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--samplers", nargs="+", default=["greedy", "default"])
    parser.add_argument("--mode", default="fast")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    if given.read:
        rows = [row for path in given.read for row in json.loads(path.read_text())["rows"]]
        print(*map(json.dumps, table(rows)), sep="\n")
        return
    began = time.perf_counter()
    with Engine(given.model, n_ctx=4096, n_threads=given.threads, n_seq_max=8) as engine:
        result = {"texts": texts, "cost": cost}[given.part](engine, given)
    result["seconds"] = round(time.perf_counter() - began)
    for row in result.get("table", result.get("ratios", [])):
        print(row if isinstance(row, str) else json.dumps(row))
    write(given, result)


if __name__ == "__main__":
    main()
