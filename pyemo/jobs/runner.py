"""Runs independent jobs: here, in a pool of processes, or on a Dask scheduler.

Owns where a job runs; what it computes is the job's own matter.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

from pyemo.errors import InputError, MissingExtraError, SchedulerError
from pyemo.jobs.store import Result, Store

Tell: TypeAlias = Callable[[int, int, str], None]
"""Called with jobs done, jobs there are, and what was done last."""

RETRIES = 2
CONNECT_S = 5

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Job(Protocol[T_co]):
    """A piece of work that depends on nothing but itself; it and its result can be pickled."""

    @property
    def key(self) -> str:
        """The hash of all that the result depends on."""
        ...

    @property
    def label(self) -> str:
        """What progress shows of it."""
        ...

    def compute(self) -> T_co:
        """Return the result, computed here and now."""
        ...


class Runner(Protocol):
    """Computes jobs in any order and yields each one's result."""

    def run(self, jobs: Sequence[Job[T]]) -> Iterator[tuple[int, T]]:
        """Yield (index of the job, result) as they come."""
        ...


class Here:
    """One after the other in this process."""

    def run(self, jobs: Sequence[Job[T]]) -> Iterator[tuple[int, T]]:
        """Yield (index, result) in order."""
        for index, job in enumerate(jobs):
            yield index, job.compute()


class OnDask:
    """On the workers of a Dask client.

    A worker that dies costs the job it had: another takes it.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def run(self, jobs: Sequence[Job[T]]) -> Iterator[tuple[int, T]]:
        """Yield (index, result) as they come.

        Raises:
            SchedulerError: the scheduler is gone, or a job's workers died again and again.
            PyemoError: what a job raises on its worker.
        """
        from distributed import CancelledError, KilledWorker, as_completed
        from distributed.comm.core import CommClosedError

        futures = {
            self._client.submit(_compute, job, key=f"pyemo-{job.key}", retries=RETRIES): index
            for index, job in enumerate(jobs)
        }
        try:
            for future in as_completed(list(futures), loop=self._client.loop):  # type: ignore[no-untyped-call]
                yield futures[future], future.result()
        except KilledWorker as error:
            raise SchedulerError(
                f"every worker that took a job died ({error}); look at the workers' logs and "
                "memory, then start the same command again: what is finished is kept"
            ) from error
        except (CancelledError, CommClosedError, TimeoutError, OSError) as error:
            raise SchedulerError(
                f"the scheduler was lost ({type(error).__name__}); start it and the same command "
                "again: what is finished is kept"
            ) from error
        finally:
            with contextlib.suppress(Exception):  # the scheduler may be gone: nothing to take back
                self._client.cancel(list(futures))


def _compute(job: Job[T]) -> T:
    return job.compute()


@contextlib.contextmanager
def runner(scheduler: str | None = None, n_workers: int = 1) -> Iterator[Runner]:
    """Open what runs the jobs.

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
        with (
            _environment_of_workers(),
            distributed.LocalCluster(
                n_workers=n_workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=None,  # a job says what it needs before it begins
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


@contextlib.contextmanager
def _environment_of_workers() -> Iterator[None]:
    """Give processes that begin meanwhile their environment, and take it back in the end.

    Python that begins with `-c`, as Dask's workers do, looks for modules in the current folder
    first unless it is told not to. Dask itself sets variables for its workers (`OMP_NUM_THREADS`
    and others, ``distributed.nanny.pre-spawn-environ``) in this process, and leaves them.
    """
    before = dict(os.environ)
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def run_stored(jobs: Sequence[Job[Result]], store: Store, run: Runner, tell: Tell) -> list[Result]:
    """Return the jobs' results, in their order; those the store lacks are computed and kept.

    Raises:
        PyemoError: see :class:`Runner` and :meth:`Store.put`; what was finished is kept.
    """
    found: dict[str, Result] = {}
    missing: dict[str, Job[Result]] = {}
    for job in jobs:
        if job.key in found or job.key in missing:
            continue
        result = store.get(job.key)
        if result is None:
            missing[job.key] = job
        else:
            found[job.key] = result
    total = len(found) + len(missing)
    tell(len(found), total, "found in the store")
    to_do = list(missing.values())
    for index, result in run.run(to_do):
        store.put(to_do[index].key, result)
        found[to_do[index].key] = result
        tell(len(found), total, to_do[index].label)
    return [found[job.key] for job in jobs]


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise MissingExtraError(
            "running on several processes or machines needs Dask; run: pip install 'pyemo[study]'"
        ) from error
    return distributed
