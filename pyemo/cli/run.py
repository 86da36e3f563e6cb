"""``pyemo run``: one prompt, answered and streamed."""

from __future__ import annotations

import click
from click.core import ParameterSource

from pyemo.choices import DEFAULT_TOKENS
from pyemo.cli import output
from pyemo.cli.grammar_options import grammar_options
from pyemo.cli.options import (
    EngineOptions,
    debug_option,
    engine_options,
    guard_options,
    json_option,
    mood_options,
    repetition_option,
    sampler_options,
    stop_option,
    system_line_option,
)
from pyemo.cli.template_options import TemplateOptions, template_options
from pyemo.engine.sampling import SamplerParams
from pyemo.moods.options import MoodOptions


@click.command(short_help="Answer one prompt, steered.")
@click.argument("prompt")
@mood_options
@click.option(
    "--cache-vector",
    "cache",
    multiple=True,
    metavar="FILE[=STRENGTH]",
    help="Add a cache vector to the prompt's cells in the KV cache; docs/cache-steering.md. May be "
    "given several times.",
)
@click.option("--compare", is_flag=True, help="Show the unsteered reply beside the steered one.")
@click.option(
    "--gauge",
    "gauges",
    multiple=True,
    metavar="VECTOR",
    help="Show at every token how far it points along this vector: NAME_OR_FILE[@LAYER]. May be "
    "given several times.",
)
@click.option("--system", metavar="TEXT", help="A system message in front.")
@system_line_option
@click.option("--raw", is_flag=True, help="Continue PROMPT as it is, without the chat template.")
@click.option(
    "--max-tokens",
    "-n",
    type=int,
    default=DEFAULT_TOKENS,
    show_default=True,
    metavar="N",
    help="Stop the reply after N tokens.",
)
@stop_option
@repetition_option
@template_options
@guard_options
@sampler_options
@grammar_options
@engine_options
@click.option(
    "--server",
    metavar="URL",
    help="Ask a running `pyemo serve` instead; model, vectors and threads are its own.",
)
@json_option
@debug_option
@click.pass_context
def run(
    context: click.Context,
    prompt: str,
    cache: tuple[str, ...],
    compare: bool,
    gauges: tuple[str, ...],
    system: str | None,
    has_line: bool,
    raw: bool,
    max_tokens: int,
    stop: tuple[str, ...],
    as_json: bool,
    mood: MoodOptions,
    sampler: SamplerParams,
    engine: EngineOptions,
    guard: str | None,
    template: TemplateOptions,
    stop_repetition: bool,
    server: str | None,
) -> None:
    """Answer PROMPT, steered with control vectors, and stream the reply.

    A PROMPT of "-" is read from stdin.

    \b
    Example:
      pyemo run --cvec anger "Write to your neighbour about the noise."
      pyemo run --compare --cvec anger=0.03 --cvec sad=0.01 "How was your day?"
      pyemo run --compare --cache-vector ./angry-cache.gguf=0.8 "How was your day?"
      pyemo run --cvec ./my.gguf=0.02@8:20 --schedule half-life:40 "Tell me a story."
      echo "Once upon a time" | pyemo run --raw --json -
      pyemo run --server localhost:8080 --cvec anger "How was your day?"
      pyemo run --json-schema mood.json --cvec anger "How was your day? Answer in JSON."
    """
    if compare and not mood.vectors and not cache:
        raise click.UsageError(
            "--compare shows the effect of vectors: name one with --cvec or --cache-vector"
        )
    if server is not None:
        if cache:
            raise click.UsageError("--cache-vector needs the model here: leave out --server")
        from pyemo.cli import run_remote

        run_remote.refuse_what_is_the_server_s(context, mood)
        typed = context.get_parameter_source("model") is not ParameterSource.DEFAULT
        remote = run_remote.RemoteRequest(
            server,
            output.read_prompt(prompt),
            system,
            raw,
            engine.model if typed else None,
            max_tokens,
            stop,
            gauges,
            sampler,
            mood,
            guard is not None,
            template,
            stop_repetition,
        )
        show_remote = run_remote.print_comparison if compare else run_remote.print_reply
        show_remote(remote, as_json)
        return
    from pyemo.cli.run_job import Request, print_comparison, print_reply

    request = Request(
        prompt,
        system,
        raw,
        max_tokens,
        stop,
        gauges,
        sampler,
        engine,
        mood,
        guard,
        template,
        stop_repetition,
        cache,
        has_line,
    )
    with request.open() as job:
        show = print_comparison if compare else print_reply
        show(job, as_json)
