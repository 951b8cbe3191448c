"""CUBIC (RFC 8312): window growth is a cubic function of the time since the last congestion event.

The first slow start is HyStart++'s (``hystart``), as RFC 8312 §4.8 has it: without one it overshoots by a whole window.
"""

from __future__ import annotations

from mptcp.core.congestion.base import INFINITE_SSTHRESH, CongestionControl
from mptcp.core.congestion.hystart import HyStart

#: RFC 8312 §5: "C SHOULD be set to 0.4"; §4.5: "beta_cubic SHOULD be set to 0.7".
C = 0.4
BETA = 0.7
#: RFC 8312 §4.2: the additive increase that gives AIMD with BETA the share of Reno.
_FRIENDLY_ALPHA = 3 * (1 - BETA) / (1 + BETA)


class Cubic(CongestionControl):
    """Window sizes in octets; the cubic function itself counts in segments and seconds, as the RFC does."""

    __slots__ = (
        "_epoch_us",
        "_friendly_segments",
        "_hystart",
        "_idle_since_us",
        "_k_seconds",
        "_origin_segments",
        "_w_max_segments",
    )

    name = "cubic"

    def __init__(self, mss_bytes: int, initial_window_bytes: int) -> None:
        super().__init__(mss_bytes, initial_window_bytes)
        self._epoch_us = -1  # start of the present congestion avoidance stage; -1: it has not started
        self._w_max_segments = 0.0  # window before the last reduction
        self._origin_segments = 0.0  # plateau of the cubic function in this stage
        self._k_seconds = 0.0  # when it is reached
        self._friendly_segments = 0.0  # W_est: what Reno would have
        self._idle_since_us = -1
        self._hystart: HyStart | None = None  # while there is no threshold yet

    def on_ack(self, acked_bytes: int, now: int, srtt_us: int, rtt_us: int, cwnd_limited: bool) -> None:
        if not cwnd_limited:
            # RFC 8312 §5.8: "In case of long periods when cwnd has not been updated due to the application rate limit,
            # such as idle periods, t in Eq. 1 MUST NOT include these periods"
            if self._epoch_us >= 0 and self._idle_since_us < 0:
                self._idle_since_us = now
            return
        if self.cwnd_bytes < self.ssthresh_bytes:
            if self.ssthresh_bytes == INFINITE_SSTHRESH:
                self._first_slow_start(acked_bytes, rtt_us)
                return
            acked_bytes = self.slow_start(acked_bytes)
            if not acked_bytes:
                return
        cwnd = self.cwnd_bytes
        mss = self.mss_bytes
        segments = cwnd / mss
        epoch = self._epoch_us
        if epoch < 0:
            epoch = self._begin_stage(segments, now)
        elif self._idle_since_us >= 0:
            epoch += now - self._idle_since_us
            self._epoch_us = epoch
        self._idle_since_us = -1
        # RFC 8312 §4.1: "W_cubic(t) = C*(t-K)^3 + W_max"; §4.3: the target is W_cubic(t+RTT)
        x = (now - epoch + srtt_us) / 1_000_000 - self._k_seconds
        target = C * x * x * x + self._origin_segments
        acked_segments = acked_bytes / mss
        # RFC 8312 §4.3: "cwnd MUST be incremented by (W_cubic(t+RTT) - cwnd)/cwnd for each received ACK"; not more
        # than half a window per round trip, as Linux bounds it
        if target > segments * 1.5:
            target = segments * 1.5
        grown_segments = segments
        if target > segments:
            grown_segments += (target - segments) * acked_segments / segments
            if grown_segments > target:
                grown_segments = target
        # RFC 8312 §4.2: "W_est(t) = W_max*beta_cubic + [3*(1-beta_cubic)/(1+beta_cubic)] * (t/RTT)"; here per
        # acknowledged octet, which needs no division by a varying RTT. "CUBIC checks whether W_cubic(t) is less
        # than W_est(t). If so, CUBIC is in the TCP-friendly region and cwnd SHOULD be set to W_est(t) at each reception
        # of an ACK."
        self._friendly_segments += _FRIENDLY_ALPHA * acked_segments / segments
        if self._friendly_segments > grown_segments:
            grown_segments = self._friendly_segments
        self.cwnd_bytes = max(cwnd, int(grown_segments * mss))

    def _first_slow_start(self, acked_bytes: int, rtt_us: int) -> None:
        hystart = self._hystart
        if hystart is None:
            hystart = self._hystart = HyStart(self.cwnd_bytes)
        self.cwnd_bytes += hystart.on_ack(acked_bytes, rtt_us, self.cwnd_bytes)
        if hystart.is_over:
            self.ssthresh_bytes = self.cwnd_bytes
            self._hystart = None

    def _begin_stage(self, segments: float, now: int) -> int:
        self._epoch_us = now
        self._friendly_segments = segments
        if segments < self._w_max_segments:
            # RFC 8312 §4.1: "K = cubic_root(W_max*(1-beta_cubic)/C)"; from the window we really have, which is
            # W_max*beta_cubic after a plain reduction
            self._k_seconds = ((self._w_max_segments - segments) / C) ** (1 / 3)
            self._origin_segments = self._w_max_segments
        else:
            self._k_seconds = 0.0
            self._origin_segments = segments
        return now

    def on_congestion_event(self, now: int, in_flight_bytes: int) -> None:
        self._hystart = None
        segments = self.cwnd_bytes / self.mss_bytes
        # RFC 8312 §4.6: "if (W_max < W_last_max){ // should we make room for others; W_last_max = W_max;
        # W_max = W_max*(1.0+beta_cubic)/2.0;"
        if segments < self._w_max_segments:
            self._w_max_segments = segments * (1.0 + BETA) / 2.0
        else:
            self._w_max_segments = segments
        # RFC 8312 §4.5: "ssthresh = cwnd * beta_cubic; ssthresh = max(ssthresh, 2);"
        self.ssthresh_bytes = max(int(self.cwnd_bytes * BETA), 2 * self.mss_bytes)
        self._epoch_us = -1
        self._idle_since_us = -1

    def on_timeout(self, now: int, in_flight_bytes: int, first: bool) -> None:
        super().on_timeout(now, in_flight_bytes, first)
        # RFC 8312 §4.7: "During the first congestion avoidance after a timeout, CUBIC increases its congestion window
        # size using Eq. 1, where t is the elapsed time since the beginning of the current congestion avoidance, K is
        # set to 0, and W_max is set to the congestion window size at the beginning of the current congestion
        # avoidance."
        self._w_max_segments = 0.0
        self._epoch_us = -1
        self._idle_since_us = -1

    def on_idle(self, idle_us: int, rto_us: int, restart_window_bytes: int) -> None:
        super().on_idle(idle_us, rto_us, restart_window_bytes)
        if self._epoch_us >= 0 and self._idle_since_us < 0:
            self._epoch_us += idle_us  # the curve goes on where it stood

    def undo(self, cwnd_bytes: int, ssthresh_bytes: int) -> None:
        super().undo(cwnd_bytes, ssthresh_bytes)
        self._w_max_segments = max(self._w_max_segments, self.cwnd_bytes / self.mss_bytes)
        self._epoch_us = -1
