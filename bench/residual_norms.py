"""How long a residual stream is, by the length of the texts and with or without their first token.

    python bench/residual_norms.py [smollm2-135m-instruct gemma-3-270m]

Pieces of the neutral texts, at most 12 of each length, read unsteered. Strengths are shares of the
median from position 10 on (``extract.neutral``): if that column hung on the length of the texts,
the meaning of a strength would.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from pyemo import Engine, Model
from pyemo.extract.neutral import FIRST_POSITION
from pyemo.texts.sources import neutral_texts

LENGTHS = (3, 30, 300)
N_PIECES = 12

Norms = npt.NDArray[np.float64]
COLUMNS: dict[str, tuple[Callable[..., Norms], slice]] = {
    "first token": (np.mean, slice(0, 1)),
    "mean of all": (np.mean, slice(None)),
    "mean without the first": (np.mean, slice(1, None)),
    "median without the first": (np.median, slice(1, None)),
    f"median from {FIRST_POSITION} on": (np.median, slice(FIRST_POSITION, None)),
}


def pieces(model: Model, length: int) -> list[list[int]]:
    """Return pieces of the neutral texts, each ``length`` tokens long with the model's BOS."""
    bos = model.tokenize("", add_special=True)
    tokens = [token for text in neutral_texts() for token in model.tokenize(text)]
    step = max(length, (len(tokens) - length) // N_PIECES)
    begins = range(0, len(tokens) - length, step)[:N_PIECES]
    return [bos + tokens[begin : begin + length - len(bos)] for begin in begins]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", default=["smollm2-135m-instruct", "gemma-3-270m"])
    chosen = parser.parse_args(arguments)
    print(f"| model | layer | tokens | {' | '.join(COLUMNS)} |")
    print("|---" * (3 + len(COLUMNS)) + "|")
    for name in chosen.models:
        model = Model.load(name)
        layers = [model.n_layer // 4, model.n_layer // 2, model.n_layer - 1]
        with Engine(model, n_ctx=512, n_threads=1) as engine:
            for length in LENGTHS:
                texts = [
                    np.linalg.norm(engine.read(piece, layers=layers, pooling="all"), axis=2)
                    for piece in pieces(model, length)
                ]
                for i, layer in enumerate(layers):
                    cells = [cell([text[:, i] for text in texts], *how) for how in COLUMNS.values()]
                    print(
                        f"| {model.name} | {layer} | {length} | {' | '.join(cells)} |", flush=True
                    )
    return 0


def cell(texts: Sequence[Norms], statistic: Callable[..., Norms], positions: slice) -> str:
    """Return a statistic over the tokens at these positions, "-" where there are none."""
    norms = np.concatenate([text[positions] for text in texts])
    return f"{float(statistic(norms)):,.0f}" if norms.size else "-"


if __name__ == "__main__":
    sys.exit(main())
