"""When to acknowledge data: at once, with the next segment, or a little later (RFC 5681 §4.2, RFC 9293 §3.8.6.3)."""

from __future__ import annotations

from typing import Final

from mptcp.core.units import NEVER

#: At the start, and after a gap, this many segments are acknowledged at once: the peer is in slow start.
QUICK_ACK_SEGMENTS: Final = 16
#: A segment this long after the one before it starts a new quick phase.
QUICK_ACK_AFTER_IDLE_US: Final = 1_000_000
#: RFC 5681 §4.2: "MUST be generated within 500 ms of the arrival of the first unacknowledged packet".
MAX_DELAY_US: Final = 500_000

#: Between these is what is taken for the size of the peer's segments (what is longer has been coalesced on its way).
MIN_SEGMENT_BYTES: Final = 536
MAX_SEGMENT_BYTES: Final = 9000


class DelayedAck:
    """What is owed to the peer. ``due``: an ACK should leave at the next poll; ``deadline``: it should leave then."""

    __slots__ = (
        "_last_data_us", "_last_length", "deadline", "delay_us", "due", "interactive", "quick", "segment_bytes",
        "unacked_bytes",
    )  # fmt: skip

    def __init__(self, delay_us: int) -> None:
        self.delay_us = min(delay_us, MAX_DELAY_US)
        self.due = False
        self.deadline = NEVER
        self.unacked_bytes = 0
        self.quick = QUICK_ACK_SEGMENTS
        self.interactive = False  # we answer what we receive: an acknowledgement can ride on the answer
        self.segment_bytes = MIN_SEGMENT_BYTES  # the peer's segment size, as seen
        self._last_data_us = -NEVER
        self._last_length = 0

    def handle_data(self, length: int, mss: int, now: int, quick_only: bool) -> None:
        """``length`` octets arrived in order, in pieces of ``mss`` (0: one piece)."""
        if mss:
            self.segment_bytes = mss
        elif length > self.segment_bytes:
            self.segment_bytes = min(length, MAX_SEGMENT_BYTES)
        elif length < self.segment_bytes:
            # two of the same length, one after the other: the peer's segments have become smaller
            if length == self._last_length and length >= MIN_SEGMENT_BYTES:
                self.segment_bytes = length
            self._last_length = length
        if now - self._last_data_us > QUICK_ACK_AFTER_IDLE_US and not self.interactive:
            self.quick = QUICK_ACK_SEGMENTS
        self._last_data_us = now
        self.unacked_bytes += length
        # RFC 5681 §4.2: "an ACK SHOULD be generated for at least every second full-sized segment"
        if self.unacked_bytes > self.segment_bytes or quick_only:
            self.due = True
        elif self.quick and not self.interactive:
            self.quick -= 1
            self.due = True
        elif self.deadline == NEVER:
            self.deadline = now + self.delay_us

    def handle_data_sent(self, now: int) -> None:
        """Data has left: soon after data came, that is a conversation."""
        if now - self._last_data_us < self.delay_us:
            self.interactive = True
            self.quick = 0

    def handle_timeout(self) -> None:
        """The delay passed without anything to carry the acknowledgement: no conversation after all."""
        self.deadline = NEVER
        self.due = True
        self.interactive = False
