"""HyStart++ (RFC 9406): the first slow start ends when round trips grow longer, before the queue on the way overflows."""

from __future__ import annotations

from typing import Final

from mptcp.core.units import MILLISECOND, NEVER

#: RFC 9406 §4.3, with the names it has there; L, which bounds what one acknowledgement adds, is infinite: an ACK here may
#: answer 64 KiB that the peer has coalesced.
MIN_RTT_THRESH_US: Final = 4 * MILLISECOND
MAX_RTT_THRESH_US: Final = 16 * MILLISECOND
MIN_RTT_DIVISOR: Final = 8
N_RTT_SAMPLE: Final = 8
CSS_GROWTH_DIVISOR: Final = 4
CSS_ROUNDS: Final = 5


class HyStart:
    """Slow start, and Conservative Slow Start (CSS) once the round-trip time has grown: a quarter of the growth, for five
    rounds, unless the round-trip time falls again.

    The RFC's rounds end when what was sent last at their beginning is acknowledged; here when a congestion window of
    octets is, which is the same as long as the window is what limits the sender.
    """

    __slots__ = ("_baseline_us", "_css_rounds", "_last_us", "_left_bytes", "_lowest_us", "_samples", "is_over")

    def __init__(self, cwnd_bytes: int) -> None:
        self.is_over = False  # the window is what the path holds: congestion avoidance begins
        self._left_bytes = cwnd_bytes  # to be acknowledged until the round ends
        self._last_us = NEVER  # the lowest RTT of the round before
        self._lowest_us = NEVER  # of this one
        self._samples = 0
        self._baseline_us = NEVER  # the lowest RTT of the round that began CSS; NEVER: not in CSS
        self._css_rounds = 0

    @property
    def is_conservative(self) -> bool:
        return self._baseline_us != NEVER

    def on_ack(self, acked_bytes: int, rtt_us: int, cwnd_bytes: int) -> int:
        """By how many octets the window grows. ``rtt_us``: 0 for no sample."""
        if rtt_us:
            self._samples += 1
            if rtt_us < self._lowest_us:
                self._lowest_us = rtt_us
        growth = acked_bytes if self._baseline_us == NEVER else acked_bytes // CSS_GROWTH_DIVISOR
        if self._samples >= N_RTT_SAMPLE:
            self._judge()
        self._left_bytes -= acked_bytes
        if self._left_bytes <= 0:
            self._begin_round(cwnd_bytes + growth)
        return growth

    def _judge(self) -> None:
        if self._baseline_us != NEVER:
            if self._lowest_us < self._baseline_us:
                self._baseline_us = NEVER  # the delay was no queue of ours: slow start goes on
        elif self._last_us != NEVER:
            threshold = min(max(self._last_us // MIN_RTT_DIVISOR, MIN_RTT_THRESH_US), MAX_RTT_THRESH_US)
            if self._lowest_us >= self._last_us + threshold:
                self._baseline_us = self._lowest_us
                self._css_rounds = 0

    def _begin_round(self, cwnd_bytes: int) -> None:
        if self._baseline_us != NEVER:
            self._css_rounds += 1  # the round in which CSS began counts, too
            self.is_over = self._css_rounds >= CSS_ROUNDS
        self._last_us, self._lowest_us = self._lowest_us, NEVER
        self._samples = 0
        self._left_bytes = cwnd_bytes
