"""Options that say what a reply may be: a grammar, or a JSON schema."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from pyemo.errors import InputError

if TYPE_CHECKING:
    from pyemo.cli.options import Command
    from pyemo.engine.sampling import SamplerParams


def grammar_options(command: Command) -> Callable[..., Any]:
    """Add ``--json-schema`` and ``--grammar``, which become the ``sampler``'s grammar."""

    @click.option(
        "--json-schema",
        "schema",
        metavar="FILE",
        help="Answer in JSON that meets this schema; docs/python.md.",
    )
    @click.option(
        "--grammar",
        metavar="FILE",
        help="Answer only what this grammar allows: a file in GBNF, as llama.cpp has it.",
    )
    @functools.wraps(command)
    def gathered(
        *args: Any, schema: str | None, grammar: str | None, sampler: SamplerParams, **rest: Any
    ) -> Any:
        if schema is not None and grammar is not None:
            raise click.UsageError("--json-schema and --grammar each say what a reply may be")
        path = schema if grammar is None else grammar
        if path is not None:
            from pyemo.engine.grammar import Grammar

            load = Grammar.load if schema is None else Grammar.load_json_schema
            try:
                sampler = replace(sampler, grammar=load(path))
            except InputError as error:
                text = str(error)
                raise InputError(text if path in text else f"{path}: {text}") from None
        return command(*args, sampler=sampler, **rest)

    return gathered
