"""A reply with its gauges beneath it, moving with every token, in a terminal."""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from pyemo.cli.meters import gauge_means, reading_lines
from pyemo.cli.output import printable
from pyemo.cli.replying import Answer

WINDOW = 8
"""Tokens whose mean the bars show: one token's reading jumps too much to be read."""


def stream_with_gauges(answer: Answer, console: Console | None = None) -> None:
    """Decode the reply: finished lines scroll up, the open one stands over the gauges.

    The gauges vanish with the reply's end, and the text stays.
    """
    console = console or Console(highlight=False)
    line = ""
    # what the reader stops (Ctrl-C) leaves the open line on the screen too
    with Live(console=console, transient=True, refresh_per_second=12) as live:
        try:
            for text in answer.texts():
                *done, line = (line + printable(text)).split("\n")
                for whole in done:
                    console.print(Text(whole))
                bars = reading_lines(gauge_means(answer.reply.tokens[-WINDOW:]))
                live.update(Group(Text(line), *(Text(bar, style="dim") for bar in bars)))
        finally:
            live.update(Text(""))
            if line:
                console.print(Text(line))
