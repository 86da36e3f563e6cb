"""``pyemo check``: will this file with this vector do here? One page, and an exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pyemo.choices import REGIMES
from pyemo.cli import output
from pyemo.cli.options import EngineOptions, debug_option, engine_options, json_option

if TYPE_CHECKING:
    from pyemo.check.readings import DeviceReport, Reading

EXIT_FAILED = 1


@click.command(short_help="Check a model and a vector on this device.")
@click.option(
    "--cvec", "-c", "vector", metavar="VECTOR", help="Bundled vector or file to steer with."
)
@click.option(
    "--strength",
    type=float,
    metavar="X",
    help="Strength to check.  [default: as calibrated for the model file, else as trained, else "
    "0.02]",
)
@click.option(
    "--budget", metavar="FILE", help="Limits as a TOML file; the options below override it."
)
@click.option("--min-tokens-per-s", type=float, metavar="N", help="Least speed of decoding.")
@click.option("--max-memory", metavar="SIZE", help="Most memory of `pyemo run`, such as 250MB.")
@click.option("--max-first-token-s", type=float, metavar="S", help="Longest wait for a token.")
@click.option("--regime", type=click.Choice(REGIMES), help="What steering must do to the text.")
@click.option(
    "--judge",
    default="minilm",
    show_default=True,
    metavar="NAME",
    help="Who says whether the text sounds like its emotion: a judge of "
    "docs/strengths.md, or none.",
)
@click.option("--record", metavar="FILE", help="Write predictions to compare others with.")
@click.option("--reference", metavar="FILE", help="Compare with predictions recorded elsewhere.")
@click.option("--junit", metavar="FILE", help="Write the result as JUnit XML.")
@engine_options
@json_option
@debug_option
def check(
    vector: str | None,
    strength: float | None,
    budget: str | None,
    judge: str,
    record: str | None,
    reference: str | None,
    junit: str | None,
    as_json: bool,
    engine: EngineOptions,
    **limits: Any,
) -> None:
    """Measure a model, and a vector on it, on this device, and hold them against a budget.

    Speed, time to the first token, memory and where it goes, the regime of the steered text and
    whether it sounds like its emotion, whether the same seed gives the same text, and agreement
    with predictions recorded elsewhere. Exits with 1 if a limit is not met. It takes a minute or
    less on small models; run nothing else meanwhile.

    \b
    Example:
      pyemo check --cvec anger
      pyemo check -m gemma-3-270m --cvec anger --min-tokens-per-s 20 --max-memory 400MB
      pyemo check --cvec anger --budget budget.toml --junit check.xml
      pyemo check --record here.json
      pyemo check --reference here.json
    """
    from pyemo.check.budget import Budget
    from pyemo.check.report import check_junit, write_junit
    from pyemo.check.run import N_STAGES, CheckPlan
    from pyemo.check.run import check as measure

    if junit is not None:
        check_junit(junit)
    loaded = Budget() if budget is None else Budget.load(budget)
    plan = CheckPlan(
        engine.model,
        vector,
        strength,
        loaded.merged(limits, "the options"),
        n_ctx=engine.n_ctx or 512,
        n_threads=engine.threads,
        kv_type=engine.kv_type,
        judge="" if judge == "none" else judge,
        reference=reference,
        record=record,
    )
    with output.progress(N_STAGES, "checking") as advance:
        report = measure(plan, on_stage=lambda _stage: advance(1))
    if junit is not None:
        write_junit(report, junit)
    if as_json:
        from pyemo.check.report import to_json

        output.print_json(to_json(report))
    else:
        _print(report)
    if not report.is_passed:
        click.get_current_context().exit(EXIT_FAILED)


def _print(report: DeviceReport) -> None:
    from pyemo.check.report import shown

    width = max(len(title) for title, _ in report.facts)
    for title, text in report.facts:
        output.say(f"{title:<{width}}  {output.printable(text)}")
    output.say()
    rows = [
        (
            _mark(reading),
            reading.title,
            shown(reading.value, reading.unit),
            _limit(reading),
            reading.note,
        )
        for reading in report.readings
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        cells = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False))
        output.say(f"{cells}  {output.printable(row[4])}".rstrip())
    output.say()
    for remark in report.remarks:
        output.say(remark)
    output.say(_verdict(report))


def _mark(reading: Reading) -> str:
    if reading.is_met is None:
        return "gap" if reading.value is None else ""
    return "ok" if reading.is_met else "FAIL"


def _limit(reading: Reading) -> str:
    from pyemo.check.report import shown

    if reading.limit is None:
        return ""
    sign = {"min": ">= ", "max": "<= "}.get(reading.limit_name[:3], "")
    return sign + shown(reading.limit, reading.unit)


def _verdict(report: DeviceReport) -> str:
    n = sum(reading.is_met is not None for reading in report.readings)
    if n == 0:
        return f"Measured in {report.spent_s:.0f} s; no limits were given."
    if report.is_passed:
        return f"Passed: {n} of {n} limits are met ({report.spent_s:.0f} s)."
    failed = ", ".join(reading.title for reading in report.failures)
    return f"Failed: {failed} ({report.spent_s:.0f} s)."
