"""Thoughts are told from the answer: by tags of one token or several, given or drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_families import FAMILIES
from engines import open_engine, random_vector

from pyemo import Engine, Model, Steering, _core
from pyemo.engine.thoughts import Tags, Thoughts
from pyemo.errors import InputError
from pyemo.guard import Guard

TAGS = Tags("<think>", "</think>")


def told(pieces: list[str], state: Thoughts, *, special: bool = True) -> str:
    """Return T or A for each piece."""
    kinds = ""
    for piece in pieces:
        kind, state = state.after(piece, is_special=special and piece.startswith("<"))
        kinds += kind[0].upper()
    return kinds


@pytest.mark.parametrize(
    ("pieces", "kinds"),
    [
        (["<think>", "a", "</think>", "b"], "TTTA"),
        (["\n", "<think>", "a", "</think>", "b", "<think>"], "ATTTAA"),
        (["a", "<think>", "b"], "AAA"),
        (["<think>a</think>b", "c"], "TA"),
        (["<", "think", ">", "a", "</", "think", ">", "b"], "TTTTTTTA"),
        (["<", "p", ">"], "TAA"),
        ([], ""),
    ],
)
def test_tokens_of_a_reply_are_told_apart(pieces: list[str], kinds: str) -> None:
    assert told(pieces, Thoughts(TAGS)) == kinds


def test_plain_text_that_could_begin_a_tag_is_the_answer() -> None:
    assert told(["<", "p", ">"], Thoughts(TAGS), special=False) == "AAA"


@pytest.mark.parametrize(
    ("begin", "end", "pieces", "kinds"),
    [
        (
            "<|channel|>analysis<|message|>",
            "<|channel|>final<|message|>",
            "<|channel|>/analysis/<|message|>/x/<|end|>/<|start|>/assistant/<|channel|>/final/"
            "<|message|>/y",
            "TTTTTTTTTTA",
        ),
        ("<|channel>thought", "<channel|>", "<|channel>/thought/\n/x/<channel|>/y", "TTTTTA"),
        ("[THINK]", "[/THINK]", "[THINK]/x/[/THINK]/y", "TTTA"),
    ],
    ids=["gpt-oss", "gemma4", "mistral"],
)
def test_tags_of_several_tokens_are_told(begin: str, end: str, pieces: str, kinds: str) -> None:
    # split at / that are not within a tag
    split = pieces.replace("[/", "[\0").split("/")
    parts = [part.replace("\0", "/") for part in split]
    assert told(parts, Thoughts(Tags(begin, end))) == kinds


def test_thoughts_that_the_prompt_opened_end_with_their_tag() -> None:
    state = Thoughts(TAGS, kind="thinking", may_begin=False)
    assert told(["a", "</th", "ink>", "b"], state) == "TTTA"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with open_engine(Model.load(FAMILIES["deepseek"].build(tmp_path / "m.gguf"))) as engine:
        yield engine


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Callable[[Engine, str], None]:
    """``draw(engine, text)`` makes the next reply consist of the tokens of that text."""

    def draw(engine: Engine, text: str) -> None:
        ids = iter(engine.model.tokenize(text, parse_special=True))
        native = _core.Engine.step

        class Forced:
            def __init__(self, core: Any) -> None:
                self._core = core

            def __getattr__(self, name: str) -> Any:
                return getattr(self._core, name)

            def step(self, seqs: list[int], *settings: Any) -> list[Any]:
                results = native(self._core, seqs, *settings)
                for seq in seqs:
                    n = self._core.n_tokens(seq)
                    self._core.rollback(seq, n - 1)
                    token = next(ids)
                    self._core.append(seq, [token])
                return [_Result(result, token, engine.model) for result in results]

        engine._core = Forced(engine._core)  # type: ignore[assignment]

    return draw


class _Result:
    """A step's result with another token."""

    def __init__(self, result: Any, token: int, model: Model) -> None:
        self._result = result
        self.token = token
        self.piece = model.native.piece(token)
        self.is_end = model.native.is_end_of_generation(token)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._result, name)


def test_reply_tells_thoughts_from_answer(engine: Engine, draw: Callable[..., None]) -> None:
    draw(engine, "I feel\n\nsad</think>\n\nthe day")
    reply = engine.generate("a", max_tokens=64, stop=["zzz"])
    tokens = [
        next(reply)
        for _ in engine.model.tokenize("I feel\n\nsad</think>\n\nthe da", parse_special=True)
    ]
    assert "".join(t.text for t in tokens if t.kind == "thinking") == "I feel\n\nsad</think>"
    assert reply.thoughts == "I feel\n\nsad</think>"
    assert reply.answer.startswith("the")
    reply.close()


def test_stop_string_acts_in_the_answer_alone(engine: Engine, draw: Callable[..., None]) -> None:
    draw(engine, "I feel\n\nsad</think>the\n\nday")
    reply = engine.generate("a", max_tokens=64, stop=["\n\n"])
    list(reply)
    assert (reply.stop_reason, reply.answer) == ("stop", "the")


def test_guards_stop_string_acts_in_the_answer_alone(
    engine: Engine, draw: Callable[..., None]
) -> None:
    draw(engine, "I feel\n\nsad</think>the\n\nday")
    reply = Guard().generate(engine, "a", max_tokens=64, stop=["\n\n"])
    list(reply)
    assert (reply.stop_reason, reply.answer) == ("stop", "the")


def test_thoughts_of_a_prompt_with_control_tokens_behind_are_not_open(engine: Engine) -> None:
    model = engine.model
    state = model.thoughts_after(model.prompt_tokens("a"))
    assert state is not None
    assert state.kind == "thinking"
    begun = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    state = model.thoughts_after(model.prompt_tokens(begun))
    assert state is not None
    assert state.kind == "answer"


@pytest.mark.parametrize(
    ("scope", "steered"),
    [("thinking", [0, 0, 1, 1, 1, 0, 0]), ("answer", [0, 0, 0, 0, 0, 1, 1])],
)
def test_scope_of_thoughts_and_of_the_answer_are_theirs(
    engine: Engine, draw: Callable[..., None], scope: str, steered: list[int]
) -> None:
    model = engine.model
    vector = random_vector(model, layers=[0])
    prompt = model.tokenize("<\uff5cUser\uff5c>a<think>", parse_special=True)
    reply = model.tokenize("\n\n</think>\n\n", parse_special=True)
    assert (len(prompt), len(reply)) == (3, 5)

    def rows(mood: Steering) -> Any:
        with engine.sequence(prompt, steering=mood) as sequence:
            sequence.start_reading([0], pooling="all")
            draw(engine, "\n\n</think>\n\n")
            for _ in reply[:-1]:
                sequence.step()
            sequence.logits()
            engine._core = engine._core._core  # type: ignore[union-attr]
            return sequence.reading()[1][:, 0]

    expected = rows(Steering()) + np.outer(steered, vector.directions[0]).astype(np.float32)
    np.testing.assert_allclose(rows(Steering({vector: 1.0}, scope=scope)), expected, atol=1e-5)


def test_going_back_goes_back_into_the_thoughts(engine: Engine, draw: Callable[..., None]) -> None:
    draw(engine, "I</think>the")
    with engine.sequence("a") as sequence:
        kinds = [sequence.step().kind for _ in range(3)]
        sequence.rollback(2)
        draw(engine, "you</think>the")
        again = sequence.step().kind
    assert (kinds, again) == (["thinking", "thinking", "answer"], "thinking")


def test_model_that_cannot_but_think_is_not_measured(engine: Engine) -> None:
    with pytest.raises(InputError, match="thinks before it answers"):
        engine.model.answer_tokens("a")
    assert engine.model.answer_tokens("a", raw=True)


def test_measured_prompts_turn_thinking_off(tmp_path: Path) -> None:
    model = Model.load(FAMILIES["qwen3"].build(tmp_path / "m.gguf"))
    off = model.prompt_tokens("a", chat_template_kwargs={"enable_thinking": False})
    assert model.answer_tokens("a") == off != model.prompt_tokens("a")
