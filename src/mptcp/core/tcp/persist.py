"""The persist timer: probing a closed window (RFC 9293 §3.8.6.1), and sending small pieces at last (§3.8.6.2.1)."""

from __future__ import annotations

from mptcp.core.units import MILLISECOND, NEVER

#: RFC 9293 §3.8.6.2.1: "the override timeout ... should be in the range 0.1 - 1.0 seconds"; Linux corks for 200 ms.
OVERRIDE_TIMEOUT_US = 200 * MILLISECOND


class PersistTimer:
    """``at`` is when it fires. Either a window probe is due then, or the piece held back may be sent."""

    __slots__ = ("at", "backoff", "is_override", "may_override", "probe_due", "unanswered")

    def __init__(self) -> None:
        self.at = NEVER
        self.backoff = 0
        self.is_override = False
        self.may_override = False  # the next poll may send less than a segment
        self.probe_due = False
        self.unanswered = 0  # probes since the peer was last heard of

    def arm_probe(self, now: int, rto_us: int, rto_max_us: int) -> None:
        """The window is closed and data waits; does nothing if the timer already runs for that."""
        if self.at != NEVER and not self.is_override:
            return
        self.is_override = False
        # RFC 9293 §3.8.6.1: "The transmitting host SHOULD send the first zero-window probe when a zero window has
        # existed for the retransmission timeout period (SHLD-29) (Section 3.8.1), and SHOULD increase exponentially the
        # interval between successive probes (SHLD-30)."
        self.at = now + min(rto_us << min(self.backoff, 16), rto_max_us)

    def arm_override(self, now: int) -> None:
        """A piece smaller than a segment is held back while nothing is in flight."""
        if self.at == NEVER:
            self.is_override = True
            self.at = now + OVERRIDE_TIMEOUT_US

    def cancel(self) -> None:
        """There is nothing to probe for any more."""
        self.at = NEVER
        self.backoff = 0
        self.probe_due = False

    def on_timeout(self) -> bool:
        """It has fired: True if a probe is due, False if the piece held back may go."""
        self.at = NEVER
        if self.is_override:
            self.is_override = False
            self.may_override = True
            return False
        # RFC 9293 §3.8.6.1: "A TCP implementation MAY keep its offered receive window closed indefinitely (MAY-8).  As long
        # as the receiving TCP peer continues to send acknowledgments in response to the probe segments, the sending
        # TCP peer MUST allow the connection to stay open (MUST-37).": ``unanswered`` is what may end a connection.
        self.backoff += 1
        self.unanswered += 1
        self.probe_due = True
        return True
