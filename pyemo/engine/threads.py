"""How many threads a decode takes: from the cores this process may use and what others do on them.

Owns the readings of the system and the rule. llama.cpp's threads wait for each other by spinning,
so one that shares its core with another process holds up all of them: two threads beside one busy
process on two cores fall from 154 to 44 tokens/s, where a single thread keeps its 136 to 146
(SmolLM2-135M Q4_1). So a core that another process uses is left to it.

Readings are the kernel's counters (/proc/stat), never trial decodes, which are slow just when it
matters. Knows nothing of engines.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pyemo.errors import InputError

Threads: TypeAlias = "int | Literal['auto', 'live'] | None"
"""A fixed number; None: chosen once, when the engine opens; "auto": chosen again before each reply;
"live": and while a reply is written."""

MAX_THREADS = 512
FOLLOW_S = 0.5
"""How often "live" reads the load, in seconds; a change is followed within two such spans."""

_SHORTEST_S = 0.05  # of counters that move in steps of 10 ms
_STALE_S = 2.0
# A core is taken from us where others use more of it than _GIVE, and ours again below _TAKE.
# Between the two the number stays, so that it does not flutter.
_GIVE, _TAKE = 0.5, 0.25


@dataclass(frozen=True)
class CpuTimes:
    """Counters since some fixed time, in seconds.

    Attributes:
        at: when they were read.
        busy: of all processes, on the cores that this one may use.
        own: of this process, all its threads.
    """

    at: float
    busy: float
    own: float


def available_cores() -> int:
    """Return the number of cores this process may use, at least 1: affinity and container quota."""
    cores = len(_cpus()) or os.cpu_count() or 1
    quota = _quota(_read("/sys/fs/cgroup/cpu.max"))
    return max(1, min(cores, math.ceil(quota) if quota else cores))


def read_cpu_times() -> CpuTimes | None:
    """Return the current counters, None on a system that does not show them (only Linux does)."""
    stat = _read("/proc/stat")
    busy = None if stat is None else busy_seconds(stat, _cpus(), _clock_ticks())
    return None if busy is None else CpuTimes(time.monotonic(), busy, time.process_time())


def busy_seconds(stat: str, cpus: Set[int], ticks_per_s: int) -> float | None:
    """Return what /proc/stat says was spent on ``cpus``, all if empty, in seconds; None if nothing.

    Time that the hypervisor gave to other machines (steal) counts: it is not ours to use. Idle
    time, waiting for disks, and guests' time, which is in user time already, do not.
    """
    ticks = 0
    is_known = False
    for line in stat.splitlines():
        name, *numbers = line.split()
        if not name.startswith("cpu") or not name[3:].isdigit():
            continue
        if not cpus or int(name[3:]) in cpus:
            user, nice, system, _idle, _iowait, irq, softirq, steal = (
                int(number) for number in (numbers + ["0"] * 8)[:8]
            )
            ticks += user + nice + system + irq + softirq + steal
            is_known = True
    return ticks / ticks_per_s if is_known else None


def choose(cores: int, others: float, current: int | None = None) -> int:
    """Return the number of threads for ``cores`` of which other processes use ``others``.

    Args:
        others: in cores, such as 1.0 for one process that never waits.
        current: the present number, which is kept where it is as good; None to choose afresh.
    """
    most = _free(cores, others, _GIVE)
    least = _free(cores, others, _TAKE)
    if current is None:
        return most
    return min(max(current, least), most)


class LoadMeter:
    """What other processes used of our cores since the reading before."""

    def __init__(self, read: Callable[[], CpuTimes | None] = read_cpu_times) -> None:
        self._read = read
        self._before = read()

    @property
    def can_read(self) -> bool:
        """Whether this system shows its load."""
        return self._before is not None

    def start(self) -> None:
        """Measure from now on."""
        self._before = self._read()

    def age_s(self) -> float:
        """Return how long the span is that a reading would cover now."""
        return time.monotonic() - self._before.at if self._before is not None else math.inf

    def others(self) -> float | None:
        """Return the cores that others used since the last reading; None without a reading."""
        before, now = self._before, self._read()
        if before is None or now is None or now.at <= before.at:
            return None
        self._before = now
        busy = (now.busy - before.busy) - (now.own - before.own)
        return max(0.0, busy / (now.at - before.at))


class ThreadChoice:
    """The number of threads of one engine, and when it may change.

    Attributes:
        n_threads: the present number.
        reason: a sentence on how it came about.
    """

    def __init__(
        self,
        threads: Threads = None,
        *,
        cores: int | None = None,
        meter: LoadMeter | None = None,
    ) -> None:
        """Choose the first number.

        Raises:
            InputError: neither a number from 1 to 512 nor one of the words.
        """
        _check(threads)
        self.n_threads = 0
        self._mode = threads
        self._cores = available_cores() if cores is None else cores
        if isinstance(threads, int):
            self.n_threads = threads
            self.reason = f"{threads} as asked for"
            return
        self._meter = meter or _since_load
        self._take(_recent(self._meter))
        if self.follows and meter is None:
            self._meter = LoadMeter()  # its own, so that two engines do not take readings away

    @property
    def follows(self) -> bool:
        """Whether the number may change between replies."""
        return self._mode in ("auto", "live")

    @property
    def is_live(self) -> bool:
        """Whether it may change within a reply."""
        return self._mode == "live"

    def before_reply(self) -> int:
        """Return the number for a reply that begins now; 50 ms for a reading, where it follows."""
        if self.follows:
            self._take(_recent(self._meter))
        return self.n_threads

    def within_reply(self) -> int:
        """Return the number for the next decode.

        Costs a look at the clock, and every ``FOLLOW_S`` a reading, some 50 microseconds.
        """
        if self.is_live and self._meter.age_s() >= FOLLOW_S:
            self._take(self._meter.others())
        return self.n_threads

    def _take(self, others: float | None) -> None:
        if others is None:
            self.n_threads = self.n_threads or self._cores
            self.reason = f"{self.n_threads}: the cores; this system does not show its load"
            return
        self.n_threads = choose(self._cores, others, self.n_threads or None)
        self.reason = f"{self.n_threads}: of {self._cores} cores, other processes use {others:.1f}"


def watch() -> None:
    """Begin the span that the next engine's first choice is made from."""
    _since_load.start()


def _check(threads: object) -> None:
    if threads is None or threads in ("auto", "live"):
        return
    if type(threads) is not int or not 1 <= threads <= MAX_THREADS:
        raise InputError(
            f"n_threads = {threads!r}; it must be 1 to {MAX_THREADS}, 'auto' to follow the "
            "machine's load between replies, or 'live' to follow it within them too"
        )


def _recent(meter: LoadMeter) -> float | None:
    """Return what others use, over a span that is neither too short to tell nor long ago."""
    if meter.can_read and not _SHORTEST_S <= meter.age_s() <= _STALE_S:
        meter.start()
        time.sleep(_SHORTEST_S)
    return meter.others()


def _free(cores: int, others: float, threshold: float) -> int:
    """Return the cores left where one counts as taken from ``threshold`` of it on, at least 1."""
    taken = math.floor(others) + (others % 1.0 > threshold)
    return max(1, cores - taken)


def _cpus() -> Set[int]:
    """Return the numbers of the cores this process may run on; empty where that is not shown."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _quota(cpu_max: str | None) -> float | None:
    """Return the cores that a container may use by /sys/fs/cgroup/cpu.max, None for no limit."""
    quota, _, period = (cpu_max or "max").strip().partition(" ")
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)


def _clock_ticks() -> int:
    return os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return None


_since_load = LoadMeter()
