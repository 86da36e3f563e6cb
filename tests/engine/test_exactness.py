"""The hook is exact on the real models: not close, but the same bits.

One sequence gives the logits that llama.cpp's own control vectors give, and a row of a batch of 16
moods gives what it gives where all 16 rows have its mood. Neither comparison has a tolerance; both
sides have the same shapes, so llama.cpp computes both with the same kernels (docs/determinism.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
from engines import Array, logits_after_each, random_directions, random_vector, steering_of
from llama_oracle import LlamaOracle

from pyemo import Engine, Model, Steering

N_ROWS = 16
N_PROMPT, N_DECODED = 24, 6
TEXT = "The storm came over the hill before the harvest was in, and nobody in the village slept."

# What is quality-marked here takes some minutes; the rest shows the same on the smallest model.
every_model = pytest.mark.parametrize(
    "name",
    [
        "smollm2",
        pytest.param("gemma", marks=pytest.mark.quality),
        pytest.param("qwen", marks=pytest.mark.quality),
    ],
)


@pytest.fixture
def path(request: pytest.FixtureRequest, name: str) -> Path:
    found: Path = request.getfixturevalue(name)
    return found


@pytest.fixture
def model(path: Path) -> Model:
    return Model.load(path)


@pytest.fixture
def tokens(model: Model) -> list[int]:
    return list(islice(cycle(model.tokenize(TEXT)), N_PROMPT + N_DECODED))


@pytest.fixture
def directions(model: Model) -> dict[int, Array]:
    """A random direction for each layer that llama.cpp reaches, 3% of a typical row's length."""
    rows = random_directions(model, length=1.0)
    return {layer: 5.0 * rows[layer] for layer in range(1, model.n_layer)}


@pytest.fixture(params=["f16", pytest.param("f32", marks=pytest.mark.quality)])
def kv_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@every_model
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, -1.0])
def test_steered_logits_are_bit_identical_to_those_of_llama_cpps_adapter(
    path: Path,
    model: Model,
    tokens: list[int],
    directions: dict[int, Array],
    kv_type: str,
    strength: float,
) -> None:
    scaled = {layer: np.float32(strength) * row for layer, row in directions.items()}
    with LlamaOracle(path, kv_type=kv_type) as oracle:
        expected = oracle.logits_after_each(tokens, scaled, n_prompt=N_PROMPT)
    mood = steering_of(directions) * strength
    with Engine(model, n_ctx=512, n_threads=1, kv_type=kv_type) as engine:
        found = logits_after_each(engine, tokens, mood, n_prompt=N_PROMPT)
    np.testing.assert_array_equal(found, expected)


@every_model
def test_steering_changes_the_logits_that_are_compared(
    model: Model, tokens: list[int], directions: dict[int, Array]
) -> None:
    with Engine(model, n_ctx=512, n_threads=1) as engine:
        plain = logits_after_each(engine, tokens, n_prompt=N_PROMPT)
        up = logits_after_each(engine, tokens, steering_of(directions), n_prompt=N_PROMPT)
        down = logits_after_each(engine, tokens, steering_of(directions) * -1, n_prompt=N_PROMPT)
    assert min(np.abs(up - plain).max(), np.abs(down - plain).max(), np.abs(up - down).max()) > 0.1


# --- 16 moods in one batch ---


def sixteen_moods(model: Model) -> list[Steering]:
    """Different vectors, strengths, signs, layers and operators, one row without any."""
    thirds = [range(model.n_layer * i // 3, model.n_layer * (i + 1) // 3) for i in range(3)]
    vectors = [random_vector(model, seed=seed, length=5.0) for seed in range(N_ROWS)]
    moods = [Steering()]
    moods += [Steering({vector: (-1) ** i * 0.2 * i}) for i, vector in enumerate(vectors[1:6], 1)]
    moods += [
        Steering({vector: 1.5}, layers=layers)
        for vector, layers in zip(vectors[6:9], thirds, strict=True)
    ]
    moods += [
        Steering({vector: 0.5}, operator=operator)
        for vector, operator in zip(
            vectors[9:12], ("project_out", "clamp", "add_keep_norm"), strict=True
        )
    ]
    moods += [Steering({vectors[i]: 0.5, vectors[i - 1]: -0.25}) for i in range(12, 15)]
    moods.append(Steering({vectors[15]: 0.7}) + Steering({vectors[0]: 1.0}, operator="project_out"))
    return moods


def logits_of_batch(engine: Engine, prompts: list[list[int]], moods: list[Steering]) -> Array:
    """The logits of every row after the prompts and after each of three tokens more.

    float32 (4, N_ROWS, n_vocab); the rows are computed together every time.
    """
    sequences = [
        engine.sequence(prompt[:-3], steering=mood)
        for prompt, mood in zip(prompts, moods, strict=True)
    ]
    try:
        steps = []
        for step in range(4):
            engine.native.forward([sequence.id for sequence in sequences])
            steps.append([sequence.logits() for sequence in sequences])
            if step < 3:
                for sequence, prompt in zip(sequences, prompts, strict=True):
                    sequence.append([prompt[step - 3]])
        return np.array(steps)
    finally:
        for sequence in sequences:
            sequence.close()


@pytest.fixture
def prompts(tokens: list[int]) -> list[list[int]]:
    """Different texts of different lengths."""
    return [tokens[i : i + 6 + i % 3] for i in range(N_ROWS)]


@pytest.fixture
def wide(model: Model) -> Iterator[Engine]:
    with Engine(model, n_ctx=512, n_seq_max=N_ROWS, n_threads=1) as engine:
        yield engine


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("smollm2", (3, 7, 10, 15)),
        *(
            pytest.param(name, range(N_ROWS), marks=pytest.mark.quality)
            for name in ("smollm2", "gemma", "qwen")
        ),
    ],
)
def test_row_of_a_batch_of_16_moods_is_bit_identical_to_that_of_a_batch_of_its_mood(
    wide: Engine, prompts: list[list[int]], rows: Sequence[int]
) -> None:
    moods = sixteen_moods(wide.model)
    mixed = logits_of_batch(wide, prompts, moods)
    for k in rows:
        alike = logits_of_batch(wide, prompts, [moods[k]] * N_ROWS)
        np.testing.assert_array_equal(mixed[:, k], alike[:, k], err_msg=f"row {k}, {moods[k]}")


@every_model
def test_every_mood_of_the_16_is_felt(wide: Engine, prompts: list[list[int]]) -> None:
    moods = sixteen_moods(wide.model)
    mixed = logits_of_batch(wide, prompts, moods)
    plain = logits_of_batch(wide, prompts, [Steering()] * N_ROWS)
    felt = np.abs(mixed - plain).max(axis=(0, 2))
    assert felt[0] == 0
    assert felt[1:].min() > 0.01
