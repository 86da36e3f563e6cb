"""Options that say how a prompt is written: the variables of a model's chat template."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pyemo.cli.options import Command
    from pyemo.engine.model import Model


@dataclass(frozen=True)
class TemplateOptions:
    """What to tell a chat template, as it was typed."""

    think: bool | None = None
    arguments: tuple[tuple[str, Any], ...] = ()

    def kwargs(self, model: Model) -> dict[str, Any]:
        """Return the variables of ``model``'s template.

        Raises:
            InputError: thinking is to be switched, and the template has no switch for it.
        """
        switches = {} if self.think is None else model.think_kwargs(self.think)
        return {**switches, **dict(self.arguments)}


class _Argument(click.ParamType):  # type: ignore[type-arg]  # generic in newer ones only
    """NAME=VALUE; a value that is JSON is what it says, any other a text."""

    name = "NAME=VALUE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        name, equals, text = str(value).partition("=")
        if not name.isidentifier() or not equals:
            self.fail(f"{value!r} is no variable; write NAME=VALUE", param, ctx)
        try:
            return name, json.loads(text)
        except ValueError:
            return name, text


def template_options(command: Command) -> Callable[..., Any]:
    """Add ``--think`` and ``--template-arg``, handed over as ``template``."""

    @click.option(
        "--think",
        type=click.Choice(["on", "off"]),
        help="Let the model think before it answers, or not.  [default: as its template has it]",
    )
    @click.option(
        "--template-arg",
        "arguments",
        type=_Argument(),
        multiple=True,
        metavar="NAME=VALUE",
        help="Set a variable of the chat template; VALUE is JSON or a text. May be given "
        "several times.",
    )
    @functools.wraps(command)
    def gathered(
        *args: Any, think: str | None, arguments: tuple[tuple[str, Any], ...], **rest: Any
    ) -> Any:
        chosen = None if think is None else think == "on"
        return command(*args, template=TemplateOptions(chosen, arguments), **rest)

    return gathered
