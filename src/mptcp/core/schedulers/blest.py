"""Blocking estimation (BLEST; Ferlin, Alay, Mehani, Boreli, IFIP Networking 2016): a slow path is left alone where what it
carries would keep the shared window full, and so block the fast one."""

from __future__ import annotations

from collections.abc import Sequence

from mptcp.core.schedulers.base import Scheduler, eligible, quickest
from mptcp.info import PathInfo

#: The paper's lambda, in per mille: how far the estimate of what the fast path will send is corrected, and its bounds.
LAMBDA, LEAST_LAMBDA, MOST_LAMBDA = 1200, 1000, 1300
#: Each round trip of the fast path moves it: up if the window has been full meanwhile, else down.
BLOCKED_STEP, FREE_STEP = 40, 10


class Blest(Scheduler):
    """The fastest path that can send, unless a faster one that cannot yet would be blocked by that."""

    __slots__ = ("_blocked", "_lambda", "_round_ends_us", "_window")

    name = "blest"
    helps_out = True
    watches_window = True

    def __init__(self) -> None:
        self._lambda = LAMBDA
        self._blocked = False
        self._round_ends_us = 0
        self._window = 0

    def on_window(self, window_bytes: int, room_bytes: int) -> None:
        self._window = window_bytes
        self._blocked |= room_bytes <= 0

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
        self._adapt(fastest, now)
        if fastest is chosen or not chosen.srtt_us:
            return chosen
        # What the fast path sends in one round trip of the slow one, if its window grows by a segment per round trip.
        rounds = chosen.srtt_us / fastest.srtt_us
        expected = (fastest.cwnd_bytes + fastest.mss_bytes * (rounds - 1) / 2) * rounds
        space = self._window - (chosen.in_flight_bytes + chosen.mss_bytes)
        return None if expected * self._lambda > space * 1000 else chosen

    def _adapt(self, fastest: PathInfo, now: int) -> None:
        if now < self._round_ends_us or not fastest.srtt_us:
            return
        if self._round_ends_us:
            step = BLOCKED_STEP if self._blocked else -FREE_STEP
            self._lambda = min(max(self._lambda + step, LEAST_LAMBDA), MOST_LAMBDA)
        self._blocked = False
        self._round_ends_us = now + fastest.srtt_us

    def select_reinjection(self, paths: Sequence[PathInfo], length: int, now: int) -> PathInfo | None:
        """What holds up everything behind it does not wait."""
        return quickest(eligible(paths))
