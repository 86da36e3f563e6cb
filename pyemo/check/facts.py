"""What a check says before any number: machine, versions, file, vector, what to know of them."""

from __future__ import annotations

import platform

from pyemo.check.readings import Findings
from pyemo.check.reference import cpu_name
from pyemo.check.subject import Subject
from pyemo.engine.engine import Engine
from pyemo.engine.model import LLAMA_CPP_PYTHON
from pyemo.engine.threads import available_cores
from pyemo.formats.quantize import tensor_types

# ggml types that llama.cpp multiplies row by row on x86, without a kernel for several rows at once.
_SLOW_ON_X86 = frozenset({"q4_1", "q5_0", "q5_1"})


def add_facts(findings: Findings, subject: Subject, engine: Engine) -> None:
    """Say what is checked and where, and what keeps it from being steered, or from being fast."""
    plan, model, vector = subject.plan, subject.model, subject.vector
    types = tensor_types(model.path)
    total = sum(part.n_bytes for part in types)
    shares = ", ".join(f"{part.type} {part.n_bytes / total:.0%}" for part in types[:3])
    findings.facts += [
        ("machine", f"{cpu_name()}, {available_cores()} cores, {platform.system()}"),
        ("threads", engine.threads.reason),
        ("versions", _versions()),
        ("model", f"{model.name}, {total / 1e6:.0f} MB: {shares}"),
        ("context", f"{plan.n_ctx} tokens, {plan.kv_type} KV cache"),
    ]
    if vector is not None:
        sentence = vector.check(model).sentence
        findings.facts.append(("vector", f"{vector.name}, {subject.strength_note}. {sentence}"))
    if engine.steering_unsupported:
        findings.remarks.append(f"The model cannot be steered: {engine.steering_unsupported}")
    slow = sum(part.n_bytes for part in types if part.type in _SLOW_ON_X86) / total
    if slow > 0.3 and platform.machine().casefold() in ("x86_64", "amd64"):
        findings.remarks.append(
            f"{slow:.0%} of the file is in types without fast kernels on this CPU: Q4_0 or "
            "Q8_0 read a prompt several times faster (`pyemo models requantize "
            f"{plan.model} Q4_0`, which also says what it costs)"
        )


def _versions() -> str:
    import pyemo

    return (
        f"pyemo {pyemo.__version__}, llama-cpp-python {LLAMA_CPP_PYTHON}, "
        f"Python {platform.python_version()}"
    )
