"""Weighted Vegas (Cao, Xu, Fu, "Delay-based congestion control for multipath TCP", ICNP 2012): queues tell before losses do."""

from __future__ import annotations

from mptcp.core.congestion.coupled import Coupled, CoupledControl, Group

#: Segments that all subflows together keep in the queues of their paths.
TOTAL_ALPHA = 10
#: A subflow keeps no less than this.
MIN_ALPHA = 2
#: Queued segments at which slow start ends.
GAMMA = 1


class Wvegas(CoupledControl):
    """Looks once per round trip; a subflow with a larger share of the rate may keep more segments queued."""

    __slots__ = (
        "_alpha",
        "_base_rtt_us",
        "_queueing_us",
        "_round_acked",
        "_round_rtts",
        "_round_samples",
        "_round_size",
    )

    name = "wvegas"

    def __init__(self, mss_bytes: int, initial_window_bytes: int, group: Group) -> None:
        super().__init__(mss_bytes, initial_window_bytes, group)
        self._alpha = float(MIN_ALPHA)
        self._base_rtt_us = 0  # the shortest round trip seen
        self._queueing_us = 0  # the shortest queueing delay since the last time the queue was drained
        self._round_acked = 0
        self._round_size = initial_window_bytes
        self._round_rtts = self._round_samples = 0

    def on_ack(self, acked_bytes: int, now: int, srtt_us: int, rtt_us: int, cwnd_limited: bool) -> None:
        self.acked_at_us = now
        if srtt_us:
            self.srtt_us = srtt_us
        if rtt_us > 0:
            if not self._base_rtt_us or rtt_us < self._base_rtt_us:
                self._base_rtt_us = rtt_us
            self._round_rtts += rtt_us
            self._round_samples += 1
        self._round_acked += acked_bytes
        if cwnd_limited and self.cwnd_bytes < self.ssthresh_bytes:
            # Every other round trip, as Vegas does it: half of what is acknowledged.
            self.cwnd_bytes = min(self.cwnd_bytes + (acked_bytes >> 1), self.ssthresh_bytes)
        if self._round_acked >= self._round_size:
            if self._round_samples:
                self._end_round(self._round_rtts // self._round_samples, now, cwnd_limited)
            self._round_acked = self._round_rtts = self._round_samples = 0
            self._round_size = self.cwnd_bytes

    def increase(self, acked_bytes: int, members: list[CoupledControl]) -> float:
        """Nothing per acknowledgement: ``_end_round`` does it."""
        return 0.0

    def _end_round(self, rtt_us: int, now: int, cwnd_limited: bool) -> None:
        mss = self.mss_bytes
        base = self._base_rtt_us
        window = self.cwnd_bytes / mss
        queued = window * (rtt_us - base) / rtt_us
        if self.cwnd_bytes < self.ssthresh_bytes:
            if queued > GAMMA:
                self.cwnd_bytes = max(int(self.cwnd_bytes * base / rtt_us), 2 * mss)
                self.ssthresh_bytes = self.cwnd_bytes
            return
        if queued >= self._alpha:
            self._alpha = max(float(MIN_ALPHA), self.weight(now) * TOTAL_ALPHA)
        if queued > self._alpha:
            self.cwnd_bytes = max(self.cwnd_bytes - mss, 2 * mss)
        elif queued < self._alpha and cwnd_limited:
            self.cwnd_bytes += mss
        queueing = rtt_us - base
        if not self._queueing_us or queueing < self._queueing_us:
            self._queueing_us = queueing
        elif queueing >= 2 * self._queueing_us and queued > self._alpha:
            # Others fill the queue: let it drain once, so that the base round trip is seen again.
            self.cwnd_bytes = max(int(self.cwnd_bytes * base / (2 * rtt_us)), 2 * mss)
            self._queueing_us = 0

    def weight(self, now: int) -> float:
        """This subflow's share of the connection's rate."""
        if not self.srtt_us:
            return 1.0
        return self.rate / sum(m.rate for m in self.group.at_work(now, self))


WVEGAS = Coupled(Wvegas)
