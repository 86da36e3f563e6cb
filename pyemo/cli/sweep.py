"""``pyemo sweep``: what each strength of a vector does to the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyemo.choices import SCOPE_FORMS
from pyemo.cli import output
from pyemo.cli.options import (
    checked_scope,
    debug_option,
    json_option,
    model_option,
    threads_option,
)
from pyemo.cli.trial_options import (
    NO_JUDGE,
    judge_option,
    load_files,
    load_judge,
    prompts_option,
    read_prompts,
)
from pyemo.errors import InputError

if TYPE_CHECKING:
    from pyemo.engine.threads import Threads
    from pyemo.strengths.sweeps import SweepResult
    from pyemo.strengths.trials import Trial
    from pyemo.strengths.voice import VoiceReading
    from pyemo.vectors.control_vector import ControlVector


@click.command(short_help="Show what each strength of a vector does to the text.")
@click.option(
    "--cvec",
    "-c",
    "vectors",
    multiple=True,
    required=True,
    metavar="VECTOR",
    help="Control vector by name or file. May be given several times.",
)
@click.option(
    "--strengths",
    default="0:0.06:13",
    show_default=True,
    metavar="A:B:N",
    help="N strengths from A to B, or numbers with commas between.",
)
@prompts_option
@click.option(
    "--layers", metavar="A:B", help="Layers to steer, B not included.  [default: all of the vector]"
)
@click.option(
    "--scope",
    default="both",
    show_default=True,
    metavar="FORM",
    callback=checked_scope,
    help=f"Which tokens are steered: {SCOPE_FORMS}.",
)
@click.option(
    "--max-tokens",
    "-n",
    type=int,
    default=48,
    show_default=True,
    metavar="N",
    help="Most tokens of a text.",
)
@click.option(
    "--temperature",
    type=float,
    default=0.0,
    show_default=True,
    metavar="X",
    help="0 takes the most likely token always; else the default sampler at this temperature.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="Seed of the texts, with a temperature above 0.",
)
@judge_option(takes_none=True)
@click.option(
    "--voice",
    is_flag=True,
    help="Measure gain, specificity and damage on written replies too; docs/strengths.md.",
)
@click.option("--raw", is_flag=True, help="Continue the prompts as they are.")
@click.option("--plot", metavar="FILE", help="Write the curves as a PNG picture.")
@click.option(
    "--rows", type=int, default=16, show_default=True, metavar="N", help="Texts in one batch."
)
@click.option(
    "--allow-other-weights", is_flag=True, help="Take vectors of other weights of the same shape."
)
@model_option
@threads_option
@json_option
@debug_option
def sweep(
    vectors: tuple[str, ...],
    strengths: str,
    prompts: str | None,
    layers: str | None,
    scope: str,
    max_tokens: int,
    temperature: float,
    seed: int,
    judge: str,
    voice: bool,
    raw: bool,
    plot: str | None,
    rows: int,
    allow_other_weights: bool,
    model: str,
    threads: Threads,
    as_json: bool,
) -> None:
    """Answer the same prompts at each strength, and say in which regime each strength is.

    Texts are scored by the unsteered model. With a judge, as many are made under random directions
    of equal norm: a strength that moves the text no more than those is inert. Without one, inert
    and surgical cannot be told apart.

    \b
    Example:
      pyemo sweep --cvec anger
      pyemo sweep --cvec anger --cvec calm --strengths 0:0.03:7 --plot sweep.png
      pyemo sweep --cvec my.gguf --prompts prompts.txt --judge none --json
    """
    from pyemo.engine.batches import check_lengths, n_ctx_for
    from pyemo.engine.engine import Engine
    from pyemo.engine.model import Model
    from pyemo.engine.sampling import GREEDY, SamplerParams
    from pyemo.files.local import check_folder_writable
    from pyemo.moods.grammar import parse_layers
    from pyemo.strengths.sweeps import check_judged, check_sweep, n_texts_of_sweep, parse_strengths
    from pyemo.strengths.sweeps import sweep as run_sweep
    from pyemo.strengths.voice import FEW_OTHERS, VoiceYardstick, reply_room
    from pyemo.vectors.control_vector import ControlVector

    if plot is not None:
        from pyemo.plots import check_extra, check_target

        check_extra()
        check_folder_writable(Path(plot).parent)
        check_target(plot)
    wanted = parse_strengths(strengths)
    texts = read_prompts(prompts)
    chosen = None if layers is None else parse_layers(layers)
    sampler = replace(
        GREEDY if temperature == 0 else SamplerParams(temperature=temperature), seed=seed
    )
    if judge != NO_JUDGE:
        check_judged(load_files(vectors))
    loaded = Model.load(model)
    found = [
        ControlVector.load(name, loaded, allow_other_weights=allow_other_weights)
        for name in vectors
    ]
    judging = load_judge(judge)
    check_sweep(found, wanted, judging is not None)
    tokens = [loaded.answer_tokens(text, raw=raw) for text in texts]
    check_lengths(loaded, tokens, max_tokens)
    n_ctx = n_ctx_for(tokens, max_tokens, rows)
    if voice:
        check_voices(found)
        n_ctx = max(n_ctx, reply_room(loaded))
    n_texts = n_texts_of_sweep(found, wanted, len(texts), judging is not None)
    with (
        Engine(loaded, n_ctx=n_ctx, n_seq_max=rows, n_threads=threads) as engine,
        output.progress(n_texts, "writing texts") as advance,
    ):
        result = run_sweep(
            engine,
            found,
            wanted,
            texts,
            sampler=sampler,
            max_tokens=max_tokens,
            judge=judging,
            layers=chosen,
            scope=scope,
            n_rows=rows,
            raw=raw,
            yardstick=VoiceYardstick(engine, others=FEW_OTHERS) if voice else None,
            on_progress=advance,
        )
    _report(result, as_json)
    if plot is not None:
        from pyemo.plots import strength_curves

        curves = {name: result.of(name) for name in result.vectors}
        strength_curves(plot, curves, f"{result.model}, {len(texts)} prompts, {max_tokens} tokens")


def check_voices(vectors: Sequence[ControlVector]) -> None:
    """Raise if the voice of none of the vectors can be measured.

    Raises:
        InputError: none is of the 20 emotions.
    """
    from pyemo.strengths.trials import voice_of

    if not any(map(voice_of, vectors)):
        names = ", ".join(vector.name for vector in vectors)
        raise InputError(
            f"none of {names} is of the 20 emotions that replies are written in; name a file by "
            "one, or leave out --voice"
        )


def _report(result: SweepResult, as_json: bool) -> None:
    if as_json:
        output.print_json(result.as_json())
        return
    for name in result.vectors:
        for line in strength_table(name, result.of(name)):
            output.say(line)
    if any(trial.voice is not None for trial in result.trials):
        output.note(
            "gain, specific, damage: nats per token of written replies in the emotion's voice, "
            "beyond others', and of plain ones lost"
        )
    if not result.judge:
        output.note("not judged: inert strengths count as surgical where the text stays coherent")
    else:
        output.note(
            f"emotion: as {result.judge} judges it, less the unsteered text's; random: under "
            "random directions of equal norm"
        )


def strength_table(name: str, trials: list[Trial]) -> list[str]:
    """Return a table of a vector's strengths, with a heading."""
    head = f"{'strength':>9} {'dose':>6} {'ratio':>22} {'distinct':>8} {'coherent':>8}"
    has_voice = any(trial.voice is not None for trial in trials)
    voice = f" {'gain':>6} {'specific':>8} {'damage':>6}" if has_voice else ""
    lines = [name, f"{head} {'emotion':>8} {'random':>7}{voice}  regime"]
    for trial in trials:
        report = trial.report
        ratio = report.ratio
        coherent = f"{report.n_coherent}/{report.n_texts}"
        interval = f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
        lines.append(
            f"{trial.strength:>9.4g} {_or_dash(trial.dose, '.3f'):>6} {interval:>22} "
            f"{trial.distinct_tokens:>8.2f} {coherent:>8} "
            f"{_or_dash(trial.effect, '+.3f'):>8} {_or_dash(trial.noise, '+.3f'):>7}"
            f"{_of_voice(trial.voice) if has_voice else ''}  {report.regime.value}"
        )
    return lines


def _of_voice(reading: VoiceReading | None) -> str:
    if reading is None:
        return f" {'-':>6} {'-':>8} {'-':>6}"
    away = None if reading.specificity is None else reading.specificity.value
    return f" {reading.gain.value:>+6.2f} {_or_dash(away, '+.2f'):>8} {reading.damage.value:>+6.2f}"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
