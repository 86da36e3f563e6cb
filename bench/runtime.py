"""What steering, changing moods, many sequences and streaming cost, and the peers beside it.

    python bench/runtime.py [--models smollm2-135m-instruct ...] [--pairs 20] [--output
    bench/results/runtime]

Run nothing else beside it. Every ratio is taken in one run of alternating pairs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from harness import HEADER, Ratio, paired, write
from raw_decode import RawLoop

from pyemo import ControlVector, Engine, Model, SamplerParams, Sequence, Steering
from pyemo.catalog import resolve_model
from pyemo.sequence import step_many

N_CTX, N_UBATCH, N_TOKENS = 1024, 512, 64
SETTINGS = f"n_ubatch {N_UBATCH}, f16 KV, 2 threads"
GREEDY = SamplerParams(temperature=0)
PROMPT = "Write a letter to a friend about the weather in the town where you grew up."
MODELS = ("smollm2-135m-instruct", "gemma-3-270m", "qwen2.5-coder-0.5b-instruct")


def random_vector(model: Model, seed: int) -> ControlVector:
    """A random direction on every layer, as long as 1% of a typical row, so that text stays
    text.
    """
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((model.n_layer, model.n_embd)).astype(np.float32)
    return ControlVector(
        {layer: row / np.linalg.norm(row) for layer, row in enumerate(rows)}, name=f"random{seed}"
    )


def from_prompt(sequence: Sequence, run: Callable[[Sequence], None]) -> Callable[[], None]:
    """A run that starts from the end of the sequence's prompt each time."""
    n_prompt = sequence.n_tokens

    def again() -> None:
        sequence.rollback(sequence.n_tokens - n_prompt)
        run(sequence)

    return again


def stream(sequence: Sequence) -> None:
    """Stream tokens to Python, with text and log-probability, past any end of the text."""
    for _ in range(N_TOKENS):
        sequence.step()


def change_each_token(mood: Steering) -> Callable[[Sequence], None]:
    """Another strength before every token."""

    def run(sequence: Sequence) -> None:
        for i in range(N_TOKENS):
            sequence.steering = mood * (1.0 + 0.001 * i)
            sequence.step()

    return run


@contextmanager
def engine_of(path: Path, **options: int) -> Iterator[Engine]:
    """An engine with the bench's settings."""
    settings = {"n_ctx": N_CTX, "n_batch": N_UBATCH, "n_threads": 2, **options}
    with Engine(path, **settings) as engine:
        yield engine


def single_sequence(path: Path, name: str, n_pairs: int) -> list[Ratio]:
    """Steered, unsteered, changed, streamed, raw, llama-cpp-python: one sequence."""
    out = []
    with ExitStack() as stack:
        engine = stack.enter_context(engine_of(path, n_seq_max=3))
        mood = Steering({random_vector(engine.model, 0): 0.5})
        plain, static, changed = (
            stack.enter_context(
                engine.sequence(PROMPT, sampler=GREEDY, steering=steering, raw=True)
            )
            for steering in (Steering(), mood, mood)
        )
        tokens = plain.tokens
        runs = {
            "plain": from_prompt(plain, stream),
            "steered": from_prompt(static, stream),
            "changed": from_prompt(changed, change_each_token(mood)),
        }
        c = f"{name}, {SETTINGS}, n_ctx {N_CTX}, {len(tokens)}+{N_TOKENS} tokens"

        def pair(what: str, a: Callable[[], object], b: Callable[[], object]) -> None:
            out.append(paired(what, a, b, work=N_TOKENS, n_pairs=n_pairs, conditions=c))

        pair("all layers steered / unsteered", runs["steered"], runs["plain"])
        pair("strength changed before each token / static", runs["changed"], runs["steered"])
        raw = RawLoop(path, n_ctx=N_CTX, n_ubatch=N_UBATCH, n_threads=2)
        stack.callback(raw.close)
        raw.prompt(tokens)
        pair(
            "steered, streamed with log-probabilities / raw C loop",
            runs["steered"],
            lambda: raw.decode(tokens[-1], N_TOKENS),
        )
        hooked = RawLoop(path, n_ctx=N_CTX, n_ubatch=N_UBATCH, n_threads=2, hook=True)
        stack.callback(hooked.close)
        hooked.prompt(tokens)
        pair(
            "raw C loop stopping at every block / raw C loop",
            lambda: hooked.decode(tokens[-1], N_TOKENS),
            lambda: raw.decode(tokens[-1], N_TOKENS),
        )
        peer = llama_cpp_python(path, tokens)
        pair("steered, streamed / llama-cpp-python streamed, unsteered", runs["steered"], peer)
    return out


def llama_cpp_python(path: Path, tokens: list[int]) -> Callable[[], None]:
    """llama-cpp-python's own stream over the same tokens, greedy; its cache keeps the prompt."""
    from llama_cpp import Llama

    llama = Llama(
        str(path),
        n_ctx=N_CTX,
        n_batch=N_UBATCH,
        n_ubatch=N_UBATCH,
        n_threads=2,
        n_threads_batch=2,
        verbose=False,
    )

    def run() -> None:
        stream = llama.generate(tokens, temp=0.0, repeat_penalty=1.0)
        text = b""
        for _ in range(N_TOKENS):
            text += llama.detokenize([next(stream)])

    return run


def many_sequences(path: Path, name: str, n_pairs: int, n_tokens: int) -> Ratio:
    """16 sequences with 16 mixes against one sequence: total tokens per second."""
    n = 16
    n_ctx = max(N_CTX, n * (n_tokens + 64))
    with engine_of(path, n_seq_max=n + 1, n_ctx=n_ctx) as engine, ExitStack() as stack:
        vectors = [random_vector(engine.model, seed) for seed in range(n)]
        many = [
            stack.enter_context(
                engine.sequence(PROMPT, sampler=GREEDY, steering=Steering({vector: 0.5}), raw=True)
            )
            for vector in vectors
        ]
        with engine_of(path, n_ctx=n_ctx) as alone:
            one = stack.enter_context(
                alone.sequence(
                    PROMPT, sampler=GREEDY, steering=Steering({vectors[0]: 0.5}), raw=True
                )
            )
            # The batch starts as far into its texts as it is measured for, so its cost there is
            # seen.
            n_measured = 32
            for sequence in (*many, one):
                filler = [sequence.tokens[i % sequence.n_tokens] for i in range(n_tokens)]
                sequence.append(filler[: max(0, n_tokens - N_TOKENS)])
            n_prompt = one.n_tokens

            def run(sequences: list[Sequence]) -> Callable[[], None]:
                def again() -> None:
                    for sequence in sequences:
                        sequence.rollback(sequence.n_tokens - n_prompt)
                    for _ in range(n_measured):
                        step_many(sequences)

                return again

            return paired(
                "16 sequences with 16 mixes / one, total",
                run(many),
                run([one]),
                work=n * n_measured,
                work_b=n_measured,
                n_pairs=n_pairs,
                conditions=f"{name}, {SETTINGS}, n_ctx {n_ctx}, at {n_prompt} tokens each",
            )


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "runtime"
    )
    options = parser.parse_args()
    print(HEADER)
    ratios = []
    for name in options.models:
        path = resolve_model(name).path
        ratios += single_sequence(path, name, options.pairs)
        ratios.append(many_sequences(path, name, options.pairs, 64))
        ratios.append(many_sequences(path, name, max(5, options.pairs), 512))
    write(options.output, ratios)


if __name__ == "__main__":
    main()
