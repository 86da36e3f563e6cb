"""Decoding beside a busy neighbour: `--threads live` against fixed numbers of threads.

    python bench/neighbour.py [--models smollm2-135m-instruct ...] [--output FILE]

The neighbour is one process that never waits. Needs two cores and nothing else on them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness import HEADER, Ratio, paired, write

from pyemo import Engine, Model, SamplerParams

MODELS = ("smollm2-135m-instruct", "gemma-3-270m", "qwen2.5-coder-0.5b-instruct")
PROMPT = "Write a letter to a friend about the weather in the town where you grew up."
N_CTX, N_TOKENS = 256, 32
SETTLE_S = 2.0
N_CHANGES = 5


@contextmanager
def neighbour() -> Iterator[None]:
    """A process that takes one core as long as the block runs."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def decoding(engine: Engine, n_tokens: int = N_TOKENS) -> Callable[[], None]:
    """A run that decodes from the same prompt each time."""
    sequence = engine.sequence(PROMPT, raw=True, sampler=SamplerParams(temperature=0))
    sequence.step()
    n_prompt = sequence.n_tokens

    def run() -> None:
        sequence.rollback(sequence.n_tokens - n_prompt)
        for _ in range(n_tokens):
            sequence.step()

    return run


def settle(run: Callable[[], None]) -> None:
    """Run until the load of now is known."""
    end = time.perf_counter() + SETTLE_S
    while time.perf_counter() < end:
        run()


def adaption_s(engine: Engine, run: Callable[[], None], n_threads: int) -> float:
    """Seconds of decoding until the engine has taken this number of threads."""
    begin = time.perf_counter()
    while engine.n_threads != n_threads:
        run()
        if time.perf_counter() - begin > 20:
            raise SystemExit(f"not adapted to {n_threads} threads after 20 s")
    return time.perf_counter() - begin


def measure(name: str, n_pairs: int) -> tuple[list[Ratio], str]:
    """Return the ratios of one model, and a row on how fast it adapts."""
    model = Model.load(name)
    with ExitStack() as stack:

        def engine(n_threads: int | str) -> Engine:
            opened = Engine(model, n_ctx=N_CTX, n_threads=n_threads)  # type: ignore[arg-type]
            return stack.enter_context(opened)

        live_engine = engine("live")
        live, one, two = decoding(live_engine), decoding(engine(1)), decoding(engine(2))
        few = decoding(live_engine, 4)
        where = f"{name}, n_ctx {N_CTX}, f16 KV, {N_TOKENS} tokens"
        settings = {"work": N_TOKENS, "n_pairs": n_pairs}
        settle(live)
        ratios = [paired("live / 2 threads", live, two, conditions=f"{where}, quiet", **settings)]
        with neighbour():
            busy = f"{where}, one busy process"
            settle(live)
            ratios.append(paired("live / 1 thread", live, one, conditions=busy, **settings))
            ratios.append(
                paired("1 thread / 2 threads", one, decoding(engine(2), 8), work=N_TOKENS, work_b=8,
                       n_pairs=5, conditions=busy)
            )  # fmt: skip
        spent: dict[int, list[float]] = {1: [], 2: []}
        adaption_s(live_engine, few, 2)
        for _ in range(N_CHANGES):
            with neighbour():
                spent[1].append(adaption_s(live_engine, few, 1))
                settle(few)
            spent[2].append(adaption_s(live_engine, few, 2))
    row = f"| {name} | {max(spent[1]):.2f} | {max(spent[2]):.2f} | {N_CHANGES} |"
    print(row, flush=True)
    return ratios, row


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "neighbour"
    )
    options = parser.parse_args()
    print(HEADER)
    ratios: list[Ratio] = []
    rows = []
    for name in options.models:
        found, row = measure(name, options.pairs)
        ratios += found
        rows.append(row)
    write(options.output, ratios)
    table = options.output.with_suffix(".md")
    head = "| model | neighbour comes: longest, s | neighbour goes: longest, s | changes |\n"
    text = table.read_text() + "\n" + head + "|---|---|---|---|\n" + "\n".join(rows) + "\n"
    table.write_text(text)


if __name__ == "__main__":
    main()
