"""What steering, changing moods, many sequences and streaming cost, and the peers beside it.

    python bench/runtime.py [--models smollm2-135m-instruct ...] [--parts steering ...] [--pairs 20]

Run nothing else beside it. Every ratio is taken in one run of alternating pairs; what was measured
before stays in the results until it is measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from harness import HEADER, Ratio, paired, random_rows, write
from raw_decode import RawLoop

from pyemo import ControlVector, Engine, Model, Sequence, Steering
from pyemo.engine.sampling import GREEDY
from pyemo.engine.steps import step_many
from pyemo.files.catalog import resolve_model

N_CTX, N_UBATCH = 1024, 512
PROMPT = "Write a letter to a friend about the weather in the town where you grew up."
MODELS = ("smollm2-135m-instruct", "gemma-3-270m", "qwen2.5-coder-0.5b-instruct")


def random_vector(model: Model, seed: int) -> ControlVector:
    """A random direction on every layer, 1% of a typical row long, so that text stays text."""
    rows = random_rows(model, seed)
    return ControlVector(
        {layer: row / np.linalg.norm(row) for layer, row in enumerate(rows)}, name=f"random{seed}"
    )


def stream(sequence: Sequence, n_tokens: int) -> None:
    """Stream tokens to Python, with text and log-probability, past any end of the text."""
    left = n_tokens
    while left > 0:
        left -= sum(1 for _ in sequence.generate(max_tokens=left))


def change_each_token(sequence: Sequence, n_tokens: int) -> None:
    """Another strength before every token."""
    mood = sequence.steering
    for i in range(n_tokens):
        sequence.steering = mood * (1.0 + 0.001 * i)
        sequence.step()
    sequence.steering = mood


def step_each_token(sequence: Sequence, n_tokens: int) -> None:
    """The same loop without the change."""
    for _ in range(n_tokens):
        sequence.step()


class Single:
    """One sequence at a time, each in an engine of its own, over one loaded model."""

    def __init__(
        self, name: str, n_pairs: int, n_tokens: int, n_threads: int, stack: ExitStack
    ) -> None:
        self.name, self.n_pairs, self.n_tokens = name, n_pairs, n_tokens
        self.n_threads, self.stack = n_threads, stack
        self.path = resolve_model(name).path
        self.model = Model.load(self.path)
        self.settings = f"n_ubatch {N_UBATCH}, f16 KV, {n_threads} threads"
        self.mood = Steering({random_vector(self.model, 0): 0.5})
        self.tokens = self.model.prompt_tokens(PROMPT, raw=True)

    def sequence(self, steering: Steering) -> Sequence:
        """A new sequence with the prompt, in a new engine."""
        settings = {"n_ctx": N_CTX, "n_batch": N_UBATCH, "n_threads": self.n_threads}
        engine = self.stack.enter_context(Engine(self.model, **settings))
        sequence = engine.sequence(self.tokens, sampler=GREEDY, steering=steering)
        return self.stack.enter_context(sequence)

    def raw(self, *, hook: bool = False) -> Callable[[], object]:
        """The bare C loop from the end of the same prompt."""
        loop = RawLoop(
            self.path, n_ctx=N_CTX, n_ubatch=N_UBATCH, n_threads=self.n_threads, hook=hook
        )
        self.stack.callback(loop.close)
        loop.prompt(self.tokens)
        return lambda: loop.decode(self.tokens[-1], self.n_tokens)

    def run(self, sequence: Sequence, how: Callable[[Sequence, int], None]) -> Callable[[], None]:
        """A run that starts from the end of the sequence's prompt each time."""
        n_prompt = sequence.n_tokens

        def again() -> None:
            sequence.rollback(sequence.n_tokens - n_prompt)
            how(sequence, self.n_tokens)

        return again

    def pair(self, what: str, a: Callable[[], object], b: Callable[[], object]) -> Ratio:
        """Measure one ratio."""
        n = self.n_tokens
        where = f"{self.name}, {self.settings}, n_ctx {N_CTX}, {len(self.tokens)}+{n} tokens"
        return paired(what, a, b, work=n, n_pairs=self.n_pairs, conditions=where)


def steering_cost(single: Single) -> Iterator[Ratio]:
    """All layers steered beside unsteered; a strength changed before each token beside one left."""
    plain, steered = single.sequence(Steering()), single.sequence(single.mood)
    yield single.pair(
        "all layers steered / unsteered", single.run(steered, stream), single.run(plain, stream)
    )
    changed = single.sequence(single.mood)
    yield single.pair(
        "strength changed before each token / static",
        single.run(changed, change_each_token),
        single.run(steered, step_each_token),
    )


def streaming_cost(single: Single) -> Iterator[Ratio]:
    """Streamed from Python beside the bare C loop."""
    raw = single.raw()
    yield single.pair(
        "streamed with log-probabilities / raw C loop",
        single.run(single.sequence(Steering()), stream),
        raw,
    )
    yield single.pair(
        "streamed with log-probabilities, all layers steered / raw C loop",
        single.run(single.sequence(single.mood), stream),
        raw,
    )
    yield single.pair("raw C loop stopping at every block / raw C loop", single.raw(hook=True), raw)


def beside_llama_cpp_python(single: Single) -> Iterator[Ratio]:
    """Streamed beside llama-cpp-python's two ways to stream."""
    from llama_cpp import Llama

    threads = {"n_threads": single.n_threads, "n_threads_batch": single.n_threads}
    batch = {"n_batch": N_UBATCH, "n_ubatch": N_UBATCH}
    # Flash attention as pyemo has it.
    llama = Llama(str(single.path), n_ctx=N_CTX, **batch, **threads, flash_attn=True, verbose=False)

    def completion() -> None:
        """The one its users call: text in, text out; the cache keeps the prompt."""
        for _ in llama.create_completion(
            single.tokens, max_tokens=single.n_tokens, temperature=0.0, repeat_penalty=1.0,
            stream=True, logit_bias={llama.token_eos(): -100.0},
        ):  # fmt: skip
            pass

    def generate() -> None:
        """The loop inside it: token ids and their bytes, nothing else."""
        stream = llama.generate(single.tokens, temp=0.0, repeat_penalty=1.0)
        for _ in range(single.n_tokens):
            llama.detokenize([next(stream)])

    for what, peer in (("create_completion", completion), ("generate", generate)):
        for mood, how in ((Steering(), ""), (single.mood, ", all layers steered")):
            yield single.pair(
                f"streamed with log-probabilities{how} / llama-cpp-python's {what}",
                single.run(single.sequence(mood), stream),
                peer,
            )
    llama.close()


def many_sequences(single: Single, n_tokens: int, *, kv_unified: bool) -> Iterator[Ratio]:
    """16 sequences with 16 mixes against one sequence: total tokens per second.

    Both begin ``n_tokens`` into their texts, so that the cost of a long past is seen.
    """
    n, n_measured = 16, single.n_tokens // 2
    # A sequence's own cells come in multiples of 256.
    n_ctx = max(N_CTX, n * -(-(n_tokens + 2 * n_measured) // 256) * 256)
    settings = {"n_ctx": n_ctx, "n_batch": N_UBATCH, "n_threads": single.n_threads}
    text = [single.tokens[i % len(single.tokens)] for i in range(n_tokens)]
    with (
        Engine(single.model, n_seq_max=n, kv_unified=kv_unified, **settings) as together,
        Engine(single.model, **settings) as alone,
    ):
        moods = [Steering({random_vector(single.model, seed): 0.5}) for seed in range(n)]
        many = [together.sequence(text, sampler=GREEDY, steering=mood) for mood in moods]
        one = [alone.sequence(text, sampler=GREEDY, steering=moods[0])]

        def run(sequences: list[Sequence]) -> Callable[[], None]:
            def again() -> None:
                for sequence in sequences:
                    sequence.rollback(sequence.n_tokens - n_tokens)
                for _ in range(n_measured):
                    step_many(sequences)

            return again

        yield paired(
            f"16 sequences with 16 mixes, cells {'shared' if kv_unified else 'apart'} / one, total",
            run(many),
            run(one),
            work=n * n_measured,
            work_b=n_measured,
            n_pairs=single.n_pairs,
            conditions=f"{single.name}, {single.settings}, n_ctx {n_ctx}, "
            f"{n_tokens}+{n_measured} tokens each",
        )


PARTS: dict[str, Callable[[Single], Iterator[Ratio]]] = {
    "steering": steering_cost,
    "streaming": streaming_cost,
    "peer": beside_llama_cpp_python,
    "many": lambda single: many_sequences(single, 32, kv_unified=True),
    "many-apart": lambda single: many_sequences(single, 32, kv_unified=False),
    "many-512": lambda single: many_sequences(single, 512, kv_unified=True),
    "many-512-apart": lambda single: many_sequences(single, 512, kv_unified=False),
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "runtime"
    )
    options = parser.parse_args()
    print(HEADER)
    for name in options.models:
        for part in options.parts:
            with ExitStack() as stack:
                single = Single(name, options.pairs, options.tokens, options.threads, stack)
                for ratio in PARTS[part](single):
                    write(options.output, [ratio])


if __name__ == "__main__":
    main()
