"""Chat templates: the one that is written out says what Jinja says of it."""

from __future__ import annotations

import pytest

from pyemo.engine import chat_template as prompts
from pyemo.engine.chat_template import Message, render_chat
from pyemo.errors import InputError

# As SmolLM2's file has it: the newlines of the pieces are escapes of Jinja's or real ones.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONVERSATIONS: list[list[Message]] = [
    [{"role": "user", "content": "Hello!"}],
    [{"role": "system", "content": "Be <b>brief</b> & {{kind}}."}, {"role": "user", "content": ""}],
    [
        {"role": "user", "content": "one\r\ntwo \udcff {% raw %}"},
        {"role": "assistant", "content": "'\\n' + \"x\"\n"},
        {"role": "system", "content": "late"},
        {"role": "user", "content": "  three  "},
    ],
]


def by_jinja(template: str, messages: list[Message], *, add_generation_prompt: bool) -> str:
    """Render with Jinja whatever the template."""
    text: str = prompts._compile(template).render(
        messages=messages, add_generation_prompt=add_generation_prompt
    )
    return text


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_the_template_that_is_written_out_is_jinjas(
    messages: list[Message], add_generation_prompt: bool
) -> None:
    assert prompts._CHATML.fullmatch(SMOLLM2)
    found = render_chat(SMOLLM2, messages, add_generation_prompt=add_generation_prompt)
    assert found == by_jinja(SMOLLM2, messages, add_generation_prompt=add_generation_prompt)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Hugging Face", "us'"),
        ("!= 'system'", "== 'system'"),
        ("loop.first", "loop.last"),
        ("}}{%", "}} {%"),
    ],
)
def test_a_template_that_differs_goes_to_jinja(old: str, new: str) -> None:
    assert prompts._CHATML.fullmatch(SMOLLM2.replace(old, new, 1)) is None


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in [1] %}" * 25 + "x" + "{% endfor %}" * 25,  # SyntaxError
        "{% break %}",
        "{{ range(1, a=1, a=2) }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",  # RecursionError
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
    ],
    ids=["nested", "break", "repeated", "parentheses", "endless", "raises", "divides"],
)
def test_what_a_template_raises_is_an_error_of_its_messages(template: str) -> None:
    with pytest.raises(InputError, match=r"chat template refuses these messages: ."):
        render_chat(template, CONVERSATIONS[0])
