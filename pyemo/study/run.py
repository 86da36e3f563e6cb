"""The study as a whole: a plan in, cells computed or found, findings and a report out.

Owns the order of things; what is computed is in ``cells``, what it says in the findings' modules.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence

import numpy as np

from pyemo.engine.model_file import ModelFile
from pyemo.files.local import cache_dir
from pyemo.jobs.runner import Runner, Tell
from pyemo.jobs.store import Result, Store
from pyemo.study import (
    anisotropy,
    geometry,
    layers,
    leakage,
    methods,
    regime_map,
    scenarios,
    separation,
    steering_check,
)
from pyemo.study.cells import machine
from pyemo.study.context import Work
from pyemo.study.finding import Finding
from pyemo.study.inputs import Directions, directions_of, hidden_states
from pyemo.study.plan import Plan
from pyemo.study.report import ModelFacts, Report
from pyemo.study.states import METHODS, Method, States
from pyemo.study.strengths import Grid


def run_study(
    plan: Plan,
    run: Runner,
    *,
    store: Store | None = None,
    tell: Tell = lambda _done, _total, _label: None,
    command: str = "pyemo study",
) -> Report:
    """Compute or find all cells of a plan and return the report.

    Args:
        run: where missing cells are computed, see :func:`pyemo.jobs.runner.runner`.
        store: None for pyemo's cache.
        tell: told how far it is.
        command: what the report says made it.
    Raises:
        ModelError, InputError: a model or a plan that cannot be.
        SchedulerError: see :class:`pyemo.jobs.runner.OnDask`; finished cells are kept.
        MissingExtraError: an extra is not installed.
    """
    began = time.time()
    work = Work(plan, run, store or Store(cache_dir() / "study"), tell)
    sets, neutral = hidden_states(work)
    directions = {file: directions_of(work, file) for file in work.files}
    findings = _of_states(work, sets, neutral)
    cases: list[steering_check.Case] = []
    if plan.steered:
        grid = Grid(work, directions)
        cases = scenarios.run(work, directions, grid.chosen())
        findings += [
            steering_check.finding(cases, plan.second_judge),
            regime_map.finding(grid.points),
            leakage.finding(grid.leaks()),
        ]
    else:
        work.gaps.append("No emotion is steered: the findings on generated text are left out.")
    if sets:
        findings.append(geometry.finding(sets))
    return Report(
        tuple(findings),
        tuple(_model_facts(work, file) for file in work.files),
        _facts(work, directions, command, time.time() - began),
        tuple(dict.fromkeys(work.gaps)),
        tuple(cases),
        command,
    )


def _of_states(work: Work, sets: Sequence[States], neutral: Sequence[Result]) -> list[Finding]:
    """Return the findings that need no generated replies."""
    if not sets:
        work.gaps.append("No set of hidden states could be used: those findings are left out.")
        return []
    separations = [separation.separate(s) for s in sets]
    baselines = [
        anisotropy.measure(
            work.model(file).name,
            int(result.values["n_layer"]),
            result.arrays["last"][:, :-1],
            result.arrays["pooled"][:, :-1],
            n_groups=len(work.plan.emotions),
        )
        for file, result in zip(work.files, neutral, strict=True)
    ]
    compared = _methods(work, sets)
    return [
        separation.finding(separations),
        *([compared] if compared is not None else []),
        layers.finding([layers.localize(s) for s in sets]),
        anisotropy.finding(baselines, separations),
    ]


def _methods(work: Work, sets: Sequence[States]) -> Finding | None:
    by_model: dict[str, dict[Method, States]] = {}
    for s in sets:
        by_model.setdefault(s.model, {})[s.method] = s
    both = [m for m in by_model.values() if len(m) == len(METHODS)]
    if not both:
        work.gaps.append("No model has states by both methods: they are not compared.")
        return None
    return methods.finding([methods.compare(m["generation"], m["comprehension"]) for m in both])


# --- what the report says of itself ---


def _model_facts(work: Work, file: ModelFile) -> ModelFacts:
    model = work.model(file)
    return ModelFacts(
        model.name,
        model.architecture,
        _file_type(model.metadata.get("general.file_type", "")),
        model.n_layer,
        model.n_embd,
        file.sha256,
    )


def _facts(
    work: Work, directions: Mapping[ModelFile, Directions], command: str, seconds: float
) -> dict[str, str]:
    import pyemo

    plan, here = work.plan, machine()
    return {
        "command": command,
        "emotions": ", ".join(plan.emotions),
        **{method: " ".join(plan.recipe(method).to_toml().split()) for method in METHODS},
        "steering vectors": "; ".join(
            f"{work.model(file).name}: {found.origin}" for file, found in directions.items()
        ),
        "strengths": ", ".join(f"{s:g}" for s in plan.strengths),
        "replies": f"greedy, at most {plan.max_tokens} tokens; {len(plan.grid_prompts)} prompts to "
        f"choose strengths by, {len(plan.check_prompts)} others to check on",
        "seeds": "stated with each finding",
        "second judge": plan.second_judge or "none",
        "threads": str(plan.n_threads),
        "versions": f"pyemo {pyemo.__version__}, llama-cpp-python {here['llama-cpp-python']}, "
        f"Python {platform.python_version()}, NumPy {np.__version__}",
        "machine": f"{platform.system()} {here['machine']}; {here['kernels'].strip()}",
        "time": f"{time.strftime('%Y-%m-%d %H:%M %Z')}; {seconds:.0f} s beyond what the store had",
    }


def _file_type(number: str) -> str:
    """Return llama.cpp's name of a file type, such as Q4_1."""
    import gguf

    try:
        return gguf.LlamaFileType(int(number)).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        return number or "not said"
