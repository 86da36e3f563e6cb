"""The command ``pyemo``: finds a subcommand by name and imports it only then.

Owns exit codes and what is said when something fails. Each subcommand lives in a file of its own;
what it needs of numpy, torch or the engine it imports when it runs, so that help is instant.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

import click

from pyemo.cli import output, stdio
from pyemo.errors import PyemoError

EXIT_ERROR = 1
EXIT_INTERRUPTED = 128 + 2  # as a shell reports a program that SIGINT ended
EXIT_BROKEN_PIPE = 128 + 13  # ... and SIGPIPE

DEBUG = "pyemo.debug"
"""Key of the context's meta: whether tracebacks are shown."""

# name of a command -> where it is, in the order of the help
COMMANDS = {
    "run": "pyemo.cli.run:run",
    "chat": "pyemo.cli.chat:chat",
    "serve": "pyemo.cli.serve:serve",
    "models": "pyemo.cli.models:models",
    "inspect": "pyemo.cli.inspect:inspect",
    "extract": "pyemo.cli.extract:extract",
    "condition": "pyemo.cli.condition:condition",
    "convert": "pyemo.cli.convert:convert",
    "rescale": "pyemo.cli.rescale:rescale",
    "card": "pyemo.cli.card:card",
    "sweep": "pyemo.cli.sweep:sweep",
    "calibrate": "pyemo.cli.calibrate:calibrate",
    "study": "pyemo.cli.study:study",
    "check": "pyemo.cli.check:check",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        stdio.prepare()
        # Without a handler Python prints llama.cpp's errors; what matters of them is in ours.
        logging.getLogger("pyemo.llama").addHandler(logging.NullHandler())
        return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _failures():  # the help is printed here
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _failures():
            return super().invoke(ctx)


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Turn what goes wrong into one line and an exit code."""
    try:
        yield
        sys.stdout.flush()  # a reader that has gone is noticed here, not when Python ends
    except PyemoError as error:
        if _is_debugging():
            raise
        output.say_error(error)
        raise click.exceptions.Exit(EXIT_ERROR) from None
    except KeyboardInterrupt:
        output.message("\nStopped.")  # below the terminal's ^C
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        stdio.silence(sys.stdout)
        raise click.exceptions.Exit(EXIT_BROKEN_PIPE) from None
    except OSError as error:
        if _is_debugging() or not stdio.is_of_a_stream(error):
            raise
        stdio.silence(sys.stdout)
        output.say_error(f"standard input or output failed: {error.strerror}")
        raise click.exceptions.Exit(EXIT_ERROR) from None


def _is_debugging() -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(DEBUG))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="pyemo", prog_name="pyemo", message="%(prog)s %(version)s")
def main() -> None:
    """Steer quantized small language models with emotion control vectors.

    \b
    Example:
      pyemo run --cvec anger "Write to your neighbour about the noise."

    Results go to stdout, messages to stderr. Exit codes: 0 done, 1 an error that says its remedy,
    2 wrong usage, 130 stopped by Ctrl-C.
    """
