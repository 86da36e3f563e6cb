"""An edit of the KV cache does what it says, comes off again, and touches nothing else.

The independent route is transformers with an edited cache; widths, layouts and the two caches of
models with sliding windows are told apart by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import pytest
from engines import Array, error, forced, needs_torch, open_engine, tolerance
from tiny_models import TinyModel
from tiny_vocabulary import bpe_vocabulary

from pyemo import CacheVector, Engine, Model, SamplerParams, Sequence
from pyemo.engine.base_engine import BaseEngine
from pyemo.engine.mood import OFF
from pyemo.errors import (
    ContextFullError,
    DecodeAbortedError,
    InputError,
    PyemoError,
    SteeringUnsupportedError,
    VectorModelMismatchError,
    VectorShapeError,
)

CELLS = (-5, -4, -2)
N = 20
every_family = pytest.mark.parametrize(
    "architecture", ["llama", "qwen2", "gemma2", "gemma3", "gpt2"]
)
every_layout = pytest.mark.parametrize("kv_type", ["f32", "f16", "bf16"])  # f32 has V transposed


def vector_for(
    engine: BaseEngine, *, seed: int = 0, scale: float = 1.0, keys: bool = False
) -> CacheVector:
    rng = np.random.default_rng(seed)

    def rows(width: int) -> Array:
        return (scale * rng.standard_normal((len(CELLS), width))).astype(np.float32)

    widths = engine.native.cache_widths()
    return CacheVector(
        {layer: rows(width) for layer, _, width in widths},
        keys={layer: rows(width) for layer, width, _ in widths} if keys else None,
        cells=CELLS,
    )


@pytest.fixture
def engine(new_engine: Callable[..., Engine]) -> Engine:
    return new_engine()


@pytest.fixture
def tokens(tiny: Callable[[str], TinyModel]) -> list[int]:
    return tiny("llama").random_tokens(N)


@pytest.fixture
def sequence(engine: Engine, tokens: list[int]) -> Iterator[Sequence]:
    with engine.sequence(tokens) as sequence:
        yield sequence


@needs_torch
@pytest.mark.parametrize(
    (
        "architecture",
        "keys",
    ),  # llama.cpp keeps the keys of llama in another order than transformers
    [("llama", False), ("qwen2", False), ("qwen2", True), ("gemma3", False), ("gemma3", True)],
)
def test_edited_logits_are_those_of_transformers_with_an_edited_cache(
    new_engine: Callable[..., Engine],
    tiny: Callable[[str], TinyModel],
    architecture: str,
    keys: bool,
) -> None:
    import torch
    from transformers import DynamicCache

    model, engine = tiny(architecture), new_engine(architecture)
    tokens = model.random_tokens(N + 4)
    vector = vector_for(engine, keys=keys)
    cache = DynamicCache()
    with torch.no_grad():
        reference = model.transformers_model()
        reference(torch.tensor([tokens[: N - 1]]), past_key_values=cache, use_cache=True)
        for part, layers in (("values", vector.values), ("keys", vector.keys)):
            for layer, rows in layers.items():
                held = getattr(cache.layers[layer], part)  # (1, n_head, n_tokens, head_dim)
                for cell, row in zip(CELLS, rows, strict=True):
                    heads = torch.from_numpy(np.array(row)).view(held.shape[1], held.shape[3])
                    held[0, :, N + cell] += heads
        rest = torch.tensor([tokens[N - 1 :]])
        expected = reference(rest, past_key_values=cache, use_cache=True).logits[0].numpy()
    with engine.sequence(tokens[:N]) as sequence:
        plain = sequence.logits()
        sequence.edit_cache(vector)
        found = np.stack([sequence.logits(), *forced(sequence, tokens[N:], is_reply=True)])
    assert error(found, expected) <= tolerance(architecture)
    assert error(found[0], plain) >= 0.05  # so that the comparison says something


@every_family
@every_layout
def test_an_edit_adds_its_rows_to_its_cells_and_nothing_else(
    new_engine: Callable[..., Engine],
    tiny: Callable[[str], TinyModel],
    architecture: str,
    kv_type: str,
) -> None:
    engine = new_engine(architecture, kv_type=kv_type)
    sequence = engine.sequence(tiny(architecture).random_tokens(N))
    vector = vector_for(engine, keys=True)
    before = sequence.read_cache(0, N - 1)
    sequence.edit_cache(vector)
    after = sequence.read_cache(0, N - 1)
    coarse = {"f32": 1e-6, "f16": 2e-3, "bf16": 2e-2}[kv_type]
    for was, now, rows in (
        (before.values, after.values, vector.values),
        (before.keys, after.keys, vector.keys),
    ):
        for layer, added in rows.items():
            expected = was[layer].copy()
            expected[[N + cell for cell in CELLS]] += added
            untouched = [p for p in range(N - 1) if p - N not in CELLS]
            assert np.abs(now[layer] - expected).max() <= coarse * max(1.0, np.abs(expected).max())
            assert (now[layer][untouched] == was[layer][untouched]).all()


@every_family
@every_layout
@pytest.mark.parametrize("strength", [1.0, 0.0])
def test_an_edit_and_its_undoing_leave_every_bit(
    new_engine: Callable[..., Engine],
    tiny: Callable[[str], TinyModel],
    architecture: str,
    kv_type: str,
    strength: float,
) -> None:
    tokens = tiny(architecture).random_tokens(N + 3)
    # each in an engine of its own, since float32 sums round by where in the cache cells lie
    plain, edited = (
        new_engine(architecture, kv_type=kv_type).sequence(tokens[:N]) for _ in range(2)
    )
    for sequence in (plain, edited):
        sequence.logits()
    edited.edit_cache(vector_for(edited.engine), strength)
    assert (edited.logits() == plain.logits()).all() == (strength == 0)
    edited.undo_cache_edit()
    assert (edited.logits() == plain.logits()).all()
    for ours, theirs in zip(forced(edited, tokens[N:]), forced(plain, tokens[N:]), strict=True):
        assert (ours == theirs).all()
    assert edited.cache_edits == ()


@every_family
@pytest.mark.parametrize("first", [True, False], ids=["before the prompt is read", "after it"])
def test_an_edit_with_zeros_changes_no_bit(
    new_engine: Callable[..., Engine],
    tiny: Callable[[str], TinyModel],
    architecture: str,
    first: bool,
) -> None:
    engine = new_engine(architecture, kv_type="f16")
    tokens = tiny(architecture).random_tokens(N + 3)
    plain, edited = engine.sequence(tokens[:N]), engine.sequence(tokens[:N])
    if not first:
        edited.logits()
    edited.edit_cache(vector_for(engine, scale=0.0))
    assert (edited.logits() == plain.logits()).all()
    for ours, theirs in zip(forced(edited, tokens[N:]), forced(plain, tokens[N:]), strict=True):
        assert (ours == theirs).all()


def test_other_sequences_of_the_batch_keep_every_bit(engine: Engine, tokens: list[int]) -> None:
    def others(strength: float) -> list[Array]:
        with engine.sequence(tokens) as edited, engine.sequence(tokens) as other:
            twin = edited.fork()
            for sequence in (edited, other, twin):
                sequence.logits()
            edited.edit_cache(vector_for(engine), strength)
            found = []
            for token in tokens[:4]:
                for sequence in (edited, other, twin):
                    sequence.append([token])
                engine.native.forward([edited.id, other.id, twin.id])
                found += [other.logits(), twin.logits()]
            twin.close()
            return found

    assert all((a == b).all() for a, b in zip(others(0.0), others(1.0), strict=True))


def test_an_edit_before_the_prompt_is_read_is_that_after_it(
    engine: Engine, tokens: list[int]
) -> None:
    early, late = engine.sequence(tokens), engine.sequence(tokens)
    early.edit_cache(vector_for(engine))
    assert early.n_pending == N
    late.logits()
    late.edit_cache(vector_for(engine))
    assert late.n_pending == 1
    assert error(early.logits(), late.logits()) <= 1e-4


def test_the_last_cell_is_edited_after_its_own_logits(
    new_engine: Callable[..., Engine], tokens: list[int]
) -> None:
    plain, edited = new_engine().sequence(tokens), new_engine().sequence(tokens)
    widths = edited.engine.native.cache_widths()
    vector = CacheVector({layer: np.ones((1, width)) for layer, _, width in widths}, cells=[-1])
    edited.edit_cache(vector)
    assert (edited.logits() == plain.logits()).all()
    assert error(forced(edited, [5])[0], forced(plain, [5])[0]) >= 0.05


def test_cells_are_counted_from_the_newest_prompts_end(engine: Engine, sequence: Sequence) -> None:
    sequence.append([7, 8, 9], is_reply=True)
    sequence.edit_cache(vector_for(engine))
    assert (sequence.cache_edits[0].begin, sequence.cache_edits[0].end) == (N - 5, N - 1)
    sequence.append([10, 11, 12, 13, 14, 15])
    sequence.edit_cache(vector_for(engine))
    assert sequence.cache_edits[1].begin == N + 3 + 6 - 5


def test_a_fork_keeps_the_edit_and_takes_it_off_alone(engine: Engine, sequence: Sequence) -> None:
    plain = sequence.logits()
    sequence.edit_cache(vector_for(engine))
    edited = sequence.logits()
    twin = sequence.fork()
    assert (twin.logits() == edited).all()
    twin.undo_cache_edit()
    assert error(twin.logits(), plain) <= 1e-4
    assert (sequence.logits() == edited).all()
    assert error(forced(sequence, [5])[0], forced(twin, [5])[0]) >= 0.05


def test_a_rollback_behind_the_edit_keeps_it(engine: Engine, sequence: Sequence) -> None:
    sequence.edit_cache(vector_for(engine))
    edited = sequence.logits()
    forced(sequence, [7, 8, 9], is_reply=True)
    sequence.rollback(3)
    assert error(sequence.logits(), edited) <= 1e-4
    assert len(sequence.cache_edits) == 1
    sequence.rollback(1)  # the last cell that is edited is now the last token: it is edited anew
    held = sequence.read_cache(0, N - 1)
    sequence.undo_cache_edit()
    was = sequence.read_cache(0, N - 1)
    assert np.abs(held.values[0] - was.values[0])[N + CELLS[0]].max() >= 0.1


@pytest.mark.parametrize("n_left", [N - 2, N - 3, N - 5, N - 6, 1])
def test_a_rollback_that_reaches_the_cells_drops_the_edit(
    engine: Engine, tokens: list[int], n_left: int
) -> None:
    edited, plain = engine.sequence(tokens), engine.sequence(tokens)
    for sequence in (edited, plain):
        if sequence is edited:
            sequence.edit_cache(vector_for(engine))
        sequence.logits()
        sequence.rollback(N - n_left)
        sequence.append(tokens[n_left:])
    assert edited.cache_edits == ()
    assert error(edited.logits(), plain.logits()) <= 1e-4


def test_a_refresh_edits_the_new_cells(engine: Engine, sequence: Sequence) -> None:
    sequence.edit_cache(vector_for(engine))
    edited = sequence.logits()
    sequence.refresh()
    assert sequence.n_pending == N
    assert error(sequence.logits(), edited) <= 1e-4
    sequence.undo_cache_edit()
    sequence.refresh()
    assert error(sequence.logits(), edited) >= 0.05


def test_a_sequence_that_restarts_keeps_no_edited_cell(
    engine: Engine, sequence: Sequence, tokens: list[int]
) -> None:
    plain = sequence.logits()
    sequence.edit_cache(vector_for(engine))
    sequence.logits()
    assert sequence.n_common(tokens, OFF) == N - 5
    sequence.restart(tokens, OFF, SamplerParams(), ())
    assert sequence.cache_edits == ()
    assert error(sequence.logits(), plain) <= 1e-4


@pytest.mark.parametrize("n_batch", [3, 512])
def test_edits_of_the_same_cells_add_up(
    new_engine: Callable[..., Engine], tokens: list[int], n_batch: int
) -> None:
    engine = new_engine(n_batch=n_batch)
    two, one = engine.sequence(tokens), engine.sequence(tokens)
    a, b = vector_for(engine, seed=1), vector_for(engine, seed=2)
    two.edit_cache(a, 0.5)
    two.edit_cache(b, -0.5)
    both = {layer: 0.5 * a.values[layer] - 0.5 * b.values[layer] for layer in a.values}
    one.edit_cache(CacheVector(both, cells=CELLS))
    assert error(two.logits(), one.logits()) <= 1e-4
    two.undo_cache_edit()
    one.undo_cache_edit()
    one.edit_cache(a, 0.5)
    assert error(two.logits(), one.logits()) <= 1e-4


def test_scores_of_a_reply_see_the_edit(engine: Engine, tokens: list[int]) -> None:
    edited, plain, each = (engine.sequence(tokens) for _ in range(3))
    edited.edit_cache(vector_for(engine))
    each.edit_cache(vector_for(engine))
    scores = edited.score_next([5, 6, 7])
    one_by_one = np.concatenate([each.score_next([token]) for token in (5, 6, 7)])
    assert np.abs(scores - one_by_one).max() <= 1e-4
    assert np.abs(scores - plain.score_next([5, 6, 7])).max() >= 0.05


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("read", [True, False], ids=["prompt read", "prompt pending"])
def test_an_edit_that_fails_leaves_the_sequence_as_it_was(
    new_engine: Callable[..., Engine], tokens: list[int], step: int, read: bool
) -> None:
    engine = new_engine()
    failing, plain = engine.sequence(tokens), new_engine().sequence(tokens)
    if read:
        failing.logits()
    plain.logits()
    engine.native.fail_cache_step(step)

    def edit() -> None:
        failing.edit_cache(vector_for(engine))
        failing.logits()

    with pytest.raises(DecodeAbortedError, match="could not"):
        edit()
    engine.native.fail_cache_step(0)
    if not read:
        assert failing.n_pending > 0
        failing.undo_cache_edit()
    assert failing.cache_edits == ()
    assert failing.tokens == tokens
    same = read and step < 3  # else cells are computed anew, in batches of another shape
    assert error(failing.logits(), plain.logits()) <= (0.0 if same else 1e-4)
    assert error(forced(failing, [5])[0], forced(plain, [5])[0]) <= (0.0 if same else 1e-4)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_an_undoing_that_fails_keeps_the_edit(engine: Engine, tokens: list[int], step: int) -> None:
    failing, edited = engine.sequence(tokens), engine.sequence(tokens)
    for sequence in (failing, edited):
        sequence.edit_cache(vector_for(engine))
        sequence.logits()
    engine.native.fail_cache_step(step)
    with pytest.raises(DecodeAbortedError, match="could not"):
        failing.undo_cache_edit()
    engine.native.fail_cache_step(0)
    assert len(failing.cache_edits) == 1
    assert error(failing.logits(), edited.logits()) <= 1e-4
    failing.undo_cache_edit()
    edited.undo_cache_edit()
    assert error(failing.logits(), edited.logits()) <= 1e-4


def test_an_edit_beyond_half_precision_is_refused_before_a_cell_changes(
    new_engine: Callable[..., Engine], tokens: list[int]
) -> None:
    engine = new_engine(kv_type="f16")
    sequence = engine.sequence(tokens)
    before = sequence.logits()
    with pytest.raises(DecodeAbortedError, match=r"far too strong.*lower the strength"):
        sequence.edit_cache(vector_for(engine), 1e6)
    assert (sequence.logits() == before).all()
    with pytest.raises(InputError, match="not finite; lower its strength"):
        sequence.edit_cache(vector_for(engine), 1e39)


def test_cells_that_forks_share_need_free_ones(tiny: Callable[[str], TinyModel]) -> None:
    model = tiny("llama")
    with open_engine(Model.load(model.path), n_ctx=N + 2, n_seq_max=2) as engine:
        sequence = engine.sequence(model.random_tokens(N))
        sequence.logits()
        twin = sequence.fork()
        before = twin.logits()
        with pytest.raises(ContextFullError, match=r"no room for 4 more.*forks share"):
            sequence.edit_cache(vector_for(engine))
        assert (sequence.logits() == before).all()
        twin.close()
        sequence.edit_cache(vector_for(engine))
        assert error(sequence.logits(), before) >= 0.05


def test_edited_cells_are_counted(tiny: Callable[[str], TinyModel]) -> None:
    model = tiny("llama")
    with open_engine(Model.load(model.path), n_ctx=64, n_seq_max=2) as engine:
        sequence = engine.sequence(model.random_tokens(N))
        sequence.logits()
        twin = sequence.fork()
        twin.edit_cache(vector_for(engine))
        twin.logits()
        assert engine.native.n_free_cells == 64 - N - len(range(-5, -1)) - 1
        twin.undo_cache_edit()
        twin.close()
        assert engine.native.n_free_cells == 64 - N


BAD: dict[str, tuple[Callable[[Engine, Sequence], Any], type[PyemoError], str]] = {
    "no vector": (lambda e, s: s.edit_cache(cast(Any, "angry")), InputError, "CacheVector.load"),
    "strength": (
        lambda e, s: s.edit_cache(vector_for(e), float("nan")),
        InputError,
        "finite number",
    ),
    "short prompt": (
        lambda e, s: e.sequence([5, 6]).edit_cache(vector_for(e)),
        InputError,
        "prompt has 2 tokens",
    ),
    "width": (
        lambda e, s: s.edit_cache(CacheVector({0: np.ones((1, 3))}, cells=[-2])),
        VectorShapeError,
        "keeps 64 numbers",
    ),
    "layer": (
        lambda e, s: s.edit_cache(CacheVector({9: np.ones((1, 64))}, cells=[-2])),
        VectorModelMismatchError,
        "layers 0 to 3",
    ),
    "tokens": (
        lambda e, s: s.edit_cache(CacheVector({0: np.ones((1, 64))}, cells=[-2], tokens=[3])),
        InputError,
        "chat template",
    ),
    "nothing to undo": (lambda e, s: s.undo_cache_edit(), InputError, "no edit to undo"),
    "positions": (lambda e, s: s.read_cache(3, 99), InputError, "99 is outside 4 to 20"),
}


@pytest.mark.parametrize(("call", "kind", "message"), BAD.values(), ids=BAD)
def test_bad_edits_are_refused_by_name(
    engine: Engine,
    sequence: Sequence,
    call: Callable[[Engine, Sequence], Any],
    kind: type[PyemoError],
    message: str,
) -> None:
    before = sequence.logits()
    with pytest.raises(kind, match=message):
        call(engine, sequence)
    assert (sequence.logits() == before).all()
    assert sequence.cache_edits == ()


def test_an_edit_of_some_of_an_edits_cells_is_refused(engine: Engine, sequence: Sequence) -> None:
    sequence.edit_cache(vector_for(engine))
    with pytest.raises(InputError, match="covers some of these cells and others"):
        sequence.edit_cache(CacheVector({0: np.ones((1, 64))}, cells=[-3]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kv_type": "q8_0"}, "q8_0 cannot be read or edited.*kv_type f16 or f32"),
        ({"kv_unified": False}, "open it with kv_unified"),
    ],
)
def test_caches_that_cannot_hold_an_edit_are_refused_by_name(
    new_engine: Callable[..., Engine], tokens: list[int], settings: dict[str, Any], message: str
) -> None:
    engine, plain = new_engine(**settings), new_engine()
    sequence = engine.sequence(tokens)
    with pytest.raises(InputError, match=message):
        sequence.edit_cache(vector_for(plain))
    with pytest.raises(InputError, match=message):
        sequence.read_cache(0, 3)
    assert sequence.logits().shape


def build_mamba(path: Path) -> None:
    """Write a tiny recurrent model: one block, a state in the place of cells."""
    n_embd, n_inner, n_state, n_conv, n_rank = 32, 64, 8, 4, 2
    vocabulary = bpe_vocabulary("<|eos|>")
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_context_length(64)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(1)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_ssm_conv_kernel(n_conv)
    writer.add_ssm_inner_size(n_inner)
    writer.add_ssm_state_size(n_state)
    writer.add_ssm_time_step_rank(n_rank)
    vocabulary.write(writer, pre="gpt-2", add_bos=False)
    rng = np.random.default_rng(0)
    for name, shape in {
        "token_embd.weight": (len(vocabulary), n_embd),
        "output_norm.weight": (n_embd,),
        "blk.0.attn_norm.weight": (n_embd,),
        "blk.0.ssm_in.weight": (2 * n_inner, n_embd),
        "blk.0.ssm_conv1d.weight": (n_inner, n_conv),
        "blk.0.ssm_conv1d.bias": (n_inner,),
        "blk.0.ssm_x.weight": (n_rank + 2 * n_state, n_inner),
        "blk.0.ssm_dt.weight": (n_inner, n_rank),
        "blk.0.ssm_dt.bias": (n_inner,),
        "blk.0.ssm_a": (n_inner, n_state),
        "blk.0.ssm_d": (n_inner,),
        "blk.0.ssm_out.weight": (n_embd, n_inner),
    }.items():
        values = rng.standard_normal(shape).astype(np.float32) / 8
        writer.add_tensor(name, -np.abs(values) if name.endswith("ssm_a") else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_recurrent_model_is_refused_by_name(tmp_path: Path) -> None:
    build_mamba(tmp_path / "mamba.gguf")
    vector = CacheVector({0: np.ones((1, 64))}, cells=[-2])
    with open_engine(Model.load(tmp_path / "mamba.gguf")) as engine:
        sequence = engine.sequence([5, 6, 7, 8])
        with pytest.raises(SteeringUnsupportedError, match="recurrent model has a state"):
            sequence.edit_cache(vector)
        assert np.isfinite(sequence.logits()).all()
