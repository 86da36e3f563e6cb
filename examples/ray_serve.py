"""Replicas of `pyemo serve` under Ray Serve (docs/serving.md), started from this folder:

serve run ray_serve:replicas n=2 config=pyemo.toml

The front asks the replica that a conversation belongs to, and asks another one when that replica is
lost before it has begun to answer. It holds no model and reads no texts.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio
import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from pyemo.server.app import make_app
from pyemo.server.config import ServerConfig, read_config
from pyemo.server.refusals import Refusal
from pyemo.server.service import Service

TRIES = 3
SCOPE = {"type", "method", "path", "root_path", "query_string", "headers", "client", "scheme"}
"""What a replica is told of a request: what can be sent to another process."""

# A conversation stays where its beginning was read; where a replica is added or lost, only its own
# conversations move. A request whose replica has a full queue goes to the next one, and so does one
# whose replica does not say in time how long its queue is: 0.1 s is too short beside a decode.
STAYING = RequestRouterConfig(
    request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
)
PATIENCE = {"RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "2"}


@serve.deployment(request_router_config=STAYING)
class Replica:
    """The server's application in a process of its own, with a model and a prompt cache."""

    async def __init__(self, config: ServerConfig) -> None:
        self._service = Service(config)
        self._app = make_app(self._service)
        self._lifespan = self._app.router.lifespan_context(self._app)
        await self._lifespan.__aenter__()
        self._name = f"{ray.util.get_node_ip_address()}:{os.getpid()}".encode()

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[dict[str, Any]]:
        """Yield the answer's ASGI messages; when nobody waits for them, the reply ends."""
        messages: asyncio.Queue[Any] = asyncio.Queue()
        gone = asyncio.Event()
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if unread:
                return unread.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        task = asyncio.ensure_future(self._app(scope, receive, messages.put))
        task.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"x-replica", self._name)]
                yield message
        finally:
            gone.set()
            await task

    def check_health(self) -> None:
        """Let Serve start a new replica in this one's place if the engine has stopped."""
        if self._service.is_broken:
            raise RuntimeError("the engine has stopped")


@serve.deployment(
    max_ongoing_requests=10_000,
    ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": PATIENCE}},
)
class Front:
    """Hands requests to replicas, and their answers to clients as they come."""

    def __init__(self, replicas: DeploymentHandle, config: ServerConfig) -> None:
        self._replicas = replicas
        self._config = config

    async def __call__(self, request: Request) -> Response:
        try:
            return await self._answer(request, await self._body(request))
        except Refusal as refusal:
            return JSONResponse(refusal.envelope(), refusal.status, refusal.headers)

    async def _body(self, request: Request) -> bytes:
        """Return the body; of one that is too large as much as shows it to the replica."""
        limit = self._config.read_timeout
        data = bytearray()
        try:
            with anyio.fail_after(limit):
                async for part in request.stream():
                    data += part[: self._config.max_body + 1 - len(data)]
        except TimeoutError:
            message = f"the body did not come within {limit:g} s"
            raise Refusal(message, status=408, code="timeout") from None
        return bytes(data)

    async def _answer(self, request: Request, body: bytes) -> Response:
        """Ask until a replica begins to answer. A reply depends on nothing but its request."""
        client = request.client.host if request.client else ""
        conversation = request.headers.get("x-conversation") or client
        ask = self._replicas.options(session_id=conversation, stream=True).answer
        scope = {key: value for key, value in request.scope.items() if key in SCOPE}
        for _ in range(TRIES):
            messages = ask.remote(scope, body)
            try:
                start, first = await anext(messages), await anext(messages)
            except BackPressureError:
                raise _try_later("all replicas are busy", 429, "queue_full") from None
            except RayActorError:
                continue
            answer = StreamingResponse(_bodies(first, messages), start["status"])
            answer.raw_headers = start["headers"]
            return answer
        raise _try_later(f"{TRIES} replicas were lost, one after another", 503, "replicas_lost")


def replicas(options: Mapping[str, str]) -> serve.Application:
    """Return the application.

    Args:
        options: n, the number of replicas; config, a file for `pyemo serve`; any of its options.
    """
    given = dict(options)
    n_replicas = int(given.pop("n", 2))
    config = read_config(given.pop("config", None), given)
    room = config.n_seq_max + config.max_queue
    replica = Replica.options(
        num_replicas=n_replicas,
        max_ongoing_requests=room,
        max_queued_requests=n_replicas * room,  # what a lost one had may all come back at once
        graceful_shutdown_timeout_s=config.drain,
    )
    return Front.bind(replica.bind(config), config)


async def _bodies(
    first: dict[str, Any], messages: AsyncIterator[dict[str, Any]]
) -> AsyncIterator[bytes]:
    yield first["body"]
    async for message in messages:
        yield message["body"]


def _try_later(message: str, status: int, code: str) -> Refusal:
    return Refusal(message, status=status, code=code, headers={"Retry-After": "1"})
