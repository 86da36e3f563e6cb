"""From messages to the text a model was trained on: its chat template, rendered in a sandbox."""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from pyemo.engine.messages import Message, forms, is_continued
from pyemo.errors import InputError

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.ext import Extension

    from pyemo.engine.template_limits import LimitedEnvironment

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


def render_messages(
    template: str,
    messages: Sequence[Message],
    mark: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    bos_token: str = "",
    eos_token: str = "",
) -> str:
    """Return the messages as the template writes them, up to where the reply goes on.

    Where it refuses them, or leaves out one of several system messages or a late one, they are
    given in another form (:func:`pyemo.engine.messages.forms`). The assistant's message is
    continued where it is the last.

    Args:
        mark: a character that no message has twice in a row.
        arguments: further variables of the template.
    Raises:
        InputError: the template refuses all forms; as :func:`render_chat`.
    """
    render = functools.partial(
        render_chat, template, bos_token=bos_token, eos_token=eos_token, arguments=arguments
    )
    refused: InputError | None = None
    for form in forms(messages):
        try:
            if _leaves_out(render, form, mark):
                continue
            return _render_open(render, form, mark)
        except InputError as error:
            refused = refused or error
    if refused is not None:
        raise refused
    return _render_open(render, messages, mark)


def variables(template: str) -> set[str]:
    """Return the names that a template asks for; empty for what is no template."""
    if _CHATML.fullmatch(template):
        return set()
    import jinja2
    from jinja2 import meta

    try:
        return set(meta.find_undeclared_variables(_environment().parse(template)))
    except (jinja2.TemplateError, RecursionError):
        return set()


def _leaves_out(render: Callable[..., str], messages: Sequence[Message], mark: str) -> bool:
    """Whether one of several system messages, or a late one, is missing in what is written."""
    said = [i for i, m in enumerate(messages) if m["role"] in ("system", "developer")]
    if not any(said):  # none, or one that is the first
        return False
    probed = [
        {**m, "content": f"{m['content']}{mark}{mark}{i}{mark}"} if i in said else m
        for i, m in enumerate(messages)
    ]
    text = render(probed)
    return not all(f"{mark}{mark}{i}{mark}" in text for i in said)


def _render_open(render: Callable[..., str], messages: Sequence[Message], mark: str) -> str:
    if not is_continued(messages):
        return render(messages)
    last = messages[-1]
    begun = [*messages[:-1], {**last, "content": f"{last['content']}{mark}{mark}"}]
    text = render(begun, add_generation_prompt=False)
    text, found, _ = text.rpartition(mark + mark)
    if not found:
        raise InputError(
            "the model's chat template leaves the last message out, which is the assistant's and "
            "to be continued; end with a user's message"
        )
    return text


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = True,
    arguments: Mapping[str, Any] | None = None,
) -> str:
    """Return the messages as the template writes them, ready to be tokenized with special tokens.

    The template comes with the model, from strangers: it runs in Jinja's immutable sandbox, with
    what Hugging Face's renderer offers (raise_exception, strftime_now, tojson, loop controls),
    under limits of time and size.

    Args:
        arguments: further variables, such as ``{"enable_thinking": False}``.
    Raises:
        InputError: the template refuses these messages, is not valid Jinja, or meets a limit; its
            words are in the message.
    """
    chatml = _CHATML.fullmatch(template)
    if chatml is not None:
        return _render_chatml(chatml["default"], messages, add_generation_prompt)
    try:
        values = {
            "messages": [dict(message) for message in messages],
            "bos_token": bos_token,
            "eos_token": eos_token,
            "add_generation_prompt": add_generation_prompt,
            **(arguments or {}),
        }
        environment, compiled = _compile(template)
        return environment.written(compiled, values)
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
def _compile(template: str) -> tuple[LimitedEnvironment, Template]:
    environment = _environment()
    return environment, environment.compiled(template)


def _environment() -> LimitedEnvironment:
    from pyemo.engine.template_limits import LimitedEnvironment

    environment = LimitedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _generation_tag()],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


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


def plain_prompt(prompt: str) -> str:
    """Return a prompt as a model without a chat template is given it, to be answered.

    The answer follows a blank line; a prompt that ends its last line itself stays as it is.
    """
    return f"{prompt}\n\n" if prompt and not prompt.endswith("\n") else prompt
