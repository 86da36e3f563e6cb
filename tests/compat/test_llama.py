"""``pyemo.compat.Llama`` beside ``llama_cpp.Llama``: the same calls, the same shapes and texts."""

from __future__ import annotations

import gc
import inspect
import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from engines import random_vector
from pages import ROOT, blocks, read
from tiny_models import TinyModel

from pyemo import ControlVector, Engine, Grammar, SamplerParams, Steering
from pyemo.compat import Llama, asked
from pyemo.errors import ClosedError, InputError, NotBuiltError, VectorNotFoundError
from pyemo.vectors.metadata import VectorMetadata

MESSAGES = [
    {"role": "system", "content": "the story"},
    {"role": "user", "content": "the happy story"},
]
SETTINGS: dict[str, Any] = {"n_ctx": 256, "n_threads": 1, "verbose": False}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 6, "seed": 1}


@pytest.fixture(scope="module")
def ours(tiny_model_path: Path) -> Iterator[Llama]:
    with Llama(tiny_model_path, **SETTINGS) as llm:
        yield llm


@pytest.fixture(scope="module")
def theirs(tiny_model_path: Path) -> Iterator[llama_cpp.Llama]:
    llm = llama_cpp.Llama(str(tiny_model_path), logits_all=True, n_threads_batch=1, **SETTINGS)
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def warm(tiny: Callable[[str], TinyModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vector for the tiny llama, strong enough to change its greedy text."""
    path = tmp_path_factory.mktemp("vectors") / "warm.gguf"
    metadata = VectorMetadata(unit="raw", architecture="llama")
    random_vector(tiny("llama"), layers=[1, 2, 3], seed=1, metadata=metadata).save(path)
    return path


def shape(value: Any) -> Any:
    """Return the keys and types of an answer; NumPy's numbers count as Python's."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return "float" if "float" in type(value).__name__ else type(value).__name__


def text(answer: Any) -> str:
    """Return the answer's text; what is no UTF-8 is left out there and U+FFFD here."""
    choice = answer["choices"][0]
    said = str(choice["message"]["content"] if "message" in choice else choice["text"])
    return said.replace("\ufffd", "")


def joined(chunks: Any) -> str:
    said = "".join(
        choice["delta"].get("content", "") if "delta" in choice else choice["text"]
        for chunk in chunks
        for choice in chunk["choices"]
    )
    return said.replace("\ufffd", "")


# --- shapes and texts ---

CALLS = [
    {},
    {"logprobs": 2},
    {"echo": True},
    {"stop": ["e"]},
    {"stop": None},
    {"model": "mine"},
    {"logit_bias": None, "grammar": None, "typical_p": 1.0, "mirostat_tau": 5.0},
]


@pytest.mark.parametrize("settings", CALLS, ids=str)
def test_completion_has_its_keys_types_and_text(
    ours: Llama, theirs: llama_cpp.Llama, settings: dict[str, Any]
) -> None:
    settings = {**GREEDY, **settings}
    mine = ours.create_completion("the happy story", **settings)
    other = theirs.create_completion("the happy story", **settings)
    assert shape(mine) == shape(other)
    assert text(mine) == text(other)
    assert mine["choices"][0]["finish_reason"] == other["choices"][0]["finish_reason"]
    assert mine["usage"] == other["usage"]
    assert mine["model"] == other["model"]


@pytest.mark.parametrize(
    "settings",
    [{}, {"logprobs": True, "top_logprobs": 2}, {"stop": "e"}, {"max_tokens": None, "stop": "e"}],
    ids=str,
)
def test_chat_completion_has_its_keys_and_text(
    ours: Llama, theirs: llama_cpp.Llama, settings: dict[str, Any]
) -> None:
    settings = {**GREEDY, **settings}
    mine = ours.create_chat_completion(MESSAGES, **settings)
    other = theirs.create_chat_completion(MESSAGES, **settings)  # type: ignore[arg-type]
    for answer in (mine, other):  # bytes are None there: an addition
        for token in (answer["choices"][0]["logprobs"] or {}).get("content", []):
            for told in [token, *token["top_logprobs"]]:
                told["bytes"] = None
    assert shape(mine) == shape(other)
    assert text(mine) == text(other)
    assert mine["choices"][0]["finish_reason"] == other["choices"][0]["finish_reason"]


def test_alternatives_and_offsets_are_the_same(ours: Llama, theirs: llama_cpp.Llama) -> None:
    settings = {**GREEDY, "logprobs": 3}
    mine = ours("the happy story", **settings)["choices"][0]["logprobs"]
    other = theirs("the happy story", **settings)["choices"][0]["logprobs"]
    assert mine["tokens"] == other["tokens"]
    assert mine["text_offset"] == other["text_offset"]
    assert mine["token_logprobs"] == pytest.approx(other["token_logprobs"], abs=0.05)
    assert [set(top) for top in mine["top_logprobs"]] == [set(top) for top in other["top_logprobs"]]


@pytest.mark.parametrize("settings", [{}, {"logprobs": 1}, {"stop": ["e"]}], ids=str)
def test_chunks_have_its_keys_types_and_text(
    ours: Llama, theirs: llama_cpp.Llama, settings: dict[str, Any]
) -> None:
    settings = {**GREEDY, "stream": True, **settings}
    mine = list(ours("the happy story", **settings))
    other = list(theirs("the happy story", **settings))
    assert {str(shape(chunk)) for chunk in mine[1:-1]} <= {str(shape(chunk)) for chunk in other}
    assert shape(mine[-1]) == shape(other[-1])
    assert joined(mine) == joined(other)
    assert mine[-1]["choices"][0] == other[-1]["choices"][0]


def test_chat_chunks_begin_with_the_role_and_end_with_the_reason(
    ours: Llama, theirs: llama_cpp.Llama
) -> None:
    settings = {**GREEDY, "stream": True}
    mine = list(ours.create_chat_completion(MESSAGES, **settings))
    other = list(theirs.create_chat_completion(MESSAGES, **settings))  # type: ignore[arg-type]
    for i in (0, -1):
        assert mine[i]["choices"] == other[i]["choices"]
    assert joined(mine) == joined(other)
    assert len({chunk["id"] for chunk in mine}) == 1


def test_greedy_text_of_the_default_model_is_the_same(smollm2: Path) -> None:
    messages = [{"role": "user", "content": "How was your day?"}]
    settings = {**GREEDY, "max_tokens": 10}
    other = llama_cpp.Llama(str(smollm2), **SETTINGS)
    with Llama(smollm2, **SETTINGS) as mine:
        answers = [llm.create_chat_completion(messages, **settings) for llm in (mine, other)]
    other.close()
    assert text(answers[0]) == text(answers[1])


def test_tokens_and_facts_are_the_same(ours: Llama, theirs: llama_cpp.Llama) -> None:
    said = " the <|im_end|>\n story ünder".encode()
    for settings in ({}, {"add_bos": False}, {"special": True}):
        assert ours.tokenize(said, **settings) == theirs.tokenize(said, **settings)
    tokens = theirs.tokenize(said, special=True)
    assert ours.detokenize(tokens) == theirs.detokenize(tokens)
    assert ours.detokenize(tokens, special=True) == theirs.detokenize(tokens, special=True)
    assert ours.detokenize(tokens[3:], prev_tokens=tokens[:3]) == theirs.detokenize(
        tokens[3:], prev_tokens=tokens[:3]
    )
    for fact in ("n_ctx", "n_embd", "n_vocab", "token_bos", "token_eos", "token_nl"):
        assert getattr(ours, fact)() == getattr(theirs, fact)()
    assert ours.metadata == theirs.metadata
    assert ours.model_path == theirs.model_path


def test_answers_in_openai_s_classes(ours: Llama) -> None:
    chat = pytest.importorskip("openai.types.chat", reason="needs openai: pip install openai")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = ours.create_chat_completion_openai_v1(MESSAGES, **GREEDY)
        parts = list(ours.create_chat_completion_openai_v1(MESSAGES, stream=True, **GREEDY))
    assert isinstance(whole, chat.ChatCompletion)
    assert all(isinstance(part, chat.ChatCompletionChunk) for part in parts)
    joined_text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert joined_text == whole.choices[0].message.content


# --- arguments ---

OWN = {"self", "steering", "others", "kwargs"}


@pytest.mark.parametrize(
    ("name", "neutral"),
    [
        ("__init__", asked._OPEN),
        ("create_completion", asked._CALL),
        ("create_chat_completion", asked._CALL),
    ],
)
def test_every_argument_of_llama_cpp_is_used_or_checked(
    name: str, neutral: dict[str, tuple[Any, ...]]
) -> None:
    mine = inspect.signature(getattr(Llama, name)).parameters
    for other in inspect.signature(getattr(llama_cpp.Llama, name)).parameters.values():
        if other.name in OWN | asked._WITHOUT_EFFECT:
            continue
        if other.name in mine:
            assert mine[other.name].default == other.default or other.default == []
        else:
            assert other.default is None or other.default in neutral[other.name]


def test_value_that_asks_for_nothing_is_accepted(ours: Llama) -> None:
    nothing = {name: values[0] for name, values in asked._CALL.items() if values}
    assert text(ours("the", **GREEDY, **nothing)) == text(ours("the", **GREEDY))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("mirostat_mode", 2),
    ],
)
def test_what_is_not_built_is_refused_by_name(ours: Llama, name: str, value: Any) -> None:
    with pytest.raises(NotBuiltError, match=name):
        ours.create_chat_completion(MESSAGES, **{name: value})


BIASES = {
    "one": {77: 100.0},
    "many": {token: token % 7 - 3.0 for token in range(3, 303)},
    "many never": {token: -100.0 for token in range(3, 303)},
}


@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
def test_reply_under_a_bias_is_theirs(
    ours: Llama, theirs: llama_cpp.Llama, bias: dict[int, float]
) -> None:
    settings: dict[str, Any] = {**GREEDY, "logit_bias": bias}
    other = theirs.create_completion("the happy story", **settings)
    assert text(ours.create_completion("the happy story", **settings)) == text(other)


def test_a_chat_takes_a_bias_too(ours: Llama) -> None:
    (story,) = ours.tokenize(b" story", add_bos=False)
    settings: dict[str, Any] = {**GREEDY, "max_tokens": 1, "logit_bias": {story: 100.0}}
    assert text(ours.create_chat_completion(MESSAGES, **settings)).strip() == "story"


@pytest.mark.parametrize("bias", [5, {"a": 1.0}, {5: "much"}, {5: 101.0}, {999_999: 1.0}])
def test_bias_that_cannot_be_used_is_refused_by_name(ours: Llama, bias: Any) -> None:
    with pytest.raises(InputError, match="logit_bias"):
        ours("the", logit_bias=bias)


@pytest.mark.parametrize("rules", ['root ::= "yes" | "no"', 'root ::= [a-z]+ " " [a-z]+ "."'])
def test_reply_under_a_grammar_is_theirs(ours: Llama, theirs: llama_cpp.Llama, rules: str) -> None:
    grammar = llama_cpp.LlamaGrammar.from_string(rules, verbose=False)
    settings: dict[str, Any] = {**GREEDY, "max_tokens": 40}
    other = theirs.create_completion("the happy story", grammar=grammar, **settings)
    for mine in (grammar, rules, Grammar(rules)):
        answer = ours.create_completion("the happy story", grammar=mine, **settings)
        assert text(answer) == text(other)
        assert answer["choices"][0]["finish_reason"] == other["choices"][0]["finish_reason"]


def test_reply_is_json_that_fits_the_response_format(ours: Llama) -> None:
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["sad", "glad"]}, "sure": {"type": "boolean"}},
        "required": ["mood", "sure"],
    }
    answer = ours.create_chat_completion(
        MESSAGES, response_format={"type": "json_object", "schema": schema}, max_tokens=100
    )
    said = json.loads(text(answer))
    assert set(said) == {"mood", "sure"}
    assert said["mood"] in ("sad", "glad")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("grammar", object(), "a LlamaGrammar"),
        ("grammar", 'root ::= "a', "line 1"),
        ("response_format", {"type": "json_schema"}, "text or json_object"),
        ("response_format", "json", "text or json_object"),
    ],
)
def test_what_is_no_grammar_is_refused_by_name(
    ours: Llama, name: str, value: Any, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        ours.create_chat_completion(MESSAGES, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("chat_format", "llama-2"), ("lora_path", "x"), ("embedding", True), ("type_k", 3)],
)
def test_opening_with_what_is_not_built_is_refused_by_name(
    tiny_model_path: Path, name: str, value: Any
) -> None:
    with pytest.raises(NotBuiltError, match=name):
        Llama(tiny_model_path, **{name: value})


def test_completion_s_own_are_refused_by_name(ours: Llama) -> None:
    with pytest.raises(NotBuiltError, match="suffix"):
        ours("the", suffix=" end")  # type: ignore[arg-type]
    with pytest.raises(NotBuiltError, match="echoed"):
        ours("the", echo=True, logprobs=1)


def test_unknown_argument_is_a_type_error_as_there(ours: Llama, theirs: llama_cpp.Llama) -> None:
    for llm in (ours, theirs):
        with pytest.raises(TypeError, match="sterring"):
            llm("the", sterring="anger")  # type: ignore[operator]


def test_prompt_longer_than_the_context_is_a_value_error_as_there(
    ours: Llama, theirs: llama_cpp.Llama
) -> None:
    for llm in (ours, theirs):
        with pytest.raises(ValueError, match="context window"):
            llm([5] * 300)  # type: ignore[operator]


def test_penalties_are_the_engine_s(ours: Llama, tiny_model_path: Path) -> None:
    penalties = {"frequency_penalty": -1.5, "presence_penalty": -1.5, "repeat_penalty": 0.7}
    sampler = SamplerParams(temperature=0, **penalties)
    with Engine(tiny_model_path, n_ctx=256, n_threads=1) as engine:
        reply = engine.generate("the happy story", raw=True, max_tokens=24, sampler=sampler)
        expected = "".join(token.text for token in reply).replace("\ufffd", "")
    settings = {**GREEDY, "max_tokens": 24}
    assert text(ours("the happy story", **settings, **penalties)) == expected
    assert text(ours("the happy story", **settings)) != expected


# --- moods ---


def steered_text(path: Path, warm: Path, strength: float) -> str:
    vector = ControlVector.load(warm)
    with Engine(path, n_ctx=256, n_threads=1) as engine:
        reply = engine.generate(
            "the happy story",
            steering=Steering({vector: strength}),
            max_tokens=6,
            sampler=SamplerParams(temperature=0),
        )
        return "".join(token.text for token in reply)


USER = [{"role": "user", "content": "the happy story"}]


def test_every_way_to_write_a_mood_gives_the_engine_s_steered_text(
    ours: Llama, tiny_model_path: Path, warm: Path
) -> None:
    expected = steered_text(tiny_model_path, warm, 2.0)
    assert expected != text(ours.create_chat_completion(USER, **GREEDY))
    written: list[Any] = [f"{warm}=2", {str(warm): 2.0}, Steering({ControlVector.load(warm): 2.0})]
    for mood in written:
        assert text(ours.create_chat_completion(USER, steering=mood, **GREEDY)) == expected
    mix = f"{warm}=1.5 + {warm}=0.5"
    assert text(ours.create_chat_completion(USER, steering=mix, **GREEDY)) == expected


def test_mood_of_the_instance_holds_for_calls_that_say_none(
    tiny_model_path: Path, warm: Path
) -> None:
    expected = steered_text(tiny_model_path, warm, 2.0)
    with Llama(tiny_model_path, steering=f"{warm}=2", **SETTINGS) as llm:
        plain = text(llm.create_chat_completion(USER, steering="", **GREEDY))
        assert text(llm.create_chat_completion(USER, **GREEDY)) == expected
        llm.steering = None
        assert text(llm.create_chat_completion(USER, **GREEDY)) == plain
        llm.set_control_vector(warm, 2.0)
        assert joined(llm.create_chat_completion(USER, stream=True, **GREEDY)) == expected


def test_unknown_emotion_is_refused_and_not_left_out(ours: Llama) -> None:
    with pytest.raises(VectorNotFoundError):
        ours.create_chat_completion(USER, steering="joyy=0.02")
    with pytest.raises(InputError, match="steering = 5"):
        ours.create_chat_completion(USER, steering=5)  # type: ignore[arg-type]


# --- the page ---


def test_example_of_the_page_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pyemo.engine.threads.available_cores", lambda: 1)
    page = read(ROOT / "docs" / "use-it-from.md")
    example, with_langchain = blocks(page.partition("## llama-cpp-python")[2], "python")
    names: dict[str, Any] = {}
    exec(compile(example, "use-it-from.md", "exec"), names)
    plain, angry = capsys.readouterr().out.splitlines()
    assert plain != angry
    if find_spec("langchain_community") is None:
        pytest.skip("the second block needs langchain-community: pip install langchain-community")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports warn
        exec(compile(with_langchain, "use-it-from.md", "exec"), names)
    assert len(capsys.readouterr().out.split()) > 3


# --- life ---


def test_seeds_are_repeatable_and_those_not_given_differ(tiny_model_path: Path) -> None:
    def texts(seed: int) -> list[str]:
        with Llama(tiny_model_path, seed=seed, **SETTINGS) as llm:
            return [text(llm("the", max_tokens=8, temperature=2.0)) for _ in range(2)]

    first = texts(7)
    assert first == texts(7)
    assert first[0] != first[1]
    assert texts(-1) != texts(-1)


def test_stream_that_is_left_ends(ours: Llama) -> None:
    for _ in range(6):
        next(iter(ours("the", stream=True, temperature=1.5, max_tokens=200, seed=1)))
    until = time.monotonic() + 10
    while ours._scheduler.stats().running and time.monotonic() < until:
        time.sleep(0.01)
    assert ours._scheduler.stats().running == 0
    assert ours._scheduler.stats().n_cancelled >= 1


def test_second_turn_reads_what_is_new(tiny_model_path: Path) -> None:
    long = [{"role": "user", "content": "the happy story " * 20}]
    with Llama(tiny_model_path, **{**SETTINGS, "n_ctx": 2048}) as llm:
        first = llm.create_chat_completion(long, max_tokens=6, temperature=0)
        before = llm._scheduler.stats()
        assert before.n_cached_tokens == 0
        again = [*long, first["choices"][0]["message"], {"role": "user", "content": "the"}]
        second = llm.create_chat_completion(again, max_tokens=6, temperature=0)
        cached = llm._scheduler.stats().n_cached_tokens
        assert cached >= first["usage"]["prompt_tokens"] - 1
        seeded = llm.create_chat_completion(again, max_tokens=6, temperature=0, seed=1)
        assert llm._scheduler.stats().n_cached_tokens == cached
    assert text(seeded) == text(second)


def test_instance_that_is_dropped_frees_its_thread(tiny_model_path: Path) -> None:
    llm = Llama(tiny_model_path, **SETTINGS)
    thread = llm._scheduler._thread
    llm("the", **GREEDY)
    del llm
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_threads_do_not_disturb_each_other(ours: Llama) -> None:
    expected = text(ours("the happy story", **GREEDY))
    found: list[str] = []

    def call() -> None:
        found.append(text(ours("the happy story", **GREEDY)))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_closed_instance_says_so(tiny_model_path: Path) -> None:
    with Llama(tiny_model_path, **SETTINGS) as llm:
        pass
    with pytest.raises(ClosedError):
        llm("the")


def test_from_pretrained_takes_the_one_file_that_fits(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["m-Q4_0.gguf", "m-q8_0-00001-of-00002.gguf", "m-q8_0-00002-of-00002.gguf", "README.md"]
    monkeypatch.setattr("pyemo.files.hub.list_files", lambda repo: names)
    asked_for: list[str] = []

    def fetch(wanted: Any) -> Path:
        asked_for.append(str(wanted))
        return tiny_model_path

    monkeypatch.setattr("pyemo.files.hub.fetch", fetch)
    monkeypatch.setattr("pyemo.files.catalog.hub.fetch", fetch, raising=False)
    with Llama.from_pretrained("org/repo", "*q8_0*", **SETTINGS) as llm:
        assert llm.n_vocab() > 0
    assert asked_for == ["org/repo:m-q8_0-00001-of-00002.gguf"]
    with pytest.raises(InputError, match=r"2 files .*fit '\*gguf'"):
        Llama.from_pretrained("org/repo", "*gguf")
    with pytest.raises(InputError, match="HF_HOME"):
        Llama.from_pretrained("org/repo", "*", local_dir="here")
