"""Earliest completion first (Lim, Nahum, Towsley, Gibbens, CoNEXT 2017): to wait for a fast path can be quicker than to
use a slow one."""

from __future__ import annotations

from collections.abc import Sequence

from mptcp.core.schedulers.base import Scheduler, eligible, quickest
from mptcp.info import PathInfo

#: Once it waits it goes on waiting unless the slow path is better by this share: no wavering (the paper's beta).
HYSTERESIS = 0.25


class EarliestCompletion(Scheduler):
    """The fastest path that can send, unless all that waits would be through sooner over a faster one that cannot yet."""

    __slots__ = ("_waiting",)

    name = "earliest-completion"
    helps_out = True

    def __init__(self) -> None:
        self._waiting = False

    def select(self, paths: Sequence[PathInfo], length: int, now: int) -> PathInfo | None:
        usable = eligible(paths)
        chosen = quickest(usable)
        if chosen is None:
            return None
        fastest = chosen
        for path in usable:
            # Without anything in flight no acknowledgement would come to ask again.
            if 0 < path.srtt_us < (fastest.srtt_us or 1 << 60) and path.in_flight_bytes and path.cwnd_bytes:
                fastest = path
        if fastest is chosen or not chosen.srtt_us:
            if fastest is chosen:
                self._waiting = False
                return chosen
            return None if self._fits(fastest, length) else chosen
        # Rounds that the fast path needs for all that waits (the first one is under way), against one of the slow one.
        rounds = 1 + length / fastest.cwnd_bytes
        margin = max(fastest.rttvar_us, chosen.rttvar_us)
        limit = chosen.srtt_us + margin
        if self._waiting:
            limit = int(limit * (1 + HYSTERESIS))
        if rounds * fastest.srtt_us < limit:
            slow = max(1.0, length / max(chosen.cwnd_bytes, 1)) * chosen.srtt_us
            if slow >= 2 * fastest.srtt_us + margin:
                self._waiting = True
                return None
        else:
            self._waiting = False
        return chosen

    @staticmethod
    def _fits(path: PathInfo, length: int) -> bool:
        """A path that nothing is known of is not tried with what one window of a known one can take."""
        return length <= path.cwnd_bytes

    def select_reinjection(self, paths: Sequence[PathInfo], length: int, now: int) -> PathInfo | None:
        """What holds up everything behind it does not wait."""
        return quickest(eligible(paths))
