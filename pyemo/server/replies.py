"""The answer to one request over HTTP, of one reply or several: streamed as it is written, or
whole."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeAlias

from pyemo.engine.tickets import Ticket
from pyemo.engine.tokens import Token
from pyemo.guard import GuardEvent
from pyemo.server.answers import Head, Shape, summed
from pyemo.server.choice import Choice
from pyemo.server.refusals import refusal_of
from pyemo.server.service import Live, Service
from pyemo.server.streams import Mailbox

COMMENT_S = 15.0
"""Seconds without a token after which a comment is sent, so that no proxy gives up."""

FIRST_S = 2.0
"""Seconds that a stream's head waits for the first token: until then an error has its status."""

Item: TypeAlias = tuple[int, Token | GuardEvent | Ticket]
"""Which choice it is of, and a token, a step of its guard, or its ticket, which has ended."""


class Answer:
    """Makes the answer of one request.

    Args:
        mail: where its tokens come, and at last its tickets.
    """

    def __init__(
        self, service: Service, live: Live, mail: Mailbox[Item], shape: type[Shape]
    ) -> None:
        self._live = live
        self._mail = mail
        self._shape = shape(Head(live.id, live.created, live.model, service.fingerprint))
        self._choices = [
            Choice(service, live, index, is_plain=shape.is_plain)
            for index in range(len(live.tickets))
        ]
        self._is_late = False
        self._until = time.monotonic() + service.config.time_limit

    @property
    def headers(self) -> dict[str, str]:
        """What an answer says in front: the mood, and the fields that were not understood."""
        live = self._live
        headers = {"X-Pyemo-Applied": header_text(live.applied.text or "unsteered")}
        if live.asked.ignored:
            shown = [name[:64] for name in live.asked.ignored[:32]]
            headers["X-Pyemo-Ignored"] = header_text(", ".join(shown))
        return headers

    async def first(self) -> list[Item]:
        """Wait for the first token or the end; an error before any token is raised.

        Raises:
            Refusal: why there is no reply.
        """
        items = await self._take(FIRST_S)
        if items and isinstance(items[0][1], Ticket):
            self._raise_error(items[0][0])
        return items

    async def whole(self) -> dict[str, Any]:
        """Return the whole answer.

        Raises:
            Refusal: why there is none.
        """
        ended: set[int] = set()
        while len(ended) < len(self._choices):
            for index, item in await self._take():
                if isinstance(item, Ticket):
                    self._raise_error(index)
                    ended.add(index)
        return self._shape.whole([one.whole(is_late=self._is_late) for one in self._choices])

    async def events(self, items: Sequence[Item]) -> AsyncIterator[bytes]:
        """Yield what the stream sends, that of ``items`` first; an error is said, and its end."""
        try:
            async for data in self._events(items):
                yield data
        except Exception as error:  # noqa: BLE001, the head is sent: it cannot be a status
            yield self._shape.encoded(self._shape.error(refusal_of(error))) + self._shape.done

    # --- inside ---

    async def _events(self, items: Sequence[Item]) -> AsyncIterator[bytes]:
        while True:
            parts = [part for run in self._runs(items) for part in self._parts(*run)]
            has_ended = all(choice.has_ended for choice in self._choices)
            if has_ended:
                parts += self._usage()
            data = b"".join(map(self._shape.encoded, parts)) or self._shape.waiting
            yield data + self._shape.done if has_ended else data
            if has_ended:
                return
            items = await self._take()

    async def _take(self, wait_s: float = COMMENT_S) -> list[Item]:
        """Return what has come, nothing after ``wait_s``; end the replies at the time limit."""
        if self._is_late:
            return await self._mail.take(wait_s)
        items = await self._mail.take(min(wait_s, max(0.0, self._until - time.monotonic())))
        if not items and time.monotonic() >= self._until:
            self._is_late = True
            for ticket in self._live.tickets:
                ticket.cancel()
        return items

    def _runs(self, items: Sequence[Item]) -> list[tuple[int, list[Any]]]:
        """Return the items that go into one event each, with their choice.

        Tokens of one choice that come together are one event, but where each is described.
        """
        asked = self._live.asked
        alone = asked.is_live or asked.has_logprobs
        runs: list[tuple[int, list[Any]]] = []
        for index, item in items:
            before: tuple[int, list[Any]] = runs[-1] if runs else (-1, [None])
            is_same = before[0] == index and isinstance(before[1][-1], Token)
            if is_same and isinstance(item, Token) and not alone:
                before[1].append(item)
            else:
                runs.append((index, [item]))
        return runs

    def _parts(self, index: int, items: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the parts of a stream for one event."""
        choice, shape = self._choices[index], self._shape
        if isinstance(items[0], Token):
            return [shape.part(choice.part(items))]
        if isinstance(items[0], GuardEvent):
            return [shape.part(choice.guard_part(items[0]))]
        parts = [shape.last(*choice.last(is_late=self._is_late))]
        refusal = choice.refusal(is_late=self._is_late)
        if refusal is not None:
            parts.append(shape.error(refusal))
        return parts

    def _usage(self) -> list[dict[str, Any]]:
        """Return the part that says what was used, where it was asked for and nothing failed."""
        failed = any(choice.refusal(is_late=self._is_late) for choice in self._choices)
        if failed or not self._live.asked.include_usage:
            return []
        used = [choice.used for choice in self._choices]
        part = self._shape.usage(summed(used))
        return [] if part is None else [part]

    def _raise_error(self, index: int) -> None:
        refusal = self._choices[index].refusal(is_late=self._is_late)
        if refusal is not None:
            raise refusal


def header_text(text: str) -> str:
    """Return ``text`` for a header's value: ASCII, no line ends, not long."""
    plain = "".join(c if c.isprintable() else "?" for c in text)
    return plain.encode("ascii", "backslashreplace").decode()[:1024]
