"""A running reply kept coherent: the guard, and the watch that it sees by."""

from pyemo.guard.guard import MAX_PENALTY, Guard, GuardedReply, GuardEvent, GuardMode

__all__ = ["MAX_PENALTY", "Guard", "GuardEvent", "GuardMode", "GuardedReply"]
