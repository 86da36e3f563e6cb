"""What commands print: results on stdout, messages on stderr, plain where nobody watches."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator

import click

from pyemo.cli import stdio

WIDE_COLUMNS = 100
"""From this width on, texts are shown side by side."""

_C1_IN_JSON = {code: f"\\u{code:04x}" for code in range(127, 160)}
"""JSON escapes the control characters below 32 only; terminals obey these too."""

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_CONTROLS = {
    code: "\N{REPLACEMENT CHARACTER}"
    for code in (*range(32), *range(127, 160))
    if chr(code) not in "\n\t"
}


def say(text: str = "") -> None:
    """Print lines of a result on stdout: as they are, but harmless where it is a terminal."""
    click.echo(shown_text(text))


def stream(texts: Iterable[str]) -> None:
    """Print a text as its parts come, and a line end after it."""
    last = ""
    for text in texts:
        click.echo(shown_text(text), nl=False)
        last = text or last
    if not last.endswith("\n"):
        say()


def cut_off(n_tokens: int) -> str:
    """Return what to say of a reply that its greatest length cut off."""
    return f"stopped after {n_tokens} tokens; take a larger --max-tokens"


def note(text: str) -> None:
    """Print one dim line on stderr."""
    plain = printable(text)
    colored = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    message(click.style(plain, dim=True) if colored else plain)


def warn(text: str) -> None:
    """Print one line on stderr, in red where colours are shown."""
    plain = printable(text)
    colored = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    message(click.style(f"Warning: {plain}", fg="red") if colored else f"Warning: {plain}")


def say_error(error: object) -> None:
    """Print what went wrong on one line of stderr."""
    message(f"Error: {printable(' '.join(str(error).splitlines()))}")


def message(text: str) -> None:
    """Print on stderr; where that fails, messages are lost and the command goes on."""
    try:
        click.echo(text, err=True)
    except OSError:
        stdio.silence(sys.stderr)


def print_json(value: object, *, one_line: bool = False) -> None:
    """Print a result as JSON; numbers that are not finite are refused, as JSON has none."""
    indent = None if one_line else 2
    text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    click.echo(text.translate(_C1_IN_JSON))


@contextlib.contextmanager
def progress(n_steps: int, label: str) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr if it is a terminal; yields what to call with steps done."""
    if not sys.stderr.isatty():
        yield lambda _n: None
        return
    with click.progressbar(length=n_steps, label=label, file=sys.stderr) as bar_:
        yield bar_.update


def is_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout.isatty()


def is_wide() -> bool:
    """Whether stdout is a terminal with room for two columns of text."""
    return is_terminal() and shutil.get_terminal_size().columns >= WIDE_COLUMNS


def shown_text(text: str) -> str:
    """Return a model's text for stdout: as it is, but harmless where it is a terminal."""
    return printable(text) if is_terminal() else text


def printable(text: str) -> str:
    """Return ``text`` with control characters made visible, which could command a terminal."""
    return text.translate(_CONTROLS)


def read_prompt(prompt: str) -> str:
    """Return the prompt, from stdin for ``-``, without a last line end; any bytes survive."""
    if prompt != "-":
        return prompt
    text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    return text.removesuffix("\n").removesuffix("\r")


def valid_text(text: str) -> str:
    """Return ``text`` for JSON: bytes that were no UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def bar(fraction: float, width: int) -> str:
    """Return a bar of ``fraction`` (0 to 1) of ``width`` characters, filled up with blanks."""
    eighths = round(min(max(fraction, 0.0), 1.0) * width * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (_EIGHTHS[rest] if rest else "")).ljust(width)


def signed_bar(fraction: float, half_width: int) -> str:
    """Return a bar that grows from the middle: left below 0, right above; -1 to 1 fill a half."""
    if fraction < 0:  # blocks fill from the left only, so the left half has whole ones
        n = round(min(-fraction, 1.0) * half_width)
        return f"{'█' * n:>{half_width}}│{'':{half_width}}"
    return f"{'':{half_width}}│{bar(fraction, half_width)}"


def short(number: float) -> str:
    """Return a number with three significant digits, such as 12.3 or 0.0456."""
    return f"{number:.3g}"


def size(n_bytes: int) -> str:
    """Return a file size in MB or GB, such as 98 MB."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
