"""Runs cells: here, in a pool of processes, or on a Dask scheduler.

What is in the store is not run.

Owns where a cell runs and that its result is kept the moment it is there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

from pyemo.errors import InputError, MissingExtraError, SchedulerError
from pyemo.study.cells import Cell, compute
from pyemo.study.store import Result, Store

Tell: TypeAlias = Callable[[int, int, str], None]
"""Called with cells done, cells there are, and what was done last."""

RETRIES = 2
CONNECT_S = 5
POLL_S = 2.0


class Runner(Protocol):
    """Computes cells in any order and yields each with its result."""

    def run(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
        """Yield (cell, result) as they come."""
        ...


class Here:
    """One after the other in this process."""

    def run(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
        """Yield (cell, result) in order."""
        for cell in cells:
            yield cell, compute(cell)


class OnDask:
    """On the workers of a Dask client.

    A worker that dies costs the cell it had: another takes it.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def run(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
        """Yield (cell, result) as they come.

        Raises:
            SchedulerError: the scheduler is gone, or a cell's workers died again and again.
            PyemoError: what a cell raises on its worker.
        """
        from distributed import CancelledError, KilledWorker, as_completed
        from distributed.comm.core import CommClosedError

        futures = {
            self._client.submit(compute, cell, key=f"pyemo-{cell.key}", retries=RETRIES): cell
            for cell in cells
        }
        try:
            for future in as_completed(list(futures), loop=self._client.loop):  # type: ignore[no-untyped-call]
                yield futures[future], future.result()
        except KilledWorker as error:
            raise SchedulerError(
                f"every worker that took a cell died ({error}); look at the workers' logs and "
                "memory, then start the same study again: finished cells are kept"
            ) from error
        except (CancelledError, CommClosedError, TimeoutError, OSError) as error:
            raise SchedulerError(
                f"the scheduler was lost ({type(error).__name__}); start it and the same study "
                "again: finished cells are kept"
            ) from error
        finally:
            with contextlib.suppress(Exception):  # the scheduler may be gone: nothing to take back
                self._client.cancel(list(futures))


@contextlib.contextmanager
def runner(scheduler: str | None = None, n_workers: int = 1) -> Iterator[Runner]:
    """Open what runs the cells.

    Args:
        scheduler: address of a Dask scheduler, such as ``tcp://host:8786``; None for this machine.
        n_workers: processes on this machine; 1 computes in this one.
    Raises:
        InputError: n_workers below 1, or both a scheduler and workers.
        SchedulerError: no scheduler there.
        MissingExtraError: Dask is not installed.
    """
    if n_workers < 1:
        raise InputError(f"{n_workers} workers; at least 1 is needed")
    if scheduler is not None and n_workers != 1:
        raise InputError("a scheduler has workers of its own; leave --workers out")
    if scheduler is None and n_workers == 1:
        yield Here()
        return
    distributed = _distributed()
    if scheduler is None:
        # Their Python begins with `-c`, which looks for modules in the current folder first.
        os.environ["PYTHONSAFEPATH"] = "1"
        with (
            distributed.LocalCluster(
                n_workers=n_workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                silence_logs=50,
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield OnDask(client)
        return
    try:
        client = distributed.Client(scheduler, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise SchedulerError(
            f"no Dask scheduler at {scheduler} ({error}); start one with `dask scheduler`, and "
            "workers with `dask worker ADDRESS --nthreads 1`"
        ) from error
    try:
        yield OnDask(client)
    finally:
        client.close(timeout=CONNECT_S)


def run_cells(cells: Sequence[Cell], store: Store, run: Runner, tell: Tell) -> list[Result]:
    """Return the cells' results, in their order; those the store lacks are computed and kept.

    Raises:
        PyemoError: see :class:`Runner` and :meth:`Store.put`; what was finished is kept.
    """
    found: dict[str, Result] = {}
    missing: dict[str, Cell] = {}
    for cell in cells:
        if cell.key in found or cell.key in missing:
            continue
        result = store.get(cell.key)
        if result is None:
            missing[cell.key] = cell
        else:
            found[cell.key] = result
    total = len(found) + len(missing)
    tell(len(found), total, "found in the store")
    for cell, result in run.run(list(missing.values())):
        store.put(cell.key, result)
        found[cell.key] = result
        tell(len(found), total, cell.label)
    return [found[cell.key] for cell in cells]


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise MissingExtraError(
            "running on several processes or machines needs Dask; run: pip install 'pyemo[study]'"
        ) from error
    return distributed
