"""Memory: the header's arithmetic against llama.cpp's own, and refusing before loading."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from tiny_models import ARCHITECTURES, TinyModel

from pyemo import Engine, Model, _core
from pyemo.engine import memory as device_memory
from pyemo.engine.memory import memory_need, parse_bytes, require_room
from pyemo.errors import InputError, ModelLoadError


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_weights_and_kv_cache_are_llama_cpps(
    tiny: Callable[[str], TinyModel], architecture: str, kv_type: str
) -> None:
    path = tiny(architecture).path
    need = memory_need(path, n_ctx=512, kv_type=kv_type)
    assert need.weights == sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)
    model = Model.load(path)
    _core.drain_log()
    native = _core.Engine(
        model.native, n_ctx=512, n_batch=64, n_seq_max=1, n_outputs_max=1, n_threads=1,
        n_threads_batch=1, kv_type=kv_type,
    )  # fmt: skip
    lines = [line for _, line in _core.drain_log()]
    del native
    buffers = [re.search(r"KV buffer size = +([\d.]+) MiB", line) for line in lines]
    mib = sum(float(found[1]) for found in buffers if found)
    assert need.kv_cache is not None
    assert need.kv_cache / 2**20 == pytest.approx(mib, abs=0.02)


def test_a_model_that_does_not_fit_is_refused_with_the_numbers(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = memory_need(tiny_model_path, n_ctx=512)
    monkeypatch.setattr(device_memory, "available_bytes", lambda: need.total - 1)
    with pytest.raises(ModelLoadError, match=r"does not fit: it takes .* MB are available"):
        require_room(tiny_model_path, need)
    monkeypatch.setattr(device_memory, "available_bytes", lambda: need.total)
    require_room(tiny_model_path, need)


def test_a_system_that_shows_no_memory_refuses_nothing(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_memory, "_read", lambda _path: None)
    assert device_memory.available_bytes() is None
    assert device_memory.resident_bytes() is None
    assert device_memory.peak_bytes() is None
    require_room(tiny_model_path, memory_need(tiny_model_path, n_ctx=1 << 24))


def test_the_least_of_machine_and_container_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   1000 kB\n",
        "/sys/fs/cgroup/memory.max": "600000\n",
        "/sys/fs/cgroup/memory.current": "500000\n",
        "/sys/fs/cgroup/memory.stat": "anon 5\ninactive_file 100000\n",
    }
    monkeypatch.setattr(device_memory, "_read", files.get)
    assert device_memory.available_bytes() == 200_000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert device_memory.available_bytes() == 1_024_000


def test_an_engine_raises_what_is_resident(tiny_model_path: Path) -> None:
    before = device_memory.resident_bytes()
    with Engine(tiny_model_path, n_ctx=65536, n_threads=1):
        during = device_memory.peak_bytes()
    assert (before is None) == (during is None)
    assert before is None or during is None or during > before


@pytest.mark.parametrize("wrong", ["", "MB", "-3MB", "nan", "inf", "3 TBX"])
def test_what_is_no_size_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_bytes(wrong)


def test_a_context_beyond_the_memory_is_refused_with_the_arithmetic(smollm2: Path) -> None:
    model = Model.load(smollm2)
    with pytest.raises(InputError, match=r"n_ctx = 16777216 takes \d+ MB .* at most about \d+ fit"):
        Engine(model, n_ctx=1 << 24, n_threads=1)
