"""The engine back end pools what a text alone would give, and writes each story once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from engines import open_engine
from tiny_models import TinyModel, build_tiny

from pyemo import Engine, Model, SamplerParams
from pyemo.emotions import EMOTIONS
from pyemo.errors import ClosedError, ContextFullError, InputError
from pyemo.extract import EngineBackend, Recipe
from pyemo.extract.backend import Passage, Written
from pyemo.extract.stories import story_prompts

LAYERS = [0, 2]
GREEDY = SamplerParams(temperature=0)
TEXTS = (
    "the happy story",
    "a sad day and a calm day, and the angry day that was",
    "she was afraid",
)


@pytest.fixture(scope="module")
def engine(tiny_llama: TinyModel) -> Iterator[Engine]:
    with open_engine(Model.load(tiny_llama.path), n_ctx=512, n_seq_max=3) as engine:
        yield engine


@pytest.fixture
def backend(engine: Engine) -> EngineBackend:
    return EngineBackend(engine)


def passages(backend: EngineBackend) -> list[Passage]:
    tokens = [tuple(backend.text_tokens(text)) for text in TEXTS]
    return [Passage(ids, 1, len(ids) - 1) for ids in tokens]


def written(
    backend: EngineBackend, n: int, max_tokens: int = 12, skip: int | None = None
) -> dict[int, Written]:
    """The replies to n prompts, by prompt; fails where one is told twice."""
    prompts = [backend.prompt_tokens(f"{TEXTS[i % len(TEXTS)]} {i}") for i in range(n)]
    found: dict[int, Written] = {}

    def keep(index: int, reply: Written) -> None:
        assert index not in found
        found[index] = reply

    backend.write(prompts, [GREEDY] * n, max_tokens, keep, skip=skip, layers=LAYERS)
    return found


def test_it_says_which_model_it_is(engine: Engine, backend: EngineBackend) -> None:
    source, model = backend.source, engine.model
    assert (source.name, source.architecture) == (model.name, "llama")
    assert (source.n_layer, source.n_embd) == (model.n_layer, model.n_embd)
    assert source.file_sha256 == model.file_sha256
    assert source.weights_fingerprint == model.weights_fingerprint
    assert source.chat_template_sha256 == model.chat_template_sha256


def test_reading_many_texts_is_the_mean_of_each_ones_tokens(
    engine: Engine, backend: EngineBackend
) -> None:
    found = backend.read(passages(backend), LAYERS)
    assert found.shape == (len(TEXTS), len(LAYERS), engine.model.n_embd)
    for rows, passage in zip(found, passages(backend), strict=True):
        alone = engine.read(list(passage.tokens), pooling="all", layers=LAYERS)
        expected = alone[passage.begin : passage.end].astype(np.float64).mean(axis=0)
        assert np.allclose(rows, expected, atol=1e-4)


def test_passages_with_a_common_beginning_are_read_as_if_each_were_alone(
    engine: Engine, backend: EngineBackend
) -> None:
    given = tuple(
        backend.prompt_tokens("write about the happy day, the sad day and the calm story")
    )
    endings = [tuple(backend.text_tokens(text)[1:]) for text in (*TEXTS, "the day", "is it", "no")]
    shared = [
        Passage(given + ending, len(given) + len(ending) - 1, len(given) + len(ending))
        for ending in endings
    ]
    found = backend.read(shared, LAYERS)
    alone = np.stack([engine.read(list(p.tokens), pooling="last", layers=LAYERS) for p in shared])
    assert np.allclose(found, alone, atol=1e-4)
    assert engine.native.n_free_sequences == engine.n_seq_max


def test_reading_tokens_gives_those_of_the_passage(engine: Engine, backend: EngineBackend) -> None:
    for rows, passage in zip(
        backend.read_tokens(passages(backend), LAYERS), passages(backend), strict=True
    ):
        alone = engine.read(list(passage.tokens), pooling="all", layers=LAYERS)
        assert np.allclose(rows, alone[passage.begin : passage.end], atol=1e-4)


@pytest.mark.parametrize("n", [0, 1, 3, 8])
def test_every_prompt_is_answered_once_however_many_fit_at_a_time(
    backend: EngineBackend, n: int
) -> None:
    assert sorted(written(backend, n)) == list(range(n))


def test_a_greedy_story_is_what_the_engine_generates(
    engine: Engine, backend: EngineBackend
) -> None:
    reply = written(backend, 1, max_tokens=12)[0]
    generated = list(engine.generate(f"{TEXTS[0]} 0", sampler=GREEDY, max_tokens=12))
    assert list(reply.tokens) == [token.id for token in generated][: len(reply.tokens)]
    assert len(reply.tokens) >= len(generated) - 1
    assert reply.text == engine.model.detokenize(reply.tokens).decode("utf-8", "replace")


@pytest.mark.parametrize("skip", [0, 5])
def test_what_is_pooled_while_writing_is_what_reading_again_finds(
    backend: EngineBackend, skip: int
) -> None:
    for index, reply in written(backend, 4, skip=skip).items():
        given = tuple(backend.prompt_tokens(f"{TEXTS[index % len(TEXTS)]} {index}"))
        begin = len(given) + skip
        if len(reply.tokens) <= skip:
            assert reply.states is None
            continue
        whole = given + reply.tokens
        assert reply.states is not None
        again = backend.read([Passage(whole, begin, len(whole))], LAYERS)[0]
        assert np.allclose(reply.states, again, atol=1e-3)


def test_nothing_is_pooled_where_it_is_not_asked_for(backend: EngineBackend) -> None:
    assert all(reply.states is None for reply in written(backend, 3).values())


def test_a_story_that_the_context_has_no_room_for_is_refused(backend: EngineBackend) -> None:
    with pytest.raises(ContextFullError, match="larger n_ctx"):
        written(backend, 1, max_tokens=600)


def test_sequences_are_free_again_when_writing_was_stopped(
    engine: Engine, backend: EngineBackend
) -> None:
    prompts = [backend.prompt_tokens(text) for text in TEXTS]

    def stop(_index: int, _reply: Written) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backend.write(prompts, [GREEDY] * 3, 8, stop)
    assert engine.native.n_free_sequences == engine.n_seq_max


def test_open_makes_room_for_the_recipes_stories_side_by_side(tiny_llama: TinyModel) -> None:
    recipe = replace(Recipe.load("paper-generation"), max_tokens=16)
    with EngineBackend.open(tiny_llama.path, recipe, parallel=2, n_threads=1) as backend:
        prompts = [backend.prompt_tokens(p.text) for p in story_prompts(recipe, EMOTIONS)]
        found: list[int] = []
        longest = sorted(prompts, key=len)[-2:]
        backend.write(longest, [GREEDY] * 2, 16, lambda index, _reply: found.append(index))
        assert sorted(found) == [0, 1]
    with pytest.raises(ClosedError):
        backend.read([Passage((1, 2), 0, 2)], LAYERS)


def test_open_refuses_no_texts_at_a_time(tiny_llama: TinyModel) -> None:
    with (
        pytest.raises(InputError, match="n_seq_max"),
        EngineBackend.open(tiny_llama.path, Recipe.load(), parallel=0),
    ):
        pass


def test_a_model_without_a_chat_template_has_no_hash_of_one(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("plain") / "plain.gguf"
    build_tiny("llama", path, chat_template=None)
    with EngineBackend.open(path, Recipe.load(), parallel=1, n_threads=1) as backend:
        assert backend.source.chat_template_sha256 == ""
