"""From messages to the text a model was trained on: its chat template, rendered in a sandbox."""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from pyemo.errors import InputError

if TYPE_CHECKING:
    from jinja2.ext import Extension

Message: TypeAlias = Mapping[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text}``"""

ROLES = ("system", "user", "assistant")

# The template of SmolLM2 and others, written out: Jinja takes 5 MB and a tenth of the time to the
# first token. Matched whole, so any other template, however near, goes to Jinja.
_CHATML = re.compile(
    re.escape(
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nDEFAULT<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ).replace("DEFAULT", r"(?P<default>[^'\\{}%]*)")
)


def as_messages(prompt: str | Sequence[Message], system: str | None = None) -> list[Message]:
    """Return ``prompt`` as a list of messages, with ``system`` in front.

    Raises:
        InputError: no message, an unknown role, or a message without content.
    """
    if isinstance(prompt, str):
        messages: list[Message] = [{"role": "user", "content": prompt}]
    else:
        messages = list(prompt)
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    if not messages:
        raise InputError("no messages; pass a text or at least one {'role', 'content'} message")
    for message in messages:
        if message.get("role") not in ROLES or not isinstance(message.get("content"), str):
            raise InputError(
                f"not a message: {message!r}; it needs a role of {ROLES} and a text content"
            )
    return messages


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = True,
) -> str:
    """Return the messages as the template writes them, ready to be tokenized with special tokens.

    The template comes with the model, from strangers: it runs in Jinja's immutable sandbox, with
    what Hugging Face's renderer offers (raise_exception, strftime_now, tojson, loop controls).

    Raises:
        InputError: the template refuses these messages or is not valid Jinja; its words are in the
            message.
    """
    chatml = _CHATML.fullmatch(template)
    if chatml is not None:
        return _render_chatml(chatml["default"], messages, add_generation_prompt)
    try:
        text: str = _compile(template).render(
            messages=[dict(message) for message in messages],
            bos_token=bos_token,
            eos_token=eos_token,
            add_generation_prompt=add_generation_prompt,
        )
        return text
    except Exception as error:  # a stranger's program: it may raise what it likes
        raise InputError(
            f"the model's chat template refuses these messages: "
            f"{str(error) or type(error).__name__}; use other roles, or "
            "raw=True (--raw) to pass the text as it is"
        ) from error


def _render_chatml(default: str, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """Return what the template of :data:`_CHATML` writes; ``default`` is its system message."""
    parts = [(message["role"], message["content"]) for message in messages]
    if parts and parts[0][0] != "system":
        parts.insert(0, ("system", default))
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in parts)
    return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _generation_tag()],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)


def _generation_tag() -> type[Extension]:
    """Return the extension for ``{% generation %}``: around the words that a training learns."""
    from jinja2.ext import Extension
    from jinja2.nodes import Node
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


def _raise_exception(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
