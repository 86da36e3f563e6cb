"""``pyemo chat``: a conversation in the terminal, or line by line through a pipe."""

from __future__ import annotations

import click

from pyemo.cli.options import (
    EngineOptions,
    debug_option,
    engine_options,
    guard_options,
    mood_options,
    repetition_option,
    sampler_options,
    stop_option,
    system_line_option,
)
from pyemo.cli.template_options import TemplateOptions, template_options
from pyemo.engine.sampling import SamplerParams
from pyemo.moods.options import MoodOptions


@click.command(short_help="Talk with a model, and change its mood on the way.")
@mood_options
@click.option(
    "--gauge",
    "gauges",
    multiple=True,
    metavar="VECTOR",
    help="Show how far replies point along this vector too: NAME_OR_FILE[@LAYER]. May be given "
    "several times.",
)
@click.option("--system", metavar="TEXT", help="A system message in front, which always stays.")
@system_line_option
@click.option(
    "--max-tokens",
    "-n",
    type=int,
    default=256,
    show_default=True,
    metavar="N",
    help="Stop a reply after N tokens.",
)
@stop_option
@repetition_option
@template_options
@guard_options
@sampler_options
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a turn, on one line.")
@debug_option
@click.pass_context
def chat(
    ctx: click.Context,
    gauges: tuple[str, ...],
    system: str | None,
    has_line: bool,
    max_tokens: int,
    stop: tuple[str, ...],
    as_json: bool,
    mood: MoodOptions,
    sampler: SamplerParams,
    engine: EngineOptions,
    guard: str | None,
    template: TemplateOptions,
    stop_repetition: bool,
) -> None:
    """Talk with a model; each line is a turn. The mood can be changed between any two turns.

    \b
    Lines that begin with "/":
      /mood anger=0.02 sad=0.01     steer from here on; /mood shows the mood, /mood off ends it
      /refresh                      compute the conversation again under the current mood
      /reset                        forget the conversation
      /gauges                       hide or show the gauges
                                    a reading is what the model adds by itself;
                                    the dose is what the steering puts in;
                                    the largest reading, from 0.05 up, fills its bar
      /help, /quit

    Ctrl-C stops a reply; what came so far stays. When the context is full, the oldest turns are
    left out, and that is said. Lines are read from stdin, which may be a pipe; an error there is
    said, the next line is read, and the exit code is 1 in the end.

    \b
    Example:
      pyemo chat --cvec anger=0.02 --system "You are a shopkeeper."
      printf 'Hello!\\n/mood joy=0.02\\nAnd now?\\n' | pyemo chat --json
    """
    from pyemo.cli.chat_job import Request

    request = Request(
        system,
        max_tokens,
        stop,
        gauges,
        sampler,
        engine,
        mood,
        guard,
        template,
        stop_repetition,
        has_line,
    )
    with request.open(as_json) as session:
        session.run()
    if session.n_errors:
        ctx.exit(1)
