"""``pyemo serve``: an OpenAI-compatible server in which every request has its own mood."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from pyemo.choices import DEFAULT_KV_TYPE, DEFAULT_MODEL, KV_TYPES
from pyemo.cli import output
from pyemo.cli.options import ThreadsType, debug_option, json_option
from pyemo.errors import MissingExtraError

if TYPE_CHECKING:
    from pyemo.server.config import ServerConfig


@click.command(short_help="Serve a model, each request with a mood of its own.")
@click.option("--config", "file", metavar="FILE", help="TOML file with any of these options.")
@click.option(
    "--model",
    "-m",
    metavar="NAME",
    help=f"Catalog name, path or Hugging Face repository.  [default: {DEFAULT_MODEL}]",
)
@click.option(
    "--alias", multiple=True, metavar="NAME", help="Another name that requests may give the model."
)
@click.option("--host", metavar="ADDRESS", help="Where to listen.  [default: 127.0.0.1]")
@click.option("--port", type=int, metavar="N", help="0 takes a free one.  [default: 8080]")
@click.option(
    "--api-key",
    multiple=True,
    metavar="KEY",
    envvar="PYEMO_API_KEY",
    help="Refuse requests without this key. May be given several times; also read from "
    "PYEMO_API_KEY.",
)
@click.option(
    "--no-auth",
    is_flag=True,
    default=None,
    help="Need no key on an address that other machines reach.",
)
@click.option(
    "--cors", multiple=True, metavar="ORIGIN", help="Let web pages of this origin ask; * lets all."
)
@click.option("--n-seq-max", type=int, metavar="N", help="Replies at a time.  [default: 8]")
@click.option(
    "--n-ctx", type=int, metavar="N", help="Tokens that all replies share.  [default: 4096]"
)
@click.option(
    "--row-budget",
    type=int,
    metavar="N",
    help="Most tokens of one decode, first of running replies, then of prompts.  [default: by the "
    "clock: beside prompts a decode takes at most about 3.5 times as long]",
)
@click.option("--max-queue", type=int, metavar="N", help="Most requests that wait.  [default: 64]")
@click.option(
    "--no-prompt-cache",
    "prompt_cache",
    flag_value=False,
    default=None,
    help="Read every prompt from its beginning.",
)
@click.option("--threads", type=ThreadsType(), metavar="N|auto|live", help="Threads that compute.")
@click.option(
    "--kv-type",
    type=click.Choice(list(KV_TYPES)),
    help=f"Number type of the KV cache.  [default: {DEFAULT_KV_TYPE}]",
)
@click.option(
    "--vectors", metavar="FOLDER", help="Offer this folder's vectors too, by their file names."
)
@click.option(
    "--allow-other-weights",
    is_flag=True,
    default=None,
    help="Offer vectors that were made on other weights of the same shape.",
)
@click.option(
    "--steering",
    metavar="MOOD",
    help="Mood of requests that name none, such as 'calm=0.01 + joy=0.02'.",
)
@click.option("--guard", is_flag=True, default=None, help="Guard replies unless a request says no.")
@click.option(
    "--repetition-stop/--no-repetition-stop",
    default=None,
    help="End a reply that goes in circles, unless a request says no.  [default: repetition-stop]",
)
@click.option("--max-body", type=int, metavar="BYTES", help="Largest request.  [default: 4194304]")
@click.option(
    "--read-timeout",
    type=float,
    metavar="S",
    help="Most seconds until a request is read.  [default: 20]",
)
@click.option(
    "--time-limit", type=float, metavar="S", help="Most seconds of one reply.  [default: 600]"
)
@click.option(
    "--drain",
    type=float,
    metavar="S",
    help="Seconds that running replies have at the end.  [default: 10]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be served, and the memory it takes.")
@json_option
@debug_option
def serve(file: str | None, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Serve a model over OpenAI's routes. Each request may name its mood.

    Clients of OpenAI work unchanged: the mood is a field of the body, a header, or part of the
    model's name. docs/serving.md has them all.

    \b
    Example:
      pyemo serve
      pyemo serve -m gemma-3-270m --n-seq-max 16 --vectors ./my-vectors --port 9000
      pyemo serve --config pyemo.toml --dry-run
    """
    try:
        from pyemo.server.config import read_config
    except ImportError as error:
        raise MissingExtraError(
            f"{error.name} is not installed; pip install 'pyemo[serve]' brings what a server needs"
        ) from error

    given = {name: value for name, value in options.items() if value not in (None, ())}
    if "vectors" in given:
        given["vectors"] = os.path.abspath(os.path.expanduser(given["vectors"]))
    config = read_config(file, given)
    if dry_run:
        _print_plan(config, as_json)
    else:
        _run(config, as_json)


def _run(config: ServerConfig, as_json: bool) -> None:
    from pyemo.server.app import bound_socket, serve
    from pyemo.server.service import Service

    with bound_socket(config.host, config.port) as listener:
        port = listener.getsockname()[1]
        service = Service(config)
        host = f"[{config.host}]" if ":" in config.host else config.host
        url = f"http://{host}:{port}"

        def say_ready() -> None:
            if not config.is_local and not config.api_key:
                output.warn(f"everybody who reaches {config.host} may use this server (--no-auth)")
            if as_json:
                output.print_json({"url": url, "model": service.model.name}, one_line=True)
            else:
                output.say(f"{service.model.name} at {url}")
            output.note(f"moods: {', '.join(service.shelf.names()) or 'none'}; Ctrl-C ends")

        try:
            serve(service, listener, say_ready)
        finally:
            service.close()


def _print_plan(config: ServerConfig, as_json: bool) -> None:
    from pyemo.engine.memory import PYTHON_BYTES
    from pyemo.server.plan import plan_of

    plan = plan_of(config)
    if as_json:
        output.print_json(plan)
        return
    memory = plan["memory"]
    output.say(f"{plan['model']} on {plan['address']}")
    output.say(
        f"memory: about {output.size(memory['total'])}: weights {output.size(memory['weights'])}, "
        f"KV cache {_size(memory['kv_cache'])}, buffers {output.size(memory['compute'])}, "
        f"Python {output.size(PYTHON_BYTES)}"
    )
    output.say(
        f"{config.n_seq_max} replies at a time in {config.n_ctx} tokens; {config.max_queue} wait"
    )
    output.say(f"models: {', '.join(plan['models'])}")
    output.say(f"vectors: {', '.join(plan['vectors']) or 'none'}")
    output.say(f"default mood: {plan['steering'] or 'unsteered'}")
    output.say(f"access: {plan['access']}")


def _size(n_bytes: int | None) -> str:
    return "unknown" if n_bytes is None else output.size(n_bytes)
