"""The server as one ASGI application, and the process that runs it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import Any

import anyio
import anyio.to_thread
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from pyemo.errors import InputError, PyemoError
from pyemo.server.gate import Gate
from pyemo.server.metrics import Metrics
from pyemo.server.refusals import Refusal
from pyemo.server.routes import Routes
from pyemo.server.service import Service

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")

WORKERS = 4
"""Threads that read bodies, prompts and vectors; the cores are for the decoding."""

logger = logging.getLogger("pyemo.server")


def make_app(service: Service) -> Starlette:
    """Return the application over an open service; closing the service stays the caller's."""
    config = service.config
    routes = Routes(service, Metrics(service.scheduler))

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            words = {404: "no such path", 405: "no such method here"}
            text = words.get(error.status_code, str(error.detail))
            error = Refusal(
                f"{text}: {request.method} {request.url.path[:200]}", status=error.status_code
            )
        return routes.refused(request, error)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, service)
        anyio.to_thread.current_default_thread_limiter().total_tokens = WORKERS
        yield

    middleware = []
    if config.cors:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(config.cors),
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=["X-Pyemo-Applied", "X-Pyemo-Ignored", "Retry-After"],
            )
        )
    hosts = (*LOCAL_NAMES, config.host) if config.is_local and not config.api_key else ()
    middleware.append(Middleware(Gate, keys=config.api_key, origins=config.cors, hosts=hosts))
    app = Starlette(
        routes=list(routes.table()),
        middleware=middleware,
        exception_handlers={HTTPException: refuse, Exception: refuse},
        lifespan=lifespan,
    )
    app.state.routes = routes
    return app


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens there, before a model is loaded for it.

    Raises:
        InputError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    if sys.platform != "win32":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise InputError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; take another --port, or "
            "end what listens there"
        ) from None
    return listener


def serve(service: Service, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; running replies then have the time of ``drain``.

    Args:
        on_ready: called when requests are answered.
    """
    config = service.config
    app = make_app(service)

    def protocol(*args: Any, **kwargs: Any) -> Protocol:
        return Protocol(*args, read_timeout=config.read_timeout, **kwargs)

    server = Server(
        uvicorn.Config(
            app,
            http=protocol,  # type: ignore[arg-type]
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(config.drain) + 5,
        ),
        service,
        app.state.routes,
        on_ready,
    )
    # uvicorn hands the signal on when it has ended; it was meant for us, and is dealt with.
    kept = signal.signal(signal.SIGTERM, _ignored)
    try:
        server.run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, kept)


class Server(uvicorn.Server):
    """uvicorn's server, which ends replies by name before it ends connections."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        routes: Routes,
        on_ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._service = service
        self._routes = routes
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._routes.is_draining = True
        drain = self._service.config.drain
        closing = asyncio.ensure_future(
            asyncio.to_thread(self._service.scheduler.close, drain_seconds=drain)
        )
        await super().shutdown(sockets)
        await closing


class Protocol(H11Protocol):
    """uvicorn's protocol, which hangs up on clients whose request's head does not come.

    Args:
        read_timeout: seconds in which it must come, from the connection, or from its first byte.
    """

    def __init__(self, *args: Any, read_timeout: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_timeout = read_timeout
        self._alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_alarm()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        """Set the alarm where a head is awaited, and stop it where one has come."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_alarm()
        elif self._alarm is None:
            self._alarm = self.loop.call_later(self._read_timeout, self.transport.close)

    def _stop_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None


def _reload(service: Service) -> None:
    try:
        names = service.reload()
    except PyemoError as error:
        logger.error("the vectors were not read again: %s", error)
    else:
        logger.warning("the vectors were read again: %s", ", ".join(names))


def _ignored(_number: int, _frame: FrameType | None) -> None:
    """Do nothing."""
