"""The transformers back end gives what the engine back end gives, on models that both compute
alike.

Hidden states are compared by cosine, token by token. Stories are compared token by token too: with
the same float32 logits and the same random numbers, both back ends write the same words.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from engines import Array, needs_torch, open_engine
from tiny_models import ARCHITECTURES, TinyModel, build_tiny

from pyemo import Model, SamplerParams
from pyemo.errors import (
    ContextFullError,
    InputError,
    MissingExtraError,
    ModelLoadError,
    ModelNotFoundError,
    SteeringUnsupportedError,
)
from pyemo.extract.backend import Passage, Written
from pyemo.extract.engine_backend import EngineBackend
from pyemo.extract.numpy_sampler import draw, most_likely, penalized
from pyemo.extract.transformers_backend import TransformersBackend

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
LENGTHS = (40, 7, 70, 22, 7)
GREEDY = SamplerParams(temperature=0)


@pytest.fixture(scope="session")
def backends(
    tiny: Callable[[str], TinyModel],
) -> Callable[[str], TransformersBackend]:
    """``backends(architecture)`` returns that tiny model in transformers' hands, loaded once."""
    loaded: dict[str, TransformersBackend] = {}

    def backends(architecture: str) -> TransformersBackend:
        if architecture not in loaded:
            loaded[architecture] = TransformersBackend.load(
                tiny(architecture).path, device="cpu", batch_size=4
            )
        return loaded[architecture]

    return backends


@contextmanager
def engine_backend(model: TinyModel, **settings: int) -> Iterator[EngineBackend]:
    with open_engine(Model.load(model.path), **{"n_ctx": 512, **settings}) as engine:
        yield EngineBackend(engine)


def passages_of(model: TinyModel) -> list[Passage]:
    """Texts of several lengths, each read from its middle to just before its end."""
    return [
        Passage(tuple(model.random_tokens(n, seed=i)), n // 2, n - 1) for i, n in enumerate(LENGTHS)
    ]


def prompts_of(model: TinyModel) -> list[list[int]]:
    return [model.random_tokens(n, seed=i) for i, n in enumerate((9, 3, 14, 6, 11))]


def samplers(n: int, **values: float) -> list[SamplerParams]:
    return [SamplerParams(seed=i, **values) for i in range(n)]  # type: ignore[arg-type]


def written(
    backend: TransformersBackend | EngineBackend,
    prompts: Sequence[Sequence[int]],
    chosen: Sequence[SamplerParams],
    max_tokens: int = 24,
    skip: int | None = None,
    layers: Sequence[int] = (),
) -> list[Written]:
    found: dict[int, Written] = {}
    backend.write(prompts, chosen, max_tokens, found.__setitem__, skip=skip, layers=layers)
    return [found[i] for i in range(len(prompts))]


def least_cosine(found: Array, expected: Array) -> float:
    """Return the least cosine of rows (..., n_embd) that belong together."""
    assert found.shape == expected.shape
    a, b = found.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(axis=-1) / lengths).min())


# --- without torch ---


def test_importing_the_package_does_not_import_torch() -> None:
    program = (
        "import sys, pyemo.extract, pyemo.extract.transformers_backend as t, "
        "pyemo.extract.extraction;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("package", ["torch", "transformers", "accelerate"])
def test_missing_package_is_named_with_the_command_that_installs_it(
    package: str, monkeypatch: pytest.MonkeyPatch, tiny_model_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r'pip install "pyemo\[extract\]"'):
        TransformersBackend.load(tiny_model_path)


# --- reading ---


@needs_torch
@every_architecture
def test_every_token_reads_as_in_the_engine(
    architecture: str,
    tiny: Callable[[str], TinyModel],
    backends: Callable[[str], TransformersBackend],
) -> None:
    model = tiny(architecture)
    passages, layers = passages_of(model), range(model.n_layer)
    with engine_backend(model) as engine:
        expected = engine.read_tokens(passages, layers)
    found = backends(architecture).read_tokens(passages, layers)
    assert min(map(least_cosine, found, expected)) >= 0.9999


@needs_torch
@every_architecture
def test_means_read_as_in_the_engine_in_the_order_of_layers_asked_for(
    architecture: str,
    tiny: Callable[[str], TinyModel],
    backends: Callable[[str], TransformersBackend],
) -> None:
    model = tiny(architecture)
    passages, layers = passages_of(model), [model.n_layer - 1, 0, 2]
    with engine_backend(model) as engine:
        expected = engine.read(passages, layers)
    assert least_cosine(backends(architecture).read(passages, layers), expected) >= 0.9999


@needs_torch
@every_architecture
def test_last_block_is_read_before_the_final_norm(
    architecture: str,
    tiny: Callable[[str], TinyModel],
    backends: Callable[[str], TransformersBackend],
) -> None:
    model = tiny(architecture)
    tokens = model.random_tokens(12)
    expected = model.reference_hidden(tokens)[-1]  # by another program's hooks
    (found,) = backends(architecture).read_tokens(
        [Passage(tuple(tokens), 0, 12)], [model.n_layer - 1]
    )
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-4 * expected.std())


@needs_torch
def test_text_reads_the_same_alone_and_beside_longer_ones(
    tiny: Callable[[str], TinyModel], backends: Callable[[str], TransformersBackend]
) -> None:
    passages, backend = passages_of(tiny("gemma3")), backends("gemma3")
    together = backend.read(passages, range(6))
    alone = np.concatenate([backend.read([passage], range(6)) for passage in passages])
    np.testing.assert_allclose(together, alone, atol=1e-4 * alone.std())


@needs_torch
def test_what_follows_a_passage_does_not_change_it(
    backends: Callable[[str], TransformersBackend], tiny: Callable[[str], TinyModel]
) -> None:
    tokens = tuple(tiny("llama").random_tokens(30))
    whole, cut = backends("llama").read(
        [Passage(tokens, 4, 20), Passage(tokens[:20], 4, 20)], range(4)
    )
    np.testing.assert_array_equal(whole, cut)


# --- writing ---


@needs_torch
@every_architecture
def test_stories_are_those_of_the_engine_token_by_token(
    architecture: str,
    tiny: Callable[[str], TinyModel],
    backends: Callable[[str], TransformersBackend],
) -> None:
    model = tiny(architecture)
    prompts = prompts_of(model)
    layers = range(model.n_layer)
    with engine_backend(model) as engine:
        expected = written(engine, prompts, samplers(5), skip=3, layers=layers)
    found = written(backends(architecture), prompts, samplers(5), skip=3, layers=layers)
    same = [f.tokens == e.tokens for f, e in zip(found, expected, strict=True)]
    # ggml's GELU table moves logits by a thousandth, which now and then turns a draw.
    assert sum(same) >= (3 if architecture in ("gpt2", "gemma2", "gemma3") else 5)
    for f, e, is_same in zip(found, expected, same, strict=True):
        if is_same:
            assert (f.text, f.ended) == (e.text, e.ended)
            assert least_cosine(f.states, e.states) >= 0.9999  # type: ignore[arg-type]


@needs_torch
@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0},
        {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"temperature": 0.7, "top_k": 0, "top_p": 0.9},
        {"temperature": 2.0, "top_k": 7, "top_p": 1.0, "min_p": 0.2},
        {"temperature": 1.0, "repeat_penalty": 1.3, "repeat_last_n": 8},
        {"temperature": 0, "repeat_penalty": 1.5},
        {"temperature": 0, "frequency_penalty": 3.0},
        {"temperature": 1.0, "presence_penalty": 4.0},
    ],
    ids=str,
)
def test_each_sampler_draws_what_the_engine_draws(
    values: dict[str, float],
    tiny: Callable[[str], TinyModel],
    backends: Callable[[str], TransformersBackend],
) -> None:
    model = tiny("llama")
    prompts = prompts_of(model)
    with engine_backend(model) as engine:
        expected = written(engine, prompts, samplers(5, **values))
    found = written(backends("llama"), prompts, samplers(5, **values))
    assert [text.tokens for text in found] == [text.tokens for text in expected]


@needs_torch
def test_staying_in_script_is_refused(
    tiny: Callable[[str], TinyModel], backends: Callable[[str], TransformersBackend]
) -> None:
    kept = [SamplerParams(stay_in_script=True)] * 5
    with pytest.raises(InputError, match="stay_in_script is the engine's"):
        written(backends("llama"), prompts_of(tiny("llama")), kept)


@needs_torch
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3"])
def test_left_padding_gives_what_a_single_text_gives(
    architecture: str,
    tiny: Callable[[str], TinyModel],
    backends: Callable[[str], TransformersBackend],
) -> None:
    # gemma3: replies that outgrow the sliding window of 32 tokens
    prompts, backend = prompts_of(tiny(architecture)), backends(architecture)
    together = written(backend, prompts, samplers(5), 48, skip=0, layers=range(4))
    for i, prompt in enumerate(prompts):
        (alone,) = written(backend, [prompt], [samplers(5)[i]], 48, skip=0, layers=range(4))
        assert alone.tokens == together[i].tokens
        np.testing.assert_allclose(alone.states, together[i].states, atol=1e-4 * alone.states.std())


@needs_torch
def test_pooled_states_are_those_of_reading_the_story_again(
    tiny: Callable[[str], TinyModel], backends: Callable[[str], TransformersBackend]
) -> None:
    prompts, backend = prompts_of(tiny("qwen2")), backends("qwen2")
    for prompt, story in zip(
        prompts, written(backend, prompts, samplers(5), skip=2, layers=[0, 3]), strict=True
    ):
        tokens = (*prompt, *story.tokens)
        again = backend.read([Passage(tokens, len(prompt) + 2, len(tokens))], [0, 3])[0]
        np.testing.assert_allclose(story.states, again, atol=1e-4 * again.std())


@needs_torch
def test_story_no_longer_than_what_is_skipped_has_no_states(
    tiny: Callable[[str], TinyModel], backends: Callable[[str], TransformersBackend]
) -> None:
    (story,) = written(
        backends("llama"), prompts_of(tiny("llama"))[:1], [GREEDY], 5, skip=5, layers=[0]
    )
    assert len(story.tokens) <= 5
    assert story.states is None


@needs_torch
def test_same_seed_same_story_another_seed_another(
    tiny: Callable[[str], TinyModel], backends: Callable[[str], TransformersBackend]
) -> None:
    prompt, backend = prompts_of(tiny("llama"))[0], backends("llama")
    chosen = [SamplerParams(seed=7), SamplerParams(seed=8), SamplerParams(seed=7)]
    first, other, again = written(backend, [prompt] * 3, chosen)
    assert first == again != other


@needs_torch
def test_reply_ends_at_the_end_token_and_leaves_it_out(
    tmp_path: Path, tiny: Callable[[str], TinyModel]
) -> None:
    model = tiny("llama")
    end = model.vocabulary.special["eos"]
    backend = TransformersBackend.load(model.path, device="cpu")
    weight = backend._model.lm_head.weight
    weight.data[end] = 5 * weight.data[model.random_tokens(1)[0]]  # likely, but not at once
    found = written(backend, prompts_of(model), samplers(5, temperature=3.0), 200)
    assert any(story.ended for story in found)
    for story in found:
        assert end not in story.tokens
        assert story.ended == (len(story.tokens) < 200)


# --- drawing ---


def test_penalty_counts_only_the_last_tokens() -> None:
    logits = np.array([2.0, -2.0, 1.0], np.float32)
    found = penalized(logits, [2, 0, 1], SamplerParams(repeat_penalty=2.0, repeat_last_n=2))
    np.testing.assert_array_equal(found, np.array([1.0, -4.0, 1.0], np.float32))


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = np.log(np.array([0.1, 0.6, 0.3], np.float32))
    sampler = SamplerParams(temperature=1, top_k=0, top_p=1, min_p=0, seed=3)
    ids, values = most_likely(logits, sampler)
    drawn = np.bincount([draw(ids, values, sampler, position) for position in range(20_000)])
    np.testing.assert_allclose(drawn / 20_000, [0.1, 0.6, 0.3], atol=0.012)


# --- what does not fit ---


@needs_torch
def test_device_that_is_not_there_is_named_with_those_that_are(tiny_model_path: Path) -> None:
    with pytest.raises(InputError, match=r"'cuda:77' is not there; this machine has .*cpu"):
        TransformersBackend.load(tiny_model_path, device="cuda:77")


@needs_torch
def test_unknown_dtype_is_refused(tiny_model_path: Path) -> None:
    with pytest.raises(InputError, match="float64"):
        TransformersBackend.load(tiny_model_path, dtype="float64")  # type: ignore[arg-type]


@needs_torch
def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        TransformersBackend.load(tmp_path / "nowhere")


@needs_torch
def test_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        TransformersBackend.load(tmp_path)


@needs_torch
def test_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelLoadError, match="not a GGUF"):
        TransformersBackend.load(path)


@needs_torch
def test_architecture_that_transformers_cannot_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelLoadError, match=r"unheard-of"):
        TransformersBackend.load(tmp_path)


@needs_torch
def test_gguf_that_transformers_computes_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_tiny("gemma3", tmp_path / "tiny.gguf", seed=1)
    monkeypatch.setattr("pyemo.extract.transformers_loading.corrections", lambda *_: {})
    with pytest.raises(ModelLoadError, match="misreads the file's header"):
        TransformersBackend.load(model.path)


@needs_torch
def test_model_whose_blocks_are_not_found_is_refused(
    backends: Callable[[str], TransformersBackend],
) -> None:
    from transformers import AutoConfig, AutoModel

    from pyemo.extract.block_recorder import BlockRecorder

    config = AutoConfig.for_model("mobilebert", num_hidden_layers=2)
    config.num_hidden_layers = 3
    model = AutoModel.from_config(AutoConfig.for_model("mobilebert", num_hidden_layers=2))
    model.config = config
    with pytest.raises(SteeringUnsupportedError, match="3 decoder blocks"):
        BlockRecorder(model)


@needs_torch
def test_text_longer_than_the_positions_is_refused(
    tiny: Callable[[str], TinyModel], backends: Callable[[str], TransformersBackend]
) -> None:
    tokens = tuple(tiny("gpt2").random_tokens(513))
    with pytest.raises(ContextFullError, match="513 tokens"):
        backends("gpt2").read([Passage(tokens, 0, 513)], [0])
    with pytest.raises(ContextFullError, match="600 tokens"):
        backends("gpt2").write([tokens[:100]], [GREEDY], 500, lambda *_: None)


@needs_torch
@pytest.mark.parametrize("passage", [(3, 3), (-1, 2), (0, 11)])
def test_empty_or_outside_passage_is_refused(
    passage: tuple[int, int],
    tiny: Callable[[str], TinyModel],
    backends: Callable[[str], TransformersBackend],
) -> None:
    tokens = tuple(tiny("llama").random_tokens(10))
    with pytest.raises(InputError, match="positions"):
        backends("llama").read([Passage(tokens, *passage)], [0])


@needs_torch
@pytest.mark.parametrize("layers", [[], [4], [-1]])
def test_layer_that_is_not_there_is_refused(
    layers: list[int],
    tiny: Callable[[str], TinyModel],
    backends: Callable[[str], TransformersBackend],
) -> None:
    tokens = tuple(tiny("llama").random_tokens(10))
    with pytest.raises(InputError, match="layers"):
        backends("llama").read([Passage(tokens, 0, 3)], layers)


# --- Hugging Face folders ---


@pytest.fixture
def folder(tmp_path: Path, tiny: Callable[[str], TinyModel]) -> Path:
    """The tiny llama as transformers saves it, with a word-level tokenizer and a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path = tmp_path / "tiny-folder"
    tiny("llama").transformers_model().save_pretrained(path)
    words = {"<s>": 0, "<end>": 1, "?": 2, "one": 3, "two": 4, "three": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<end>", unk_token="?"
    )
    asks = "{% if add_generation_prompt %} three{% endif %}"
    fast.chat_template = "{{ bos_token }} {{ messages[0]['content'] }}" + asks
    fast.save_pretrained(path)
    return path


@needs_torch
def test_folder_computes_what_its_model_computes(
    folder: Path, tiny: Callable[[str], TinyModel]
) -> None:
    model = tiny("llama")
    tokens = model.random_tokens(20)
    backend = TransformersBackend.load(folder, device="cpu")
    (found,) = backend.read_tokens([Passage(tuple(tokens), 0, 20)], range(4))
    expected = model.reference_hidden(tokens).swapaxes(0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())


@needs_torch
def test_folder_says_what_is_known_of_it(folder: Path) -> None:
    source = TransformersBackend.load(folder, device="cpu").source
    assert (source.name, source.architecture) == ("tiny-folder", "llama")
    assert (source.n_layer, source.n_embd) == (4, 64)
    assert len(source.file_sha256) == len(source.chat_template_sha256) == 64
    assert source.weights_fingerprint == ""


@needs_torch
def test_prompt_is_put_into_the_folders_chat_template(folder: Path) -> None:
    backend = TransformersBackend.load(folder, device="cpu")
    assert backend.prompt_tokens("one two") == [0, 3, 4, 5]
    assert backend.text_tokens("one two") == [3, 4]


@needs_torch
def test_without_a_chat_template_the_prompt_gets_a_blank_line(folder: Path) -> None:
    written = json.loads((folder / "tokenizer.json").read_text())
    spaces = {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}
    written["pre_tokenizer"] = spaces
    written["model"]["vocab"]["two\n\n"] = 6
    (folder / "tokenizer.json").write_text(json.dumps(written))
    (folder / "chat_template.jinja").unlink()
    backend = TransformersBackend.load(folder, device="cpu")
    assert backend.prompt_tokens("one two") == [3, 6]
    assert backend.text_tokens("one two") == [3, 4]


@needs_torch
def test_pickled_weights_are_never_loaded(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(ModelLoadError, match="safetensors"):
        TransformersBackend.load(folder)


@needs_torch
def test_code_in_the_folder_is_never_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.C"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('this code was run')\n")
    with pytest.raises(ModelLoadError):
        TransformersBackend.load(folder)


@needs_torch
def test_cut_off_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match="cannot load tiny-folder"):
        TransformersBackend.load(folder)


@needs_torch
def test_weights_that_are_missing_are_not_drawn_at_random(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    del state["model.layers.2.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"layers\.2\.mlp\.up_proj"):
        TransformersBackend.load(folder)


@needs_torch
def test_gguf_says_of_itself_what_the_engine_says(
    tiny: Callable[[str], TinyModel], backends: Callable[[str], TransformersBackend]
) -> None:
    with engine_backend(tiny("llama")) as engine:
        assert backends("llama").source == engine.source
        assert backends("llama").prompt_tokens("a story") == engine.prompt_tokens("a story")
        assert backends("llama").text_tokens("a story") == engine.text_tokens("a story")


@needs_torch
def test_device_map_places_the_model(tiny_model_path: Path) -> None:
    backend = TransformersBackend.load(tiny_model_path, device_map={"": "cpu"})
    assert backend.read([Passage((5, 6, 7), 0, 3)], [0]).shape == (1, 1, 64)
