"""The messages of a conversation: what OpenAI's reference allows, brought to what templates take.

Owns which forms are understood and what is refused by name. Knows nothing of Jinja and of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from pyemo.errors import InputError

Message: TypeAlias = Mapping[str, Any]
"""``{"role": ..., "content": ...}``, as OpenAI's reference has it.

Roles are system, developer, user, assistant and tool. A content is a text or a list of parts of
type text, which are joined with newlines. A developer's message is a system's where the template
knows no developer; a tool's, and the calls of tools, are for templates that know them. Other keys,
such as ``name``, are handed to the template; None counts as not given.
"""

ROLES = ("system", "developer", "user", "assistant", "tool")

_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def as_messages(
    prompt: str | Sequence[Message], system: str | None = None, *, template: str = ""
) -> list[Message]:
    """Return ``prompt`` as a list of messages whose contents are texts, with ``system`` in front.

    Args:
        template: the chat template they are for.
    Raises:
        InputError: no message, an unknown role, a message without content, a part that is no text,
            or a tool's message for a template that knows none.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages += [_as_message(message, template) for message in prompt]
    if not messages:
        raise InputError("no messages; pass a text or at least one {'role', 'content'} message")
    return list(messages)


def forms(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Yield the messages, then what says the same to templates that want other forms.

    Second come all system messages as one in front, and neighbours of one role as one message;
    third the same with the system's words in front of the first user's.
    """
    yield list(messages)
    system = "\n\n".join(m["content"] for m in messages if _is_system(m))
    others: list[Message] = []
    for message in messages:
        if _is_system(message):
            continue
        if others and _may_join(others[-1], message):
            joined = f"{others[-1]['content']}\n\n{message['content']}"
            others[-1] = {**others[-1], "content": joined}
        else:
            others.append(message)
    if not system:
        yield others
        return
    yield [{"role": "system", "content": system}, *others]
    if others and others[0]["role"] == "user":
        first = {**others[0], "content": f"{system}\n\n{others[0]['content']}"}
        yield [first, *others[1:]]
    else:
        yield [{"role": "user", "content": system}, *others]


def is_continued(messages: Sequence[Message]) -> bool:
    """Whether the last message is the assistant's, and so the beginning of the reply."""
    last = messages[-1]
    return last["role"] == "assistant" and not last.get("tool_calls")


def _is_system(message: Message) -> bool:
    return message["role"] in ("system", "developer")


def _may_join(one: Message, other: Message) -> bool:
    return all(set(m) == {"role", "content"} for m in (one, other)) and one["role"] == other["role"]


def _as_message(message: Message, template: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InputError(f"not a message: {message!r}; write {{'role': 'user', 'content': ...}}")
    found = {key: value for key, value in message.items() if value is not None}
    role = found.get("role")
    if role not in ROLES:
        raise InputError(f"not a message: {message!r}; it needs a role of {ROLES}")
    if role == "developer" and not _names(template, "developer"):
        found["role"] = "system"
    if role == "tool" and not _names(template, "tool"):
        raise InputError(
            "the model's chat template knows no messages of tools; give the tool's result as a "
            "user's message"
        )
    if found.get("tool_calls") and "tool_calls" not in template:
        raise InputError(
            "the model's chat template knows no calls of tools; give the call as the assistant's "
            "words"
        )
    if "function_call" in found:
        raise InputError("function_call is not understood; write tool_calls")
    content = found.get("content", found.get("refusal") if role == "assistant" else None)
    if content is None and found.get("tool_calls"):
        content = ""
    found["content"] = _as_text(content, message)
    return found


def _names(template: str, word: str) -> bool:
    return re.search(rf"['\"]{word}['\"]", template) is not None


def _as_text(content: Any, message: Message) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise InputError(f"not a message: {message!r}; it needs a content: a text, or parts of it")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get(_TEXT_PARTS.get(kind or "", "")) if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            raise InputError(
                f"a content's part of type {kind!r} is not understood; parts are texts: "
                "{'type': 'text', 'text': ...}"
            )
        texts.append(text)
    return "\n".join(texts)
