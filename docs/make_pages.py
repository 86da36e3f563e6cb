"""Write what pages can say of themselves; run by `make docs`.

docs/cli.md comes from the commands' help, the README's first output from its first program, the
table of strengths in docs/strengths.md from the bundled files.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import click

from pyemo.cli import main

CLI_PAGE = Path(__file__).parent / "cli.md"
README = Path(__file__).parents[1] / "README.md"
STRENGTHS_PAGE = Path(__file__).parent / "strengths.md"
VECTORS = Path(__file__).parents[1] / "models" / "vectors"

_HEAD = """\
# The commands

Written by `make docs` from `--help`; a test compares. Results go to stdout, messages and progress
to stderr; `--json` prints the result as JSON. What the words mean: [concepts.md](concepts.md).
"""


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Yield a command's full name and itself, then those of its subcommands."""
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        for sub in command.list_commands(context):
            found = command.get_command(context, sub)
            assert found is not None
            yield from commands(found, f"{name} {sub}")


def help_text(command: click.Command, name: str) -> str:
    """Return the command's help as a terminal of 100 columns shows it."""
    context = click.Context(
        command,
        info_name=name,
        terminal_width=100,
        max_content_width=100,
        help_option_names=main.context_settings["help_option_names"],
    )
    return "\n".join(line.rstrip() for line in command.get_help(context).splitlines())


def cli_page() -> str:
    """Return the page of the commands."""
    sections = [
        f"\n## {name}\n\n```\n{help_text(command, name)}\n```\n"
        for name, command in commands(main, "pyemo")
    ]
    return _HEAD + "".join(sections)


def readme_output(text: str) -> str:
    """Return what the README's first program prints; runs it on the default model."""
    program = re.search(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert program is not None
    printed = io.StringIO()
    # the number of threads changes the low bits, and so the text
    one_core = mock.patch("pyemo.engine.threads.available_cores", return_value=1)
    with one_core, contextlib.redirect_stdout(printed):
        exec(compile(program[1], "README.md", "exec"), {})
    lines = (line.rstrip() for line in printed.getvalue().splitlines())
    return "\n".join(lines).rstrip("\n") + "\n"


def readme_page() -> str:
    """Return the README with the output its first program has now, as its first text block."""
    text = README.read_text(encoding="utf-8")
    block = f"```text\n{readme_output(text)}```"
    form = re.compile(r"^```text\n.*?^```$", flags=re.MULTILINE | re.DOTALL)
    return form.sub(lambda _: block, text, count=1)


def windows_table() -> str:
    """Return the strengths that the bundled vector files carry, as a table."""
    from pyemo import ControlVector
    from pyemo.emotions import EMOTIONS

    folders = sorted(VECTORS.iterdir(), reverse=True)
    lines = ["| emotion | " + " | ".join(folder.name for folder in folders) + " |"]
    lines.append("|---" * (len(folders) + 1) + "|")
    for emotion in EMOTIONS:
        cells = []
        for folder in folders:
            metadata = ControlVector.load(folder / f"{emotion}.gguf").metadata
            found = [
                f"**{kept.strength:g}** ({kept.window[0]:g} to {kept.window[1]:g})"
                for kept in metadata.calibrations
            ]
            if not found and metadata.strength is not None:
                found = [f"**{metadata.strength:g}** (trained)"]
            cells.append("; ".join(found) or "none")
        lines.append(f"| {emotion} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def strengths_page() -> str:
    """Return docs/strengths.md with the table that the files have now."""
    text = STRENGTHS_PAGE.read_text(encoding="utf-8")
    form = re.compile(r"(?<=<!-- windows -->\n).*(?=<!-- end -->)", flags=re.DOTALL)
    page, n_found = form.subn(f"\n{windows_table()}\n", text)
    assert n_found == 1, "docs/strengths.md has lost the marks of its table"
    return page


if __name__ == "__main__":
    STRENGTHS_PAGE.write_text(strengths_page(), encoding="utf-8")
    CLI_PAGE.write_text(cli_page(), encoding="utf-8")
    README.write_text(readme_page(), encoding="utf-8")
