"""From the scheduler's thread to a client that may leave: a mailbox, and a response of events."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_T = TypeVar("_T")


class Mailbox(Generic[_T]):
    """Takes things from any thread, and hands them to one coroutine, all that have come at once."""

    def __init__(self) -> None:
        """Make it in the event loop that will read it."""
        self._loop = asyncio.get_running_loop()
        self._items: deque[_T] = deque()
        self._news = asyncio.Event()
        self._is_called = False

    def put(self, item: _T) -> None:
        """Add something; from any thread, without waiting."""
        self._items.append(item)
        if not self._is_called:
            self._is_called = True
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody reads
                self._loop.call_soon_threadsafe(self._news.set)

    async def take(self, timeout: float | None = None) -> list[_T]:
        """Return what has come, waiting for the first; nothing where none came in time."""
        if not self._items:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait(), timeout)
        self._news.clear()
        self._is_called = False
        items: list[_T] = []
        while self._items:
            items.append(self._items.popleft())
        return items


async def until_gone(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, work: Awaitable[_T]) -> _T | None:
    """Return what ``work`` gives; None, and the work cancelled, if the client leaves before."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(until_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for one in (task, gone):
            if not one.done():
                one.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await one


class EventStream(Response):
    """Sends data as it comes, and stops when the client has left.

    Args:
        events: what to send.
        media_type: of all of it.
        on_close: called once at the end, however it comes.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        media_type: str,
        headers: dict[str, str],
        on_close: Callable[[], None],
    ) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self._events = events
        self._on_close = on_close
        self.init_headers({**headers, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await unless_gone(receive, self._send_all(send))
        finally:
            self._on_close()

    async def _send_all(self, send: Send) -> None:
        async for data in self._events:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
