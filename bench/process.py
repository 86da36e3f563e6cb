"""Peak memory and start-up of whole processes, pyemo beside llama-cpp-python.

python bench/process.py [--models ...] [--repeats 20] [--output bench/results/process]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from harness import machine

from pyemo.catalog import resolve_model

PROMPT = "Tell me about the sea."

PYEMO = """
import pyemo
with pyemo.Engine({path!r}, n_ctx=1024, n_threads=2) as engine:
    for token in engine.generate({prompt!r}, raw=True, max_tokens=32,
    sampler=pyemo.SamplerParams(temperature=0)):
        pass
"""
LLAMA_CPP_PYTHON = """
import llama_cpp
llama = llama_cpp.Llama({path!r}, n_ctx=1024, n_threads=2, n_threads_batch=2, verbose=False)
for part in llama({prompt!r}, max_tokens=32, temperature=0.0, stream=True):
    pass
"""
PEAK = """
import sys
print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0].split()[1])
"""


def peak_mb(program: str) -> float:
    """Return the peak resident memory of a program, in MB."""
    done = subprocess.run(
        [sys.executable, "-c", program + PEAK], check=True, capture_output=True, text=True
    )
    return int(done.stdout.split()[-1]) / 1024


def first_output_s(command: list[str]) -> float:
    """Return the seconds from starting a command to its first byte on stdout."""
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        spent = time.perf_counter() - begin
        process.kill()
    return spent


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["smollm2-135m-instruct", "gemma-3-270m"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "process"
    )
    options = parser.parse_args()
    lines = ["| what | median | 5% to 95% |", "|---|---|---|"]
    pyemo = [sys.executable, "-m", "pyemo"]

    def report(what: str, values: list[float], unit: str) -> None:
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        lines.append(f"| {what} | {middle:.2f} {unit} | {low:.2f} to {high:.2f} |")
        print(lines[-1], flush=True)

    print("\n".join(lines))
    helps = [first_output_s([*pyemo, "--help"]) for _ in range(options.repeats)]
    report("`pyemo --help`, first output", helps, "s")
    for name in options.models:
        path = str(resolve_model(name).path)
        run = [*pyemo, "run", "-m", name, "--raw", "--threads", "2", PROMPT]
        report(
            f"`pyemo run`, first token, {name}",
            [first_output_s(run) for _ in range(options.repeats)],
            "s",
        )
        for label, program in (("pyemo", PYEMO), ("llama-cpp-python", LLAMA_CPP_PYTHON)):
            filled = program.format(path=path, prompt=PROMPT)
            report(
                f"peak memory, {label}, {name}, n_ctx 1024",
                [peak_mb(filled) for _ in range(5)],
                "MB",
            )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    facts = [f"{key}: {value}  " for key, value in machine().items()]
    options.output.with_suffix(".md").write_text("\n".join([*facts, "", *lines]) + "\n")
    options.output.with_suffix(".json").write_text(
        json.dumps({"machine": machine(), "lines": lines}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
