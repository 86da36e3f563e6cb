"""What the server says when it cannot answer: OpenAI's error envelope, with a status and a reason.

Owns which error of pyemo's is which status, and that no answer names a path of this machine. Knows
nothing of routes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any

from pyemo.errors import (
    ClosedError,
    ContextFullError,
    InputError,
    PyemoError,
    QueueFullError,
    SteeringUnsupportedError,
    VectorError,
    VectorModelMismatchError,
    VectorNotFoundError,
)

LONGEST = 1500
"""Characters of a message; what a client sent may be in it."""

RETRY_AFTER_S = 1

_FOLDERS = re.compile(r"(?<![\w.:/])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'\":;,]+)+[/\\](?=[^\s/\\])")

logger = logging.getLogger("pyemo.server")


class Refusal(Exception):
    """A request that is not answered, and why.

    Attributes:
        status: HTTP's.
        message: what was wrong, and what to send instead.
        code: a word for programs.
        param: the field of the request that is meant.
        headers: of the answer.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers or {}

    @property
    def type(self) -> str:
        """OpenAI's word for errors of this kind."""
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
        if self.status == 429:
            return "rate_limit_error"
        return kinds.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")

    def envelope(self) -> dict[str, Any]:
        """Return the body of the answer, as OpenAI has it."""
        message = self.message
        if len(message) > LONGEST:
            message = f"{message[: LONGEST - 200]} ... {message[-150:]}"
        error = {"message": message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}


def refusal_of(error: BaseException, param: str | None = None) -> Refusal:
    """Return what a client is told of an error; what nobody foresaw goes into the log only."""
    if isinstance(error, Refusal):
        return error
    message = without_paths(str(error))
    if isinstance(error, ContextFullError):
        return Refusal(message, code="context_length_exceeded", param=param)
    if isinstance(error, QueueFullError):
        retry = {"Retry-After": str(RETRY_AFTER_S)}
        return Refusal(message, status=429, code="queue_full", headers=retry)
    if isinstance(error, ClosedError):
        return Refusal("the server is shutting down", status=503, code="shutting_down")
    if isinstance(error, VectorNotFoundError):
        return Refusal(message, code="unknown_vector", param=param)
    if isinstance(error, VectorModelMismatchError):
        return Refusal(message, code="vector_mismatch", param=param)
    if isinstance(error, SteeringUnsupportedError):
        return Refusal(message, code="steering_unsupported", param=param)
    if isinstance(error, InputError | VectorError):
        return Refusal(message, code="invalid_value", param=param)
    if isinstance(error, PyemoError):
        logger.error("%s", error)
        return Refusal(message, status=500, code="engine_error")
    logger.error("unforeseen", exc_info=error)
    return Refusal("internal error; the server's log has it", status=500, code="internal_error")


def without_paths(text: str) -> str:
    """Return ``text`` with the folders of paths left out: ``/a/b/c.gguf`` becomes ``c.gguf``."""
    return re.sub(
        r"(?<![\w.:/])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'\":;,]+)+[/\\](?=[^\s/\\])", "", text
    )


def names_in(names: Iterable[str]) -> str:
    """Return names in a row, for a message."""
    return ", ".join(names) or "none"
