"""Start-up and peak memory of whole processes, pyemo beside llama-cpp-python.

    python bench/process.py [--models ...] [--repeats 20] [--output FILE]

A run of each command goes first and is not counted, so that files are in the page cache.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from harness import VALUE_HEADER, value_of, write

from pyemo.check.process import run_once
from pyemo.files.catalog import resolve_model

MODELS = ("smollm2-135m-instruct", "gemma-3-270m", "qwen2.5-coder-0.5b-instruct")
PROMPT = "Tell me about the sea."
COMMAND = [sys.executable, "-m", "pyemo"]
N_PEAKS = 5  # they hardly differ

PYEMO = """
import pyemo
with pyemo.Engine({path!r}, n_ctx=1024, n_threads={n_threads}) as engine:
    for token in engine.generate({prompt!r}, raw=True, max_tokens=32,
    sampler=pyemo.SamplerParams(temperature=0)):
        pass
"""
LLAMA_CPP_PYTHON = """
import llama_cpp
llama = llama_cpp.Llama({path!r}, n_ctx=1024, n_threads={n_threads}, n_threads_batch={n_threads},
                        flash_attn=True, verbose=False)
for part in llama({prompt!r}, max_tokens=32, temperature=0.0, stream=True):
    pass
"""
PEAK = """
print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0].split()[1])
"""


def peak_mb(program: str) -> float:
    """Return the peak resident memory of a program, in MB (10^6 bytes)."""
    done = subprocess.run(
        [sys.executable, "-c", program + PEAK], check=True, capture_output=True, text=True
    )
    return int(done.stdout.split()[-1]) * 1024 / 1e6


def first_output_s(command: list[str]) -> float:
    """Return the seconds from starting a command to its first byte on stdout."""
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        spent = time.perf_counter() - begin
        process.kill()
    return spent


def command_of(name: str, output: Path, n_repeats: int) -> None:
    """`pyemo run` as it is typed: its first token, and its peak."""
    run = [*COMMAND, "run", "-m", name, "--n-ctx", "512", "-n", "48", "--temperature", "0", PROMPT]
    run_once(run)
    runs = [run_once(run) for _ in range(n_repeats)]
    where = f"{name}, n_ctx 512, its own choice of threads"
    values = [
        value_of("`pyemo run`, first token", [r.first_s for r in runs], "s", conditions=where)
    ]
    peaks = [each.peak / 1e6 for each in runs if each.peak is not None]
    if peaks:
        values.append(value_of("`pyemo run`, peak memory", peaks, "MB", conditions=where))
    write(output, values=values)


def beside_llama_cpp_python(name: str, output: Path, n_threads: int) -> None:
    """The peak of a program that answers once."""
    path = str(resolve_model(name).path)
    for label, program in (("pyemo", PYEMO), ("llama-cpp-python", LLAMA_CPP_PYTHON)):
        filled = program.format(path=path, prompt=PROMPT, n_threads=n_threads)
        peaks = [peak_mb(filled) for _ in range(N_PEAKS)]
        where = f"{name}, n_ctx 1024, {n_threads} threads"
        value = value_of(f"program of {label}, peak memory", peaks, "MB", conditions=where)
        write(output, values=[value])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument(
        "--threads", type=int, default=2, help="of the programs; not of `pyemo run`"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "process"
    )
    options = parser.parse_args()
    print(VALUE_HEADER)
    first_output_s([*COMMAND, "--help"])
    helps = [first_output_s([*COMMAND, "--help"]) for _ in range(options.repeats)]
    value = value_of("`pyemo --help`, first output", helps, "s", conditions="")
    write(options.output, values=[value])
    for name in options.models:
        command_of(name, options.output, options.repeats)
        beside_llama_cpp_python(name, options.output, options.threads)


if __name__ == "__main__":
    main()
