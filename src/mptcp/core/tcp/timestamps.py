"""The Timestamps option: our clock, the peer's last value, and protection against wrapped sequence numbers (RFC 7323)."""

from __future__ import annotations

from typing import Final

from mptcp.core.units import MILLISECOND, SECOND
from mptcp.core.wire.sequence import MASK32

#: RFC 7323 §5.5: after so long without a segment, TS.Recent says nothing any more.
TS_RECENT_LIFETIME_US: Final = 24 * 24 * 3600 * SECOND

#: NOP NOP kind length value echo: what the option takes in a header, padding included.
TIMESTAMP_OPTION_BYTES: Final = 12


class Timestamps:
    """One connection's timestamps; the clock ticks once per millisecond, from an offset of its own (RFC 7323 §5.4)."""

    __slots__ = ("enabled", "offset", "recent", "recent_at")

    def __init__(self, offset: int) -> None:
        self.enabled = False
        self.offset = offset
        self.recent = 0
        self.recent_at = 0

    def value(self, now: int) -> int:
        return (now // MILLISECOND + self.offset) & MASK32

    def start(self, value: int, now: int) -> None:
        """The peer's SYN had the option, and so had (or will have) ours."""
        self.enabled = True
        self.recent = value
        self.recent_at = now

    def is_old(self, value: int, now: int) -> bool:
        """RFC 7323 §5.3 R1: "SEG.TSval < TS.Recent" and TS.Recent is valid."""
        return (value - self.recent) & 0x80000000 != 0 and now - self.recent_at < TS_RECENT_LIFETIME_US

    def update(self, value: int, now: int) -> None:
        """RFC 7323 §4.3 (2); the caller has checked that SEG.SEQ <= Last.ACK.sent."""
        if not (value - self.recent) & 0x80000000 or now - self.recent_at >= TS_RECENT_LIFETIME_US:
            self.recent = value
            self.recent_at = now

    def echo_rtt_us(self, echo: int, now: int) -> int:
        """The round-trip time that an echoed value shows, at a millisecond's grain; -1: it is none of ours."""
        elapsed = (now // MILLISECOND + self.offset - echo) & MASK32
        # an echo from the future, or of a day ago, is nothing that a measurement should be built on
        return elapsed * MILLISECOND if elapsed < 86_400_000 else -1
