"""Challenge acknowledgements (RFC 5961) and the limit on how many of them, and of other provoked ACKs, leave."""

from __future__ import annotations

from typing import Final

from mptcp.core.units import SECOND

#: RFC 5961 §7: "in any 5 second window, no more than 10 challenge ACKs should be sent". Counted per connection: a
#: limit shared by all would tell an attacker about connections that are not his.
CHALLENGE_ACK_LIMIT: Final = 10
CHALLENGE_ACK_WINDOW_US: Final = 5 * SECOND


class ChallengeAcks:
    """The budget of one connection; made when first needed."""

    __slots__ = ("_count", "_window_start")

    def __init__(self, now: int) -> None:
        self._window_start = now
        self._count = 0

    def allow(self, now: int) -> bool:
        """Whether one more may be sent now; it is then counted."""
        if now - self._window_start >= CHALLENGE_ACK_WINDOW_US:
            self._window_start = now
            self._count = 0
        if self._count >= CHALLENGE_ACK_LIMIT:
            return False
        self._count += 1
        return True
