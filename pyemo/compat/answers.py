"""Replies in the shapes of llama-cpp-python, which are those of OpenAI's API as dicts."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pyemo.engine.tickets import Ticket
from pyemo.engine.tokens import Token

Answer: TypeAlias = dict[str, Any]

_FINISH = {"end": "stop", "stop": "stop", "length": "length", "context": "length"}


@dataclass(frozen=True)
class Completion:
    """A reply that is to be told as a text completion; written when it is told.

    Attributes:
        submit: begins to write it.
        model: its name in the answer.
        n_prompt: tokens of the prompt.
        text_offset: where the reply begins, for ``logprobs``: characters of the prompt.
        logprobs: alternatives that are told with each token; None for no log-probabilities.
        echoed: what stands before the reply's text in an answer that is not streamed.
    """

    submit: Callable[[], Ticket]
    model: str
    n_prompt: int
    text_offset: int
    logprobs: int | None
    echoed: str = ""
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4()}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self) -> Answer:
        """Return the answer, when all of it is there."""
        ticket = self.submit()
        try:
            ticket.wait()
        finally:
            ticket.cancel()
        tokens = list(ticket.tokens)
        if ticket.stop_reason == "end" and not tokens[-1].bytes:  # a complete grammar's last has
            del tokens[-1]
        text = self.echoed + ticket.text
        return {
            **self._head(),
            "choices": [self._choice(text, tokens, _finish(ticket), self.text_offset)],
            "usage": {
                "prompt_tokens": self.n_prompt,
                "completion_tokens": len(tokens),
                "total_tokens": self.n_prompt + len(tokens),
            },
        }

    def chunks(self) -> Iterator[Answer]:
        """Yield the answer in parts, the last of them without text; leaving them ends the reply."""
        n_shown, begin = 0, self.text_offset
        ticket = self.submit()
        try:
            for token in ticket:
                told = [token] if token.bytes else []  # the one that ends a reply has none
                if token.text or (told and self.logprobs is not None):
                    choice = self._choice(token.text, told, None, begin)
                    yield {**self._head(), "choices": [choice]}
                    n_shown += len(token.text)
                    begin += len(_shown(token.bytes))
        finally:
            ticket.cancel()
        if rest := ticket.text[n_shown:]:  # held back until the context was full
            yield {**self._head(), "choices": [self._choice(rest, [], None, begin)]}
        yield {**self._head(), "choices": [self._choice("", [], _finish(ticket), begin)]}

    def _head(self) -> Answer:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
        }

    def _choice(self, text: str, tokens: list[Token], finish: str | None, begin: int) -> Answer:
        logprobs = None if self.logprobs is None else self._logprobs(tokens, begin)
        return {
            "text": text,
            "index": 0,
            "logprobs": logprobs if tokens else None,
            "finish_reason": finish,
        }

    def _logprobs(self, tokens: list[Token], begin: int) -> Answer:
        told: Answer = {"tokens": [], "text_offset": [], "token_logprobs": [], "top_logprobs": []}
        for token in tokens:
            own = _shown(token.bytes)
            told["tokens"].append(own)
            told["text_offset"].append(begin)
            told["token_logprobs"].append(token.logprob)
            top = {_shown(other.bytes): other.logprob for other in token.top[: self.logprobs]}
            told["top_logprobs"].append({**top, own: token.logprob})
            begin += len(own)
        return told


def _finish(ticket: Ticket) -> str | None:
    return _FINISH.get(ticket.stop_reason or "")


def as_chat(completion: Answer) -> Answer:
    """Return a text completion as a chat completion."""
    choice = completion["choices"][0]
    return {
        "id": "chat" + completion["id"],
        "object": "chat.completion",
        "created": completion["created"],
        "model": completion["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": choice["text"]},
                "logprobs": _chat_logprobs(choice["logprobs"]),
                "finish_reason": choice["finish_reason"],
            }
        ],
        "usage": completion["usage"],
    }


def as_chat_chunks(chunks: Iterator[Answer]) -> Iterator[Answer]:
    """Yield the chunks of a text completion as those of a chat, the role first."""
    is_first = True
    for chunk in chunks:
        choice = chunk["choices"][0]
        head = {
            "id": "chat" + chunk["id"],
            "model": chunk["model"],
            "created": chunk["created"],
            "object": "chat.completion.chunk",
        }
        if is_first:
            yield {**head, "choices": [_delta({"role": "assistant"}, None, None)]}
            is_first = False
        delta = {"content": choice["text"]} if choice["finish_reason"] is None else {}
        logprobs = _chat_logprobs(choice["logprobs"])
        yield {**head, "choices": [_delta(delta, logprobs, choice["finish_reason"])]}


def _delta(delta: Answer, logprobs: Answer | None, finish: str | None) -> Answer:
    return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _chat_logprobs(logprobs: Answer | None) -> Answer | None:
    if logprobs is None:
        return None
    told = zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    )
    return {
        "content": [
            {**_one(token, logprob), "top_logprobs": [_one(*pair) for pair in top.items()]}
            for token, logprob, top in told
        ],
        "refusal": None,
    }


def _one(token: str, logprob: float) -> Answer:
    return {"token": token, "bytes": list(token.encode()), "logprob": logprob}


def _shown(piece: bytes) -> str:
    return piece.decode("utf-8", errors="ignore")
