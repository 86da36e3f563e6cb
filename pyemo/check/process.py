"""`pyemo run` as a process of its own: the time to its first token, its peak memory in parts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyemo.check.readings import Findings
from pyemo.check.subject import PROMPT, CheckPlan
from pyemo.engine.memory import MemoryNeed
from pyemo.errors import ModelError
from pyemo.files.children import exit_text, python_module


@dataclass(frozen=True)
class ProcessRun:
    """One run of a command.

    Attributes:
        first_s: seconds from its start to its first output.
        peak: bytes of its memory, None where the system does not show it.
    """

    first_s: float
    peak: int | None


def run_twice(plan: CheckPlan, path: Path) -> list[ProcessRun]:
    """Run `pyemo run` twice: the first run fills the page cache.

    Call it before anything is loaded here: a child's peak counts from its parent's size.
    """
    command = [*python_module("pyemo"), "run", "-m", str(path), "-n", "48"]
    command += ["--n-ctx", str(plan.n_ctx), "--kv-type", plan.kv_type, "--temperature", "0"]
    if plan.n_threads is not None:
        command += ["--threads", str(plan.n_threads)]
    return [run_once([*command, PROMPT]) for _ in range(2)]


def run_once(command: Sequence[str]) -> ProcessRun:
    """Run a command to its end.

    Raises:
        ModelError: it ends with an error; the message is its own.
    """
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        first = child.stdout.read(1)
        spent = time.perf_counter() - begin
        child.stdout.read()
        said = child.stderr.read().decode("utf-8", "replace").strip()
        peak = None
        if hasattr(os, "wait4"):
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if child.returncode != 0 or not first:
        how = exit_text(child.returncode)
        last = how if child.returncode < 0 or not said else said.splitlines()[-1]
        raise ModelError(f"`pyemo run` failed: {last.removeprefix('Error: ')}")
    return ProcessRun(spent, peak)


def add_process(
    findings: Findings, runs: Sequence[ProcessRun], need: MemoryNeed, idle_bytes: int | None
) -> None:
    """Add the first token of the last run, and the highest peak with its parts."""
    findings.add(
        "first_token_s",
        "first token",
        runs[-1].first_s,
        "s",
        "max_first_token_s",
        note="of `pyemo run`, from its start; files in the page cache",
    )
    peak = max((run.peak for run in runs if run.peak is not None), default=None)
    note = _memory_note(need, idle_bytes, peak)
    findings.add("peak_memory", "peak memory", peak, "bytes", "max_memory", note=note)


def _memory_note(need: MemoryNeed, idle: int | None, peak: int | None) -> str:
    parts = [("weights", need.weights)]
    if need.kv_cache is not None:
        parts.append(("KV cache", need.kv_cache))
    if idle is not None:
        parts.append(("Python", idle))
    if peak is not None:
        parts.append(("compute and rest", peak - sum(n for _, n in parts)))
    return ", ".join(f"{name} {n / 1e6:.0f} MB" for name, n in parts)
