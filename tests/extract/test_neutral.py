"""The ruler of strengths: residual norms that do not hang on how long the texts were."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pyemo import Engine, Model
from pyemo.extract.neutral import neutral_statistics
from pyemo.texts.sources import neutral_texts


def test_residual_norms_do_not_hang_on_the_length_of_the_texts(smollm2: Path) -> None:
    model = Model.load(smollm2)
    texts = neutral_texts()[:3]
    short = [model.detokenize(model.tokenize(text)[:30]).decode() for text in texts]
    with Engine(model, n_ctx=512, n_threads=1) as engine:
        of_short = neutral_statistics(engine, short)
        of_long = neutral_statistics(engine, [" ".join(texts)])
        first = np.linalg.norm(engine.read(short[0], pooling="all")[0], axis=1)
    ratio = np.array(of_short.residual_norms) / np.array(of_long.residual_norms)
    assert (np.abs(ratio - 1) < 0.25).all()
    # What would spoil them: the first token, whose norm is another quantity.
    assert first[15] > 50 * of_long.residual_norms[15]
