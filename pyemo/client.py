"""A running server, asked over HTTP: one reply, part by part, as it is written.

Owns the way there and the words for what goes wrong on it. What is asked for, and what is printed,
are others' matters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pyemo.errors import MissingExtraError, ServerError

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"

CONNECT_S, READ_S = 5.0, 60.0
"""Seconds to wait for a connection, and for anything to come: a server sends a sign of life."""


def address(server: str) -> str:
    """Return the address of a server as it was typed, without a path of OpenAI's clients."""
    url = server if "://" in server else f"http://{server}"
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def stream(
    server: str, path: str, body: Mapping[str, Any], *, key: str | None = None
) -> Iterator[dict[str, Any]]:
    """Ask for a streamed reply; yield its parts as they come.

    Leaving the iteration hangs up, which ends the reply.

    Args:
        server: its address, such as ``localhost:8080``.
        path: :data:`CHAT` or :data:`TEXT`.
        body: as docs/serving.md has it.
        key: the server's key, if it has one.
    Raises:
        MissingExtraError: ``httpx2`` is not installed.
        ServerError: it does not answer, or refuses.
    """
    try:
        import httpx2
    except ImportError as error:
        raise MissingExtraError(
            "asking a server needs httpx2; pip install 'pyemo[client]' brings it"
        ) from error
    url = address(server)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    timeout = httpx2.Timeout(READ_S, connect=CONNECT_S)
    try:
        with (
            httpx2.Client(timeout=timeout) as client,
            client.stream(
                "POST", url + path, json={**body, "stream": True}, headers=headers
            ) as answer,
        ):
            if not answer.is_success:
                answer.read()
                raise ServerError(f"the server at {url} refuses: {_reason(answer)}")
            for event in httpx2.EventSource(answer):
                if event.data == "[DONE]":
                    return
                part: Any = event.json()
                if "error" in part:
                    raise ServerError(f"the server at {url} says: {part['error'].get('message')}")
                yield part
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        if isinstance(error, ServerError):
            raise
        why = str(error) or type(error).__name__
        raise ServerError(
            f"no pyemo server answers at {url}: {why}; start one with `pyemo serve`, or give "
            "another address"
        ) from error


def _reason(answer: Any) -> str:
    """Return why a request was refused, in the server's words where it has some."""
    try:
        said = answer.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        said = f"{answer.status_code} {answer.reason_phrase}"
    if answer.status_code == 401:
        said += " (pyemo takes it from PYEMO_API_KEY)"
    return str(said)
