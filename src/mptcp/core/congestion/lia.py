"""Linked increases (RFC 6356): all subflows together grow like one TCP connection on the best path."""

from __future__ import annotations

from mptcp.core.congestion.coupled import Coupled, CoupledControl


class Lia(CoupledControl):
    __slots__ = ()

    name = "lia"

    def increase(self, acked_bytes: int, members: list[CoupledControl]) -> float:
        # RFC 6356 §3 (1): "min ( alpha * bytes_acked * MSS_i / cwnd_total , bytes_acked * MSS_i / cwnd_i )"
        total = sum(m.window_bytes for m in members)
        step = acked_bytes * self.mss_bytes
        return min(alpha(members) * step / total, step / self.cwnd_bytes)


def alpha(members: list[CoupledControl]) -> float:
    """How aggressive the connection is, of those that have a round-trip time."""
    # RFC 6356 §3 (2): "alpha = cwnd_total * MAX (cwnd_i/rtt_i^2) / (SUM (cwnd_i/rtt_i))^2"
    total = sum(m.window_bytes for m in members)
    best = max(m.window_bytes / (m.srtt_us * m.srtt_us) for m in members)
    rate = sum(m.window_bytes / m.srtt_us for m in members)
    return total * best / (rate * rate)


LIA = Coupled(Lia)
