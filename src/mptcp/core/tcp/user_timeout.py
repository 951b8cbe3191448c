"""The user timeout: how long sent data may stay unacknowledged (RFC 9293 §3.9.1, RFC 5482)."""

from __future__ import annotations

from mptcp.core.units import NEVER


class UserTimeout:
    """``progress_at``: since when nothing has been acknowledged although something is outstanding. A lazy timer."""

    __slots__ = ("deadline", "limit_us", "progress_at")

    def __init__(self, limit_us: int) -> None:
        self.limit_us = limit_us
        self.deadline = NEVER
        self.progress_at = 0

    def handle_first_sent(self, now: int) -> None:
        """Something is outstanding now that nothing was before."""
        self.progress_at = now
        if self.deadline == NEVER and self.limit_us != NEVER:
            self.deadline = now + self.limit_us

    def handle_timeout(self, outstanding: bool, now: int) -> bool:
        """``deadline`` has come: whether the connection is to be given up."""
        if not outstanding:
            self.deadline = NEVER
            return False
        self.deadline = self.progress_at + self.limit_us
        return self.deadline <= now
