"""Does a model answer English prompts in another language, by its direction or by being asked to?

    pip install py3langid
    python bench/answer_in.py --language de --output bench/results/answer_in.json

16 English prompts, pyemo's own sampler. Ways: none; ``asked``, a system message; ``raise`` and
``add`` with the language's direction, as `pyemo extract --language` makes it, from a third of the
blocks on. Told by py3langid.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pyemo import Engine, Model, Steering
from pyemo.engine.batches import Job, continue_many, n_ctx_for
from pyemo.engine.sampling import STANDARD
from pyemo.extract.languages import language_vector
from pyemo.texts.sources import prompts

NAMES = {"de": "German", "es": "Spanish", "zh": "Chinese"}
N_TOKENS, N_ROWS = 48, 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Print how many answers are in the language, by way."""
    import py3langid

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--language", default="de", choices=NAMES)
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args(arguments)
    model = Model.load(chosen.model)
    with Engine(model, n_ctx=512, n_batch=512, n_threads=1) as engine:
        vector = language_vector(engine, chosen.language)
    layers = range(model.n_layer // 3, model.n_layer)
    words = [*prompts("selection"), *prompts("evaluation")[:8]]
    order = {"role": "system", "content": f"Answer in {NAMES[chosen.language]}."}
    plain = [tuple(model.prompt_tokens(text)) for text in words]
    asked = [tuple(model.prompt_tokens([order, {"role": "user", "content": t}])) for t in words]
    ways = {"none": (plain, Steering()), "asked": (asked, Steering())}
    for strength in (1.0, 2.0):
        mood = Steering({vector: strength}, operator="raise", layers=layers)
        ways[f"raise {strength:g}"] = (plain, mood)
    for strength in (0.05, 0.1):
        ways[f"add {strength:g}"] = (plain, Steering({vector: strength}, layers=layers))
    rows = []
    for name, (given, mood) in ways.items():
        n_ctx = n_ctx_for(given, N_TOKENS, N_ROWS)
        with Engine(model, n_ctx=n_ctx, n_seq_max=N_ROWS, n_threads=1) as engine:
            jobs = [Job(ids, mood, replace(STANDARD, seed=i)) for i, ids in enumerate(given)]
            texts = continue_many(engine, jobs, max_tokens=N_TOKENS, n_rows=N_ROWS)
        for text in texts:
            found = py3langid.classify(text.text)[0]
            rows.append({"way": name, "language": found, "text": text.text})
        n = sum(row["language"] == chosen.language for row in rows if row["way"] == name)
        print(f"| {name} | {n} of {len(texts)} |", flush=True)
    if chosen.output is not None:
        chosen.output.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
