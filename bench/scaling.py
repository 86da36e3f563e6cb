"""How the cost of a token grows: sequences, context, vectors, operators, gauges, layers, model.

    python bench/scaling.py [--models smollm2-135m-instruct ...] [--parts ...] [--output FILE]

Each row is paired with its base in one run; the figure shows all that was measured, in parts or at
once. Needs a quiet machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from harness import HEADER, Ratio, beside, paired, random_rows, stored, write

from pyemo import Condition, ControlVector, Engine, Gauge, Model, Sequence, Steering
from pyemo.engine.sampling import GREEDY
from pyemo.engine.steps import step_many
from pyemo.vectors.metadata import Ellipsoid

MODELS = ("smollm2-135m-instruct", "gemma-3-270m", "qwen2.5-coder-0.5b-instruct")
N_PROMPT = 32
N_SEQUENCES = (2, 4, 8, 16, 32)
N_CONTEXT = (128, 512, 1024, 2048)
N_VECTORS = (2, 5, 10, 20)
N_GAUGES = (1, 5, 20)
N_COMPONENTS = 32


def vector_of(model: Model, seed: int) -> ControlVector:
    """A random direction on every layer, with what gauges need to know."""
    rows = random_rows(model, seed)
    raw = ControlVector(dict(enumerate(rows)), name=f"random{seed}")
    n = model.n_layer
    return raw.rescaled([1.0] * n, [0.0] * n, source=model)


@dataclass
class Bench:
    """One model, and how often to measure."""

    name: str
    n_pairs: int
    n_tokens: int
    n_threads: int

    def __post_init__(self) -> None:
        self.model = Model.load(self.name)
        self.vectors = [vector_of(self.model, seed) for seed in range(32)]
        ids = self.model.tokenize("The museum opens at ten on weekdays. " * 20, add_special=True)
        self.text = ids[:N_PROMPT]

    def engine(self, n: int = 1, n_past: int = N_PROMPT) -> Engine:
        """An engine for ``n`` sequences that begin ``n_past`` tokens in."""
        n_ctx = n * (n_past + self.n_tokens + 8)
        return Engine(self.model, n_ctx=n_ctx, n_seq_max=n, n_threads=self.n_threads)

    def pair(
        self,
        what: str,
        a: Callable[[], object],
        b: Callable[[], object],
        n_a: int = 1,
        n_b: int = 1,
    ) -> Ratio:
        """Decode with ``n_a`` and ``n_b`` sequences in turns."""
        return paired(
            what, a, b, work=n_a * self.n_tokens, work_b=n_b * self.n_tokens,
            n_pairs=self.n_pairs,
            conditions=f"{self.name}, f16 KV, {self.n_threads} threads, "
            f"{N_PROMPT}+{self.n_tokens} tokens",
        )  # fmt: skip

    def run_of(self, sequences: list[Sequence]) -> Callable[[], None]:
        """Decode all of them from where they are now, each time."""
        step_many(sequences)
        begins = [sequence.n_tokens for sequence in sequences]

        def run() -> None:
            for sequence, begin in zip(sequences, begins, strict=True):
                sequence.rollback(sequence.n_tokens - begin)
            for _ in range(self.n_tokens):
                step_many(sequences)

        return run


def by_sequences(bench: Bench) -> Iterator[Ratio]:
    """n sequences, one mood each, against one."""
    with ExitStack() as stack:
        one = stack.enter_context(bench.engine()).sequence(bench.text, sampler=GREEDY)
        base = bench.run_of([one])
        for n in N_SEQUENCES:
            with bench.engine(n) as engine:
                moods = [Steering({vector: 0.02}) for vector in bench.vectors[:n]]
                many = [engine.sequence(bench.text, steering=m, sampler=GREEDY) for m in moods]
                yield bench.pair(f"{n} sequences / one, total", bench.run_of(many), base, n)


def by_moods(bench: Bench) -> Iterator[Ratio]:
    """32 sequences with 32 moods against the same batch with one mood."""
    n = 32
    with bench.engine(n) as apart, bench.engine(n) as alike:
        moods = [Steering({vector: 0.02}) for vector in bench.vectors[:n]]
        own = [apart.sequence(bench.text, steering=m, sampler=GREEDY) for m in moods]
        same = [alike.sequence(bench.text, steering=moods[0], sampler=GREEDY) for _ in moods]
        yield bench.pair(
            "32 sequences, 32 moods / one mood", bench.run_of(own), bench.run_of(same), n, n
        )


def by_context(bench: Bench) -> Iterator[Ratio]:
    """A token far into a text against one at its beginning."""
    with ExitStack() as stack:
        short = stack.enter_context(bench.engine()).sequence(bench.text, sampler=GREEDY)
        base = bench.run_of([short])
        for n in N_CONTEXT:
            if n + bench.n_tokens > bench.model.n_ctx_train:
                continue
            with bench.engine(1, n) as engine:
                text = [bench.text[i % N_PROMPT] for i in range(n)]
                yield bench.pair(
                    f"at {n} tokens / at {N_PROMPT}",
                    bench.run_of([engine.sequence(text, sampler=GREEDY)]),
                    base,
                )


def one_sequence(
    bench: Bench, cases: list[tuple[str, Steering, list[Gauge]]], base: Steering
) -> Iterator[Ratio]:
    """Each case against ``base``, in two engines of one sequence."""
    with bench.engine() as engine, bench.engine() as plain:
        reference = bench.run_of([plain.sequence(bench.text, steering=base, sampler=GREEDY)])
        for what, mood, gauges in cases:
            with engine.sequence(
                bench.text, steering=mood, sampler=GREEDY, gauges=gauges
            ) as sequence:
                yield bench.pair(what, bench.run_of([sequence]), reference)


def by_vectors(bench: Bench) -> Iterator[Ratio]:
    """Mixes of n vectors, and the operators, against one added vector."""
    one = Steering({bench.vectors[0]: 0.02})
    cases: list[tuple[str, Steering, list[Gauge]]] = []
    for n in N_VECTORS:
        mix = Steering({vector: 0.02 / n for vector in bench.vectors[:n]})
        cases.append((f"{n} vectors / one", mix, []))
    for operator, strength in (("add_keep_norm", 0.02), ("clamp", 0.02), ("project_out", 1.0)):
        mood = Steering({bench.vectors[0]: strength}, operator=operator)  # type: ignore[arg-type]
        cases.append((f"{operator} / add", mood, []))
    return one_sequence(bench, cases, one)


def by_layers(bench: Bench) -> Iterator[Ratio]:
    """n steered layers against none."""
    n_layer = bench.model.n_layer
    cases = [
        (
            f"{_count(n, 'layer')} steered / none",
            Steering({bench.vectors[0]: 0.02}, layers=range(n)),
            [],
        )
        for n in (1, n_layer // 2, n_layer)
    ]
    return one_sequence(bench, cases, Steering())  # type: ignore[arg-type]


def by_gauges(bench: Bench) -> Iterator[Ratio]:
    """n gauges, and 20 with a project_out on all layers, against nothing read or steered."""
    gauges = [Gauge(v, bench.model.n_layer // 2, f"g{i}") for i, v in enumerate(bench.vectors[:20])]
    cases = [(f"{_count(n, 'gauge')} / none", Steering(), gauges[:n]) for n in N_GAUGES]
    out = Steering({bench.vectors[0]: 1.0}, operator="project_out")
    cases.append(("20 gauges and project_out on all layers / none", out, gauges))
    return one_sequence(bench, cases, Steering())


def by_methods(bench: Bench) -> Iterator[Ratio]:
    """Every way to steer a row, on all layers, against none."""
    n, first = bench.model.n_layer, range(bench.model.n_layer)
    plain = bench.vectors[0]
    rows = [np.random.default_rng(il).normal(size=(N_COMPONENTS, plain.n_embd)) for il in first]
    real = {il: Ellipsoid(rows[il], np.zeros(N_COMPONENTS), 1e9) for il in first}
    vector = plain.with_own_projections([0.0] * n, [1.0] * n, real)
    reads = Condition(bench.vectors[1], -1e6, layer=0)
    soft = Condition(bench.vectors[1], 0.0, layer=0, softness=1e6)
    cases: list[tuple[str, Steering, list[Gauge]]] = [
        ("add / none", Steering({vector: 0.02}), []),
        ("raise / none", Steering({vector: 0.02}, operator="raise"), []),
        ("cap / none", Steering({vector: 0.02}, operator="cap"), []),
        ("clamp / none", Steering({vector: 0.02}, operator="clamp"), []),
        (
            f"add_within, {N_COMPONENTS} components / none",
            Steering({vector: 0.02}, operator="add_within"),
            [],
        ),
        ("add under an open condition / none", Steering({vector: 0.02}, when=reads), []),
        ("add under a closed condition / none", Steering({vector: 0.02}, when=~reads), []),
        (
            "raise under a soft condition / none",
            Steering({vector: 0.02}, operator="raise", when=soft),
            [],
        ),
    ]
    return one_sequence(bench, cases, Steering())


def by_model(bench: Bench) -> Iterator[Ratio]:
    """This model against the smallest."""
    if bench.name == MODELS[0]:
        return
    small = Bench(MODELS[0], bench.n_pairs, bench.n_tokens, bench.n_threads)
    with bench.engine() as engine, small.engine() as base:
        yield bench.pair(
            f"{_size(bench.model)} / {_size(small.model)}, {small.name}",
            bench.run_of([engine.sequence(bench.text, sampler=GREEDY)]),
            small.run_of([base.sequence(small.text, sampler=GREEDY)]),
        )


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _size(model: Model) -> str:
    return f"{model.path.stat().st_size / 1e6:.0f} MB"


PARTS: dict[str, Callable[[Bench], Iterator[Ratio]]] = {
    "sequences": by_sequences,
    "moods": by_moods,
    "context": by_context,
    "vectors": by_vectors,
    "layers": by_layers,
    "gauges": by_gauges,
    "methods": by_methods,
    "model": by_model,
}


def figure(ratios: list[Ratio], path: Path) -> None:
    """Draw speed against what grows, a panel for each model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator

    names = list(dict.fromkeys(ratio.conditions.split(",")[0] for ratio in ratios))
    fig, axes = plt.subplots(1, len(names), figsize=(7 * len(names), 6), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        own = [r for r in ratios if r.conditions.startswith(f"{name},")]
        y = np.arange(len(own))[::-1]
        middle = np.array([r.median for r in own])
        spread = np.abs(np.array([[r.low, r.high] for r in own]).T - middle)
        axis.errorbar(middle, y, xerr=spread, fmt="o", color="black", capsize=2)
        axis.axvline(1.0, color="gray", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_locator(FixedLocator([0.125, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8]))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_yticks(y, [r.name for r in own], fontsize=8)
        axis.set_xlabel("speed over its base, tokens/s (95% interval)")
        axis.set_title(name)
    fig.tight_layout()
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main() -> None:
    """Measure, print, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "scaling"
    )
    options = parser.parse_args()
    print(HEADER)
    for name in options.models:
        bench = Bench(name, options.pairs, options.tokens, options.threads)
        for part in options.parts:
            for ratio in PARTS[part](bench):
                write(options.output, [ratio])
    ratios, _ = stored(options.output)
    if ratios:
        figure(ratios, beside(options.output, ".png"))


if __name__ == "__main__":
    main()
