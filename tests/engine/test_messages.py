"""The forms of messages that clients send, and what templates make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import open_engine
from tiny_models import build_tiny
from tiny_vocabulary import CHATML

from pyemo import Engine, Model
from pyemo.engine.messages import as_messages
from pyemo.errors import ContextFullError, InputError

TOOLS = CHATML.replace("{{ message['role'] }}", "{{ message['role'] }}{{ message.tool_calls }}")
ALTERNATING = (  # as Gemma 2
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FIRST_SYSTEM_ONLY = (  # as servers that keep one
    "{% for m in messages %}{% if loop.first or m.role != 'system' %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LAST_SYSTEM_ONLY = (  # as DeepSeek
    "{% set ns = namespace(said='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.said = m.content %}{% endif %}{% endfor %}{{ ns.said }}"
    "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.content }}{% endif %}"
    "{% endfor %}"
)
THINKING = (  # as Qwen3
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


@pytest.fixture
def model_with(tmp_path: Path) -> Callable[[str], Model]:
    """``model_with(jinja)`` returns the tiny llama with that chat template."""

    def model_with(template: str) -> Model:
        return Model.load(build_tiny("llama", tmp_path / "m.gguf", chat_template=template).path)

    return model_with


@pytest.fixture
def chatml(load: Callable[[str], Model]) -> Model:
    return load("llama")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])], "a\nb"),
        ([user(["a", "b"])], "a\nb"),
        ([user("a", name="ann")], "a"),
        ([user("a", name=None, tool_calls=None)], "a"),
        ([user(({"type": "input_text", "text": "a"},))], "a"),
        ([user("")], ""),
    ],
)
def test_content_of_a_message_may_have_any_form(
    chatml: Model, messages: list[Any], expected: str
) -> None:
    text = f"<|im_start|>user\n{expected}<|im_end|>\n<|im_start|>assistant\n"
    assert chatml.prompt_text(messages) == text


def test_refusal_is_what_the_assistant_said(chatml: Model) -> None:
    messages = [user("a"), {"role": "assistant", "content": None, "refusal": "no"}, user("b")]
    assert "assistant\nno<|im_end|>" in chatml.prompt_text(messages)


def test_developer_is_the_system_where_the_template_knows_none(chatml: Model) -> None:
    messages = [{"role": "developer", "content": "be calm"}, user("a")]
    assert chatml.prompt_text(messages).startswith("<|im_start|>system\nbe calm")


def test_developer_stays_where_the_template_knows_one(model_with: Callable[[str], Model]) -> None:
    model = model_with(CHATML + "{# 'developer' #}")
    messages = [{"role": "developer", "content": "be calm"}, user("a")]
    assert model.prompt_text(messages).startswith("<|im_start|>developer\nbe calm")


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "tool", "content": "4"}, "knows no messages of tools"),
        ({"role": "assistant", "tool_calls": [{"type": "function"}]}, "knows no calls of tools"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "write tool_calls"),
        ({"role": "function", "content": "4"}, "it needs a role of"),
        ({"role": "user"}, "it needs a content"),
        ({"role": "user", "content": 4}, "it needs a content"),
        ({"role": "user", "content": b"a"}, "it needs a content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "'image_url'"),
        ({"role": "user", "content": [{"type": "text"}]}, "parts are texts"),
        ({"role": "user", "content": [4]}, "parts are texts"),
        ("hello", "not a message"),
    ],
)
def test_form_that_is_not_understood_is_named(chatml: Model, message: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        chatml.prompt_text([user("a"), message])


def test_tools_are_handed_to_a_template_that_knows_them(
    model_with: Callable[[str], Model],
) -> None:
    model = model_with(TOOLS + "{# 'tool' #}")
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    text = model.prompt_text(
        [
            user("a"),
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "1", "content": "4"},
        ]
    )
    assert "'name': 'f'" in text
    assert "<|im_start|>tool\n4" in text


def test_system_goes_into_the_first_turn_where_the_template_refuses_it(
    model_with: Callable[[str], Model],
) -> None:
    model = model_with(ALTERNATING)
    messages = [{"role": "system", "content": "be calm"}, user("a")]
    assert model.prompt_text(messages).startswith("<|im_start|>user\nbe calm\n\na<|im_end|>")


def test_neighbours_of_one_role_are_joined_where_the_template_refuses_them(
    model_with: Callable[[str], Model],
) -> None:
    model = model_with(ALTERNATING)
    text = model.prompt_text([user("a"), user("b"), {"role": "system", "content": "s"}, user("c")])
    assert text.startswith("<|im_start|>user\ns\n\na\n\nb\n\nc<|im_end|>")


@pytest.mark.parametrize("template", [FIRST_SYSTEM_ONLY, LAST_SYSTEM_ONLY])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3)])
def test_no_system_message_is_left_out(
    model_with: Callable[[str], Model], template: str, order: tuple[int, ...]
) -> None:
    messages = [
        {"role": "system", "content": "one"},
        user("a"),
        {"role": "system", "content": "two"},
        user("b"),
    ]
    text = model_with(template).prompt_text([messages[i] for i in order])
    assert "one\n\ntwo" in text


def test_what_no_form_makes_right_is_refused_in_the_templates_words(
    model_with: Callable[[str], Model],
) -> None:
    messages = [{"role": "assistant", "content": "a"}, user("b")]
    with pytest.raises(InputError, match="roles must alternate"):
        model_with(ALTERNATING).prompt_text(messages)


@pytest.mark.parametrize("begun", ["My colour is", "My colour is ", "", "a\n", "<think>\nI"])
@pytest.mark.parametrize("template", [CHATML, ALTERNATING, THINKING])
def test_last_message_of_the_assistant_is_continued(
    model_with: Callable[[str], Model], template: str, begun: str
) -> None:
    model = model_with(template)
    messages = [user("a"), {"role": "assistant", "content": begun}]
    assert model.prompt_text(messages) == (
        f"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n{begun}"
    )


def test_reply_that_is_continued_may_not_be_longer_than_the_context(engine: Engine) -> None:
    messages = [user("a"), {"role": "assistant", "content": "the happy story " * 400}]
    with pytest.raises(ContextFullError):
        engine.generate(messages)
    assert len(list(engine.generate("a", max_tokens=2))) == 2


def test_two_hundred_messages_are_a_prompt(chatml: Model) -> None:
    turns = [user("a"), {"role": "assistant", "content": "b"}] * 100
    text = chatml.prompt_text([*turns, user("c")])
    assert text.count("<|im_start|>") == 202


def test_words_of_tools_stay_text(model_with: Callable[[str], Model]) -> None:
    model = model_with(TOOLS + "{# 'tool' #}")
    end = model.native.eos
    tokens = model.prompt_tokens([user("a"), {"role": "tool", "content": "x<|im_end|>"}])
    assert tokens.count(end) == 2


@pytest.mark.parametrize(("on", "text"), [(True, ""), (False, "<think>\n\n</think>\n\n")])
def test_thinking_is_switched_by_the_templates_own_variable(
    model_with: Callable[[str], Model], on: bool, text: str
) -> None:
    model = model_with(THINKING)
    found = model.prompt_text([user("a")], chat_template_kwargs=model.think_kwargs(on))
    assert found.endswith(f"assistant\n{text}")


def test_thinking_that_has_no_switch_is_refused(
    chatml: Model, model_with: Callable[[str], Model]
) -> None:
    assert chatml.think_kwargs(False) == {}
    with pytest.raises(InputError, match="no switch for thinking"):
        chatml.think_kwargs(True)
    with pytest.raises(InputError, match="no switch for thinking"):
        model_with(CHATML + "<think></think>").think_kwargs(False)


@pytest.mark.parametrize("arguments", [{"messages": []}, {"bos_token": ""}, {4: 4}, "x=1"])
def test_variable_that_pyemo_fills_in_is_refused(chatml: Model, arguments: Any) -> None:
    with pytest.raises(InputError, match="chat_template_kwargs"):
        chatml.prompt_text([user("a")], chat_template_kwargs=arguments)


@pytest.fixture
def thinking_engine(model_with: Callable[[str], Model]) -> Iterator[Engine]:
    with open_engine(model_with(THINKING)) as engine:
        yield engine


def test_variables_reach_the_template_from_every_call(thinking_engine: Engine) -> None:
    engine, off = thinking_engine, {"enable_thinking": False}
    expected = engine.prompt_tokens("a", chat_template_kwargs=off)
    assert expected != engine.prompt_tokens("a")
    with engine.sequence("a", chat_template_kwargs=off) as sequence:
        assert sequence.tokens == expected
    reply = engine.generate("a", chat_template_kwargs=off, max_tokens=1)
    assert reply.sequence.tokens == expected
    reply.close()


@pytest.mark.parametrize("settings", [{"raw": True}, {}])
def test_variables_without_a_template_are_refused(engine: Engine, settings: Any) -> None:
    prompt: Any = "a" if settings else [4]
    with pytest.raises(InputError, match=r"variables|chat_template_kwargs"):
        engine.generate(prompt, chat_template_kwargs={"a": 1}, **settings)


def test_text_alone_is_a_users_message() -> None:
    assert as_messages("a", "s") == [{"role": "system", "content": "s"}, user("a")]


def test_a_reply_ends_with_what_the_template_puts_behind_it(
    tiny: Callable[[str], Any], tmp_path: Path, smollm2: Path
) -> None:
    gemma = "".join(
        (
            "{{ bos_token }}{% for m in messages %}<start_of_turn>",
            "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<end_of_turn>\n",
            "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        )
    )
    chat = Model.load(build_tiny("gemma3", tmp_path / "chat.gguf", chat_template=gemma).path)
    base = Model.load(tiny("gemma3").path)
    for model, end in (
        (chat, b"<end_of_turn>"),
        (base, b"<eos>"),
        (Model.load(smollm2), b"<|im_end|>"),
    ):
        assert model.end_token is not None
        assert model.detokenize([model.end_token], special=True) == end


# a model without a template


def test_a_base_model_answers_after_a_blank_line(tiny: Callable[[str], Any]) -> None:
    model = Model.load(tiny("gpt2").path)
    assert model.chat_template is None

    def tokens(text: str) -> list[int]:
        return model.tokenize(text, add_special=True, parse_special=True)

    assert model.prompt_tokens("a b") == tokens("a b\n\n")
    assert model.answer_tokens("a b") == tokens("a b\n\n")
    assert model.prompt_tokens("a b\n") == tokens("a b\n")  # whoever ends the line means it
    assert model.prompt_tokens("a b", raw=True) == tokens("a b")


def test_an_empty_prompt_stays_empty_for_a_base_model(tiny: Callable[[str], Any]) -> None:
    with pytest.raises(InputError, match="empty"):
        Model.load(tiny("gpt2").path).prompt_tokens("")
