"""A reply with its gauges beneath it, moving with every token, in a terminal."""

from __future__ import annotations

import math
import time

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from pyemo.cli.meters import gauge_means, reading_lines
from pyemo.cli.output import printable
from pyemo.cli.run_job import Answer

WINDOW = 8
"""Tokens whose mean the bars show: one token's reading jumps too much to be read."""

INTERVAL_S = 0.08
"""Seconds between two pictures."""


def stream_with_gauges(answer: Answer, console: Console | None = None) -> None:
    """Decode the reply: finished lines scroll up, the open one stands over the gauges.

    The gauges vanish with the reply's end, and the text stays.
    """
    console = console or Console(highlight=False)
    line = ""
    shown_at = -math.inf
    # what the reader stops (Ctrl-C) leaves the open line on the screen too
    with Live(console=console, transient=True, auto_refresh=False) as live:
        try:
            for text in answer.texts():
                *done, line = (line + printable(text)).split("\n")
                for whole in done:
                    console.print(Text(whole))
                if time.monotonic() - shown_at > INTERVAL_S:
                    bars = reading_lines(gauge_means(answer.reply.tokens[-WINDOW:]))
                    bars_text = (Text(bar, style="dim") for bar in bars)
                    live.update(Group(Text(line), *bars_text), refresh=True)
                    shown_at = time.monotonic()
        finally:
            live.update(Text(""))
            if line:
                console.print(Text(line))
