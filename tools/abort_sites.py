"""Lists where llama.cpp ends the process, by what reaches it.

    python tools/abort_sites.py FOLDER [--sites KIND]

FOLDER is the source of the pinned llama.cpp: `vendor/llama.cpp` of llama-cpp-python's source
package. A file of no kind ends with 1: it came with a new pin, and docs/hostile-input.md has to say
what becomes of it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SITE = re.compile(r"\b(GGML_ABORT|GGML_ASSERT|abort|std::terminate)\s*\(")
DEFINITION = re.compile(r"^\s*(#\s*define|//|\*)|void ggml_abort\(")

_DEVICES = "ggml/src/ggml-(?!cpu|alloc|backend|quants|threading|common|impl|opt)"

# Kind -> files below FOLDER, by regular expressions; the first that fits counts.
KINDS = {
    "not linked": (
        rf"{_DEVICES}\w+/.*",
        r"ggml/src/ggml-cpu/(kleidiai|spacemit|amx|hbm).*",
    ),
    "not called": (
        r"src/llama-(sampler|grammar|chat|adapter|model-saver|quant|io)\..*",
        r"ggml/src/ggml-(opt|backend-dl|backend-meta).*",
    ),
    "vocabulary": (r"src/(llama-vocab|unicode.*)\..*",),
    "load": (
        r"src/(llama-(arch|hparams|mmap|model|model-loader|impl)|llama)\..*",
        r"ggml/src/gguf\.cpp",
        r"src/models/.*",
    ),
    "context": (
        r"src/llama-(context|cparams|graph|kv-cache.*|kv-cells|memory.*|batch)\..*",
        r"ggml/src/ggml-(alloc|backend|backend-reg|backend-impl)\..*",
    ),
    "compute": (
        r"ggml/src/(ggml|ggml-quants|ggml-threading|ggml-impl|ggml-common)\..*",
        r"ggml/src/ggml-cpu/.*",
    ),
}


def kind_of(name: str) -> str | None:
    """Return the kind of a file, None for one that is not known."""
    return next(
        (kind for kind, files in KINDS.items() if any(re.fullmatch(f, name) for f in files)), None
    )


def sites(folder: Path) -> Iterator[tuple[str, int, str]]:
    """Yield (file, line number, line) of every place that ends the process."""
    for path in sorted([*folder.glob("src/**/*"), *folder.glob("ggml/src/**/*")]):
        if path.suffix not in (".c", ".cpp", ".h"):
            continue
        text = path.read_text("utf-8", "replace")
        for number, line in enumerate(text.splitlines(), 1):
            if SITE.search(line) and not DEFINITION.search(line):
                yield path.relative_to(folder).as_posix(), number, line.strip()


def main() -> int:
    """Print the number of sites of each kind, or the sites of one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sites", choices=KINDS, help="list the sites of this kind")
    asked = parser.parse_args()
    counts: Counter[str] = Counter()
    unknown: set[str] = set()
    for name, number, line in sites(asked.folder):
        kind = kind_of(name)
        if kind is None:
            unknown.add(name)
        elif kind == asked.sites:
            print(f"{name}:{number}: {line}")
        counts[kind or "unknown"] += 1
    if asked.sites is None:
        for kind, n in counts.items():
            print(f"{kind:11} {n:5}")
    for name in sorted(unknown):
        print(f"no kind: {name}", file=sys.stderr)
    return 1 if unknown or not counts else 0


if __name__ == "__main__":
    sys.exit(main())
