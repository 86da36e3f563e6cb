"""The model a voice is trained on: what it takes, said before it is loaded, and what cannot be.

Owns the arithmetic of a training's memory and the words for what a training needs.
"""

from __future__ import annotations

import os
from pathlib import Path

from pyemo.choices import DType
from pyemo.engine.memory import available_bytes, model_size
from pyemo.errors import MissingExtraError, ModelLoadError
from pyemo.extract.transformers_loading import Loaded, is_gguf, load
from pyemo.extract.voice_recipe import VoiceRecipe
from pyemo.files.catalog import resolve_model

_LIBRARIES_BYTES = 500_000_000  # torch and transformers as imported
_TEXT_TOKENS = 160  # a prompt in its template, and a reply of two or three sentences
_READ_FORMATS = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, the K and the IQ formats"


def training_bytes(path: str | os.PathLike[str], dtype: DType, recipe: VoiceRecipe) -> int:
    """Return about how much memory a training on a GGUF file takes, from the file's header.

    All weights dequantized; for each text of a step what the blocks from the first steered one on
    keep for the gradient (20 rows of n_embd and 4 of n_ff a token), and the logits of half of its
    tokens, some of them in float32. Measured beside it: docs/measurements/voices.md.

    Raises:
        ModelLoadError: not a GGUF file, or damaged.
    """
    size, choices = model_size(path), recipe.training
    width = 2 if dtype in ("float16", "bfloat16") else 4
    blocks = size.n_layer - recipe.layer_range(size.n_layer).start
    texts = (
        choices.batch
        + (choices.plain_batch if choices.damage else 0)
        + (choices.contrast_batch if choices.contrast else 0)
    )
    a_token = blocks * (20 * size.n_embd + 4 * size.n_ff) * width + 8 * size.n_vocab
    return _LIBRARIES_BYTES + size.n_parameters * width + texts * _TEXT_TOKENS * a_token


def require_training_room(
    name: str | os.PathLike[str],
    dtype: DType,
    recipe: VoiceRecipe,
    device: str = "auto",
    n_at_once: int = 1,
) -> None:
    """Refuse a GGUF file that the machine has no memory to train on, before it is loaded.

    Does nothing for other models, other devices than the CPU, and where the system shows no
    reading.

    Args:
        n_at_once: trainings side by side.
    Raises:
        ModelLoadError: it takes more than is available.
    """
    text = os.fspath(name).strip()
    free = available_bytes()
    is_elsewhere = device.startswith(("cuda", "mps"))
    if free is None or is_elsewhere or not is_gguf(text, Path(text).expanduser().absolute()):
        return
    path = resolve_model(text).path
    need = n_at_once * training_bytes(path, dtype, recipe)
    if need > free:
        raise ModelLoadError(
            f"training on {text} takes about {need / 1e6:.0f} MB"
            f"{f', {n_at_once} at once' if n_at_once > 1 else ''}, and {free / 1e6:.0f} MB are "
            f"available; take {'fewer --workers, ' if n_at_once > 1 else ''}--dtype bfloat16, a "
            "recipe with a smaller batch, or a smaller model"
        )


def load_for_training(name: str | os.PathLike[str], device: str, dtype: DType) -> Loaded:
    """Return the model for transformers, whose weights a gradient can be taken through.

    Raises:
        MissingExtraError: torch, transformers or accelerate is not installed.
        ModelLoadError: transformers cannot dequantize or compute it.
    """
    try:
        return load(name, device, dtype, None)
    except MissingExtraError as error:
        missing = getattr(error.__cause__, "name", None) or "torch"
        raise MissingExtraError(
            f"a voice is trained by gradient, which needs {missing}, and it is not installed: "
            "`pip install 'pyemo[extract]'`; vectors of the recipe `reading`, for gauges, need none"
        ) from error
    except ModelLoadError as error:
        text = os.fspath(name)
        if not is_gguf(text.strip(), Path(text).expanduser().absolute()):
            raise
        raise ModelLoadError(
            f"a voice is trained on weights that transformers dequantizes, and it cannot read "
            f"{text}: {error.__cause__ or error}. It reads {_READ_FORMATS}, of architectures such "
            "as llama, qwen2, qwen3, gemma2, gemma3, phi3, mistral and gpt2; take another file of "
            "this model, or its Hugging Face folder"
        ) from error
