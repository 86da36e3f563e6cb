"""``--workers`` and ``--scheduler``: where independent jobs run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pyemo.jobs.runner import Runner

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Workers:
    """Where jobs run: in this process, in several, or on a Dask scheduler."""

    n: int | None
    scheduler: str | None

    @property
    def is_here(self) -> bool:
        """Whether this process does the work itself."""
        return self.scheduler is None and self.n in (None, 1)

    @property
    def n_here(self) -> int:
        """Processes that share this machine."""
        return 1 if self.scheduler is not None else self.n or 1

    @contextlib.contextmanager
    def open(self) -> Iterator[Runner]:
        """Yield what runs the jobs; see :func:`pyemo.jobs.runner.runner`."""
        from pyemo.jobs.runner import runner

        with runner(self.scheduler, self.n or 1) as run:
            yield run


def scheduler_option(command: Command) -> Command:
    """Add ``--scheduler``."""
    return click.option(
        "--scheduler", metavar="ADDRESS", help="A Dask scheduler, such as tcp://host:8786."
    )(command)


def workers_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--workers`` and ``--scheduler``, handed over as ``workers``, a :class:`Workers`."""

    @functools.wraps(command)
    def gathered(*args: Any, workers: int | None, scheduler: str | None, **rest: Any) -> Any:
        return command(*args, workers=Workers(workers, scheduler), **rest)

    return click.option(
        "--workers",
        type=int,
        metavar="N",
        help="Processes side by side, of one thread each unless --threads says more.  "
        "[default: this one]",
    )(scheduler_option(gathered))
