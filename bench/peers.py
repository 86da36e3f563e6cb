"""Steering beside the peers that can steer: llama-cpp-python's adapter, transformers with hooks.

    python bench/peers.py [--models ...] [--peers adapter transformers] [--output FILE]

Greedy, all layers steered. The adapter is set again before every token, as a strength that changes
has it. transformers runs in bfloat16 with the `steering-vectors` library where it is installed
(pip install steering-vectors), else with the forward hooks it would register.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import HEADER, Ratio, paired, write

from pyemo import ControlVector, Engine, Model, SamplerParams, Steering
from pyemo.catalog import resolve_model

MODELS = ("smollm2-135m-instruct", "gemma-3-270m")
PROMPT = "Write a letter to a friend about the weather in the town where you grew up."
N_CTX, N_TOKENS, N_THREADS = 512, 32, 2
PEAK = "print([s for s in open('/proc/self/status') if s.startswith('VmHWM')][0].split()[1])"


def random_vector(model: Model) -> ControlVector:
    """A random direction of length 1 on every layer but the first, which no adapter reaches."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((model.n_layer, model.n_embd)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return ControlVector({layer: rows[layer] for layer in range(1, model.n_layer)}, name="random")


def changing(engine: Engine, vector: ControlVector, tokens: list[int]) -> Callable[[], None]:
    """pyemo, another strength before every token."""
    sampler = SamplerParams(temperature=0)
    sequence = engine.sequence(tokens, steering=Steering({vector: 0.5}), sampler=sampler)
    sequence.step()
    n_prompt = sequence.n_tokens

    def run() -> None:
        sequence.rollback(sequence.n_tokens - n_prompt)
        for i in range(N_TOKENS):
            sequence.steering = Steering({vector: 0.5 + 0.001 * i})
            sequence.step()

    return run


def static(engine: Engine, vector: ControlVector, tokens: list[int]) -> Callable[[], None]:
    """pyemo, one strength."""
    sampler = SamplerParams(temperature=0)
    sequence = engine.sequence(tokens, steering=Steering({vector: 0.5}), sampler=sampler)
    sequence.step()
    n_prompt = sequence.n_tokens

    def run() -> None:
        sequence.rollback(sequence.n_tokens - n_prompt)
        for _ in range(N_TOKENS):
            sequence.step()

    return run


def adapter(path: Path, vector: ControlVector, tokens: list[int]) -> Callable[[], None]:
    """llama-cpp-python, llama_set_adapter_cvec before every token."""
    import llama_cpp

    llama = llama_cpp.Llama(
        str(path), n_ctx=N_CTX, n_threads=N_THREADS, n_threads_batch=N_THREADS, verbose=False
    )
    rows = np.stack([vector.directions[layer] for layer in vector.layers])
    n_embd = rows.shape[1]

    def set_strength(strength: float) -> None:
        data = np.ascontiguousarray(rows * np.float32(strength))
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        found = llama_cpp.llama_set_adapter_cvec(
            llama.ctx, pointer, data.size, n_embd, 1, len(rows)
        )
        assert found == 0

    def run() -> None:
        stream = llama.generate(tokens, temp=0.0, repeat_penalty=1.0)
        for i in range(N_TOKENS):
            set_strength(0.5 + 0.001 * i)
            llama.detokenize([next(stream)])

    return run


def hooked(path: Path, vector: ControlVector, tokens: list[int]) -> Callable[[], None]:
    """transformers in bfloat16, steered at the same layers."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(N_THREADS)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.bfloat16
    ).eval()
    rows = {
        layer: torch.from_numpy(vector.directions[layer].copy()).to(torch.bfloat16) * 0.5
        for layer in vector.layers
    }
    _steer(model, rows)
    ids = torch.tensor([tokens])

    def run() -> None:
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=N_TOKENS + 1,
                max_new_tokens=N_TOKENS + 1,
                pad_token_id=0,
            )

    return run


def _steer(model: Any, rows: dict[int, Any]) -> None:
    """Register what adds the rows to the blocks' outputs."""
    if importlib.util.find_spec("steering_vectors") is not None:
        from steering_vectors import SteeringVector

        SteeringVector(rows, "decoder_block").patch_activations(model)
        return

    def hook(row: Any) -> Any:
        def add(_module: Any, _inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + row, *output[1:])
            return output + row

        return add

    for layer, row in rows.items():
        model.model.layers[layer].register_forward_hook(hook(row))


def with_adapter(name: str, n_pairs: int) -> list[Ratio]:
    """Strength changed before every token, and static, beside the adapter that is set again."""
    path = resolve_model(name).path
    where = f"{name}, n_ctx {N_CTX}, {N_THREADS} threads, {N_TOKENS} tokens"
    with Engine(path, n_ctx=N_CTX, n_threads=N_THREADS) as engine:
        vector = random_vector(engine.model)
        tokens = engine.model.tokenize(PROMPT, add_special=True)
        return [
            paired(
                "strength changed each token / llama-cpp-python, adapter set each token",
                changing(engine, vector, tokens),
                adapter(path, vector, tokens),
                work=N_TOKENS,
                n_pairs=n_pairs,
                conditions=where,
            )
        ]


def with_transformers(name: str, n_pairs: int) -> list[Ratio]:
    """Steered decoding beside transformers, which reads the short prompt anew each time."""
    path = resolve_model(name).path
    has_library = importlib.util.find_spec("steering_vectors") is not None
    library = "steering-vectors" if has_library else "hooks"
    where = f"{name}, n_ctx {N_CTX}, {N_THREADS} threads, {N_TOKENS} tokens"
    with Engine(path, n_ctx=N_CTX, n_threads=N_THREADS) as engine:
        vector = random_vector(engine.model)
        tokens = engine.model.tokenize(PROMPT, add_special=True)
        return [
            paired(
                f"steered / transformers bfloat16, {library}",
                static(engine, vector, tokens),
                hooked(path, vector, tokens),
                work=N_TOKENS,
                n_pairs=n_pairs,
                conditions=where,
            )
        ]


def peak_mb(name: str, peer: str) -> float:
    """Return the peak memory of a process that does this work once, in MB."""
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import peers
from pyemo.catalog import resolve_model
path = resolve_model({name!r}).path
from pyemo import Engine, Model
if {peer!r} == "pyemo":
    with Engine(path, n_ctx=peers.N_CTX, n_outputs_max=1, n_threads=peers.N_THREADS) as engine:
        tokens = engine.model.tokenize(peers.PROMPT, add_special=True)
        peers.static(engine, peers.random_vector(engine.model), tokens)()
else:
    import numpy as np
    model = Model.load(path)
    vector, tokens = peers.random_vector(model), model.tokenize(peers.PROMPT, add_special=True)
    del model
    peers.{peer}(path, vector, tokens)()
{PEAK}
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return int(done.stdout.split()[-1]) * 1024 / 1e6


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--peers", nargs="+", default=["adapter", "transformers"])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "peers")
    options = parser.parse_args()
    print(HEADER)
    ratios: list[Ratio] = []
    memory = []
    for name in options.models:
        if "adapter" in options.peers:
            ratios += with_adapter(name, options.pairs)
        if "transformers" in options.peers:
            ratios += with_transformers(name, options.pairs)
            for peer in ("pyemo", "hooked"):
                label = {"pyemo": "pyemo", "hooked": "transformers bfloat16"}[peer]
                memory.append(f"| {name} | {label} | {peak_mb(name, peer):.0f} |")
                print(memory[-1], flush=True)
    write(options.output, ratios)
    if memory:
        table = options.output.with_suffix(".md")
        head = "\n| model | process | peak memory, MB |\n|---|---|---|\n"
        table.write_text(table.read_text() + head + "\n".join(memory) + "\n")


if __name__ == "__main__":
    main()
