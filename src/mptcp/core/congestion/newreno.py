"""Slow start and congestion avoidance of RFC 5681, counted in octets acknowledged."""

from __future__ import annotations

from mptcp.core.congestion.base import CongestionControl


class NewReno(CongestionControl):
    """One segment per round trip in congestion avoidance, doubling in slow start, half after a loss."""

    __slots__ = ("_acked_bytes",)

    name = "newreno"

    def __init__(self, mss_bytes: int, initial_window_bytes: int) -> None:
        super().__init__(mss_bytes, initial_window_bytes)
        self._acked_bytes = 0  # acknowledged since the last increase in congestion avoidance

    def on_ack(self, acked_bytes: int, now: int, srtt_us: int, rtt_us: int, cwnd_limited: bool) -> None:
        if not cwnd_limited:
            return
        if self.cwnd_bytes < self.ssthresh_bytes:
            acked_bytes = self.slow_start(acked_bytes)
            if not acked_bytes:
                return
        cwnd = self.cwnd_bytes
        # RFC 5681 §3.1: "When the number of bytes acknowledged reaches cwnd, then cwnd can be incremented by up to
        # SMSS bytes."
        self._acked_bytes += acked_bytes
        if self._acked_bytes >= cwnd:
            self._acked_bytes -= cwnd
            self.cwnd_bytes = cwnd + self.mss_bytes

    def on_congestion_event(self, now: int, in_flight_bytes: int) -> None:
        # RFC 5681 §3.1 (4): "ssthresh = max (FlightSize / 2, 2*SMSS)"
        self.ssthresh_bytes = max(in_flight_bytes // 2, 2 * self.mss_bytes)
        self._acked_bytes = 0
