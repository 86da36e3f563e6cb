"""The device check: will this file with this vector run here, fast, small and coherently enough?

Owns the stages and their order. Each is measured in a module of its own, ``check_*``; limits are
``budget``'s, printing is the command's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pyemo.check import agreement as check_agreement
from pyemo.check import facts as check_facts
from pyemo.check import process as check_process
from pyemo.check import speed as check_speed
from pyemo.check import text as check_text
from pyemo.check.readings import DeviceReport, Findings, Reading, Value, is_met
from pyemo.check.reference import Reference, check_target
from pyemo.check.subject import (
    CheckPlan,
    Subject,
    open_engine,
    require_vector,
)
from pyemo.engine.memory import memory_need, require_room, resident_bytes
from pyemo.engine.model import Model
from pyemo.files.catalog import resolve_model

__all__ = [
    "N_STAGES",
    "STAGES",
    "CheckPlan",
    "DeviceReport",
    "Reading",
    "Value",
    "check",
    "is_met",
]

STAGES = (
    "starting `pyemo run`",
    "loading",
    "reading a prompt, decoding",
    "decoding several sequences",
    "repeating a text",
    "a longer run",
    "the text's regime",
    "the reference",
)
N_STAGES = len(STAGES)


def check(plan: CheckPlan, *, on_stage: Callable[[str], None] | None = None) -> DeviceReport:
    """Measure what ``plan`` asks for, and hold it against its budget.

    Args:
        on_stage: called with what is done next; there are :data:`N_STAGES` at most.
    Raises:
        ModelError: no such model, damaged, or larger than the memory that is available (said before
            it is loaded).
        VectorError: the vector does not fit the model.
        InputError: a reference of another model, vector or version, or a value outside its range.
    """
    began = time.perf_counter()
    on_stage = on_stage or (lambda _title: None)
    # What can be refused is refused before anything is run.
    if plan.record is not None:
        check_target(plan.record)
    recorded = Reference.load(plan.reference) if plan.reference else None
    resolved = resolve_model(plan.model)
    if plan.vector is not None:
        require_vector(plan.vector, resolved.name)
    need = memory_need(resolved.path, n_ctx=plan.n_ctx, kv_type=plan.kv_type)
    require_room(resolved.path, need)
    idle_bytes = resident_bytes()

    findings = Findings(plan.budget)
    on_stage(STAGES[0])
    runs = check_process.run_twice(plan, resolved.path)
    on_stage(STAGES[1])
    begin = time.perf_counter()
    model = Model.load(resolved.path)
    with open_engine(plan, model, n_ctx=plan.n_ctx) as engine:
        load_s = time.perf_counter() - begin
        subject = Subject.load(plan, model)
        check_facts.add_facts(findings, subject, engine)
        note = "model and engine, in a process"
        findings.add("load_s", "load", load_s, "s", "max_load_s", note=note)
        check_process.add_process(findings, runs, need, idle_bytes)
        on_stage(STAGES[2])
        check_speed.add_prompt_speed(findings, subject, engine)
        check_speed.add_decode_speed(findings, subject, engine)
    on_stage(STAGES[3])
    check_speed.add_batch_speed(findings, subject)
    on_stage(STAGES[4])
    check_text.add_same_text(findings, subject)
    on_stage(STAGES[5])
    check_speed.add_slowdown(findings, subject)
    on_stage(STAGES[6])
    check_text.add_regime(findings, subject)
    agreement = None
    if recorded is not None or plan.record is not None:
        on_stage(STAGES[7])
        with subject.engine(n_ctx=plan.n_ctx) as engine:
            if plan.record is not None:
                check_agreement.add_recording(findings, subject, engine, plan.record)
            if recorded is not None:
                agreement = check_agreement.add_agreement(findings, subject, engine, recorded)
    return DeviceReport(
        model.name,
        tuple(findings.facts),
        tuple(findings.readings),
        tuple(findings.remarks),
        agreement,
        time.perf_counter() - began,
    )
