"""Fuzz what reads strangers' files, and say in a table what came of it.

    python tests/fuzz/run.py --seconds 60 [TARGET...]

Each target runs in a process of its own, led by coverage: Atheris for those in Python, libFuzzer
with the address and undefined-behaviour sanitizers for those in C++ (`make fuzz` builds them). What
led further is kept in build/fuzz/corpus and is begun with the next time; what ended otherwise than
it may is kept in build/fuzz/findings. Copy it into tests/fuzz/found/TARGET, mend its kind, and
test_found.py holds it from then on. The exit code is 1 if anything was found.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.machinery import PathFinder
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "fuzz"
LONGEST_S = 10
"""Of one input, after which it counts as hanging."""
MOST_MB = 2048
"""Of memory, above which an input counts as a finding."""


@dataclass
class Outcome:
    """What one run came to.

    Attributes:
        seconds: asked for.
        inputs, inputs_per_s: tried.
        coverage: branches reached, as the fuzzer counts them, at the start and at the end.
        corpus: inputs that are kept because each leads somewhere else.
        findings: inputs that ended otherwise than they may.
    """

    target: str
    seconds: int
    inputs: int
    inputs_per_s: int
    coverage: tuple[int, int]
    corpus: int
    findings: list[str]


def prepare(target: str) -> tuple[Path, Path, list[str]]:
    """Return the folders of the corpus and of findings, and the fuzzer's settings."""
    from targets import TARGETS

    chosen = TARGETS[target]
    corpus, findings = BUILD / "corpus" / target, BUILD / "findings" / target
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for data in chosen.seeds():
        (corpus / f"seed-{hashlib.sha256(data).hexdigest()[:12]}").write_bytes(data)
    words = BUILD / f"{target}.dict"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in chosen.words))
    settings = [f"-dict={words}"] if chosen.words else []
    settings += [f"-max_len={chosen.max_len}", f"-timeout={LONGEST_S}", f"-rss_limit_mb={MOST_MB}"]
    return corpus, findings, [*settings, f"-artifact_prefix={findings}/", "-print_final_stats=1"]


def _escaped(word: str) -> str:
    return "".join(
        char if char.isalnum() or char in " _." else f"\\x{byte:02X}"
        for char in word
        for byte in char.encode()
    )


def fuzz(target: str, seconds: int) -> Outcome:
    """Run one target for so many seconds; findings do not end it, a new process goes on."""
    from targets import TARGETS

    corpus, findings, settings = prepare(target)
    before = {path.name for path in findings.iterdir()}
    program: list[str | Path] = [BUILD / f"fuzz_{target}"]
    if TARGETS[target].instrumented:
        program = [sys.executable, Path(__file__), "--child", target]
    left, inputs, coverage, log = seconds, 0, [], ""
    while left > 0:
        command = [*program, corpus, *settings, f"-max_total_time={left}"]
        ended = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        log = ended.stdout
        (BUILD / f"{target}.log").write_text(log)
        inputs += _last(r"stat::number_of_executed_units:\s*(\d+)", log) or _last(r"^#(\d+)", log)
        coverage += [int(n) for n in re.findall(r"\bcov: (\d+)", log)]
        if ended.returncode == 0:
            break
        new = {path.name for path in findings.iterdir()} - before
        if not new:
            raise SystemExit(f"{target} does not run:\n{log[-3000:]}")
        left -= max(1, _last(r"(\d+) second", log) or seconds // 4)
    return Outcome(
        target,
        seconds,
        inputs,
        inputs // max(1, seconds),
        (min(coverage, default=0), max(coverage, default=0)),
        sum(1 for _ in corpus.iterdir()),
        sorted({path.name for path in findings.iterdir()} - before),
    )


def _last(pattern: str, log: str) -> int:
    found = re.findall(pattern, log, re.MULTILINE)
    return int(found[-1]) if found else 0


def child(target: str, arguments: list[str]) -> None:
    """Be an Atheris fuzzer."""
    import atheris
    from targets import TARGETS

    chosen = TARGETS[target]
    # Atheris follows what Python's own finder finds, and not what an editable install's does.
    sys.path.insert(0, str(ROOT))
    sys.meta_path.insert(0, PathFinder)
    with atheris.instrument_imports(include=list(chosen.instrumented)):
        for data in chosen.seeds():  # whatever is imported late is imported here
            chosen.try_one(data)
    atheris.Setup([sys.argv[0], *arguments], chosen.try_one)
    atheris.Fuzz()


def main() -> None:
    """Run the command line above."""
    from targets import TARGETS

    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each")
    parser.add_argument("--output", type=Path, help="write what came of it here, as JSON")
    given = parser.parse_args()
    unknown = set(given.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    outcomes = []
    print("| target | inputs | a second | branches, first and last | kept | findings |")
    print("|---|---|---|---|---|---|")
    for target in given.targets or TARGETS:
        done = fuzz(target, given.seconds)
        outcomes.append(done)
        first, last = done.coverage
        print(
            f"| {target} | {done.inputs:,} | {done.inputs_per_s:,} | {first:,} to {last:,} "
            f"| {done.corpus} | {len(done.findings)} |",
            flush=True,
        )
        for name in done.findings:
            print(f"found: {os.path.relpath(BUILD / 'findings' / target / name)}", file=sys.stderr)
    if given.output:
        given.output.write_text(json.dumps([asdict(done) for done in outcomes], indent=1) + "\n")
    sys.exit(any(done.findings for done in outcomes))


if __name__ == "__main__":
    main()
