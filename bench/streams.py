"""A clean KV cache beside a steered one: does steering that does not feed on itself last longer?

    python bench/streams.py --output bench/results/streams.json

Ways: ``kept``, a steered sequence as ever; ``plain``, where the cache holds unsteered rows only
and each token is drawn from one steered row that reads them and is dropped; ``mask``, a steered
sequence whose tokens must have at least a twentieth of the plain model's likeliest one's
probability. Each at several shares of the recommended strength, on the 8 selection prompts with
each emotion and seed, pyemo's own sampler. Effect by two judges of disjoint texts (the log-prob of
the emotion among six, and the likeness to its scenes), coherence by the rule, at 48 tokens and at
all.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyemo import ControlVector, Engine, Model, Steering
from pyemo import Sequence as EngineSequence
from pyemo.engine.batches import Continuation, score_unsteered
from pyemo.engine.sampling import STANDARD, SamplerParams
from pyemo.engine.steps import forward_many
from pyemo.extract.numpy_sampler import draw, most_likely, penalized
from pyemo.judges import load_judge
from pyemo.measures.bootstrap import bootstrap_interval
from pyemo.measures.regimes import TextRegime, classify_text
from pyemo.measures.text import MIN_TOKENS, measure_text
from pyemo.texts.sources import prompts

EMOTIONS = ("angry", "sad", "calm", "enthusiastic")
SHARES = {"none": (0.0,), "kept": (0.7, 1.0), "plain": (1.4, 2.0), "mask": (1.0, 1.4)}
LEAST = 0.05
"""Of the plain model's likeliest token's probability, that a token must have under ``mask``."""

Floats = npt.NDArray[np.float64]


class Text:
    """A text that is being written, with the sequences that its way needs."""

    def __init__(
        self,
        engine: Engine,
        way: str,
        prompt: Sequence[int],
        mood: Steering,
        sampler: SamplerParams,
    ) -> None:
        self._way, self._mood, self._sampler, self._engine = way, mood, sampler, engine
        needs_plain = way in ("plain", "mask")
        self._plain = engine.sequence(prompt) if needs_plain else None
        self._steered = None if way == "plain" else engine.sequence(prompt, steering=mood)
        self._tokens = list(prompt)
        self._drawn: list[int] = []
        self.has_ended = False

    def rows(self) -> list[EngineSequence]:
        """Return the sequences to decode for the next token."""
        if self._way == "plain":
            assert self._plain is not None
            self._steered = self._plain.fork()
            # Its last row alone is computed under the mood; what it reads is the plain one's.
            self._steered.steering = self._mood
        return [s for s in (self._plain, self._steered) if s is not None]

    def take(self) -> None:
        """Draw the next token from what was decoded."""
        assert self._steered is not None
        logits = penalized(self._steered.logits(), self._tokens, self._sampler)
        if self._way == "mask":
            assert self._plain is not None
            plain = self._plain.logits()
            logits = np.where(plain >= plain.max() + np.log(LEAST), logits, -np.inf)
        token = draw(*most_likely(logits.astype(np.float32), self._sampler), self._sampler,
                     len(self._tokens))  # fmt: skip
        if self._way == "plain":
            self._steered.close()
            self._steered = None
        self.has_ended = self._engine.model.native.is_end_of_generation(token)
        self._tokens.append(token)
        if not self.has_ended:
            self._drawn.append(token)
            for sequence in (self._plain, self._steered):
                if sequence is not None:
                    sequence.append([token], is_reply=True)

    def close(self) -> None:
        """Free its sequences."""
        for sequence in (self._plain, self._steered):
            if sequence is not None:
                sequence.close()

    def found(self) -> Continuation:
        """Return what was written."""
        piece = self._engine.model.native.piece
        return Continuation(
            tuple(self._drawn),
            tuple(piece(token) for token in self._drawn),
            (0.0,) * len(self._drawn),
            self.has_ended,
        )


def write(engine: Engine, texts: Sequence[Text], n_tokens: int) -> list[Continuation]:
    """Write all texts together, a token each at a time."""
    for _ in range(n_tokens):
        going = [text for text in texts if not text.has_ended]
        if not going:
            break
        forward_many([row for text in going for row in text.rows()])
        for text in going:
            text.take()
    return [text.found() for text in texts]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of ways, shares and lengths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--ways", nargs="+", default=list(SHARES), choices=list(SHARES))
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args(arguments)
    model = Model.load(chosen.model)
    asked = prompts("selection")
    given = [tuple(model.prompt_tokens(text)) for text in asked]
    n_rows = len(asked)
    n_ctx = 256 * -(-2 * n_rows * (max(map(len, given)) + chosen.tokens + 2) // 256)
    rows = []
    with Engine(model, n_ctx=n_ctx, n_seq_max=2 * n_rows, n_threads=1) as engine:
        for way in chosen.ways:
            for share in SHARES[way]:
                for emotion in EMOTIONS:
                    vector = ControlVector.load(emotion, model)
                    strength = share * vector.recommended(model).strength
                    mood = Steering({vector: strength}) if strength else Steering()
                    for seed in range(chosen.seeds):
                        samplers = [replace(STANDARD, seed=100 * seed + i) for i in range(n_rows)]
                        with ExitStack() as stack:
                            texts = [
                                Text(engine, way, *each)
                                for each in zip(given, [mood] * n_rows, samplers, strict=True)
                            ]
                            for text in texts:
                                stack.callback(text.close)
                            found = write(engine, texts, chosen.tokens)
                        logprobs = score_unsteered(engine, given, found)
                        for i, (text, row) in enumerate(zip(found, logprobs, strict=True)):
                            rows.append((way, share, emotion, seed, i, text, row))
                    print(way, share, emotion, file=sys.stderr, flush=True)
    table = tabulated(rows, asked, sorted({min(48, chosen.tokens), chosen.tokens}))
    print("| way | share of strength | tokens | texts | voice judge | scenes judge | coherent |")
    print("|---" * 7 + "|")
    for line in table:
        print("| " + " | ".join(map(str, line)) + " |")
    if chosen.output is not None:
        kept = [(*row[:5], row[5].text) for row in rows]
        chosen.output.write_text(json.dumps({"table": table, "texts": kept}, indent=1) + "\n")
    return 0


def tabulated(
    rows: Sequence[tuple[str, float, str, int, int, Continuation, npt.NDArray[np.float32]]],
    asked: Sequence[str],
    lengths: Sequence[int],
) -> list[list[object]]:
    """Return the table's lines."""
    judges = [load_judge("voice"), load_judge("minilm")]
    lines: list[list[object]] = []
    for way, share in dict.fromkeys(row[:2] for row in rows):
        own = [row for row in rows if row[:2] == (way, share)]
        at = [EMOTIONS.index(row[2]) for row in own]
        for n in lengths:
            cut = [row[5].first(n) for row in own]
            shown = []
            for judge in judges:
                scores = judge.scores([text.text for text in cut], EMOTIONS)
                shown.append(in_words(scores[np.arange(len(own)), at]))
            is_whole = [
                is_coherent(text, row[6], asked[row[4]]) for text, row in zip(cut, own, strict=True)
            ]
            shown.append(in_words(np.array(is_whole, np.float64)))
            lines.append([way, share, n, len(own), *shown])
    return lines


def is_coherent(text: Continuation, logprobs: npt.NDArray[np.float32], prompt: str) -> bool:
    """Whether the rule calls the text coherent."""
    if len(text.tokens) < MIN_TOKENS:
        return False
    measures = measure_text(text.tokens, text.text, logprobs[: len(text.tokens)], known=(prompt,))
    return classify_text(measures) is TextRegime.COHERENT


def in_words(values: Floats) -> str:
    """Return a mean with its 95% interval over texts."""
    mean = bootstrap_interval(values)
    return f"{mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
