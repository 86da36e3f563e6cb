"""The shapes of answers, whole ones and the parts of a stream; OpenAI's own are here."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyemo.engine.tokens import Token, TokenLogprob
from pyemo.server.refusals import Refusal

LEAST_LOGPROB = -9999.0
"""OpenAI's word for what cannot be; JSON has no infinity."""

_REASONS = {
    "end": "stop",
    "stop": "stop",
    "repetition": "stop",
    "length": "length",
    "context": "length",
    "time_limit": "length",
}


def finish_reason(reason: str | None) -> str:
    """Return OpenAI's word for why a reply ended; "error" for what OpenAI has no word for."""
    return _REASONS.get(reason or "", "error")


def compact(value: Mapping[str, Any]) -> bytes:
    """Return JSON on one line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def usage(n_prompt: int, n_cached: int, tokens: Sequence[Token]) -> dict[str, Any]:
    """Return how many tokens were read and written; the one that ends a reply counts."""
    n_thoughts = sum(token.kind == "thinking" for token in tokens)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": len(tokens),
        "total_tokens": n_prompt + len(tokens),
        "prompt_tokens_details": {"cached_tokens": n_cached},
        "completion_tokens_details": {"reasoning_tokens": n_thoughts},
    }


def summed(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the usage of several choices; their prompt counts once, as it was read."""
    first = dict(parts[0])
    n_written = sum(used["completion_tokens"] for used in parts)
    name = "completion_tokens_details"
    n_thoughts = sum(used[name]["reasoning_tokens"] for used in parts)
    return {
        **first,
        "completion_tokens": n_written,
        "total_tokens": first["prompt_tokens"] + n_written,
        name: {"reasoning_tokens": n_thoughts},
    }


@dataclass(frozen=True)
class Head:
    """What every part of one answer repeats."""

    id: str
    created: int
    model: str
    fingerprint: str


@dataclass(frozen=True)
class Ending:
    """How a reply ended, and what it took.

    Attributes:
        stop_reason: the ticket's, or "time_limit".
        extra: what the choice says under ``pyemo``.
        used: see :func:`usage`.
        read_s, write_s: seconds from its start to the first token, and from there to its end.
    """

    stop_reason: str | None
    extra: Mapping[str, Any]
    used: Mapping[str, Any]
    read_s: float = 0.0
    write_s: float = 0.0


@dataclass(frozen=True)
class Said:
    """What a part of a stream, or a whole answer, is to say.

    Attributes:
        content, thoughts: the texts.
        tokens: that they stand for, for their log-probabilities; None without these.
        extra: what the choice says under ``pyemo``; an ending has its own.
        is_first: whether it begins the message.
        index: of the choice.
    """

    content: str = ""
    thoughts: str = ""
    tokens: Sequence[Token] | None = None
    extra: Mapping[str, Any] | None = None
    is_first: bool = False
    index: int = 0


class Shape(ABC):
    """How one route writes an answer.

    Attributes:
        prefix: of the ids of its answers.
        media_type: of its streams.
        waiting: what a stream sends while nothing comes.
        done: what ends a stream.
        is_plain: whether thoughts are left in the text.
    """

    prefix = ""
    media_type = "text/event-stream"
    waiting = b": the request waits\n\n"
    done = b"data: [DONE]\n\n"
    is_plain = False

    def __init__(self, head: Head) -> None:
        self.head = head

    @abstractmethod
    def part(self, said: Said) -> dict[str, Any]:
        """Return one part of a stream."""

    @abstractmethod
    def last(self, said: Said, ending: Ending) -> dict[str, Any]:
        """Return the last part of a choice in a stream."""

    def usage(self, used: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what a stream says behind all choices of the tokens it took; None for nothing."""
        return None

    @abstractmethod
    def whole(self, choices: Sequence[tuple[Said, Ending]]) -> dict[str, Any]:
        """Return an answer that is not streamed."""

    def encoded(self, value: Mapping[str, Any]) -> bytes:
        """Return a part as it is sent."""
        return b"data: " + compact(value) + b"\n\n"

    def error(self, refusal: Refusal) -> dict[str, Any]:
        """Return what says an error, in a stream or alone."""
        return refusal.envelope()


class OpenAIShape(Shape):
    """What OpenAI's two routes have in common."""

    part_object: str
    whole_object: str

    def part(self, said: Said) -> dict[str, Any]:
        choice = {
            "index": said.index,
            **self._delta(said),
            "logprobs": None if said.tokens is None else self._logprobs(said.tokens, said.index),
            "finish_reason": None,
        }
        if said.extra is not None:
            choice["pyemo"] = dict(said.extra)
        return {**self._begin(self.part_object), "choices": [choice]}

    def last(self, said: Said, ending: Ending) -> dict[str, Any]:
        part = self.part(replace(said, extra=ending.extra))
        part["choices"][0]["finish_reason"] = finish_reason(ending.stop_reason)
        return part

    def usage(self, used: Mapping[str, Any]) -> dict[str, Any] | None:
        return {**self._begin(self.part_object), "choices": [], "usage": dict(used)}

    def whole(self, choices: Sequence[tuple[Said, Ending]]) -> dict[str, Any]:
        told = [
            {
                "index": said.index,
                **self._message(said),
                "logprobs": None
                if said.tokens is None
                else self._logprobs(said.tokens, said.index),
                "finish_reason": finish_reason(ending.stop_reason),
                "pyemo": dict(ending.extra),
            }
            for said, ending in choices
        ]
        used = summed([ending.used for _, ending in choices])
        return {**self._begin(self.whole_object), "choices": told, "usage": used}

    def _begin(self, kind: str) -> dict[str, Any]:
        head = self.head
        return {
            "id": head.id,
            "object": kind,
            "created": head.created,
            "model": head.model,
            "system_fingerprint": head.fingerprint,
        }

    @abstractmethod
    def _delta(self, said: Said) -> dict[str, Any]: ...

    @abstractmethod
    def _message(self, said: Said) -> dict[str, Any]: ...

    @abstractmethod
    def _logprobs(self, tokens: Sequence[Token], index: int) -> dict[str, Any]: ...


class ChatShape(OpenAIShape):
    """``/v1/chat/completions``."""

    prefix = "chatcmpl-"
    part_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def _delta(self, said: Said) -> dict[str, Any]:
        delta: dict[str, Any] = {"role": "assistant"} if said.is_first else {}
        if said.content or (said.is_first and not said.thoughts):
            delta["content"] = said.content
        if said.thoughts:
            delta["reasoning_content"] = said.thoughts
        return {"delta": delta}

    def _message(self, said: Said) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": said.content, "refusal": None}
        if said.thoughts:
            message["reasoning_content"] = said.thoughts
        return {"message": message}

    def _logprobs(self, tokens: Sequence[Token], index: int) -> dict[str, Any]:
        content = [
            {
                **_logprob(token.bytes, token.logprob),
                "top_logprobs": [_logprob(top.bytes, top.logprob) for top in token.top],
            }
            for token in tokens
            if token.bytes and token.kind == "answer"
        ]
        return {"content": content, "refusal": None}


class TextShape(OpenAIShape):
    """``/v1/completions``."""

    prefix = "cmpl-"
    is_plain = True
    part_object = "text_completion"
    whole_object = "text_completion"

    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self._offsets: dict[int, int] = {}

    def _delta(self, said: Said) -> dict[str, Any]:
        return {"text": said.content}

    def _message(self, said: Said) -> dict[str, Any]:
        return {"text": said.content}

    def _logprobs(self, tokens: Sequence[Token], index: int) -> dict[str, Any]:
        offsets, offset = [], self._offsets.get(index, 0)
        shown = [token for token in tokens if token.bytes]  # the one that ends a reply has none
        for token in shown:
            offsets.append(offset)
            offset += len(token.text)
        self._offsets[index] = offset
        return {
            "tokens": [_word(token.bytes) for token in shown],
            "token_logprobs": [max(LEAST_LOGPROB, token.logprob) for token in shown],
            "top_logprobs": [_alternatives(token.top) for token in shown],
            "text_offset": offsets,
        }


def _word(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _logprob(data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _word(data), "logprob": max(LEAST_LOGPROB, logprob), "bytes": list(data)}


def _alternatives(top: Sequence[TokenLogprob]) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in top:
        found.setdefault(_word(one.bytes), max(LEAST_LOGPROB, one.logprob))
    return found
