"""Threads: counters to a number, when it changes, and what is said where nothing can be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyemo.engine import threads
from pyemo.engine.threads import (
    CpuTimes,
    LoadMeter,
    ThreadChoice,
    available_cores,
    busy_seconds,
    choose,
    read_cpu_times,
)
from pyemo.errors import InputError

STAT = """cpu  300 20 100 5000 60 7 8 9 10 11
cpu0 200 20 50 2500 30 7 4 4 10 11
cpu1 100 0 50 2500 30 0 4 5 0 0
intr 12345 0 0
ctxt 999
"""


class FakeSystem:
    """Two cores, a clock and processes whose use of them is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.busy = self.own = 0.0
        monkeypatch.setattr(threads.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(threads.time, "sleep", self.sleep)
        self.others = 0.0
        self.ours = 0.0

    def sleep(self, seconds: float) -> None:
        """Let time pass with what is used now."""
        self.now += seconds
        self.busy += seconds * (self.others + self.ours)
        self.own += seconds * self.ours

    def read(self) -> CpuTimes:
        return CpuTimes(self.now, self.busy, self.own)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    return FakeSystem(monkeypatch)


def choice(system: FakeSystem, mode: threads.Threads) -> ThreadChoice:
    return ThreadChoice(mode, cores=2, meter=LoadMeter(system.read))


def test_busy_time_is_all_but_waiting_of_the_cores_that_are_ours() -> None:
    # user, nice, system, irq, softirq, steal; not idle, iowait, and guest (in user already)
    assert busy_seconds(STAT, {0}, 100) == pytest.approx(2.85)
    assert busy_seconds(STAT, {1}, 100) == pytest.approx(1.59)
    assert busy_seconds(STAT, set(), 100) == pytest.approx(4.44)


def test_counters_of_old_kernels_are_shorter() -> None:
    assert busy_seconds("cpu0 10 0 10 80", {0}, 100) == pytest.approx(0.2)


def test_a_text_without_our_cores_is_no_reading() -> None:
    assert busy_seconds("cpu  1 2 3 4\n", {0}, 100) is None
    assert busy_seconds(STAT, {7}, 100) is None


@pytest.mark.parametrize(
    ("cores", "others", "expected"),
    [(2, 0.0, 2), (2, 0.4, 2), (2, 0.7, 1), (2, 1.0, 1), (2, 3.0, 1), (1, 1.0, 1), (8, 2.1, 6)],
)
def test_a_core_that_others_use_is_left_to_them(cores: int, others: float, expected: int) -> None:
    assert choose(cores, others) == expected


def test_between_the_thresholds_the_number_stays() -> None:
    assert choose(2, 0.4, current=1) == 1
    assert choose(2, 0.4, current=2) == 2
    assert choose(2, 0.2, current=1) == 2
    assert choose(2, 0.6, current=2) == 1


def test_our_own_work_is_no_neighbour(system: FakeSystem) -> None:
    meter = LoadMeter(system.read)
    system.ours, system.others = 1.0, 0.5
    system.sleep(1.0)
    assert meter.others() == pytest.approx(0.5)


def test_the_first_number_is_chosen_from_the_load(system: FakeSystem) -> None:
    system.others = 1.0
    assert choice(system, None).n_threads == 1
    system.others = 0.0
    assert choice(system, None).n_threads == 2


def test_without_auto_the_number_never_changes(system: FakeSystem) -> None:
    once, fixed = choice(system, None), choice(system, 2)
    system.others = 1.0
    for chosen in (once, fixed):
        system.sleep(5.0)
        assert (chosen.before_reply(), chosen.within_reply()) == (2, 2)


def test_auto_follows_between_replies_only(system: FakeSystem) -> None:
    auto = choice(system, "auto")
    system.others = 1.0
    system.sleep(5.0)
    assert auto.within_reply() == 2
    assert auto.before_reply() == 1
    system.others = 0.0
    system.sleep(60.0)
    assert auto.before_reply() == 2


def test_a_neighbour_of_long_ago_does_not_count(system: FakeSystem) -> None:
    auto = choice(system, "auto")
    system.others = 1.0
    system.sleep(60.0)
    system.others = 0.0
    system.sleep(0.1)
    assert auto.before_reply() == 2


@pytest.mark.parametrize(("before", "after", "expected"), [(0.0, 1.0, 1), (1.0, 0.0, 2)])
def test_live_follows_a_change_within_two_seconds(
    system: FakeSystem, before: float, after: float, expected: int
) -> None:
    system.others, system.ours = before, 1.0
    live = choice(system, "live")
    for _ in range(300):  # a token each 10 ms
        system.sleep(0.01)
        live.within_reply()
    assert live.n_threads != expected
    system.others = after
    began = system.now
    while live.within_reply() != expected:
        system.sleep(0.01)
    assert system.now - began <= 2.0


def test_where_the_load_is_not_shown_the_cores_are_taken_and_it_is_said() -> None:
    for mode in (None, "auto", "live"):
        blind = ThreadChoice(mode, cores=3, meter=LoadMeter(lambda: None))
        assert (blind.before_reply(), blind.within_reply()) == (3, 3)
        assert "does not show its load" in blind.reason


@pytest.mark.parametrize("wrong", [0, -1, 513, "fast", 1.0, True])
def test_other_values_are_refused_by_name(wrong: object) -> None:
    with pytest.raises(InputError, match=r"n_threads = .* 1 to 512, 'auto'"):
        ThreadChoice(wrong)  # type: ignore[arg-type]


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux shows its counters")
def test_this_systems_counters_move_forward() -> None:
    first, second = read_cpu_times(), read_cpu_times()
    assert first is not None
    assert second is not None
    assert second.busy >= first.busy > 0
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("150000 100000\n", 1.5), ("max 100000\n", None), (None, None), ("x", None), ("1 0", None)],
)
def test_a_containers_quota_is_read(text: str | None, expected: float | None) -> None:
    assert threads._quota(text) == expected
