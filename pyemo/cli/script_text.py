"""What is said of replies that have left their prompt's script."""

from __future__ import annotations

from pyemo.measures.repetition import new_script_share

SHOWN_SHARE = 0.01
"""Share of a reply's letters below which nothing is said: a name, a unit, a sign."""


def script_lines(text: str, *known: str) -> list[str]:
    """Return a line if the text has letters of scripts that ``known`` has none of, else none."""
    share = new_script_share(text, *known)
    if share < SHOWN_SHARE:
        return []
    return [
        f"{share:.0%} of the reply's letters are in a script that the prompt has none of; "
        "--stay-in-script keeps a reply in its own"
    ]
