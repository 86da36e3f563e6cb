"""What is said of what a guard did."""

from __future__ import annotations

from typing import Any

from pyemo.engine.replies import Reply
from pyemo.guard import GuardedReply


def describe_guard(reply: Reply) -> dict[str, Any]:
    """Return for JSON what the guard did; nothing for a reply without one."""
    if not isinstance(reply, GuardedReply):
        return {}
    return {
        "guard": {
            "mode": reply.guard.mode,
            "window": reply.guard.window,
            "events": [
                {
                    "token": event.token,
                    "trouble": event.trouble,
                    "factor": event.factor,
                    "repeat_penalty": event.repeat_penalty,
                }
                for event in reply.events
            ],
            "factor": reply.factor,
            "model_fails": reply.model_fails,
        }
    }


def guard_lines(reply: Reply) -> list[str]:
    """Return what the user should know of it, in sentences."""
    if not isinstance(reply, GuardedReply):
        return []
    back = [event for event in reply.events if event.trouble is not None]
    lines = []
    if back:
        what = ", ".join(f"{event.trouble} at token {event.token}" for event in back)
        times = "once" if len(back) == 1 else f"{len(back)} times"
        lines.append(
            f"guard: went back {times} ({what}); the strength ended at {reply.factor:.0%} of the "
            "mood's"
        )
    if reply.model_fails:
        lines.append("guard: the model goes wrong here without steering too")
    return lines
