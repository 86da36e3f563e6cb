"""Steering beside the peers that can steer: llama-cpp-python's adapter, transformers with hooks.

    python bench/peers.py [--models ...] [--parts adapter scoring transformers busy] [--output FILE]

Greedy; decoded from the end of one prompt each time; steered on all layers but the first, which no
adapter reaches.

    adapter       another strength before every token; llama-cpp-python sets its adapter each time
    scoring       log-probabilities of a text; llama-cpp-python's logits, normalized by NumPy
    transformers  one strength, beside transformers in bfloat16 with the `steering-vectors` library
                  where it is installed (pip install steering-vectors), else the forward hooks it
                  would register; and the peak memory of a process of each
    busy          one strength beside a process that never waits: `--threads live` beside
                  llama-cpp-python, unsteered, at its own default number of threads

The plain comparison with llama-cpp-python is in runtime.py, the one of extraction in extraction.py.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from harness import HEADER, VALUE_HEADER, neighbour, paired, random_rows, value_of, write
from transformers_peer import LIBRARY, Work
from transformers_peer import decoding as transformers_decoding

from pyemo import ControlVector, Engine, Model, Sequence, Steering
from pyemo.engine.sampling import GREEDY
from pyemo.files.catalog import resolve_model
from pyemo.texts.sources import neutral_texts
from pyemo.vectors.metadata import VectorMetadata

MODELS = ("smollm2-135m-instruct", "gemma-3-270m", "qwen2.5-coder-0.5b-instruct")
PROMPT = "Write a letter to a friend about the weather in the town where you grew up."
N_CTX, N_SCORED = 512, 256
STRENGTH = 0.5  # of a direction of length 1 on each layer: text stays text
N_PEAKS = 3

# A process of pyemo that does the same work once: transformers_peer.py is the other one.
PYEMO = """
import sys
from pathlib import Path
from pyemo import ControlVector, Engine, Model, SamplerParams, Steering
with Engine({path!r}, n_ctx={n_ctx}, n_outputs_max=1, n_threads={n_threads}) as engine:
    vector = ControlVector.load({vector!r})
    sequence = engine.sequence(
        {prompt!r}, steering=Steering({{vector: {strength}}}), sampler=SamplerParams(temperature=0)
    )
    for _ in range({n_tokens}):
        sequence.step()
status = Path("/proc/self/status").read_text().splitlines()
print([int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")][0])
"""


@dataclass
class Bench:
    """One model, what is decoded with it, and how often."""

    name: str
    n_pairs: int
    n_tokens: int
    n_threads: int
    output: Path

    def __post_init__(self) -> None:
        self.path = resolve_model(self.name).path
        self.model = Model.load(self.path)
        self.tokens = self.model.tokenize(PROMPT, add_special=True)
        self.conditions = (
            f"{self.name}, n_ctx {N_CTX}, f16 KV, {self.n_threads} threads, "
            f"{len(self.tokens)}+{self.n_tokens} tokens"
        )

    @cached_property
    def vector(self) -> ControlVector:
        """A random direction of length 1 on every layer but the first."""
        rows = random_rows(self.model, 0)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        layers = range(1, self.model.n_layer)
        directions = {layer: rows[layer] for layer in layers}
        metadata = VectorMetadata().with_source(self.model)
        return ControlVector(directions, name="random", metadata=metadata)

    @cached_property
    def rows(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Its directions, float32 (n_layer - 1, n_embd)."""
        return np.stack([self.vector.directions[layer] for layer in self.vector.layers])

    @contextmanager
    def sequence(self, n_threads: Any = None) -> Iterator[Sequence]:
        """A steered sequence with the prompt, in an engine of its own."""
        with (
            Engine(self.model, n_ctx=N_CTX, n_threads=n_threads or self.n_threads) as engine,
            engine.sequence(
                self.tokens, steering=Steering({self.vector: STRENGTH}), sampler=GREEDY
            ) as sequence,
        ):
            yield sequence

    def decoding(self, sequence: Sequence, *, changes: bool = False) -> Callable[[], None]:
        """A run of pyemo from the end of the prompt; ``changes`` sets a strength at each token."""
        n_prompt = sequence.n_tokens

        def run() -> None:
            sequence.rollback(sequence.n_tokens - n_prompt)
            for i in range(self.n_tokens):
                if changes:
                    sequence.steering = Steering({self.vector: STRENGTH + 0.001 * i})
                sequence.step()

        return run

    def pair(
        self, what: str, a: Callable[[], object], b: Callable[[], object], *,
        work: int = 0, conditions: str = "",
    ) -> None:  # fmt: skip
        """Measure one ratio, and write it."""
        ratio = paired(
            what, a, b, work=work or self.n_tokens, n_pairs=self.n_pairs,
            conditions=conditions or self.conditions,
        )  # fmt: skip
        write(self.output, [ratio])


def llama_cpp_python(bench: Bench, **settings: Any) -> Any:
    """Open the file with llama-cpp-python, with the kernels that pyemo uses too."""
    import llama_cpp

    return llama_cpp.Llama(str(bench.path), n_ctx=N_CTX, flash_attn=True, verbose=False, **settings)


def with_adapter(bench: Bench) -> None:
    """Another strength before every token, beside the adapter that is set each time."""
    import llama_cpp

    llama = llama_cpp_python(bench, n_threads=bench.n_threads, n_threads_batch=bench.n_threads)
    n_layers, n_embd = bench.rows.shape

    def set_strength(strength: float) -> None:
        data = np.ascontiguousarray(bench.rows * np.float32(strength))
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        # The data begins with layer 1; the range of layers includes its end.
        code = llama_cpp.llama_set_adapter_cvec(llama.ctx, pointer, data.size, n_embd, 1, n_layers)
        if code != 0:
            raise SystemExit(f"llama_set_adapter_cvec returned {code}")

    def adapter() -> None:
        stream = llama.generate(bench.tokens, temp=0.0, repeat_penalty=1.0)
        for i in range(bench.n_tokens):
            set_strength(STRENGTH + 0.001 * i)
            llama.detokenize([next(stream)])

    with bench.sequence() as sequence:
        bench.pair(
            "strength changed each token / llama-cpp-python, adapter set each token",
            bench.decoding(sequence, changes=True),
            adapter,
        )
    llama.close()


def scoring(bench: Bench) -> None:
    """Log-probabilities of one text."""
    tokens = bench.model.tokenize(" ".join(neutral_texts()), add_special=True)[:N_SCORED]
    llama = llama_cpp_python(
        bench, n_threads=bench.n_threads, n_threads_batch=bench.n_threads, logits_all=True
    )

    def logits() -> None:
        llama.reset()
        llama.eval(tokens)
        rows = llama.scores[: len(tokens) - 1]
        top = rows.max(axis=1)
        total = np.log(np.exp(rows - top[:, None]).sum(axis=1)) + top
        rows[np.arange(len(rows)), tokens[1:]] - total

    with Engine(bench.model, n_ctx=N_CTX, n_threads=bench.n_threads) as engine:
        bench.pair(
            "scored / llama-cpp-python's logits of all tokens, normalized",
            lambda: engine.score(tokens[1:], given=tokens[:1]),
            logits,
            work=len(tokens),
            conditions=f"{bench.name}, n_ctx {N_CTX}, f16 KV, {bench.n_threads} threads, "
            f"{len(tokens)} tokens",
        )
    llama.close()


def with_transformers(bench: Bench) -> None:
    """One strength beside transformers: speed, then the peak memory of a process of each."""
    rows = bench.rows * np.float32(STRENGTH)
    work = Work(bench.tokens, list(bench.vector.layers), rows, bench.n_tokens, bench.n_threads)
    with tempfile.TemporaryDirectory() as place:
        folder, saved, vector = (Path(place) / name for name in ("model", "work.npz", "v.gguf"))
        program = f"from transformers_peer import *; convert({bench.name!r}, Path({str(folder)!r}))"
        python([*["-c"], program])
        with bench.sequence() as sequence:
            bench.pair(
                f"steered / transformers bfloat16, {LIBRARY}",
                bench.decoding(sequence),
                transformers_decoding(folder, work),
            )
        work.save(saved)
        bench.vector.save(vector)
        filled = PYEMO.format(
            path=str(bench.path), n_ctx=N_CTX, n_threads=bench.n_threads, vector=str(vector),
            prompt=bench.tokens, strength=STRENGTH, n_tokens=bench.n_tokens,
        )  # fmt: skip
        peer = str(Path(__file__).parent / "transformers_peer.py")
        print(VALUE_HEADER)
        for who, arguments in (
            ("pyemo", ["-c", filled]),
            ("transformers bfloat16, safetensors", [peer, str(folder), str(saved)]),
            ("transformers bfloat16, the GGUF file", [peer, str(bench.path), str(saved)]),
        ):
            peaks = [int(python(arguments).split()[-1]) / 1e6 for _ in range(N_PEAKS)]
            name = f"peak memory, {who}"
            conditions = bench.conditions
            write(bench.output, values=[value_of(name, peaks, "MB", conditions=conditions)])


def beside_a_neighbour(bench: Bench) -> None:
    """Steered, following the load, beside llama-cpp-python as it comes, with one core taken."""
    llama = llama_cpp_python(bench)

    def generate() -> None:
        stream = llama.generate(bench.tokens, temp=0.0, repeat_penalty=1.0)
        for _ in range(bench.n_tokens):
            llama.detokenize([next(stream)])

    with bench.sequence("live") as sequence, neighbour():
        run = bench.decoding(sequence)
        for _ in range(5):  # until the neighbour has been seen
            run()
        bench.pair(
            f"steered, threads live / llama-cpp-python, its default of {llama.n_threads} threads",
            run,
            generate,
            conditions=f"{bench.name}, n_ctx {N_CTX}, f16 KV, one busy process, "
            f"{len(bench.tokens)}+{bench.n_tokens} tokens",
        )
    llama.close()


def python(arguments: list[str]) -> str:
    """Run Python beside this file; return what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    if done.returncode != 0:
        raise SystemExit(f"a process of {arguments[0]} failed:\n{done.stderr}")
    return done.stdout


PARTS: dict[str, Callable[[Bench], None]] = {
    "adapter": with_adapter,
    "scoring": scoring,
    "transformers": with_transformers,
    "busy": beside_a_neighbour,
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "peers")
    options = parser.parse_args()
    print(HEADER)
    for name in options.models:
        bench = Bench(name, options.pairs, options.tokens, options.threads, options.output)
        for part in options.parts:
            PARTS[part](bench)


if __name__ == "__main__":
    main()
