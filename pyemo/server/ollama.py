"""Ollama's chat route over the same replies: its body in OpenAI's words, and its answers' shape."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pyemo.server.answers import Ending, Said, Shape, compact, finish_reason
from pyemo.server.bodies import Asked, chat_asked
from pyemo.server.refusals import Refusal

_SAME = ("temperature", "seed", "top_k", "top_p", "min_p", "stop", "repeat_penalty",
         "repeat_last_n", "presence_penalty", "frequency_penalty")  # fmt: skip
_MOOD = ("steering", "steer", "cvec")
_PASSED = ("messages", "tools", "metadata", "pyemo", *_MOOD)
_HARMLESS = ("keep_alive",)

LATEST = ":latest"
"""What Ollama's clients put behind a name without a tag."""


def ollama_asked(body: Mapping[str, Any]) -> Asked:
    """Return what a body of ``/api/chat`` asks for.

    Raises:
        Refusal: a field that is not understood as it is, by name.
    """
    options = body.get("options") or {}
    if not isinstance(options, Mapping):
        raise Refusal("options must be an object", param="options")
    messages = body.get("messages")
    if isinstance(messages, list):
        if any(isinstance(one, Mapping) and one.get("images") for one in messages):
            raise Refusal("images are not understood; text is all there is", param="messages")
        messages = [_without_images(message) for message in messages]
    model = body.get("model")
    if isinstance(model, str):
        model = model.removesuffix(LATEST)
    asked = {name: body[name] for name in _PASSED if name in body}
    asked |= {name: value for name, value in options.items() if name in (*_SAME, *_MOOD)}
    asked |= {"messages": messages, "model": model}
    asked["stream"] = True if body.get("stream") is None else body["stream"]
    n_tokens = options.get("num_predict")
    asked["max_tokens"] = None if n_tokens == -2 else n_tokens  # as much as the context holds
    if (form := body.get("format")) not in (None, ""):
        if form != "json" and not isinstance(form, dict):
            raise Refusal('format is "json" or a JSON schema', param="format")
        asked["json_schema"] = {"type": "object"} if form == "json" else form
    if body.get("think") is not None:
        asked["think"] = body["think"] not in (False, "none")
    known = (*_PASSED, *_HARMLESS, "model", "stream", "think", "format", "options")
    asked |= {name: value for name, value in body.items() if name not in known}
    known_options = (*_SAME, *_MOOD, "num_predict")
    asked |= {f"options.{name}": 0 for name in options if name not in known_options}
    return chat_asked(asked)


class OllamaShape(Shape):
    """``/api/chat``: a stream of JSON lines."""

    prefix = "ollama-"
    media_type = "application/x-ndjson"
    waiting = b""
    done = b""

    def part(self, said: Said) -> dict[str, Any]:
        message = {"role": "assistant", "content": said.content}
        if said.thoughts:
            message["thinking"] = said.thoughts
        now = datetime.datetime.now(datetime.timezone.utc)
        part: dict[str, Any] = {
            "model": self.head.model,
            "created_at": now.isoformat().replace("+00:00", "Z"),
            "message": message,
            "done": False,
        }
        if said.extra is not None:
            part["pyemo"] = dict(said.extra)
        return part

    def whole(self, choices: Sequence[tuple[Said, Ending]]) -> dict[str, Any]:
        return self.last(*choices[0])

    def encoded(self, value: Mapping[str, Any]) -> bytes:
        return compact(value) + b"\n"

    def error(self, refusal: Refusal) -> dict[str, Any]:
        return {"error": refusal.envelope()["error"]["message"]}

    def last(self, said: Said, ending: Ending) -> dict[str, Any]:
        return {
            **self.part(replace(said, extra=ending.extra)),
            "done": True,
            "done_reason": finish_reason(ending.stop_reason),
            "total_duration": _ns(ending.read_s + ending.write_s),
            "load_duration": 0,
            "prompt_eval_count": ending.used["prompt_tokens"],
            "prompt_eval_duration": _ns(ending.read_s),
            "eval_count": ending.used["completion_tokens"],
            "eval_duration": _ns(ending.write_s),
        }


def tag(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``/api/tags`` says of a model.

    Args:
        facts: modified (seconds of the epoch), size (bytes), digest, family, format.
    """
    modified = datetime.datetime.fromtimestamp(facts["modified"], datetime.timezone.utc)
    return {
        "name": name,
        "model": name,
        "modified_at": modified.isoformat().replace("+00:00", "Z"),
        "size": facts["size"],
        "digest": facts["digest"],
        "details": {
            "format": "gguf",
            "family": facts["family"],
            "families": [facts["family"]],
            "parameter_size": "",
            "quantization_level": "",
        },
    }


def _without_images(message: Any) -> Any:
    if not isinstance(message, Mapping):
        return message
    return {key: value for key, value in message.items() if key != "images"}


def _ns(seconds: float) -> int:
    return round(max(0.0, seconds) * 1e9)
