"""What the engine takes for granted about llama.cpp, measured again on the pinned version.

The residual hook stands on names, shapes and the order of rows that llama.cpp promises nobody. Each
is asserted here without pyemo, through llama-cpp-python's C bindings, so that a newer version shows
what it changed before the engine does. The last part shows that pyemo uses this very libllama.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import requires, version
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from llama_oracle import LlamaOracle
from llama_watch import F32, Array, LlamaWatch, Row, Seen
from tiny_layouts import N_CTX, SLIDING_WINDOW
from tiny_models import ARCHITECTURES, TinyModel

from pyemo import _core

PINNED = "0.3.36"
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
every_window = pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])


@pytest.fixture
def architecture() -> str:
    return "llama"


@pytest.fixture
def model(tiny: Callable[[str], TinyModel], architecture: str) -> TinyModel:
    return tiny(architecture)


@pytest.fixture
def tokens(model: TinyModel) -> list[int]:
    return model.random_tokens(4 * SLIDING_WINDOW)


def interleaved(tokens: list[int], n: int) -> list[Row]:
    """Rows of two sequences that take turns, all with logits."""
    return [Row(tokens[i], i // 2, seq=i % 2) for i in range(2 * n)]


# --- the graph ---


@every_architecture
def test_every_block_shows_its_output_once_under_its_name(
    model: TinyModel, tokens: list[int]
) -> None:
    with LlamaWatch(model.path) as llama:
        seen = llama.decode_text(tokens[:5])
        assert [block.layer for block in seen.blocks] == list(range(llama.n_layer))


@every_architecture
def test_block_output_is_float32_rows_in_host_memory(model: TinyModel, tokens: list[int]) -> None:
    with LlamaWatch(model.path) as llama:
        seen = llama.decode([Row(token, i) for i, token in enumerate(tokens[:5])])
    assert {
        (block.type, block.shape, block.is_contiguous, block.is_host) for block in seen.blocks
    } == {(F32, (model.n_embd, 5, 1, 1), True, True)}


@every_architecture
def test_graph_that_is_used_again_keeps_names_and_callback(
    model: TinyModel, tokens: list[int]
) -> None:
    with LlamaWatch(model.path) as llama:
        seen = [llama.decode_text([token], begin=i) for i, token in enumerate(tokens[:4])]
    assert seen[1].asked == seen[2].asked == seen[3].asked
    assert [s.tokens for s in seen] == [[token] for token in tokens[:4]]


@every_architecture
def test_wanted_output_splits_the_graph_without_a_change_of_its_numbers(
    model: TinyModel, tokens: list[int]
) -> None:
    oracle = LlamaOracle(model.path)
    settings = {"type_k": F32, "type_v": F32, "flash_attn_type": 0, "swa_full": True}
    with oracle, LlamaWatch(model.path, **settings) as llama:
        llama.decode([Row(token, i) for i, token in enumerate(tokens[:9])])
        found = [llama.logits(row) for row in range(9)]
        np.testing.assert_array_equal(found, oracle.logits(tokens[:9]))


@every_architecture
def test_what_is_written_into_a_block_output_is_what_the_next_block_reads(
    model: TinyModel, tokens: list[int]
) -> None:
    direction = np.random.default_rng(0).standard_normal(model.n_embd).astype(np.float32)

    def add(layer: int, rows: Array) -> None:
        if layer == 1:
            rows += direction

    settings = {"type_k": F32, "type_v": F32, "flash_attn_type": 0, "swa_full": True}
    with LlamaOracle(model.path) as oracle, LlamaWatch(model.path, change=add, **settings) as llama:
        llama.decode([Row(token, i) for i, token in enumerate(tokens[:9])])
        found = [llama.logits(row) for row in range(9)]
        np.testing.assert_array_equal(found, oracle.logits(tokens[:9], {1: direction}))


@every_architecture
def test_callback_that_says_no_ends_the_graph_there(model: TinyModel, tokens: list[int]) -> None:
    with LlamaWatch(model.path, stop_after=1) as llama:
        seen = llama.decode_text(tokens[:5])
    assert [block.layer for block in seen.blocks] == [0, 1]
    assert "result_output" not in seen.asked


# --- rows ---


@every_architecture
def test_rows_are_the_batchs_in_its_order_where_sequences_share_one_cache(
    model: TinyModel, tokens: list[int]
) -> None:
    rows = interleaved(tokens, 8)
    with LlamaWatch(model.path, n_seq_max=2, kv_unified=True, swa_full=True) as llama:
        seen = llama.decode(rows)
    assert seen.tokens == [row.token for row in rows]


def test_rows_are_in_another_order_where_sequences_do_not_share_one_cache(
    model: TinyModel, tokens: list[int]
) -> None:
    rows = interleaved(tokens, 8)
    with LlamaWatch(model.path, n_seq_max=2, kv_unified=False) as llama:
        seen = llama.decode(rows)
    assert seen.tokens is not None
    assert sorted(seen.tokens) == sorted(row.token for row in rows)
    assert seen.tokens != [row.token for row in rows]


def test_sequences_do_not_share_one_cache_unasked_but_windows_keep_their_cells() -> None:
    params = llama_cpp.llama_context_default_params()
    assert (params.kv_unified, params.swa_full) == (False, True)


@every_architecture
def test_last_block_keeps_the_rows_that_have_logits(model: TinyModel, tokens: list[int]) -> None:
    rows = [Row(token, i, output=i in (1, 4)) for i, token in enumerate(tokens[:6])]
    with LlamaWatch(model.path) as llama:
        seen = llama.decode(rows)
    assert seen.output_rows == [1, 4]
    assert [block.shape[1] for block in seen.blocks] == [6] * (model.n_layer - 1) + [2]


@every_architecture
def test_last_block_keeps_no_row_of_a_chunk_that_asks_for_no_logits(
    model: TinyModel, tokens: list[int]
) -> None:
    rows = [Row(token, i, output=False) for i, token in enumerate(tokens[:6])]
    with LlamaWatch(model.path) as llama:
        seen = llama.decode(rows)
    assert (seen.status, seen.output_rows) == (0, [])
    assert [block.shape[1] for block in seen.blocks] == [6] * (model.n_layer - 1) + [0]


@every_architecture
def test_rows_that_are_kept_are_those_of_the_tokens_they_name(
    model: TinyModel, tokens: list[int]
) -> None:
    def last_block(outputs: set[int]) -> Array:
        with LlamaWatch(model.path, type_k=F32, type_v=F32) as llama:
            rows = [Row(token, i, output=i in outputs) for i, token in enumerate(tokens[:6])]
            return llama.decode(rows).blocks[-1].values

    np.testing.assert_allclose(last_block({1, 4}), last_block(set(range(6)))[[1, 4]], atol=1e-3)


# --- going back ---


def seen_to_the_end(llama: LlamaWatch, tokens: list[int]) -> Seen:
    """Decode a prompt and then one token at a time, as a reply does."""
    seen = llama.decode_text(tokens[:8])
    for i, token in enumerate(tokens[8:], start=8):
        seen = llama.decode_text([token], begin=i)
    return seen


@every_window
@pytest.mark.parametrize("swa_full", [True, False])
def test_removal_reports_success_whether_or_not_the_window_is_there(
    model: TinyModel, tokens: list[int], swa_full: bool
) -> None:
    with LlamaWatch(model.path, swa_full=swa_full) as llama:
        seen_to_the_end(llama, tokens)
        assert llama.remove(0, 2)


@every_window
def test_first_position_tells_that_the_window_is_there(model: TinyModel, tokens: list[int]) -> None:
    keep = len(tokens) // 2
    with LlamaWatch(model.path, swa_full=True) as llama:
        seen_to_the_end(llama, tokens)
        llama.remove(0, keep)
        assert llama.n_swa == SLIDING_WINDOW
        assert llama.pos_min() <= keep - llama.n_swa


@every_window
def test_first_position_tells_that_the_window_is_lost(model: TinyModel, tokens: list[int]) -> None:
    keep = 100
    with LlamaWatch(model.path, swa_full=False, n_ubatch=8) as llama:
        seen_to_the_end(llama, [*tokens, *tokens, *tokens])  # more than such a cache's 256 cells
        llama.remove(0, keep)
        assert not 0 <= llama.pos_min() <= keep - llama.n_swa


@every_window
def test_going_back_within_a_kept_window_gives_a_fresh_computations_logits(
    model: TinyModel, tokens: list[int]
) -> None:
    settings = {"type_k": F32, "type_v": F32, "swa_full": True}
    with LlamaWatch(model.path, **settings) as llama:
        seen_to_the_end(llama, tokens)
        llama.remove(0, 50)
        llama.decode_text([tokens[50]], begin=50)
        found = llama.logits()
    with LlamaWatch(model.path, **settings) as llama:
        seen_to_the_end(llama, tokens[:51])
        np.testing.assert_array_equal(found, llama.logits())


# --- control vectors of llama.cpp, the oracle ---


def set_control_vector(llama: LlamaWatch, rows: Array, n_embd: int, begin: int, end: int) -> int:
    data = rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return int(llama_cpp.llama_set_adapter_cvec(llama.context, data, rows.size, n_embd, begin, end))


def test_shorter_control_vector_leaves_older_layers_active(
    model: TinyModel, tokens: list[int]
) -> None:
    def logits(*vectors: Array) -> Array:
        with LlamaWatch(model.path) as llama:
            for rows in vectors:
                set_control_vector(llama, rows, llama.n_embd, 1, llama.n_layer - 1)
            llama.decode_text(tokens[:5])
            return llama.logits()

    rng = np.random.default_rng(0)
    full = rng.standard_normal((model.n_layer - 1, model.n_embd)).astype(np.float32)
    short = rng.standard_normal((1, model.n_embd)).astype(np.float32)
    mixed = np.concatenate([short, full[1:]])
    np.testing.assert_array_equal(logits(full, short), logits(mixed))


def test_control_vector_of_another_width_is_refused_and_of_no_layers_is_not(
    model: TinyModel,
) -> None:
    rows = np.zeros((model.n_layer - 1, model.n_embd), np.float32)
    with LlamaWatch(model.path) as llama:
        assert set_control_vector(llama, rows, model.n_embd - 1, 1, model.n_layer - 1) == -1
        assert set_control_vector(llama, rows, model.n_embd, 90, 95) == 0


# --- aborts: each kills the process today, so each is fenced (test_errors.py) ---

_OPEN = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import llama_cpp
from llama_watch import LlamaWatch, Row
path = Path({path!r})
"""
ABORTS = {
    "positions past the training of a model that learned them": (
        "gpt2",
        f"""
with LlamaWatch(path, n_ctx={2 * N_CTX}) as llama:
    llama.decode([Row(5, {N_CTX + 1})])
""",
    ),
    "more tokens than n_batch": (
        "llama",
        """
with LlamaWatch(path, n_batch=4) as llama:
    llama.decode([Row(5, i) for i in range(5)])
""",
    ),
    "more outputs than n_outputs_max": (
        "llama",
        """
with LlamaWatch(path, n_outputs_max=2) as llama:
    llama.decode([Row(5, i) for i in range(5)])
""",
    ),
    "more sequences than n_outputs_max": (
        "llama",
        "LlamaWatch(path, n_seq_max=4, n_outputs_max=2, kv_unified=True)",
    ),
    "a sequence id of n_seq_max in the cache": (
        "llama",
        """
with LlamaWatch(path, n_seq_max=2, kv_unified=True) as llama:
    llama.remove(300, 0)
""",
    ),
    "a part of a sequence copied between caches of their own": (
        "llama",
        """
with LlamaWatch(path, n_seq_max=2, kv_unified=False) as llama:
    llama.decode([Row(5, i) for i in range(5)])
    llama_cpp.llama_memory_seq_cp(llama.memory, 0, 1, 0, 3)
""",
    ),
}


@pytest.mark.parametrize("name", ABORTS)
def test_llama_cpp_aborts_on(tiny: Callable[[str], TinyModel], name: str) -> None:
    architecture, program = ABORTS[name]
    tests = str(Path(__file__).parents[1])
    opened = _OPEN.format(tests=tests, path=str(tiny(architecture).path))
    done = subprocess.run(
        [sys.executable, "-c", opened + program + "\nprint('alive')"],
        capture_output=True,
        text=True,
        timeout=60,
        env={"GGML_NO_BACKTRACE": "1", "PATH": ""},
        check=False,
    )
    assert done.returncode < 0, done.stdout + done.stderr
    assert "GGML_ASSERT" in done.stderr


# --- the pin ---


def test_facts_are_measured_on_the_pinned_version() -> None:
    assert version("llama-cpp-python") == llama_cpp.__version__ == PINNED
    assert f"llama-cpp-python=={PINNED}" in (requires("pyemo") or [])


def test_extension_was_built_against_this_version() -> None:
    assert _core.llama_cpp_python == PINNED


def test_engine_computes_with_the_library_of_llama_cpp_python(tiny_model_path: Path) -> None:
    program = f"""
import sys
import pyemo
pyemo.Model.load({str(tiny_model_path)!r})
print("llama_cpp" in sys.modules)
print(open("/proc/self/maps").read())
"""
    if not Path("/proc/self/maps").exists():
        pytest.skip("only Linux lists a process's libraries in /proc/self/maps")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    imported, _, maps = done.stdout.partition("\n")
    loaded = {Path(name) for name in re.findall(r"\S+/libllama\.\S+", maps)}
    assert imported == "False"
    package = Path(llama_cpp.__file__).resolve().parent  # the sanitizers' environment has a link
    assert [path.parent.resolve() for path in loaded] == [package / "lib"]
