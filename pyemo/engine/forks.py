"""Whether this process is a fork of one that had loaded a model, where nothing native works.

A fork copies one thread only. The threads of llama.cpp's pool, and whoever held a lock, are not
there, so a decode in the child would wait for ever. Knows nothing of models.
"""

from __future__ import annotations

import os

from pyemo.errors import ForkedError

_has_loaded = False
_is_forked = False


def note_load() -> None:
    """Remember that a model is loaded here: forks of this process are refused from now on."""
    global _has_loaded
    _has_loaded = True


def is_forked() -> bool:
    """Return whether this process was forked from one that had loaded a model."""
    return _is_forked


def check_not_forked() -> None:
    """Raise in a fork of a process that had loaded a model.

    Raises:
        ForkedError: such a fork.
    """
    if _is_forked:
        raise ForkedError(
            f"process {os.getpid()} was forked from one that had loaded a model, whose threads "
            "and locks were not copied; start it anew: multiprocessing.get_context('spawn')"
        )


def _after_fork() -> None:
    global _is_forked
    _is_forked = _is_forked or _has_loaded


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
