"""One reply over HTTP: streamed as it is written, or whole."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from pyemo.engine.tickets import Ticket
from pyemo.engine.tokens import Token
from pyemo.server.answers import Ending, Head, Said, Shape, usage
from pyemo.server.parts import Parts
from pyemo.server.readings import RegimeLight, mean_gauges, reading
from pyemo.server.refusals import Refusal, refusal_of
from pyemo.server.service import Live, Service
from pyemo.server.streams import Mailbox

COMMENT_S = 15.0
"""Seconds without a token after which a comment is sent, so that no proxy gives up."""

FIRST_S = 2.0
"""Seconds that a stream's head waits for the first token: until then an error has its status."""

TIME_LIMIT = "time_limit"
"""The stop reason of a reply that the server's time limit has ended."""


class Answer:
    """Makes the answer of one reply.

    Args:
        mail: where its tokens come, and at last its ticket.
    """

    def __init__(
        self, service: Service, live: Live, mail: Mailbox[Token | Ticket], shape: type[Shape]
    ) -> None:
        head = Head(live.id, live.created, live.model, service.fingerprint)
        self._service = service
        self._live = live
        self._mail = mail
        self._shape = shape(head)
        self._parts = Parts(service.model.thought_tags, is_plain=shape.is_plain)
        self._light = RegimeLight()
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

    async def first(self) -> list[Token | Ticket]:
        """Wait for the first token or the end; an error before any token is raised.

        Raises:
            Refusal: why there is no reply.
        """
        items = await self._take(FIRST_S)
        if items and isinstance(items[0], Ticket):
            self._raise_error(items[0])
        return items

    async def whole(self) -> dict[str, Any]:
        """Return the whole answer.

        Raises:
            Refusal: why there is none.
        """
        while True:
            for item in await self._take():
                if isinstance(item, Ticket):
                    return self._whole(item)

    async def events(self, items: Sequence[Token | Ticket]) -> AsyncIterator[bytes]:
        """Yield what the stream sends, that of ``items`` first; an error is said, and its end."""
        try:
            async for data in self._events(items):
                yield data
        except Exception as error:  # noqa: BLE001, the head is sent: it cannot be a status
            yield self._shape.encoded(self._shape.error(refusal_of(error))) + self._shape.done

    # --- inside ---

    async def _events(self, items: Sequence[Token | Ticket]) -> AsyncIterator[bytes]:
        is_first = True
        while True:
            data = []
            ticket = next((item for item in items if isinstance(item, Ticket)), None)
            for tokens in self._groups([item for item in items if isinstance(item, Token)]):
                data.append(self._part(tokens, is_first))
                is_first = False
            if ticket is not None:
                data += self._last(ticket, is_first)
            yield b"".join(data) or self._shape.waiting
            if ticket is not None:
                return
            items = await self._take()

    async def _take(self, wait_s: float = COMMENT_S) -> list[Token | Ticket]:
        """Return what has come, nothing after ``wait_s``; end the reply at its time limit."""
        if self._is_late:
            return await self._mail.take(wait_s)
        items = await self._mail.take(min(wait_s, max(0.0, self._until - time.monotonic())))
        if not items and time.monotonic() >= self._until:
            self._is_late = True
            self._live.ticket.cancel()
        return items

    def _groups(self, tokens: list[Token]) -> list[list[Token]]:
        """Return the tokens that go into one event each: one alone where each is described."""
        if not tokens:
            return []
        asked = self._live.asked
        return [[token] for token in tokens] if asked.is_live or asked.has_logprobs else [tokens]

    def _part(self, tokens: list[Token], is_first: bool) -> bytes:
        asked = self._live.asked
        contents, thoughts = zip(*map(self._parts.push, tokens), strict=True)
        extra = None
        if asked.is_live:
            extra = reading(tokens[-1], self._light.push(tokens[-1]))
        told = tokens if asked.has_logprobs else None
        said = Said("".join(contents), "".join(thoughts), told, extra, is_first)
        return self._shape.encoded(self._shape.part(said))

    def _last(self, ticket: Ticket, is_first: bool) -> list[bytes]:
        content, thoughts = self._rest(ticket)
        refusal = self._refusal(ticket)
        parts = self._shape.last(
            Said(content, thoughts, is_first=is_first),
            self._ending(ticket),
            include_usage=self._live.asked.include_usage and refusal is None,
        )
        if refusal is not None:
            parts.append(self._shape.error(refusal))
        return [*map(self._shape.encoded, parts), self._shape.done]

    def _whole(self, ticket: Ticket) -> dict[str, Any]:
        self._raise_error(ticket)
        asked = self._live.asked
        for token in ticket.tokens:
            self._parts.push(token)
            if asked.is_live:
                self._light.push(token)
        self._rest(ticket)
        told = ticket.tokens if asked.has_logprobs else None
        said = Said(self._parts.answer, self._parts.thoughts, told)
        return self._shape.whole(said, self._ending(ticket))

    def _rest(self, ticket: Ticket) -> tuple[str, str]:
        """Take in the text that no token carries."""
        rest = ticket.text[sum(len(token.text) for token in ticket.tokens) :]
        kind = ticket.tokens[-1].kind if ticket.tokens else "answer"
        return self._parts.push_text(rest, kind)

    def _ending(self, ticket: Ticket) -> Ending:
        first = ticket.first_token or ticket.ended or ticket.submitted
        return Ending(
            TIME_LIMIT if self._is_late else ticket.stop_reason,
            self._extra(ticket),
            usage(ticket.n_prompt, ticket.n_cached, ticket.tokens),
            read_s=first - (ticket.started or first),
            write_s=(ticket.ended or first) - first,
        )

    def _refusal(self, ticket: Ticket) -> Refusal | None:
        """Return why the reply is not what was asked for; None if it is."""
        if self._is_late:
            return None
        if ticket.error is not None:
            return refusal_of(ticket.error)
        if ticket.stop_reason == "cancelled":
            return Refusal(
                "the server is shutting down; the reply is cut off here",
                status=503,
                code="shutting_down",
            )
        return None

    def _raise_error(self, ticket: Ticket) -> None:
        refusal = self._refusal(ticket)
        if refusal is not None:
            raise refusal

    def _extra(self, ticket: Ticket) -> dict[str, Any]:
        """Return what the choice says under ``pyemo``: the mood that was applied, and readings."""
        live = self._live
        extra: dict[str, Any] = {
            **live.applied.describe(self._service.model.n_layer),
            "source": live.source,
            "seed": live.seed,
            "stop_reason": TIME_LIMIT if self._is_late else ticket.stop_reason,
        }
        if live.asked.gauges:
            extra["gauges"] = mean_gauges(ticket.tokens)
        if live.asked.is_live:
            extra["regime"] = self._light.now
        if len(live.moods) > 1:
            texts = {id(mood.steering): mood.text for mood in live.moods}
            extra["moods"] = [
                {"from_token": index, "steering": texts[id(mood)]} for index, mood in ticket.moods
            ]
        if live.guarded is not None:
            extra["guard"] = {
                "steps_back": n_guard_steps(live),
                "factor": live.guarded.factor,
                "model_fails": live.guarded.model_fails,
            }
        return extra


def n_guard_steps(live: Live) -> int:
    """Return how many times the reply's guard went back."""
    if live.guarded is None:
        return 0
    return sum(event.trouble is not None for event in live.guarded.events)


def header_text(text: str) -> str:
    """Return ``text`` for a header's value: ASCII, no line ends, not long."""
    plain = "".join(c if c.isprintable() else "?" for c in text)
    return plain.encode("ascii", "backslashreplace").decode()[:1024]
