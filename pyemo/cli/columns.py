"""Two texts side by side in a terminal, while they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pyemo.cli.output import printable
from pyemo.cli.run_job import Answer


def stream_side_by_side(
    titles: Sequence[str], begin: Sequence[Callable[[], Answer]]
) -> list[Answer]:
    """Decode the answers one after the other, and show each in its own column as it comes."""
    console = Console(highlight=False)
    texts = [""] * len(titles)
    answers: list[Answer] = []
    with Live(console=console, transient=True, refresh_per_second=10) as live:
        for column, start in enumerate(begin):
            answer = start()
            for text in answer.texts():
                texts[column] += printable(text)
                live.update(_table(titles, texts))
            answers.append(answer)
    console.print(_table(titles, texts))  # whole, where the live view may have been cut
    return answers


def _table(titles: Sequence[str], texts: Sequence[str]) -> Table:
    table = Table(expand=True, box=None, padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(Text(printable(title)), ratio=1, vertical="top")
    table.add_row(*map(Text, texts))
    return table
