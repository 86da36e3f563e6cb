"""Who may come in: keys, and pages of other origins. Before anything is read of a request."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from pyemo.server.refusals import Refusal

OPEN = ("/", "/health")
"""Paths that need no key: they say nothing of anybody's texts."""

MOST_HEADERS = 200


class Gate:
    """Lets requests with one of the keys through, to ``app``.

    A browser says which page asks. A page of another origin is let through only if it is one of
    ``origins``: any site that is open in the browser could otherwise use a server of this machine.
    Such a site may also give its own name this machine's address, and be of our origin then: where
    ``hosts`` are given, the server answers under these names only.
    """

    def __init__(
        self, app: ASGIApp, keys: Sequence[str], origins: Sequence[str], hosts: Sequence[str]
    ) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._origins = tuple(origins)
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            answer = JSONResponse(
                refusal.envelope(), status_code=refusal.status, headers=refusal.headers
            )
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        if len(scope["headers"]) > MOST_HEADERS:
            return Refusal(f"more than {MOST_HEADERS} headers", status=431, code="too_many_headers")
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._hosts and host and _without_port(host) not in self._hosts:
            return Refusal(
                f"this server has no key and answers on this machine only, not as {host[:80]!r}",
                status=403,
                code="host",
            )
        origin = headers.get("origin")
        if origin is not None and not self._is_welcome(origin, host):
            return Refusal(
                "pages of this origin may not use the server; --cors ORIGIN allows one",
                status=403,
                code="origin",
            )
        if not self._keys or scope["path"] in OPEN or scope["method"] == "OPTIONS":
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.casefold() != "bearer" or not given:
            return Refusal(
                "no key; send the header Authorization: Bearer KEY",
                status=401,
                code="missing_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        data = given.strip().encode("utf-8", "surrogateescape")
        # every key is compared, each in constant time
        if not any([hmac.compare_digest(data, key) for key in self._keys]):
            return Refusal(
                "the key is not one of this server's",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return None

    def _is_welcome(self, origin: str, host: str) -> bool:
        if "*" in self._origins or origin in self._origins:
            return True
        return origin.partition("://")[2].casefold() == host.casefold()


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
