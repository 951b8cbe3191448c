"""Balanced linked adaptation (draft-walid-mptcp-congestion-control-04): between LIA's friendliness and OLIA's speed."""

from __future__ import annotations

from mptcp.core.congestion.coupled import Coupled, CoupledControl


class Balia(CoupledControl):
    __slots__ = ()

    name = "balia"

    def increase(self, acked_bytes: int, members: list[CoupledControl]) -> float:
        # §3.1: for each ACK, "increase w_r by ( x_r / rtt_r / (SUM x_k)^2 ) * ((1 + alpha_r)/2) * ((4 + alpha_r)/5)",
        # windows in segments, x_r = w_r/rtt_r, alpha_r = max{x_k}/x_r
        rates = [m.rate for m in members]
        own = self.cwnd_bytes / self.srtt_us
        alpha = max(rates) / own
        total = sum(rates)
        return (
            own / self.srtt_us / (total * total) * ((1 + alpha) / 2) * ((4 + alpha) / 5) * acked_bytes * self.mss_bytes
        )

    def on_congestion_event(self, now: int, in_flight_bytes: int) -> None:
        members = [m for m in self.group.at_work(now, self) if m.srtt_us]
        super().on_congestion_event(now, in_flight_bytes)
        if not self.srtt_us:
            return
        own = self.cwnd_bytes / self.srtt_us
        alpha = max(own, *(m.rate for m in members if m is not self)) / own if len(members) > 1 else 1.0
        # §3.1: for each loss, "decrease w_r by (w_r/2) * min{alpha_r, 1.5}"
        left = in_flight_bytes - in_flight_bytes / 2 * min(alpha, 1.5)
        self.ssthresh_bytes = max(int(left), 2 * self.mss_bytes)


BALIA = Coupled(Balia)
