"""``pyemo extract --language``: the direction of a language."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pyemo.cli import output

if TYPE_CHECKING:
    from pyemo.engine.threads import Threads


def extract_language(
    language: str, path: Path, model: str, threads: Threads, as_json: bool, *, force: bool
) -> None:
    """Read the texts in all languages with the model, and write the vector."""
    from pyemo.choices import LANGUAGES
    from pyemo.engine.engine import Engine
    from pyemo.engine.model import Model
    from pyemo.extract.languages import language_vector
    from pyemo.texts.sources import parallel_texts

    loaded = Model.load(model)
    n_ctx = min(512, loaded.n_ctx_train)
    n_texts = sum(len(parallel_texts(name)) for name in LANGUAGES)
    with (
        Engine(loaded, n_ctx=n_ctx, n_batch=n_ctx, n_threads=threads) as engine,
        output.progress(n_texts, "reading texts") as advance,
    ):
        vector = language_vector(engine, language, on_progress=advance)
    vector.save(path, force=force)
    if as_json:
        output.print_json({"language": language, "path": str(path), "layers": list(vector.layers)})
        return
    output.say(f"{path}: {language}, layers {vector.layers[0]}:{vector.layers[-1] + 1}")
