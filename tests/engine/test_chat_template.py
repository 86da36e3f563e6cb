"""Chat templates: the one that is written out says what Jinja says of it."""

from __future__ import annotations

import os
from pathlib import Path

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
    environment, compiled = prompts._compile(template)
    values = {"messages": messages, "add_generation_prompt": add_generation_prompt}
    return environment.written(compiled, values)


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


def test_tag_around_what_a_training_learns_is_passed_over() -> None:
    template = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    assert render_chat(template, CONVERSATIONS[0]) == "Hello!"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("{{ {'b': '\u00e9<', 'a': [1]} | tojson }}", '{"b": "\u00e9<", "a": [1]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        (
            "{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
            "13",
        ),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        (
            "{% set n = namespace(x=0) %}{% for i in [2] %}{% set n.x=i %}{% endfor %}{{ n.x }}",
            "2",
        ),
        ("{{ strftime_now('%Y') | length }}", "4"),
    ],
)
def test_words_that_transformers_adds_to_jinja_are_known(words: str, expected: str) -> None:
    assert render_chat(words, CONVERSATIONS[0]) == expected


@pytest.mark.skipif(
    "PYEMO_CHAT_TEMPLATES" not in os.environ,
    reason="runs where PYEMO_CHAT_TEMPLATES names a folder of templates: llama.cpp's "
    "models/templates, which is in llama-cpp-python's source package",
)
def test_templates_of_a_folder_render_as_transformers_renders_them() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    words = {"bos_token": "<s>", "eos_token": "</s>"}
    messages = [
        {"role": "user", "content": "How are you?"},
        {"role": "assistant", "content": "Well."},
        {"role": "user", "content": " Good <b>day</b> "},
    ]
    for path in sorted(Path(os.environ["PYEMO_CHAT_TEMPLATES"]).glob("*.jinja")):
        template = path.read_text()
        if "+ functions" in template or "tool_use" in path.name:
            continue  # transformers fails: they take the tools from their caller, and no None
        [expected], _ = render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=True, **words
        )
        assert render_chat(template, messages, **words) == expected, path.name


@pytest.mark.parametrize(
    ("template", "limit"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "2 s"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ 'a' * 10**9 }}", "of size"),
        ("{{ 9 ** (9 ** 9) }}", "of size"),
        ("{{ '%999999999d' % 1 }}", "too wide"),
        ("{{ '{:999999999}'.format(1) }}", "too wide|of size"),
        ("{{ 'a'.ljust(10**10) }}", "of size"),
        ("{{ 'a'|center(10000000000) }}", "of size"),
        ("{{ ('a' * 99999)|replace('a', 'b' * 99999) }}", "of size"),
        ("{{ ('a' * 99999).join(range(99999)|list) }}", "of size"),
        ("{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "of size"),  # noqa: E501
        ("{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}", "of size"),  # noqa: E501
        ("{% for a in range(99999) %}{{ 'x' * 999 }}{% endfor %}", "of size"),
        ("{# " + "x" * (1 << 20), "more than 1048576"),
    ],
)  # fmt: skip
def test_a_template_without_end_meets_a_limit_by_name(template: str, limit: str) -> None:
    with pytest.raises(InputError, match=limit):
        render_chat(template, [{"role": "user", "content": "hi"}])


def test_limits_leave_what_templates_do() -> None:
    template = (
        "{% macro tag(x) %}<{{ x }}>{% endmacro %}{% for m in messages %}{{ tag(m.role) ~ ': ' + "
        "m.content|trim }}{{ ['a', 'b']|join(', ') }}{{ '-' * 3 }}{{ '%s' % 3 }}{% endfor %}"
    )
    text = render_chat(template, [{"role": "user", "content": " hi " * 100_000}])
    assert text.startswith("<user>: hi")
    assert text.endswith("a, b---3")
