"""Note in bundled vectors where their own texts lie, which the operators raise and cap need.

    python tools/own_projections.py smollm2-135m-instruct models/vectors/smollm2-135m-instruct

Reads each emotion's vignettes once with the model (as `pyemo rescale FILE --own-texts EMOTION`
does, which reads the neutral texts again for each file), and writes `pyemo.own_projections` into
every vector of the folder and of its folder `reading`; nothing else in a file changes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyemo import ControlVector, Engine
from pyemo.extract.neutral import FIRST_POSITION
from pyemo.texts.sources import vignettes

N_CTX = 512


def main(arguments: Sequence[str]) -> int:
    """Write the files anew and say the smallest distance from neutral text of each."""
    model, folder = arguments
    files = sorted([*Path(folder).glob("*.gguf"), *Path(folder).glob("reading/*.gguf")])
    means: dict[str, npt.NDArray[np.float64]] = {}
    with Engine(model, n_ctx=N_CTX, n_batch=N_CTX, n_threads=1) as engine:
        for file in files:
            vector = ControlVector.load(file, model=engine.model)
            emotion = vector.metadata.emotion
            if emotion not in means:
                means[emotion] = mean_state(engine, [scene.text for scene in vignettes(emotion)])
            own = [
                float(means[emotion][layer] @ unit(vector.directions[layer]))
                if layer in vector.directions
                else 0.0
                for layer in range(engine.model.n_layer)
            ]
            neutral = vector.metadata.neutral_projections
            with_own = vector.with_own_projections(neutral, own)
            with_own.save(file)
            norms = vector.metadata.residual_norms
            shares = [(own[i] - neutral[i]) / norms[i] for i in vector.layers]
            print(f"{file}: {min(shares):+.3f} to {max(shares):+.3f} residual norms above neutral")
    return 0


def mean_state(engine: Engine, texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return the mean hidden state of the tokens that count, float64 (n_layer, n_embd)."""
    tokens = [engine.model.tokenize(text, add_special=True) for text in texts]
    parts = [slice(FIRST_POSITION, None)] * len(texts)
    rows = engine.read_many(tokens, pooling="mean", tokens=parts)
    weights = [len(ids) - FIRST_POSITION for ids in tokens]
    return np.average(np.asarray(rows, np.float64), axis=0, weights=weights)


def unit(direction: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the direction at length 1."""
    row = direction.astype(np.float64)
    return row / np.linalg.norm(row)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
