"""What a congestion controller is asked and told. One instance per subflow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

#: "No threshold yet": larger than any window.
INFINITE_SSTHRESH = 1 << 40


class CongestionControl(ABC):
    """Owns ``cwnd_bytes`` and ``ssthresh_bytes`` of one subflow; all sizes in bytes, times in microseconds.

    The sender calls ``on_ack`` for every acknowledgement of new data outside of recovery; at a congestion event it
    calls ``on_congestion_event`` once and then lets PRR (RFC 6937) steer ``cwnd_bytes`` down to ``ssthresh_bytes``
    until recovery ends; at a retransmission timeout it calls ``on_timeout``.
    """

    __slots__ = ("cwnd_bytes", "mss_bytes", "ssthresh_bytes")

    name = ""

    def __init__(self, mss_bytes: int, initial_window_bytes: int) -> None:
        self.mss_bytes = mss_bytes
        self.cwnd_bytes = initial_window_bytes
        self.ssthresh_bytes = INFINITE_SSTHRESH

    @property
    def in_slow_start(self) -> bool:
        return self.cwnd_bytes < self.ssthresh_bytes

    @abstractmethod
    def on_ack(self, acked_bytes: int, now: int, srtt_us: int, rtt_us: int, cwnd_limited: bool) -> None:
        """New data was acknowledged. ``rtt_us`` is this sample (0: none); grow only if ``cwnd_limited``."""

    def slow_start(self, acked_bytes: int) -> int:
        """Below the threshold: doubles the window per round trip; what was acknowledged beyond reaching it."""
        # RFC 5681 §3.1: "cwnd += min (N, SMSS)" for each ACK. One ACK here may answer 64 KiB (the peer coalesces): like
        # Linux we count what it acknowledges, which doubles the window per round trip as intended.
        grown = self.cwnd_bytes + acked_bytes
        if grown <= self.ssthresh_bytes:
            self.cwnd_bytes = grown
            return 0
        self.cwnd_bytes = self.ssthresh_bytes
        return grown - self.ssthresh_bytes

    @abstractmethod
    def on_congestion_event(self, now: int, in_flight_bytes: int) -> None:
        """Loss or ECN echo: set ``ssthresh_bytes`` (never below two segments); ``cwnd_bytes`` is left to PRR."""

    def on_timeout(self, now: int, in_flight_bytes: int, first: bool) -> None:
        """RTO: ``first`` is False on back-to-back timeouts of the same data, which keep the threshold."""
        if first:
            self.on_congestion_event(now, in_flight_bytes)
        self.cwnd_bytes = self.mss_bytes  # RFC 5681 §3.1: the loss window is one segment

    def on_recovery_exit(self, now: int) -> None:
        self.cwnd_bytes = self.ssthresh_bytes

    def on_idle(self, idle_us: int, rto_us: int, restart_window_bytes: int) -> None:
        """RFC 5681 §4.1: after an idle RTO, restart from min(restart window, cwnd)."""
        if idle_us > rto_us:
            self.cwnd_bytes = min(self.cwnd_bytes, max(restart_window_bytes, self.mss_bytes))

    def undo(self, cwnd_bytes: int, ssthresh_bytes: int) -> None:
        """The last reduction was spurious (F-RTO, D-SACK, timestamps): back to what it was."""
        self.cwnd_bytes = max(self.cwnd_bytes, cwnd_bytes)
        self.ssthresh_bytes = ssthresh_bytes

    def on_mss(self, mss_bytes: int) -> None:
        """The segment size changed (path MTU): keep the window's size in segments at least one."""
        self.mss_bytes = mss_bytes
        self.cwnd_bytes = max(self.cwnd_bytes, mss_bytes)

    def on_close(self) -> None:  # noqa: B027 only those that are coupled have anything to do
        """The subflow is over: coupled controllers forget it."""


#: How a connection makes a controller for a new subflow: (mss_bytes, initial_window_bytes) -> controller. One that has a
#: method ``for_connection`` (``coupled.Coupled``) is asked for a factory of the connection's own first.
CongestionFactory = Callable[[int, int], CongestionControl]
