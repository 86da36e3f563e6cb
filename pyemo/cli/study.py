"""``pyemo study``: the paper's findings on quantized models, and a report."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from pyemo.choices import DEFAULT_MODEL
from pyemo.cli import output
from pyemo.cli.job_options import scheduler_option
from pyemo.cli.options import debug_option, json_option

if TYPE_CHECKING:
    from pyemo.study import Plan, Report


@click.command(short_help="Rerun the paper's findings on quantized models.")
@click.option(
    "--models",
    "-m",
    multiple=True,
    metavar="NAME",
    help=f"Catalog name or path; may be given several times.  [default: {DEFAULT_MODEL}]",
)
@click.option("--out", "-o", required=True, metavar="DIR", help="Where the report is written.")
@click.option("--emotions", metavar="A,B,...", help="Emotions to compare.  [default: all 20]")
@click.option(
    "--emotions-file", type=click.Path(), metavar="FILE", help="Your own emotions, as TOML."
)
@click.option(
    "--steered", metavar="A,B,...", help="Emotions to steer; 'none' for none.  [default: 4 of them]"
)
@click.option(
    "--prompts", type=click.Path(), metavar="FILE", help="Your own prompts to check on, one a line."
)
@click.option(
    "--stories",
    type=int,
    default=5,
    show_default=True,
    metavar="N",
    help="Stories of each emotion, and neutral ones.",
)
@click.option(
    "--strengths", metavar="X,Y,...", help="Strengths of the regime map.  [default: 0.005 to 0.08]"
)
@click.option(
    "--max-tokens",
    "-n",
    type=int,
    default=48,
    show_default=True,
    metavar="N",
    help="Stop a reply after N tokens.",
)
@click.option("--judge", metavar="MODEL", help="A model that judges the others' texts too.")
@click.option(
    "--threads",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="Threads of each process.",
)
@click.option(
    "--workers",
    type=int,
    metavar="N",
    help="Processes on this machine.  [default: its cores / threads]",
)
@scheduler_option
@click.option(
    "--store",
    type=click.Path(),
    metavar="DIR",
    help="Where results are kept.  [default: pyemo's cache]",
)
@json_option
@debug_option
def study(
    models: tuple[str, ...],
    out: str,
    emotions: str | None,
    emotions_file: str | None,
    steered: str | None,
    prompts: str | None,
    stories: int,
    strengths: str | None,
    max_tokens: int,
    judge: str | None,
    threads: int,
    workers: int | None,
    scheduler: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Compute the findings of arXiv 2604.04064 on quantized models and write a report to DIR.

    Results are kept as they come: the same command again goes on where it was cut off. With
    --scheduler the work runs on a Dask cluster whose workers have pyemo and the model files.

    \b
    Example:
      pyemo study -o report
      pyemo study -m smollm2-135m-instruct -m gemma-3-270m --stories 10 -o report
      pyemo study --emotions happy,sad,angry,calm --steered angry,calm -o report
    """
    from pathlib import Path

    from pyemo.engine.threads import available_cores
    from pyemo.study import Store, run_study, runner
    from pyemo.study.report import check_folder

    plan = _plan(
        models,
        emotions,
        emotions_file,
        steered,
        prompts,
        stories,
        strengths,
        max_tokens,
        judge,
        threads,
    )
    check_folder(out)
    command = shlex.join(["pyemo", *sys.argv[1:]])
    if workers is None:
        workers = 1 if scheduler else max(1, available_cores() // max(1, threads))
    with runner(scheduler, workers) as run, _progress() as tell:
        report = run_study(
            plan, run, store=Store(Path(store)) if store else None, tell=tell, command=command
        )
    paths = report.save(out)
    _print(report, str(paths[-1]), as_json)


def _plan(
    models: tuple[str, ...],
    emotions: str | None,
    emotions_file: str | None,
    steered: str | None,
    prompts: str | None,
    stories: int,
    strengths: str | None,
    max_tokens: int,
    judge: str | None,
    threads: int,
) -> Plan:
    from pyemo.study import Plan, built_in_emotions
    from pyemo.study.plan import STEERED, STRENGTHS
    from pyemo.texts.sources import load_emotions_file

    own = load_emotions_file(emotions_file) if emotions_file else {}
    named = [name.strip() for name in emotions.split(",")] if emotions else None
    sources = {**built_in_emotions(), **own}
    if named is not None:
        sources = {n: own[n] if n in own else built_in_emotions([n])[n] for n in _names(named, own)}
    if steered is None:
        chosen = tuple(name for name in STEERED if name in sources) or tuple(sources)[:4]
    else:
        chosen = () if steered == "none" else tuple(_names(steered.split(","), own))
    plan = Plan(
        models=models or (DEFAULT_MODEL,),
        emotions=sources,
        steered=chosen,
        n_stories=stories,
        strengths=_floats(strengths) if strengths else STRENGTHS,
        max_tokens=max_tokens,
        second_judge=judge,
        n_threads=threads,
    )
    if prompts is None:
        return plan
    from dataclasses import replace

    return replace(plan, check_prompts=_lines(prompts))


def _names(texts: list[str], own: object) -> list[str]:
    """Return canonical emotion names; a user's own names stand as they are."""
    from pyemo.emotions import resolve

    known = own if isinstance(own, dict) else {}
    return [text.strip() if text.strip() in known else resolve(text) for text in texts]


def _floats(text: str) -> tuple[float, ...]:
    from pyemo.errors import InputError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"strengths {text!r} are not numbers; write 0.01,0.02,0.05") from None


def _lines(path: str) -> tuple[str, ...]:
    from pyemo.cli.trial_options import read_prompts

    return read_prompts(path)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """Show cells done of cells known so far, with an estimate; on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _done, _total, _label: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("study", total=None)
        yield lambda done, total, label: bar.update(
            task, completed=done, total=total, description=output.printable(label)[:40]
        )


def _print(report: Report, page: str, as_json: bool) -> None:
    if as_json:
        output.print_json(
            {
                "report": page,
                "gaps": list(report.gaps),
                "findings": [
                    {
                        "name": f.name,
                        "title": f.title,
                        "verdict": f.verdict.value,
                        "reason": f.reason,
                        "ours": f.ours,
                        "paper": f.paper,
                    }
                    for f in report.findings
                ],
            }
        )
        return
    for found in report.findings:
        output.say(f"{found.title}: {found.verdict.value}\n  {found.reason}")
    for gap in report.gaps:
        output.note(f"gap: {gap}")
    output.say(page)
