"""Damaged model files: each is refused by name or works; none ends the process.

The files and the processes that use them come from hostile_models.py. docs/hostile-input.md says
what the five hundred came to; the default tier takes a sample of them.
"""

from __future__ import annotations

import collections
import json
import subprocess
import sys
from pathlib import Path

import pytest
from engines import not_under_address_sanitizer
from hostile_models import MUTATIONS, Outcome

pytestmark = not_under_address_sanitizer(
    "the processes have 4 GiB of addresses, less than the address sanitizer takes"
)

LONGEST_S = 1.0  # of CPU and disk; the tiny models take a tenth of that
MOST_BYTES = 512 << 20
REFUSALS = {"ModelLoadError", "InputError", "DecodeAbortedError", "SteeringUnsupportedError"}


@pytest.fixture(
    scope="module", params=[len(MUTATIONS) * 4, pytest.param(500, marks=pytest.mark.quality)]
)
def outcomes(request: pytest.FixtureRequest) -> list[Outcome]:
    """How each of the first files ended; in a process that has no threads to fork."""
    runner = Path(__file__).parents[1] / "hostile_models.py"
    command = [sys.executable, str(runner), "--json", "--count", str(request.param)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return [Outcome(**json.loads(line)) for line in done.stdout.splitlines()]


def test_no_file_ends_the_process(outcomes: list[Outcome]) -> None:
    assert [outcome for outcome in outcomes if outcome.ending in ("killed", "hangs")] == []


def test_no_file_raises_anything_but_a_named_error(outcomes: list[Outcome]) -> None:
    assert {outcome.ending for outcome in outcomes} <= {"works", *REFUSALS}


def test_no_file_takes_a_second(outcomes: list[Outcome]) -> None:
    assert [outcome for outcome in outcomes if outcome.seconds >= LONGEST_S] == []


def test_no_file_takes_much_memory(outcomes: list[Outcome]) -> None:
    assert [outcome for outcome in outcomes if outcome.peak_bytes >= MOST_BYTES] == []


def test_every_refusal_says_what_is_wrong(outcomes: list[Outcome]) -> None:
    refused = [outcome for outcome in outcomes if outcome.ending in REFUSALS]
    assert min(len(outcome.message) for outcome in refused) > 20


def test_every_kind_of_damage_is_tried(outcomes: list[Outcome]) -> None:
    assert {outcome.mutation for outcome in outcomes} == {m.__name__ for m in MUTATIONS}


def test_damage_reaches_both_ends(outcomes: list[Outcome]) -> None:
    endings = collections.Counter(outcome.ending for outcome in outcomes)
    assert endings["works"] > len(outcomes) / 10
    assert endings["ModelLoadError"] > len(outcomes) / 3
