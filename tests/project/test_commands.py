"""Every command has help with an example and its place in the pages; examples can be parsed."""

from __future__ import annotations

import re
import shlex

import click
import pytest
from pages import PAGES, ROOT, blocks, read, script

from pyemo.cli import main

PAGE_MAKER = script(ROOT / "docs" / "make_pages.py")
COMMANDS = dict(PAGE_MAKER.commands(main, "pyemo"))
LEAVES = {
    name: found
    for name, found in COMMANDS.items()
    if not isinstance(found, click.Group) or (found.invoke_without_command and name != "pyemo")
}


def pipelines(text: str) -> list[list[str]]:
    """Return the words of each call of pyemo in lines of shell."""
    joined = text.replace("\\\n", " ")
    calls = []
    for line in joined.splitlines():
        words: list[str] = []
        for word in [*shlex.split(line.removeprefix("$ "), comments=True), "|"]:
            if word in ("|", "&", "&&", ">", "2>", "<"):
                calls.append(words)
                words = []
            else:
                words.append(word)
    return [call for call in calls if call[:1] in (["pyemo"], [".venv/bin/pyemo"])]


def parse(call: list[str]) -> None:
    """Let click parse the call, as far as the command itself."""
    command: click.Command = main
    name, words = call[0], call[1:]
    settings = main.context_settings  # a command remembers how its help was asked for first
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        context = click.Context(command, info_name=name, **settings)
        found = command.get_command(context, words[0])
        if found is None:
            break
        command, name, words = found, words[0], words[1:]
    with command.make_context(name, list(words), **settings):
        pass


@pytest.mark.parametrize("name", LEAVES)
def test_command_has_help_with_an_example_that_parses(name: str) -> None:
    text = LEAVES[name].help or ""
    shown = text.partition("Example:")[2]
    calls = pipelines("\n".join(line.strip() for line in shown.splitlines() if line.strip()))
    assert LEAVES[name].short_help
    assert any(" ".join(call).startswith(name) for call in calls)
    for call in calls:
        parse(call)


@pytest.mark.parametrize("name", LEAVES)
def test_every_option_says_what_it_does(name: str) -> None:
    options = [param for param in LEAVES[name].params if isinstance(param, click.Option)]
    assert [param.opts for param in options if not param.help] == []


@pytest.mark.parametrize("name", LEAVES)
def test_reporting_command_has_json_and_debug(name: str) -> None:
    options = {opt for param in LEAVES[name].params for opt in param.opts}
    assert {"--json", "--debug"} <= options


@pytest.mark.parametrize("name", LEAVES)
def test_command_is_in_the_readme(name: str) -> None:
    assert f"`{name}`" in read(ROOT / "README.md") or f"{name} " in read(ROOT / "README.md")


def test_page_of_the_commands_is_their_help() -> None:
    wanted = PAGE_MAKER.cli_page()
    page = read(ROOT / "docs" / "cli.md")
    assert page == wanted, "write it anew: make docs"


def test_page_of_the_strengths_has_those_of_the_files() -> None:
    page = read(ROOT / "docs" / "strengths.md")
    assert page == PAGE_MAKER.strengths_page(), "write it anew: make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_pages_parse(page: object) -> None:
    text = read(page)  # type: ignore[arg-type]
    for block in blocks(text, "sh") + blocks(text, "console"):
        for call in pipelines(block):
            parse(call)


@pytest.mark.quality
def test_readme_shows_what_its_program_prints() -> None:
    page = read(ROOT / "README.md")
    assert page == PAGE_MAKER.readme_page(), "write it anew: make docs"


def test_words_of_make_in_the_pages_exist() -> None:
    makefile = read(ROOT / "Makefile")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    used = {
        word
        for page in PAGES
        for word in re.findall(r"(?:`|^)make ([a-z-]+)(?:`| |$)", read(page), flags=re.MULTILINE)
    }
    assert sorted(used - targets) == []


def test_ci_runs_make_test_and_nothing_else() -> None:
    script = read(ROOT / ".ci" / "run")
    commands = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert commands[-1] == "exec make test"
    assert all(line.split()[0] in ("set", "cd", "echo", "exec") for line in commands)
