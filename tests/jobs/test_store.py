"""What the store promises: whole entries, found again, whatever happened to the run before."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from pyemo.errors import InputError
from pyemo.jobs.store import Result, Store, digest

RESULT = Result({"text": "na\u00efve", "n": 3}, {"rows": np.arange(12, dtype=np.float32)})
KEY = digest("a cell")


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(KEY, RESULT)
    found = store.get(KEY)
    assert found is not None
    assert found.values == RESULT.values
    np.testing.assert_array_equal(found.arrays["rows"], RESULT.arrays["rows"])
    assert found.arrays["rows"].dtype == np.float32


def test_the_same_result_is_the_same_bytes(tmp_path: Path) -> None:
    first, second = Store(tmp_path / "a"), Store(tmp_path / "b")
    first.put(KEY, RESULT)
    time.sleep(0.01)
    second.put(KEY, RESULT)
    assert entry(first).read_bytes() == entry(second).read_bytes()


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    assert Store(tmp_path).get(KEY) is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_entry_is_moved_aside_and_counts_as_missing(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    store.put(KEY, RESULT)
    path = entry(store)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[60] ^= 0xFF
    else:
        data = bytearray(b"" if damage == "empty" else b"not an archive")
    path.write_bytes(data)
    assert store.get(KEY) is None
    assert not path.exists()
    assert path.with_suffix(".broken").exists()


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--store"):
        Store(tmp_path / "file" / "store")


def test_a_full_disk_is_an_error_that_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.put(KEY, RESULT)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        store.put(digest("another cell"), RESULT)
    assert store.get(KEY) is not None
    assert not list(tmp_path.rglob(".new-*"))


def test_a_writer_killed_at_any_moment_leaves_whole_entries(tmp_path: Path) -> None:
    for n in range(5):
        context = multiprocessing.get_context("spawn")
        writer = context.Process(target=write_forever, args=(str(tmp_path),))
        writer.start()
        deadline = time.monotonic() + 20
        while not list(tmp_path.rglob("*.npz")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.003 * n)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    store = Store(tmp_path)
    keys = [path.stem for path in tmp_path.rglob("*.npz")]
    assert keys
    assert all(store.get(key) is not None for key in keys)


def test_keys_tell_arrays_apart() -> None:
    a, b = np.zeros(4, np.float32), np.zeros((2, 2), np.float32)
    keys = {digest("x"), digest("x", {"a": a}), digest("x", {"a": b}), digest("x", {"b": a})}
    keys.add(digest("x", {"a": a.astype(np.float64)}))
    assert len(keys) == 5


def write_forever(folder: str) -> None:
    store = Store(Path(folder))
    rows = np.random.default_rng(0).standard_normal(200_000)
    for i in range(100_000):
        store.put(digest(i), Result({"i": i}, {"rows": rows}))


def entry(store: Store) -> Path:
    (path,) = store.folder.rglob("*.npz")
    return path
