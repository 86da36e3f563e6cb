"""Decoding beside a busy neighbour: `--threads auto` and `live` against fixed numbers of threads.

    python bench/neighbour.py [--models smollm2-135m-instruct ...] [--output FILE]

The neighbour is one process that never waits. Needs two cores and nothing else on them, since what
else runs is followed too. "auto" follows at the beginning of a reply, "live" within it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from harness import HEADER, VALUE_HEADER, Ratio, neighbour, paired, value_of, write

from pyemo import Engine, Model, SamplerParams

MODELS = ("smollm2-135m-instruct", "gemma-3-270m", "qwen2.5-coder-0.5b-instruct")
PROMPT = "Write a letter to a friend about the weather in the town where you grew up."
N_CTX = 256
SETTLE_S = 2.0
LONGEST_S = 10.0
"""When waiting for the number of threads to follow ends; a row that says this much means never."""


class Bench:
    """One model in an engine for each way to choose the number of threads."""

    def __init__(self, name: str, n_pairs: int, n_tokens: int, stack: ExitStack) -> None:
        self.name, self.n_pairs, self.n_tokens = name, n_pairs, n_tokens
        model = Model.load(name)
        self.engines = {
            threads: stack.enter_context(Engine(model, n_ctx=N_CTX, n_threads=threads))
            for threads in ("auto", "live", 1, 2)
        }
        self.sequences = {
            threads: engine.sequence(PROMPT, raw=True, sampler=SamplerParams(temperature=0))
            for threads, engine in self.engines.items()
        }
        self.n_prompt = self.sequences[1].n_tokens

    def decoding(self, threads: str | int, n_tokens: int) -> Callable[[], None]:
        """A run that decodes one reply from the same prompt each time."""
        engine, sequence = self.engines[threads], self.sequences[threads]

        def run() -> None:
            sequence.rollback(sequence.n_tokens - self.n_prompt)
            engine.follow_load()  # as a reply does when it begins; does nothing for a fixed number
            for _ in range(n_tokens):
                sequence.step()

        return run

    def pair(self, a: str | int, b: int, where: str, *, is_slow: bool = False) -> Ratio:
        """Measure one choice against another; fewer, shorter runs where ``b`` is slow."""
        n, n_b = self.n_tokens, min(8, self.n_tokens) if is_slow else self.n_tokens
        return paired(
            f"{_label(a)} / {_label(b)}", self.decoding(a, n), self.decoding(b, n_b),
            work=n, work_b=n_b, n_pairs=min(5, self.n_pairs) if is_slow else self.n_pairs,
            conditions=f"{self.name}, n_ctx {N_CTX}, f16 KV, {n} tokens, {where}",
        )  # fmt: skip

    def settle(self, threads: str) -> None:
        """Decode until the present load is known."""
        run = self.decoding(threads, 4)
        end = time.perf_counter() + SETTLE_S
        while time.perf_counter() < end:
            run()

    def followed_s(self, n_threads: int) -> float:
        """Return the seconds of decoding until "live" has taken this number of threads."""
        engine, sequence = self.engines["live"], self.sequences["live"]
        begin = time.perf_counter()
        while engine.n_threads != n_threads and time.perf_counter() - begin < LONGEST_S:
            if sequence.n_tokens > N_CTX - 2:
                sequence.rollback(sequence.n_tokens - self.n_prompt)
            sequence.step()
        return time.perf_counter() - begin


def _label(threads: str | int) -> str:
    return {1: "1 thread", 2: "2 threads"}.get(threads, str(threads))  # type: ignore[call-overload]


def speed(bench: Bench, output: Path) -> None:
    """Each choice against both numbers, without and with the neighbour."""
    for choice in ("auto", "live"):
        bench.settle(choice)
        for fixed in (1, 2):
            write(output, [bench.pair(choice, fixed, "quiet")])
    with neighbour():
        for choice in ("auto", "live"):
            bench.settle(choice)
            write(output, [bench.pair(choice, 1, "one busy process")])
            write(output, [bench.pair(choice, 2, "one busy process", is_slow=True)])


def following(bench: Bench, output: Path, n_changes: int) -> None:
    """How long "live" takes to follow when the neighbour comes, and when it goes."""
    comes, goes = [], []
    bench.followed_s(2)
    for _ in range(n_changes):
        with neighbour():
            comes.append(bench.followed_s(1))
            bench.settle("live")
        goes.append(bench.followed_s(2))
        bench.settle("live")
    print(VALUE_HEADER)
    for what, spent in (("comes", comes), ("goes", goes)):
        name = f"live follows when the neighbour {what}"
        write(output, values=[value_of(name, spent, "s", conditions=bench.name)])


PARTS = ("speed", "following")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--changes", type=int, default=5)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "neighbour"
    )
    options = parser.parse_args()
    for name in options.models:
        with ExitStack() as stack:
            bench = Bench(name, options.pairs, options.tokens, stack)
            if "speed" in options.parts:
                print(HEADER)
                speed(bench, options.output)
            if "following" in options.parts:
                following(bench, options.output, options.changes)


if __name__ == "__main__":
    main()
