"""Speed and memory of an extraction.

The engine back end beside transformers at its best, on the same work.

    python bench/extraction.py [--output bench/results/extraction]

The work is that of 21 classes x 10 stories x 256 tokens, written and pooled: 210 equal texts, so
a batch of it stands for the whole. Each side is a process of its own and writes one batch of
texts to their full length (ends are not taken). They take turns: a slice is 13 tokens of every
text, and the same slice of two sides, computed one right after the other in random order, is a
pair. The first slice has the prompts in it. Afterwards the sides read given vignettes, 7 a slice,
likewise in turns."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from harness import HEADER, Ratio, median_of, save

from pyemo import Engine, SamplerParams
from pyemo.emotions import EMOTIONS
from pyemo.engine import rows
from pyemo.engine.model import Model
from pyemo.extract.backend import Backend, Passage
from pyemo.extract.engine_backend import EngineBackend
from pyemo.extract.transformers_backend import TransformersBackend
from pyemo.formats.quantize import requantize
from pyemo.texts import sources

CLASSES = (*EMOTIONS, "neutral")
MODEL = "smollm2-135m-instruct"
MAX_TOKENS = 256
N_SLICES = 20
SLICE_STEPS = -(-(MAX_TOKENS + 1) // N_SLICES)  # the prompt's step and one for each token
SLICE_TEXTS = 7
N_WHOLE = 210 * MAX_TOKENS
TRANSFORMERS = "transformers"
BATCHES = (5, 10, 21, 42)


# --- one side, in a process of its own ---


class Gate:
    """Stops a back end's loop at every ``n`` steps until the parent says how many come next."""

    def __init__(self) -> None:
        self._left = 0
        self._tokens = 0
        self._begin = 0.0

    def __call__(self, n_texts: int) -> None:
        """Before each step."""
        if self._left == 0:
            self.report()
            self._left = int(sys.stdin.readline())
            self._tokens, self._begin = 0, time.perf_counter()
        self._left -= 1
        self._tokens += n_texts

    def report(self) -> None:
        """Tell the parent what was done since it last spoke."""
        spent = time.perf_counter() - self._begin
        print(
            json.dumps({"tokens": self._tokens, "seconds": spent, "peak_mb": peak_mb()}), flush=True
        )


def peak_mb() -> float:
    """Return this process's peak resident memory."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def story_prompts(backend: Backend, n: int) -> list[list[int]]:
    """Return the prompts of the paper's stories, all emotions in turn."""
    templates = sources.story_templates()
    return [
        backend.prompt_tokens(
            templates[i // len(CLASSES) % len(templates)].format(emotion=CLASSES[i % len(CLASSES)])
        )
        for i in range(n)
    ]


def write_all(backend: Backend, n_texts: int, gate: Gate) -> None:
    """Write and pool one batch."""
    prompts = story_prompts(backend, n_texts)
    samplers = [SamplerParams(seed=i) for i in range(n_texts)]
    layers = range(backend.source.n_layer - 1)
    backend.write(prompts, samplers, MAX_TOKENS, lambda *_: None, skip=0, layers=layers)
    gate.report()


def read_all(backend: Backend) -> None:
    """Read the training vignettes in slices."""
    texts = [vignette.text for name in EMOTIONS for vignette in sources.vignettes(name, "train")]
    layers = range(backend.source.n_layer - 1)
    for first in range(0, SLICE_TEXTS * N_SLICES, SLICE_TEXTS):
        sys.stdin.readline()
        tokens = [tuple(backend.text_tokens(text)) for text in texts[first : first + SLICE_TEXTS]]
        begin = time.perf_counter()
        backend.read([Passage(ids, 0, len(ids)) for ids in tokens], layers)
        spent = time.perf_counter() - begin
        print(
            json.dumps({"tokens": sum(map(len, tokens)), "seconds": spent, "peak_mb": peak_mb()}),
            flush=True,
        )


def work_transformers(batch: int, n_threads: int) -> None:
    """The transformers side: bfloat16."""
    import torch

    torch.set_num_threads(n_threads)
    gate = Gate()
    backend = TransformersBackend.load(MODEL, device="cpu", dtype="bfloat16", batch_size=batch)
    backend._words.is_end = lambda token: False  # type: ignore[method-assign]
    handle = backend._model.register_forward_pre_hook(
        lambda module, inputs, named: gate(len(named["input_ids"])), with_kwargs=True
    )
    write_all(backend, batch, gate)
    handle.remove()
    read_all(backend)


def work_engine(path: str, batch: int, n_threads: int) -> None:
    """The engine's side, on a model file."""
    gate, step_many = Gate(), rows.step_many

    def step(sequences: Sequence[object]) -> list[SimpleNamespace]:
        gate(len(sequences))
        step_many(sequences)  # type: ignore[arg-type]
        return [SimpleNamespace(is_end=False, token=0)] * len(sequences)

    model = Model.load(path)
    n_ctx = batch * 256 * -(-(MAX_TOKENS + 64) // 256)
    with Engine(
        model, n_ctx=n_ctx, n_seq_max=batch, n_threads=n_threads, kv_unified=False
    ) as engine:
        rows.step_many = step  # type: ignore[assignment]
        write_all(EngineBackend(engine), batch, gate)
    rows.step_many = step_many
    with Engine(model, n_ctx=1024, n_seq_max=SLICE_TEXTS, n_threads=n_threads) as engine:
        read_all(EngineBackend(engine))


# --- the parent ---


class Side:
    """One side's process, and what it has done so far."""

    def __init__(self, name: str, what: str, batch: int, n_threads: int) -> None:
        self.name = name
        self.batch = batch
        command = [
            sys.executable,
            __file__,
            "--work",
            what,
            "--batch",
            str(batch),
            "--threads",
            str(n_threads),
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._hear()  # it is ready
        self.rates: list[float] = []
        self.tokens, self.seconds, self.peak_mb = 0, 0.0, 0.0

    def go(self, n_steps: int) -> None:
        """Let it do a slice."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{n_steps}\n")
        self._process.stdin.flush()
        done = self._hear()
        self.rates.append(done["tokens"] / done["seconds"])
        self.tokens += int(done["tokens"])
        self.seconds += done["seconds"]
        self.peak_mb = done["peak_mb"]

    def begin_reading(self) -> dict[str, float]:
        """Forget what was written; return it."""
        found = {
            "tokens_per_s": self.tokens / self.seconds,
            "peak_mb": self.peak_mb,
            "batch": self.batch,
        }
        self.rates, self.tokens, self.seconds = [], 0, 0.0
        return found

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _hear(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended early, with status {self._process.wait()}")
        return json.loads(line)  # type: ignore[no-any-return]


def in_turns(sides: Sequence[Side], slice_: Callable[[Side], None]) -> None:
    """Let all sides do their slices, in random order each time."""
    order = random.Random(0)
    for _ in range(N_SLICES):
        for side in order.sample(list(sides), len(sides)):
            slice_(side)


def ratio(name: str, side: Side, other: Side, conditions: str) -> Ratio:
    """Return how much faster ``side`` was than ``other``, over pairs of slices."""
    ratios = np.array(side.rates) / np.array(other.rates)
    return Ratio(
        f"{side.name} / {other.name}, {name}",
        *median_of(ratios),
        side.tokens / side.seconds,
        other.tokens / other.seconds,
        len(ratios),
        conditions,
    )


def best_batch(n_threads: int) -> tuple[int, dict[int, float]]:
    """Return the batch size at which transformers writes most tokens a second, over 26 steps."""
    rates = {}
    for batch in BATCHES:
        side = Side(TRANSFORMERS, TRANSFORMERS, batch, n_threads)
        side.go(2)  # the prompts
        side.go(2 * SLICE_STEPS)
        rates[batch] = side.rates[-1]
        side.stop()
        print(
            f"<!-- transformers, batch {batch}: {rates[batch]:.0f} tokens a second -->", flush=True
        )
    return max(rates, key=lambda batch: rates[batch]), rates


def main() -> None:
    """Measure, print and write; or be a side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", nargs="+", default=["Q4_1", "Q4_0", "Q8_0", "BF16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--batch", type=int, default=0, help="of transformers; 0 looks for the best"
    )
    parser.add_argument("--parallel", type=int, default=16, help="texts side by side in the engine")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "extraction"
    )
    options = parser.parse_args()
    if options.work == TRANSFORMERS:
        return work_transformers(options.batch, options.threads)
    if options.work:
        return work_engine(options.work, options.batch, options.threads)

    files = {
        name: MODEL if name == "Q4_1" else str(requantize(MODEL, name).path)
        for name in options.formats
    }
    batch, tried = options.batch, {}
    if batch == 0:
        batch, tried = best_batch(options.threads)
    theirs = Side("transformers bf16", TRANSFORMERS, batch, options.threads)
    ours = [
        Side(f"engine {name}", path, options.parallel, options.threads)
        for name, path in files.items()
    ]
    sides = [theirs, *ours]
    conditions = f"{options.threads} threads, {options.parallel} and {batch} at a time"
    in_turns(sides, lambda side: side.go(SLICE_STEPS))
    ratios = [ratio("writing", side, theirs, conditions) for side in ours]
    written = {side.name: side.begin_reading() for side in sides}
    # The last slice is shorter: the report at the end of writing has been heard.
    in_turns(sides, lambda side: side.go(0))
    ratios += [ratio("reading", side, theirs, f"{options.threads} threads") for side in ours]
    for side in sides:
        side.stop()
    report(options.output, ratios, written, tried)
    return None


def report(
    output: Path,
    ratios: Sequence[Ratio],
    written: dict[str, dict[str, float]],
    tried: dict[int, float],
) -> None:
    """Print the tables, and write them as Markdown and JSON."""
    peak = written["transformers bf16"]["peak_mb"]
    lines = [HEADER, *(each.row() for each in ratios), ""]
    lines += [
        "| side | at a time | tokens/s | whole work, s | peak MB | of transformers' |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in written.items():
        lines.append(
            f"| {name} | {found['batch']} | {found['tokens_per_s']:.0f} | "
            f"{N_WHOLE / found['tokens_per_s']:.0f} "
            f"| {found['peak_mb']:.0f} | {found['peak_mb'] / peak:.2f} |"
        )
    if tried:
        lines += ["", f"transformers by batch size, tokens a second: {tried}"]
    print("\n".join(lines))
    content = {"ratios": [asdict(r) for r in ratios], "written": written, "tried": tried}
    save(output, content, lines)


if __name__ == "__main__":
    main()
