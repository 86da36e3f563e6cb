"""What the guard keeps coherent, and what it costs.

    python bench/guard.py --strength 0.06 --tokens 256
    python bench/guard.py --part cost

The first writes replies at a strength far too high (the file's windows are not looked at):
unsteered, unguarded, guarded with the KV cache refreshed or kept, and guarded under a random
direction. Shares are of texts as coherent as their unsteered twins
(:func:`pyemo.regimes.classify_text`). The second compares decoding with a guard that never acts to
decoding without one, in pairs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyemo import ControlVector, Engine, SamplerParams, Steering
from pyemo.emotions import EMOTIONS
from pyemo.extract.sources import prompts
from pyemo.guard import Guard
from pyemo.judges import MiniLMJudge, nearer
from pyemo.proportion import Proportion
from pyemo.regimes import TextRegime, classify_text
from pyemo.study.material import turned
from pyemo.text_measures import MIN_TOKENS, TextMeasures, measure_text

SAMPLERS = {"greedy": SamplerParams(temperature=0), "default": SamplerParams(seed=1)}


class Writer:
    """Replies with their regimes, unsteered ones remembered."""

    def __init__(self, engine: Engine, n_tokens: int) -> None:
        self.engine = engine
        self.n_tokens = n_tokens
        self._twins: dict[tuple[str, str], dict[str, Any]] = {}

    def twin(self, prompt: str, sampler: str) -> dict[str, Any]:
        if (prompt, sampler) not in self._twins:
            self._twins[prompt, sampler] = self._measured(
                self.engine.generate(prompt, sampler=SAMPLERS[sampler], max_tokens=self.n_tokens),
                prompt,
                "",
                None,
            )
        return self._twins[prompt, sampler]

    def write(
        self, prompt: str, sampler: str, mood: Steering, guard: Guard | None
    ) -> dict[str, Any]:
        twin = self.twin(prompt, sampler)
        settings: dict[str, Any] = {
            "steering": mood,
            "sampler": SAMPLERS[sampler],
            "max_tokens": self.n_tokens,
        }
        reply: Any = (
            self.engine.generate(prompt, **settings)
            if guard is None
            else guard.generate(self.engine, prompt, **settings)
        )
        return self._measured(reply, prompt, twin["text"], twin["measures"])

    def _measured(
        self, reply: Any, prompt: str, known: str, twin: TextMeasures | None
    ) -> dict[str, Any]:
        list(reply)
        drawn = reply.tokens[:-1] if reply.stop_reason == "end" else reply.tokens
        ids = [token.id for token in drawn]
        measures = None
        if len(ids) >= MIN_TOKENS:
            score = self.engine.score(ids, given=self.engine.prompt_tokens(prompt))
            measures = measure_text(ids, reply.text, score.logprobs, known=(prompt, known))
        regime = TextRegime.EXPLOSIVE if measures is None else classify_text(measures)
        events = getattr(reply, "events", [])
        return {
            "text": reply.text,
            "measures": measures,
            "regime": regime,
            "n_back": sum(event.trouble is not None for event in events),
            "factor": getattr(reply, "factor", 1.0),
        }


def texts(engine: Engine, given: argparse.Namespace) -> dict[str, Any]:
    judge = MiniLMJudge()
    writer = Writer(engine, given.tokens)
    asked = prompts("evaluation")[: given.prompts]
    chosen = list(EMOTIONS)[:: max(1, len(EMOTIONS) // given.emotions)][: given.emotions]
    guards = {
        "unguarded": None,
        "guarded, refreshed": Guard(mode=given.mode),
        "guarded, kept": Guard(mode=given.mode, refreshes=False),
    }
    rows: list[dict[str, Any]] = []
    for k, name in enumerate(chosen):
        vector = ControlVector.load(name, engine.model)
        moods = {"vector": Steering({vector: given.strength})}
        control = ControlVector(turned(vector.directions, k), metadata=vector.metadata)
        moods["random"] = Steering({control: given.strength})
        for sampler in given.samplers:
            for direction, mood in moods.items():
                for label, guard in guards.items():
                    if direction == "random" and label != "guarded, refreshed":
                        continue
                    found = [writer.write(p, sampler, mood, guard) for p in asked]
                    twins = [writer.twin(p, sampler) for p in asked]
                    moved = nearer(
                        judge, [f["text"] for f in found], [t["text"] for t in twins], name
                    )
                    for prompt, f, t, m in zip(asked, found, twins, moved, strict=True):
                        rows.append(
                            {
                                "emotion": name,
                                "sampler": sampler,
                                "direction": direction,
                                "guard": label,
                                "prompt": prompt,
                                "text": f["text"],
                                "regime": f["regime"].value,
                                "coherent": f["regime"] in (TextRegime.COHERENT, t["regime"]),
                                "unsteered_coherent": t["regime"] is TextRegime.COHERENT,
                                "nearer": bool(m),
                                "n_back": f["n_back"],
                                "factor": f["factor"],
                            }
                        )
        print(name, flush=True)
    return {"settings": vars(given), "table": table(rows), "rows": rows}


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

    import pyemo.guard as module

    # A detector that looks as it does and never acts.
    original = module.repeats
    module.repeats = lambda tokens: original(tokens) and False  # type: ignore[assignment]
    module.MAX_ENTROPY = module.MAX_SURPRISE = 1e9
    mood = Steering({ControlVector.load("angry", engine.model): 0.01})
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
    parser.add_argument("--part", choices=("texts", "cost"), default="texts")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--strength", type=float, default=0.06)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--emotions", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--samplers", nargs="+", default=["greedy", "default"])
    parser.add_argument("--mode", default="fast")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    began = time.perf_counter()
    with Engine(given.model, n_ctx=1024, n_threads=given.threads, n_seq_max=2) as engine:
        result = {"texts": texts, "cost": cost}[given.part](engine, given)
    result["seconds"] = round(time.perf_counter() - began)
    for row in result.get("table", result.get("ratios", [])):
        print(row if isinstance(row, str) else json.dumps(row))
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(result, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
