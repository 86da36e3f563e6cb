"""The tiny models compute the same in transformers and in llama.cpp: the ground of other tests.

No code of pyemo takes part. Errors are the largest difference of any logit, in standard
deviations of the logits.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
from llama_oracle import LlamaOracle
from numpy.typing import NDArray
from tiny_layouts import SLIDING_WINDOW
from tiny_models import ARCHITECTURES, TinyModel, build_tiny

Array = NDArray[np.float32]

WITH_GELU = ("gpt2", "gemma2", "gemma3")  # ggml's CPU code looks GELU up in a table of halves
WITH_WINDOW = ("gemma2", "gemma3")
TOLERANCE = {name: 2e-3 if name in WITH_GELU else 1e-4 for name in ARCHITECTURES}

needs_torch = pytest.mark.skipif(
    find_spec("torch") is None or find_spec("transformers") is None,
    reason="the reference needs torch and transformers: install pyemo's extra `extract`",
)
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.fixture
def model(tiny: Callable[[str], TinyModel], architecture: str) -> TinyModel:
    return tiny(architecture)


@pytest.fixture
def oracle(model: TinyModel) -> Iterator[LlamaOracle]:
    with LlamaOracle(model.path) as oracle:
        yield oracle


def error(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / expected.std())


def random_steering(model: TinyModel, tokens: list[int]) -> dict[int, Array]:
    """A random direction for each layer from 1 on, 30% of the residual's mean norm there."""
    norms = np.linalg.norm(model.reference_hidden(tokens), axis=2).mean(axis=1)
    directions = np.random.default_rng(7).standard_normal((model.n_layer, model.n_embd))
    directions *= 0.3 * norms[:, None] / np.linalg.norm(directions, axis=1, keepdims=True)
    return {layer: directions[layer].astype(np.float32) for layer in range(1, model.n_layer)}


@needs_torch
@every_architecture
def test_unsteered_logits_are_those_of_transformers(model: TinyModel, oracle: LlamaOracle) -> None:
    tokens = model.random_tokens(40)
    expected = model.reference_logits(tokens)
    assert error(oracle.logits(tokens), expected) <= TOLERANCE[model.architecture]


@needs_torch
@every_architecture
def test_steered_logits_are_those_of_transformers(model: TinyModel, oracle: LlamaOracle) -> None:
    tokens = model.random_tokens(40)
    steer = random_steering(model, tokens)
    expected = model.reference_logits(tokens, steer)
    assert error(oracle.logits(tokens, steer), expected) <= TOLERANCE[model.architecture]


@needs_torch
@pytest.mark.parametrize("architecture", WITH_WINDOW)
def test_steered_logits_agree_past_the_sliding_window(
    model: TinyModel, oracle: LlamaOracle
) -> None:
    tokens = model.random_tokens(3 * SLIDING_WINDOW)
    steer = random_steering(model, tokens)
    expected = model.reference_logits(tokens, steer)
    assert error(oracle.logits(tokens, steer), expected) <= TOLERANCE[model.architecture]


@needs_torch
@every_architecture
def test_steering_one_layer_off_misses_by_far(model: TinyModel, oracle: LlamaOracle) -> None:
    tokens = model.random_tokens(40)
    steer = random_steering(model, tokens)
    one_off = {layer - 1: direction for layer, direction in steer.items()}
    found = oracle.logits(tokens, steer)
    miss = error(found, model.reference_logits(tokens, one_off))
    assert miss >= 50 * error(found, model.reference_logits(tokens, steer))


@needs_torch
@pytest.mark.parametrize("architecture", WITH_GELU)
def test_half_precision_gelu_is_all_that_differs(model: TinyModel, oracle: LlamaOracle) -> None:
    # One token at a time: now and then a value falls on the other side of a half's rounding, which
    # shows in every later token.
    errors = [
        error(oracle.logits([token]), model.reference_logits([token], f16_gelu=True))
        for token in model.random_tokens(50)
    ]
    assert np.median(errors) <= 1e-5


@needs_torch
@every_architecture
def test_logits_vary_enough_to_tell_tokens_apart(model: TinyModel) -> None:
    assert model.reference_logits(model.random_tokens(40)).std() >= 1


@needs_torch
@every_architecture
def test_reference_adds_to_the_output_of_the_named_block(model: TinyModel) -> None:
    tokens = model.random_tokens(10)
    direction = np.linspace(-1, 1, model.n_embd, dtype=np.float32)
    difference = model.reference_hidden(tokens, {2: direction}) - model.reference_hidden(tokens)
    np.testing.assert_array_equal(difference[:2], 0)
    np.testing.assert_allclose(difference[2], np.tile(direction, (10, 1)), atol=1e-5)


@needs_torch
@every_architecture
def test_steering_of_the_reference_ends_with_the_call(model: TinyModel) -> None:
    tokens = model.random_tokens(10)
    before = model.reference_logits(tokens)
    model.reference_logits(tokens, {0: np.ones(model.n_embd, np.float32)}, f16_gelu=True)
    np.testing.assert_array_equal(model.reference_logits(tokens), before)


@needs_torch
@every_architecture
def test_last_hidden_state_is_before_the_final_norm(model: TinyModel) -> None:
    import torch

    tokens = model.random_tokens(10)
    hf_model = model.transformers_model()
    body = hf_model.base_model
    norm = body.ln_f if model.architecture == "gpt2" else body.norm
    with torch.no_grad():
        logits = hf_model.lm_head(norm(torch.from_numpy(model.reference_hidden(tokens)[-1])))
        if model.architecture == "gemma2":
            cap = model.config["final_logit_softcapping"]
            logits = cap * torch.tanh(logits / cap)
    np.testing.assert_allclose(logits.numpy(), model.reference_logits(tokens), atol=1e-4)


@needs_torch
@pytest.mark.parametrize(
    ("quant", "tolerance"),
    # llama.cpp multiplies these weights by activations rounded to halves or to 8 bits.
    [("F16", 2e-3), ("Q8_0", 0.05), ("Q4_0", 0.05)],
)
def test_quantized_file_computes_with_the_weights_of_the_reference(
    tmp_path: Path, quant: str, tolerance: float
) -> None:
    quantized = build_tiny("llama", tmp_path / "tiny.gguf", quant=quant)
    tokens = quantized.random_tokens(40)
    expected = quantized.reference_logits(tokens)
    with LlamaOracle(quantized.path) as oracle:
        found = oracle.logits(tokens)
    # The rounding of activations is noise: its largest value among all logits varies twofold from
    # seed to seed, its root mean square by a tenth.
    assert np.sqrt(np.mean((found - expected) ** 2)) <= tolerance * expected.std()


@every_architecture
def test_any_text_survives_the_tokenizer(model: TinyModel, oracle: LlamaOracle) -> None:
    text = "I was happy, and the day\nwas ½ over: 幸せ 🙂"
    starts_with_bos = model.architecture in ("llama", "gemma2", "gemma3")
    tokens = oracle.tokenize(text)[starts_with_bos:]
    assert oracle.detokenize(tokens).decode() == text


@every_architecture
def test_common_words_are_one_token(model: TinyModel, oracle: LlamaOracle) -> None:
    tokens = oracle.tokenize(" the happy story")
    assert [oracle.detokenize([token]) for token in tokens[-3:]] == [b" the", b" happy", b" story"]


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_chat_markers_are_one_token_each(model: TinyModel, oracle: LlamaOracle) -> None:
    tokens = oracle.tokenize("<|im_start|><|im_end|>", special=True)
    assert oracle.detokenize(tokens[-2:]) == b"<|im_start|><|im_end|>"


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_chat_models_carry_a_chatml_template(model: TinyModel) -> None:
    template = gguf.GGUFReader(model.path).fields["tokenizer.chat_template"].contents()
    assert "<|im_start|>" in template


def test_chat_template_can_be_left_out(tmp_path: Path) -> None:
    model = build_tiny("llama", tmp_path / "tiny.gguf", chat_template=None)
    assert "tokenizer.chat_template" not in gguf.GGUFReader(model.path).fields


@every_architecture
def test_same_seed_gives_the_same_file(model: TinyModel, tmp_path: Path) -> None:
    again = build_tiny(model.architecture, tmp_path / "again.gguf")
    assert again.path.read_bytes() == model.path.read_bytes()


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    one, two = (build_tiny("llama", tmp_path / f"{seed}.gguf", seed=seed) for seed in (1, 2))
    assert not np.array_equal(one.weights["lm_head.weight"], two.weights["lm_head.weight"])


def test_building_leaves_no_other_file_behind(tmp_path: Path) -> None:
    model = build_tiny("llama", tmp_path / "tiny.gguf")
    assert list(tmp_path.iterdir()) == [model.path]


def test_building_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, tiny_models\n"
        "for name in tiny_models.ARCHITECTURES:\n"
        "    tiny_models.build_tiny(name, pathlib.Path(name + '.gguf'))\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    folder = Path(__file__).parents[1]
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{program}"]
    assert subprocess.run(command, cwd=tmp_path, timeout=60).returncode == 0


def test_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tiny model of 'mamba'"):
        build_tiny("mamba", tmp_path / "tiny.gguf")


def test_unknown_quantization_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quant is 'Q4_K'"):
        build_tiny("llama", tmp_path / "tiny.gguf", quant="Q4_K")
