"""Taking back a reduction of the window when the retransmissions turn out to have been unnecessary."""

from __future__ import annotations

#: The timestamp clock of TCP ticks once in this time; an echo may be that much older than the transmission.
TIMESTAMP_GRANULARITY_US = 1000


class Undo:
    """What the window was before the present episode, and what was retransmitted in it."""

    __slots__ = ("active", "cwnd_bytes", "first_resent_us", "is_timeout", "resent_bytes", "ssthresh_bytes", "start")

    def __init__(self) -> None:
        self.active = False
        self.is_timeout = False  # the episode began with a retransmission timeout
        self.cwnd_bytes = 0
        self.ssthresh_bytes = 0
        self.start = 0  # SND.UNA when the episode began
        self.resent_bytes = 0  # sent again, and not (yet) reported as duplicate by the peer
        self.first_resent_us = -1

    def begin(self, cwnd_bytes: int, ssthresh_bytes: int, una: int, is_timeout: bool) -> None:
        """An episode starts; the values are those before the reduction."""
        self.active = True
        self.is_timeout = is_timeout
        self.cwnd_bytes = cwnd_bytes
        self.ssthresh_bytes = ssthresh_bytes
        self.start = una
        self.resent_bytes = 0
        self.first_resent_us = -1

    def end(self) -> None:
        self.active = False

    def on_resent(self, size_bytes: int, now: int) -> None:
        self.resent_bytes += size_bytes
        if self.first_resent_us < 0:
            self.first_resent_us = now

    def on_dsack(self, left: int, right: int) -> bool:
        """The peer got ``left <= n < right`` twice; True if by now that is so for all that was sent again."""
        if not self.active or left < self.start or not self.resent_bytes:
            return False
        # RFC 2883 §5.2-5.4 tell how a sender may use the report; like Linux we undo when every retransmission of the
        # episode is reported as a duplicate.
        self.resent_bytes = max(self.resent_bytes - (right - left), 0)
        return not self.resent_bytes

    def is_spurious_by_timestamp(self, echo_us: int) -> bool:
        """``echo_us``: when the segment that caused this (new) acknowledgement was sent, by its timestamp."""
        # RFC 7323 §4.3: the echo is of the segment that advanced the window; had that been the retransmission, it
        # could not be older (the Eifel detection of RFC 3522).
        return self.active and self.first_resent_us >= 0 and echo_us + TIMESTAMP_GRANULARITY_US <= self.first_resent_us
