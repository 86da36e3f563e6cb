"""Paired measurements on a noisy machine: the two sides take turns, and only their ratio counts."""

from __future__ import annotations

import json
import os
import platform
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """How much faster ``a`` is than ``b``: median over pairs of (time of b / time of a), for equal
    work.

    Attributes:
        low, high: bootstrap interval of the median, 95%, over pairs.
        a_per_s, b_per_s: median work per second of each side; these drift with the machine.
    """

    name: str
    median: float
    low: float
    high: float
    a_per_s: float
    b_per_s: float
    n_pairs: int
    conditions: str

    def row(self) -> str:
        """Return the line of a Markdown table."""
        return (
            f"| {self.name} | {self.conditions} | {self.a_per_s:.1f} | {self.b_per_s:.1f} "
            f"| **{self.median:.3f}** | {self.low:.3f} to {self.high:.3f} | {self.n_pairs} |"
        )


HEADER = (
    "| a / b | conditions | a, tokens/s | b, tokens/s | ratio | 95% interval | pairs |\n"
    "|---|---|---|---|---|---|---|"
)


def paired(
    name: str,
    a: Callable[[], object],
    b: Callable[[], object],
    *,
    work: float,
    work_b: float | None = None,
    n_pairs: int = 20,
    conditions: str = "",
) -> Ratio:
    """Run ``a`` and ``b`` in turns, in random order within each pair, after one warm-up each.

    Args:
        work: tokens that one call of ``a`` produces; ``work_b`` those of ``b``, if different.
    """
    work_b = work if work_b is None else work_b
    order = random.Random(0)
    a()
    b()
    times: list[tuple[float, float]] = []
    for _ in range(n_pairs):
        spent = {}
        sides = [("a", a), ("b", b)]
        order.shuffle(sides)
        for side, run in sides:
            begin = time.perf_counter()
            run()
            spent[side] = time.perf_counter() - begin
        times.append((spent["a"], spent["b"]))
    seconds = np.array(times)
    ratios = (work / seconds[:, 0]) / (work_b / seconds[:, 1])
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (10_000, n_pairs)), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    ratio = Ratio(
        name,
        float(np.median(ratios)),
        float(low),
        float(high),
        float(np.median(work / seconds[:, 0])),
        float(np.median(work_b / seconds[:, 1])),
        n_pairs,
        conditions,
    )
    print(ratio.row(), flush=True)
    return ratio


def machine() -> dict[str, str]:
    """Return what the numbers were measured on."""
    import llama_cpp

    import pyemo

    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        "system": platform.system(),
        "python": platform.python_version(),
        "pyemo": pyemo.__version__,
        "llama-cpp-python": llama_cpp.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def write(path: Path, ratios: list[Ratio]) -> None:
    """Write the results as JSON and Markdown beside each other.

    A ratio takes the place of an older one of the same name and conditions; the others stay, so
    that a long benchmark can be run in parts.
    """
    facts = machine()
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = path.with_suffix(".json")
    known = json.loads(stored.read_text())["ratios"] if stored.exists() else []
    kept = {(old["name"], old["conditions"]): Ratio(**old) for old in known}
    kept |= {(ratio.name, ratio.conditions): ratio for ratio in ratios}
    content = {"machine": facts, "ratios": [asdict(ratio) for ratio in kept.values()]}
    stored.write_text(json.dumps(content, indent=1) + "\n")
    lines = [f"{key}: {value}  " for key, value in facts.items()]
    table = [HEADER, *(ratio.row() for ratio in kept.values())]
    path.with_suffix(".md").write_text("\n".join([*lines, "", *table]) + "\n")
