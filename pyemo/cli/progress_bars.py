"""Progress of work that has several parts: one bar after the other on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from pyemo.cli import output


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Yield what is told of progress: what is being done, how much is done, how much there is.

    Each part has a bar of its own, with an estimate of the time left.
    """
    with contextlib.ExitStack() as shown:
        current, at = "", 0
        advance: Callable[[int], None] | None = None

        def tell(what: str, done: int, total: int) -> None:
            nonlocal current, at, advance
            if advance is None or what != current or done < at:
                shown.close()
                advance = shown.enter_context(output.progress(total, what))
                current, at = what, 0
            advance(done - at)
            at = done

        yield tell
