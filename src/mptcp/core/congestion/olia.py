"""Opportunistic linked increases (draft-khalili-mptcp-congestion-control-05): Pareto-optimal where LIA is not."""

from __future__ import annotations

from mptcp.core.congestion.coupled import Coupled, CoupledControl, Group


class Olia(CoupledControl):
    """Counts what was acknowledged between losses to know which paths are the best."""

    __slots__ = ("_since_loss_bytes", "_up_to_loss_bytes")

    name = "olia"

    def __init__(self, mss_bytes: int, initial_window_bytes: int, group: Group) -> None:
        super().__init__(mss_bytes, initial_window_bytes, group)
        self._since_loss_bytes = 0  # l2: since the last loss
        self._up_to_loss_bytes = 0  # l1: between the last two

    @property
    def quality(self) -> float:
        """Of a path: larger is better."""
        # §3: "best_paths: set of paths p that have the maximum l_p*l_p/rtt_p", l_p = max (l1_p, l2_p)
        longest = max(self._up_to_loss_bytes, self._since_loss_bytes)
        return longest * longest / self.srtt_us

    def on_ack(self, acked_bytes: int, now: int, srtt_us: int, rtt_us: int, cwnd_limited: bool) -> None:
        self._since_loss_bytes += acked_bytes
        super().on_ack(acked_bytes, now, srtt_us, rtt_us, cwnd_limited)

    def on_congestion_event(self, now: int, in_flight_bytes: int) -> None:
        super().on_congestion_event(now, in_flight_bytes)
        self._up_to_loss_bytes, self._since_loss_bytes = self._since_loss_bytes, 0

    def increase(self, acked_bytes: int, members: list[CoupledControl]) -> float:
        # §3: "increase cwnd_r by: ( (cwnd_r/(rtt_r*rtt_r)) / (SUM (cwnd_p/rtt_p))^2 + alpha_r/cwnd_r ) * MSS_r *
        # bytes_acked", windows in octets
        rate = sum(m.rate for m in members)
        window = self.cwnd_bytes
        return (
            (window / (self.srtt_us * self.srtt_us) / (rate * rate) + self.alpha(members) / window)
            * self.mss_bytes * acked_bytes
        )  # fmt: skip

    def alpha(self, members: list[CoupledControl]) -> float:
        """Moves window from the paths with the largest to the best ones that have less."""
        widest = max(m.window_bytes for m in members)
        maximal = [m for m in members if m.window_bytes == widest]
        olias = [m for m in members if isinstance(m, Olia)]
        top = max(m.quality for m in olias)
        collected = [m for m in olias if m.quality == top and m not in maximal]
        # §3: "If r is in collected_paths: alpha_r = (1/number_of_paths) / |collected_paths|; if r is in max_w_paths and
        # collected_paths is not empty: alpha_r = - (1/number_of_paths) / |max_w_paths|; otherwise: alpha_r = 0"
        if self in collected:
            return 1 / len(members) / len(collected)
        if collected and self in maximal:
            return -1 / len(members) / len(maximal)
        return 0.0


OLIA = Coupled(Olia)
