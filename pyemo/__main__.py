"""``pyemo`` and ``python -m pyemo``: the command, from its first moment on.

Owns what Ctrl-C does while the command is imported; from then on it is ``pyemo.cli``'s.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command."""
    try:
        from pyemo.cli import main as command
    except KeyboardInterrupt:
        sys.exit(130)  # pyemo.cli's EXIT_INTERRUPTED
    command(prog_name="pyemo")


if __name__ == "__main__":
    main()
