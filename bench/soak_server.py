"""Mixed requests to one server for as long as you like: is every answer right, is anything left?

    python bench/soak_server.py --seconds 1800

32 clients ask a `pyemo serve` of a tiny model with four moods. A third of the requests are given
up at a random moment, some are broken, and the folder of vectors changes meanwhile. Each answer is
compared with what the server gave when it was quiet. Exits with 1 for a wrong answer, or for work,
cells or memory that are not given back. Linux.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from engines import random_vector
from server_load import OPTIONS, ServerLoad
from server_process import Process
from tiny_models import build_tiny

from pyemo import Model
from pyemo.vectors.metadata import VectorMetadata


def main() -> None:
    """Run the command line above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = Model.load(build_tiny("llama", folder / "llama.gguf").path)
        vectors = folder / "vectors"
        vectors.mkdir()
        known = VectorMetadata(unit="raw").with_source(model)
        layers = range(1, model.n_layer)
        for seed, vector in enumerate(("warm", "cold")):
            directions = random_vector(model, layers=layers, seed=seed, length=8, metadata=known)
            directions.save(vectors / f"{vector}.gguf")
        with Process("-m", model.path, *OPTIONS, "--vectors", vectors) as server:
            load = ServerLoad(server, vectors)
            ends = time.monotonic() + given.seconds
            load.run(lambda _: time.monotonic() < ends)
            load.check_rest()
    resident = np.array(load.resident) / 1e6
    quarters = [f"{part.mean():.1f}" for part in np.array_split(resident, 4) if len(part)]
    print(
        f"{load.done:,} requests in {given.seconds:.0f} s; memory by quarters "
        f"{', '.join(quarters)} MB; wrong: {len(load.wrong)}"
    )
    for what in load.wrong[:100]:
        print(what, file=sys.stderr)
    sys.exit(bool(load.wrong))


if __name__ == "__main__":
    main()
