"""The families that people steer beside the five of the other tests: one proof of each kind each.

Per-layer embeddings and shared keys (gemma4), hybrid memory (qwen35, granitehybrid, falcon-h1),
short convolutions (lfm2) and their kin compute as in transformers and in llama.cpp by itself, are
steered and read at the whole stream, and go back, sideways and on as a fresh computation does.
The table of architectures in ``models/README.md`` says the same and is held against this list.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from engines import (
    FLOAT32,
    Array,
    error,
    forced,
    hidden_states,
    logits_after,
    logits_after_each,
    needs_torch,
    random_directions,
    random_vector,
    steering_of,
)
from llama_oracle import LlamaOracle
from tiny_layouts import SLIDING_WINDOW
from tiny_models import ALL_ARCHITECTURES, FAMILIES, UNSTEERABLE, TinyModel

from pyemo import Chat, ControlVector, Engine, Gauge, SamplerParams, Sequence, Steering
from pyemo.engine.steps import forward_many, step_many
from pyemo.errors import DecodeAbortedError, SteeringUnsupportedError
from pyemo.vectors.metadata import VectorMetadata

N_PROMPT = SLIDING_WINDOW + 18  # past the one sliding window there is
N_TOKENS = N_PROMPT + 14
GREEDY = SamplerParams(temperature=0)
WITH_GELU = 3e-3  # gemma4's own GELU tables, on both sides
every_family = pytest.mark.parametrize("architecture", FAMILIES)
every_unsteerable = pytest.mark.parametrize("architecture", UNSTEERABLE)


@pytest.fixture
def model(tiny: Callable[[str], TinyModel], architecture: str) -> TinyModel:
    return tiny(architecture)


@pytest.fixture
def engine(new_engine: Callable[..., Engine], architecture: str) -> Engine:
    return new_engine(architecture)


@pytest.fixture
def fresh(new_engine: Callable[..., Engine], architecture: str) -> Engine:
    """A second engine, where nothing was computed before."""
    return new_engine(architecture)


@pytest.fixture
def tokens(model: TinyModel) -> list[int]:
    return model.random_tokens(N_TOKENS)


@pytest.fixture
def moods(engine: Engine) -> list[Steering]:
    return [Steering({random_vector(engine.model, seed=seed): 1.0}) for seed in (1, 2)]


def tolerance(architecture: str) -> float:
    return WITH_GELU if FAMILIES[architecture].has_gelu else FLOAT32


def assert_close(
    found: Array | list[Array], expected: Array | list[Array], model: TinyModel
) -> None:
    assert error(np.asarray(found), np.asarray(expected)) <= tolerance(model.architecture)


def directions(model: TinyModel) -> dict[int, Array]:
    return dict(enumerate(random_directions(model, seed=7)))


# --- the same numbers ---


@needs_torch
@every_family
@pytest.mark.parametrize("is_steered", [False, True])
def test_logits_and_hidden_states_are_those_of_transformers(
    engine: Engine, model: TinyModel, tokens: list[int], is_steered: bool
) -> None:
    steer = directions(model) if is_steered else {}
    mood = steering_of(steer) if is_steered else Steering()
    expected = model.reference_logits(tokens, steer, f16_gelu=True)
    assert expected.std() >= 1, "logits too much alike to tell tokens apart"
    found = logits_after_each(engine, tokens, mood, n_prompt=N_PROMPT)
    assert_close(found, expected[N_PROMPT - 1 :], model)
    stream = model.reference_hidden(tokens, steer, f16_gelu=True)
    for layer, rows in enumerate(hidden_states(engine, tokens, mood)):
        assert_close(rows, stream[layer], model)


@every_family
def test_logits_are_those_of_llama_cpps_own_control_vectors(
    engine: Engine, model: TinyModel, tokens: list[int]
) -> None:
    steer = {layer: row for layer, row in directions(model).items() if layer > 0}
    found = logits_after_each(engine, tokens, steering_of(steer), n_prompt=N_PROMPT)
    with LlamaOracle(model.path) as oracle:
        expected = oracle.logits_after_each(tokens, steer, n_prompt=N_PROMPT)
    np.testing.assert_array_equal(found, expected)


@every_family
def test_any_text_survives_the_tokenizer(engine: Engine) -> None:
    text = "I was happy, and the day\nwas ½ over: 幸せ 🙂"
    tokens = engine.model.tokenize(text)
    assert engine.model.detokenize(tokens).decode() == text
    assert len(tokens) < len(text.encode()), "no word was joined"


# --- the dose ---


@every_family
def test_a_direction_is_added_to_the_whole_stream_at_its_blocks_output(
    engine: Engine, model: TinyModel, tokens: list[int]
) -> None:
    plain = hidden_states(engine, tokens)
    for layer, direction in directions(model).items():
        change = hidden_states(engine, tokens, steering_of({layer: direction})) - plain
        np.testing.assert_array_equal(change[:layer], 0)
        np.testing.assert_allclose(
            change[layer], np.tile(direction, (N_TOKENS, 1)), atol=1e-5 * np.abs(plain).max()
        )


@needs_torch
@every_family
def test_dose_is_what_is_left_of_the_directions_in_the_last_blocks_output(
    engine: Engine, model: TinyModel, tokens: list[int]
) -> None:
    steer = directions(model)
    left = np.zeros(model.n_embd)
    for layer in range(model.n_layer):
        left = left * stream_scale(model, layer) + steer[layer]
    last = model.reference_hidden(tokens, steer, f16_gelu=True)[-1, -1]
    with engine.sequence(tokens, steering=steering_of(steer), gauges=[gauge(model)]) as sequence:
        token = sequence.step()
    assert token.dose == pytest.approx(np.linalg.norm(left) / np.linalg.norm(last), rel=1e-2)


@needs_torch
@every_family
def test_a_gauge_reads_the_stream_without_what_is_left_of_the_directions(
    engine: Engine, model: TinyModel, tokens: list[int]
) -> None:
    steer, reads = directions(model), gauge(model)
    assert reads.layer is not None
    left = np.zeros(model.n_embd)
    for layer in range(reads.layer + 1):
        left = left * stream_scale(model, layer) + steer[layer]
    stream = model.reference_hidden(tokens, steer, f16_gelu=True)[reads.layer, -1]
    with engine.sequence(tokens, steering=steering_of(steer), gauges=[reads]) as sequence:
        reading = sequence.step().gauges["gauge"]
    norm = reads.vector.residual_norms[reads.layer]
    assert reading.dose == pytest.approx(left @ reads.unit / norm, abs=1e-3)
    assert reading.value == pytest.approx((stream - left) @ reads.unit / norm, abs=1e-2)


def stream_scale(model: TinyModel, layer: int) -> float:
    """What a block multiplies the whole stream by, the part that was added before included."""
    return float(model.weights.get(f"model.layers.{layer}.layer_scalar", np.ones(1))[0])


def gauge(model: TinyModel) -> Gauge:
    metadata = VectorMetadata(
        residual_norms=(8.0,) * model.n_layer, neutral_projections=(0.0,) * model.n_layer
    )
    rows = dict(enumerate(random_directions(model, seed=8)))
    return Gauge(ControlVector(rows, metadata=metadata), layer=model.n_layer - 2, name="gauge")


# --- sequences ---


@every_family
def test_a_fork_and_its_parent_go_on_as_fresh_sequences_would(
    engine: Engine, fresh: Engine, model: TinyModel, tokens: list[int], moods: list[Steering]
) -> None:
    prompt, rest = tokens[:N_PROMPT], tokens[N_PROMPT:]
    with prefilled(engine, prompt) as parent, parent.fork() as twin:
        twin.steering = moods[0]
        for token in rest:  # in turns, so that neither may use up what the other has
            twin.append([token])
            parent.append([token])
            found = [twin.logits(), parent.logits()]
    assert_close(found[1], logits_after_each(fresh, tokens, n_prompt=N_PROMPT)[-1], model)
    with prefilled(fresh, prompt) as alone:
        alone.steering = moods[0]
        assert_close(found[0], forced(alone, rest)[-1], model)


@every_family
def test_tokens_taken_back_leave_what_a_fresh_computation_gives(
    engine: Engine, fresh: Engine, model: TinyModel, tokens: list[int], moods: list[Steering]
) -> None:
    with prefilled(engine, tokens, moods[0]) as sequence:
        sequence.rollback(3)
        found = sequence.logits()
        further = forced(sequence, tokens[:4])
    assert_close(found, logits_after(fresh, tokens[:-3], moods[0]), model)
    again = logits_after(fresh, [*tokens[:-3], *tokens[:4]], moods[0])
    assert_close(further[-1], again, model)


@every_family
def test_tokens_taken_back_keep_the_mood_each_was_decoded_under(
    engine: Engine, fresh: Engine, model: TinyModel, tokens: list[int], moods: list[Steering]
) -> None:
    def under_both(engine: Engine, rest: list[int]) -> Sequence:
        sequence = prefilled(engine, tokens[:N_PROMPT], moods[0])
        sequence.steering = moods[1]
        forced(sequence, rest)
        return sequence

    with under_both(engine, tokens[N_PROMPT:]) as sequence:
        sequence.rollback(3)
        found = sequence.logits()
    with under_both(fresh, tokens[N_PROMPT:-3]) as sequence:
        assert_close(found, sequence.logits(), model)


@every_family
def test_a_refreshed_sequence_is_a_fresh_one_under_the_mood_of_now(
    engine: Engine, fresh: Engine, model: TinyModel, tokens: list[int], moods: list[Steering]
) -> None:
    with prefilled(engine, tokens, moods[0]) as sequence:
        sequence.steering = moods[1]
        sequence.refresh()
        found = sequence.logits()
    assert_close(found, logits_after(fresh, tokens, moods[1]), model)


@every_family
def test_moods_in_one_batch_are_the_moods_alone(
    engine: Engine, fresh: Engine, model: TinyModel, tokens: list[int], moods: list[Steering]
) -> None:
    mixed = [Steering(), moods[0], moods[1], moods[0] * -1.0]
    lengths = [N_PROMPT, 7, N_PROMPT, 23]  # prompts of several lengths, and two alike
    prompts = [tokens[:n] for n in lengths]
    opened = [engine.sequence(p, steering=m) for p, m in zip(prompts, mixed, strict=True)]
    for sequence in opened:
        sequence.sampler = GREEDY
    drawn = [step_many(opened) for _ in range(6)]
    found = [sequence.logits() for sequence in opened]
    for i, (prompt, mood) in enumerate(zip(prompts, mixed, strict=True)):
        with fresh.sequence(prompt, steering=mood) as alone:
            expected = forced(alone, [step[i].token for step in drawn])[-1]
        assert_close(found[i], expected, model)
    for sequence in opened:
        sequence.close()


@every_family
def test_rows_of_one_token_have_each_their_own_mood(
    engine: Engine, fresh: Engine, model: TinyModel, tokens: list[int], moods: list[Steering]
) -> None:
    """Rows that look alike to the check of tokens would hide a wrong order."""
    mixed = [Steering(), moods[0], moods[1]]
    opened = [prefilled(engine, tokens, mood) for mood in mixed]
    for sequence in reversed(opened):
        sequence.append(tokens[:1])
    found = forward_in(opened, [2, 0, 1])
    for mood, row in zip(mixed, found, strict=True):
        assert_close(
            row, logits_after_each(fresh, [*tokens, tokens[0]], mood, n_prompt=N_TOKENS)[-1], model
        )
    for sequence in opened:
        sequence.close()


@every_family
def test_a_chat_of_two_turns_is_one_prompt_of_both(
    engine: Engine, fresh: Engine, model: TinyModel, moods: list[Steering]
) -> None:
    with Chat(engine, steering=moods[0], sampler=GREEDY, max_tokens=8) as chat:
        for words in ("I was happy", "and then"):
            list(chat.say(words))
        said, found = chat.sequence.tokens, chat.sequence.logits()
    assert_close(found, logits_after(fresh, said, moods[0]), model)


@every_family
def test_many_texts_score_as_each_alone(
    engine: Engine, model: TinyModel, moods: list[Steering]
) -> None:
    texts = [model.random_tokens(n, seed=n) for n in (9, 30, 17)]
    many = engine.score_many([(text, None) for text in texts], steering=moods[0])
    for text, score in zip(texts, many, strict=True):
        alone = engine.score(text, steering=moods[0])
        np.testing.assert_allclose(score.logprobs, alone.logprobs, atol=2e-3)


@every_family
def test_a_prompt_in_chunks_is_the_prompt_in_one(
    new_engine: Callable[..., Engine],
    engine: Engine,
    model: TinyModel,
    tokens: list[int],
    moods: list[Steering],
) -> None:
    chunked = new_engine(model.architecture, n_batch=16)
    found = logits_after(chunked, tokens, moods[0])
    assert_close(found, logits_after(engine, tokens, moods[0]), model)


@every_family
def test_cells_of_their_own_change_nothing(
    new_engine: Callable[..., Engine],
    fresh: Engine,
    model: TinyModel,
    tokens: list[int],
    moods: list[Steering],
) -> None:
    engine = new_engine(model.architecture, n_ctx=4 * 256, kv_unified=False)
    mixed = [Steering(), *moods]
    opened = [prefilled(engine, tokens, mood) for mood in mixed]
    for sequence in opened:
        sequence.append(tokens[:1])
    for mood, row in zip(mixed, forward_in(opened, [0, 1, 2]), strict=True):
        expected = logits_after_each(fresh, [*tokens, tokens[0]], mood, n_prompt=N_TOKENS)[-1]
        assert_close(row, expected, model)
    for sequence in opened:
        sequence.close()


@every_family
def test_a_decode_that_fails_leaves_its_sequences_as_they_were(
    engine: Engine, fresh: Engine, model: TinyModel, tokens: list[int], moods: list[Steering]
) -> None:
    with prefilled(engine, tokens, moods[0]) as one, prefilled(engine, tokens[:9]) as other:
        one.steering = Steering({random_vector(engine.model, layers=[1], length=1e15): 1e6})
        one.append(tokens[:1])
        other.append(tokens[:1])
        with pytest.raises(DecodeAbortedError, match="too strong"):
            forward_many([other, one])
        one.steering = moods[0]
        found = forward_in([other, one], [0, 1])
    assert_close(found[0], logits_after(fresh, [*tokens[:9], tokens[0]]), model)
    assert_close(found[1], logits_after(fresh, [*tokens, tokens[0]], moods[0]), model)


@every_family
def test_a_quantized_cache_only_rounds(
    new_engine: Callable[..., Engine],
    engine: Engine,
    model: TinyModel,
    tokens: list[int],
    moods: list[Steering],
) -> None:
    quantized = new_engine(model.architecture, kv_type="q8_0")
    found = logits_after_each(quantized, tokens, moods[0], n_prompt=N_PROMPT)
    expected = logits_after_each(engine, tokens, moods[0], n_prompt=N_PROMPT)
    assert np.sqrt(np.mean((found - expected) ** 2)) <= 0.1 * expected.std()


# --- what cannot be steered ---


@every_unsteerable
def test_what_cannot_be_steered_runs_as_in_llama_cpp(engine: Engine, model: TinyModel) -> None:
    tokens = model.random_tokens(30)
    found = logits_after_each(engine, tokens, n_prompt=20)
    assert found.std() >= 1, "logits too much alike to tell tokens apart"
    with LlamaOracle(model.path) as oracle:
        np.testing.assert_array_equal(found, oracle.logits_after_each(tokens, n_prompt=20))


@every_unsteerable
def test_what_cannot_be_steered_is_refused_by_name(
    engine: Engine, model: TinyModel, moods: list[Steering]
) -> None:
    calls: list[Callable[[], object]] = [
        lambda: engine.sequence([1, 2, 3], steering=moods[0]),
        lambda: engine.read([1, 2, 3]),
        lambda: engine.sequence([1, 2, 3], gauges=[gauge(model)]),
    ]
    for call in calls:
        with pytest.raises(
            SteeringUnsupportedError, match=rf"models of {model.architecture} run, .*block 0"
        ):
            call()
    with engine.sequence([1, 2, 3]) as sequence:
        sequence.step()


# --- the table ---


def test_the_table_of_architectures_says_what_the_engine_does(
    new_engine: Callable[..., Engine], tiny: Callable[[str], TinyModel]
) -> None:
    page = (Path(__file__).parents[2] / "models" / "README.md").read_text(encoding="utf-8")
    section = page.split("## Architectures")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    table = {row[0].strip(" `"): [cell.strip() for cell in row[2:]] for row in rows}
    assert table == {name: table_row(new_engine(name), tiny(name)) for name in ALL_ARCHITECTURES}


def table_row(engine: Engine, model: TinyModel) -> list[str]:
    reason = "four streams" if "[64, 2, 4, 1]" in engine.steering_unsupported else "no block output"
    tokens = model.random_tokens(20)
    with prefilled(engine, tokens) as sequence, sequence.fork() as twin:
        is_shared = not twin.n_pending
        sequence.rollback(3)
        is_kept = sequence.n_pending == 1
    return [
        f"refused: {reason}" if engine.steering_unsupported else "at every block",
        "shares the prompt" if is_shared else "computes again",
        "keeps what stays" if is_kept else "computes again",
        "prompts and replies" if is_kept else "replies",
        "llama.cpp" if engine.steering_unsupported else "transformers, llama.cpp",
    ]


def prefilled(engine: Engine, tokens: list[int], steering: Steering = Steering()) -> Sequence:  # noqa: B008
    sequence = engine.sequence(tokens, steering=steering)
    sequence.logits()
    return sequence


def forward_in(sequences: list[Sequence], order: list[int]) -> list[Array]:
    forward_many([sequences[i] for i in order])
    return [sequence.logits() for sequence in sequences]
