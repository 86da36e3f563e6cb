"""Paired measurements on a noisy machine: the two sides take turns, and only their ratio counts."""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pyemo import Model


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


@dataclass(frozen=True)
class Value:
    """One thing measured by itself, such as a peak of memory: median, least and most of ``n``."""

    name: str
    median: float
    low: float
    high: float
    unit: str
    n: int
    conditions: str

    def row(self) -> str:
        """Return the line of a Markdown table."""
        middle, low, high = (
            f"{number:.3g}" if number < 100 else f"{number:.0f}"
            for number in (self.median, self.low, self.high)
        )
        return (
            f"| {self.name} | {self.conditions} | **{middle}** {self.unit} "
            f"| {low} to {high} | {self.n} |"
        )


HEADER = (
    "| a / b | conditions | a, tokens/s | b, tokens/s | ratio | 95% interval | pairs |\n"
    "|---|---|---|---|---|---|---|"
)
VALUE_HEADER = "| what | conditions | median | least to most | runs |\n|---|---|---|---|---|"


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
    ratio = Ratio(
        name,
        *median_of(ratios),
        float(np.median(work / seconds[:, 0])),
        float(np.median(work_b / seconds[:, 1])),
        n_pairs,
        conditions,
    )
    print(ratio.row(), flush=True)
    return ratio


def median_of(ratios: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the median over pairs, and the ends of its 95% bootstrap interval."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (10_000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def random_rows(model: Model, seed: int) -> npt.NDArray[np.float32]:
    """Return a random direction for each layer, float32 (n_layer, n_embd), not of length 1."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((model.n_layer, model.n_embd)).astype(np.float32)


# It ends with its parent, however that ends.
_BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def neighbour() -> Iterator[None]:
    """A process that takes one core as long as the block runs."""
    with subprocess.Popen([sys.executable, "-c", _BUSY]) as process:
        try:
            yield
        finally:
            process.kill()


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


def value_of(
    name: str, measured: Sequence[float], unit: str, *, conditions: str, decimals: int = 3
) -> Value:
    """Return what was measured several times, and print it."""
    middle, low, high = np.median(measured), min(measured), max(measured)
    rounded = (round(float(number), decimals) for number in (middle, low, high))
    value = Value(name, *rounded, unit, len(measured), conditions)
    print(value.row(), flush=True)
    return value


def beside(path: Path, suffix: str) -> Path:
    """Return ``path`` with the suffix after its whole name, which may have dots of its own."""
    name = path.name
    for known in (".json", ".md", ".png"):
        name = name.removesuffix(known)
    return path.with_name(name + suffix)


def stored(path: Path) -> tuple[list[Ratio], list[Value]]:
    """Return the results that are beside ``path``."""
    source = beside(path, ".json")
    known = json.loads(source.read_text()) if source.exists() else {}
    return (
        [Ratio(**old) for old in known.get("ratios", [])],
        [Value(**old) for old in known.get("values", [])],
    )


def write(path: Path, ratios: Sequence[Ratio] = (), values: Sequence[Value] = ()) -> None:
    """Write the results as JSON and Markdown beside each other.

    A result takes the place of an older one of the same name and conditions; the others stay, so
    that a long benchmark can be run in parts.
    """
    old_ratios, old_values = stored(path)
    all_ratios = {(each.name, each.conditions): each for each in [*old_ratios, *ratios]}
    all_values = {(each.name, each.conditions): each for each in [*old_values, *values]}
    content: dict[str, object] = {}
    lines: list[str] = []
    if all_ratios:
        content["ratios"] = [asdict(each) for each in all_ratios.values()]
        lines += [HEADER, *(each.row() for each in all_ratios.values())]
    if all_values:
        content["values"] = [asdict(each) for each in all_values.values()]
        gap = [""] if lines else []
        lines += [*gap, VALUE_HEADER, *(each.row() for each in all_values.values())]
    save(path, content, lines)


def save(path: Path, content: Mapping[str, object], lines: Sequence[str]) -> None:
    """Write ``content`` as JSON and ``lines`` as Markdown beside it, each after the machine."""
    facts = machine()
    path.parent.mkdir(parents=True, exist_ok=True)
    everything = {"machine": facts, **content}
    beside(path, ".json").write_text(json.dumps(everything, indent=1) + "\n")
    head = [*(f"{key}: {value}  " for key, value in facts.items()), ""]
    beside(path, ".md").write_text("\n".join([*head, *lines]) + "\n")
