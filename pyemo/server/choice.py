"""One choice of an answer: its tokens become what a stream or a whole answer says of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyemo.engine.tickets import Ticket
from pyemo.engine.tokens import Token
from pyemo.guard import GuardEvent
from pyemo.server.answers import Ending, Said, usage
from pyemo.server.parts import Parts
from pyemo.server.readings import RegimeLight, light_of, mean_gauges, reading
from pyemo.server.refusals import Refusal, refusal_of
from pyemo.server.service import Live, Service

TIME_LIMIT = "time_limit"
"""The stop reason of a reply that the server's time limit has ended."""


class Choice:
    """What has come of one of a request's replies.

    Args:
        index: which of them.
        is_plain: whether thoughts are left in the text.
    Attributes:
        has_ended: whether its end was told.
    """

    def __init__(self, service: Service, live: Live, index: int, *, is_plain: bool) -> None:
        self.index = index
        self.has_ended = False
        self._service = service
        self._live = live
        self._parts = Parts(service.model.thought_tags, is_plain=is_plain)
        self._light = RegimeLight()
        self._is_begun = False

    @property
    def ticket(self) -> Ticket:
        """The scheduler's."""
        return self._live.tickets[self.index]

    @property
    def used(self) -> dict[str, Any]:
        """The tokens that it has taken."""
        return usage(self.ticket.n_prompt, self.ticket.n_cached, self.ticket.tokens)

    def part(self, tokens: Sequence[Token]) -> Said:
        """Return what a stream's part for these tokens says."""
        asked = self._live.asked
        contents, thoughts = zip(*map(self._parts.push, tokens), strict=True)
        extra = None
        if asked.is_live:
            extra = reading(tokens[-1], self._light.push(tokens[-1]))
        told = tokens if asked.has_logprobs else None
        return self._said("".join(contents), "".join(thoughts), told, extra)

    def guard_part(self, event: GuardEvent) -> Said:
        """Return what a stream's part for a step of the guard says."""
        extra: dict[str, Any] = {"guard": guard_step(event)}
        if event.trouble is not None:
            extra["regime"] = light_of(event.trouble)
        return self._said("", "", None, extra)

    def last(self, *, is_late: bool) -> tuple[Said, Ending]:
        """Return what a stream's last part for it says."""
        self.has_ended = True
        return self._said(*self._rest()), self._ending(is_late=is_late)

    def whole(self, *, is_late: bool) -> tuple[Said, Ending]:
        """Return what a whole answer says of it."""
        asked, ticket = self._live.asked, self.ticket
        for token in ticket.tokens:
            self._parts.push(token)
            if asked.is_live:
                self._light.push(token)
        self._rest()
        told = ticket.tokens if asked.has_logprobs else None
        said = Said(self._parts.answer, self._parts.thoughts, told, index=self.index)
        return said, self._ending(is_late=is_late)

    def refusal(self, *, is_late: bool) -> Refusal | None:
        """Return why the reply, which has ended, is not what was asked for; None if it is."""
        if is_late:
            return None
        if self.ticket.error is not None:
            return refusal_of(self.ticket.error, self._live.asked.grammar_field)
        if self.ticket.stop_reason == "cancelled":
            return Refusal(
                "the server is shutting down; the reply is cut off here",
                status=503,
                code="shutting_down",
            )
        return None

    # --- inside ---

    def _said(
        self,
        content: str,
        thoughts: str,
        tokens: Sequence[Token] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Said:
        is_first, self._is_begun = not self._is_begun, True
        return Said(content, thoughts, tokens, extra, is_first, self.index)

    def _rest(self) -> tuple[str, str]:
        """Take in the text that no token carries."""
        ticket = self.ticket
        rest = ticket.text[sum(len(token.text) for token in ticket.tokens) :]
        kind = ticket.tokens[-1].kind if ticket.tokens else "answer"
        return self._parts.push_text(rest, kind)

    def _ending(self, *, is_late: bool) -> Ending:
        ticket = self.ticket
        first = ticket.first_token or ticket.ended or ticket.submitted
        reason = TIME_LIMIT if is_late else ticket.stop_reason
        return Ending(
            reason,
            self._extra(reason),
            self.used,
            read_s=first - (ticket.started or first),
            write_s=(ticket.ended or first) - first,
        )

    def _extra(self, reason: str | None) -> dict[str, Any]:
        """Return what the choice says under ``pyemo``: the mood that was applied, and readings."""
        live, ticket = self._live, self.ticket
        extra: dict[str, Any] = {
            **live.applied.describe(self._service.model.n_layer),
            "source": live.source,
            "seed": live.seeds[self.index],
            "stop_reason": reason,
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
        if ticket.decisions:
            extra["decisions"] = [
                {
                    "rule": str(decision.rule),
                    "holds": decision.holds,
                    "readings": {str(what): read for what, read in decision.readings.items()},
                }
                for decision in ticket.decisions
            ]
        guarded = live.guarded.get(self.index)
        if guarded is not None:
            extra["guard"] = {
                "steps_back": n_guard_steps(live, self.index),
                "factor": guarded.factor,
                "model_fails": guarded.model_fails,
            }
        return extra


def guard_step(event: GuardEvent) -> dict[str, Any]:
    """Return a step of the guard, for JSON: back where it saw trouble, else up."""
    return {
        "from_token": event.token,
        "trouble": event.trouble,
        "factor": event.factor,
        "repeat_penalty": event.repeat_penalty,
    }


def n_guard_steps(live: Live, index: int) -> int:
    """Return how many times a choice's guard went back."""
    guarded = live.guarded.get(index)
    if guarded is None:
        return 0
    return sum(event.trouble is not None for event in guarded.events)
