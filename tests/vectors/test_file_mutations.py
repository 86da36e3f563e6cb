"""Five hundred damaged copies of a good vector file: each is refused by name or loads sound."""

import random
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from pyemo.errors import VectorError
from pyemo.vectors.control_vector import ControlVector

GOOD = (Path(__file__).parents[1] / "golden" / "v1-residual.gguf").read_bytes()
N_MUTATIONS = 500
LONGEST_S = 1.0
MOST_BYTES = 16 << 20
# numbers that lengths, counts, types and offsets go wrong at
EDGES = [0, 1, 2, 7, 8, 9, 31, 32, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]


def flip_bits(dice, content):
    for _ in range(dice.randint(1, 8)):
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)


def set_bytes(dice, content):
    for _ in range(dice.randint(1, 4)):
        content[dice.randrange(len(content))] = dice.choice([0, 1, 0x7F, 0x80, 0xFF])


def cut_off(dice, content):
    del content[dice.randrange(len(content)) :]


def overwrite_a_number(dice, content):
    size, code = dice.choice([(4, "<I"), (8, "<Q")])
    at = dice.randrange(len(content) - size)
    struct.pack_into(code, content, at, dice.choice(EDGES) % (1 << 8 * size))


def overwrite_a_length(dice, content):
    """Aim at what surely is a length: the eight bytes before a key or a tensor's name."""
    names = (b"general.", b"controlvector.", b"pyemo.", b"direction.")
    places = [i for i in range(len(content)) if any(content.startswith(n, i) for n in names)]
    struct.pack_into("<Q", content, dice.choice(places) - 8, dice.choice(EDGES))


def move_a_piece(dice, content):
    start, size = dice.randrange(len(content)), dice.randint(1, 64)
    piece = content[start : start + size]
    del content[start : start + size]
    at = dice.randrange(len(content))
    content[at:at] = piece


def repeat_a_piece(dice, content):
    start = dice.randrange(len(content))
    at = dice.randrange(len(content))
    content[at:at] = content[start : start + dice.randint(1, 64)]


MUTATIONS = [
    flip_bits,
    set_bytes,
    cut_off,
    overwrite_a_number,
    overwrite_a_length,
    move_a_piece,
    repeat_a_piece,
]


def mutated(seed):
    dice = random.Random(seed)
    content = bytearray(GOOD)
    MUTATIONS[seed % len(MUTATIONS)](dice, content)
    return bytes(content)


def load(path):
    """Return the vector, or the error that refuses it by name; any other error passes through."""
    try:
        return ControlVector.load(path)
    except VectorError as error:
        return error


def is_sound(vector):
    values = (*vector.residual_norms.values(), *vector.neutral_projections.values())
    return np.isfinite(values).all() and all(
        np.isfinite(row).all() and row.shape == (vector.n_embd,)
        for row in vector.directions.values()
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("mutations") / "vector.gguf"


@pytest.fixture(scope="module")
def outcomes(path):
    """Every mutation's (seed, seconds, bytes, vector or error)."""
    found = []
    for seed in range(N_MUTATIONS):
        path.write_bytes(mutated(seed))
        tracemalloc.start()
        started = time.perf_counter()
        result = load(path)
        seconds = time.perf_counter() - started
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        found.append((seed, seconds, peak_bytes, result))
    return found


def test_none_raises_anything_but_a_vector_error(outcomes):
    assert len(outcomes) == N_MUTATIONS


def test_each_error_names_the_file(outcomes, path):
    errors = [result for *_, result in outcomes if isinstance(result, VectorError)]
    assert [str(error) for error in errors if str(path) not in str(error)] == []


def test_what_loads_is_finite_and_whole(outcomes):
    vectors = [result for *_, result in outcomes if isinstance(result, ControlVector)]
    assert all(is_sound(vector) for vector in vectors)


def test_none_takes_a_second(outcomes):
    assert [seed for seed, seconds, _, _ in outcomes if seconds >= LONGEST_S] == []


def test_none_allocates_much(outcomes):
    assert [seed for seed, _, peak_bytes, _ in outcomes if peak_bytes >= MOST_BYTES] == []


def test_the_mutations_reach_both_ends(outcomes):
    n_loaded = sum(isinstance(result, ControlVector) for *_, result in outcomes)
    assert 20 < n_loaded < N_MUTATIONS - 200


def test_the_unmutated_file_loads(tmp_path):
    (tmp_path / "good.gguf").write_bytes(GOOD)
    assert is_sound(load(tmp_path / "good.gguf"))
