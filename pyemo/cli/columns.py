"""Two texts side by side in a terminal, while they are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pyemo.cli.output import printable


def stream_side_by_side(titles: Sequence[str], streams: Sequence[Iterable[str]]) -> None:
    """Read the streams of text one after the other; show each in its own column as it comes."""
    console = Console(highlight=False)
    texts = [""] * len(titles)
    with Live(console=console, transient=True, refresh_per_second=10) as live:
        for column, stream in enumerate(streams):
            for text in stream:
                texts[column] += printable(text)
                live.update(_table(titles, texts))
    console.print(_table(titles, texts))  # whole, where the live view may have been cut


def _table(titles: Sequence[str], texts: Sequence[str]) -> Table:
    table = Table(expand=True, box=None, padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(Text(printable(title)), ratio=1, vertical="top")
    table.add_row(*map(Text, texts))
    return table
