"""What coupled controllers share: the subflows of one connection know one another's windows and round-trip times."""

from __future__ import annotations

from abc import abstractmethod

from mptcp.core.congestion.base import CongestionControl
from mptcp.core.units import SECOND

#: A subflow that has had nothing acknowledged for so long (or two round trips) has nothing in flight and counts as none.
IDLE_US = 1 * SECOND


class CoupledControl(CongestionControl):
    """Slow start and loss as RFC 5681 has them; ``increase`` says what congestion avoidance adds."""

    __slots__ = ("_fraction", "acked_at_us", "group", "in_recovery", "srtt_us")

    def __init__(self, mss_bytes: int, initial_window_bytes: int, group: Group) -> None:
        super().__init__(mss_bytes, initial_window_bytes)
        self.group = group
        self.srtt_us = 0  # as of the last acknowledgement
        self.acked_at_us = -1
        self.in_recovery = False
        self._fraction = 0.0  # of an octet, not yet added to the window

    @property
    def window_bytes(self) -> int:
        """What the others may take its congestion window to be."""
        # RFC 6356 §3: "The correct behavior is to use the ssthresh (slow start threshold) value for flows in fast
        # retransmit when computing cwnd_total."
        return self.ssthresh_bytes if self.in_recovery else self.cwnd_bytes

    @property
    def rate(self) -> float:
        """Octets per microsecond."""
        return self.window_bytes / self.srtt_us

    @abstractmethod
    def increase(self, acked_bytes: int, members: list[CoupledControl]) -> float:
        """Octets that the window grows by in congestion avoidance; ``members``: all at work, this one among them."""

    def on_ack(self, acked_bytes: int, now: int, srtt_us: int, rtt_us: int, cwnd_limited: bool) -> None:
        self.acked_at_us = now
        if srtt_us:
            self.srtt_us = srtt_us
        if not cwnd_limited:
            return
        # RFC 6356 §3: "The slow start, fast retransmit, and fast recovery algorithms, as well as the multiplicative
        # decrease of the congestion avoidance state are the same as in standard TCP"
        if self.cwnd_bytes < self.ssthresh_bytes:
            acked_bytes = self.slow_start(acked_bytes)
            if not acked_bytes:
                return
        if not self.srtt_us:
            return
        # RFC 6356 §3: "when cwnd_total is large the increase may be 0. In this case, the increase MUST be set to 1": no
        # fraction is ever thrown away here.
        grown_by = self.increase(acked_bytes, self.group.at_work(now, self)) + self._fraction
        whole = int(grown_by // 1)
        self._fraction = grown_by - whole
        self.cwnd_bytes = max(self.cwnd_bytes + whole, self.mss_bytes)

    def on_congestion_event(self, now: int, in_flight_bytes: int) -> None:
        # RFC 5681 §3.1 (4): "ssthresh = max (FlightSize / 2, 2*SMSS)"
        self.ssthresh_bytes = max(in_flight_bytes // 2, 2 * self.mss_bytes)
        self.in_recovery = True
        self._fraction = 0.0

    def on_timeout(self, now: int, in_flight_bytes: int, first: bool) -> None:
        super().on_timeout(now, in_flight_bytes, first)
        self.in_recovery = False

    def on_recovery_exit(self, now: int) -> None:
        super().on_recovery_exit(now)
        self.in_recovery = False

    def undo(self, cwnd_bytes: int, ssthresh_bytes: int) -> None:
        super().undo(cwnd_bytes, ssthresh_bytes)
        self.in_recovery = False

    def on_close(self) -> None:
        self.group.leave(self)


class Group:
    """The controllers of one connection; makes a further one when called."""

    __slots__ = ("_control", "members", "name")

    def __init__(self, control: type[CoupledControl]) -> None:
        self._control = control
        self.name = control.name
        self.members: list[CoupledControl] = []

    def __call__(self, mss_bytes: int, initial_window_bytes: int) -> CongestionControl:
        member = self._control(mss_bytes, initial_window_bytes, self)
        self.members.append(member)
        return member

    def leave(self, member: CoupledControl) -> None:
        if member in self.members:
            self.members.remove(member)

    def at_work(self, now: int, asking: CoupledControl) -> list[CoupledControl]:
        """Those that have a round-trip time and something in flight; the one that asks always is."""
        # RFC 6356 §3: "To cater to connections that are app limited, the computation should consider the minimum
        # between flight_size_i and cwnd_i": a subflow that nothing is sent on, a backup for instance, counts for nothing.
        return [
            m for m in self.members
            if m is asking or (m.srtt_us and now - m.acked_at_us <= max(IDLE_US, 2 * m.srtt_us))
        ]  # fmt: skip


class Coupled:
    """A congestion factory whose controllers are coupled within a connection, and only there."""

    __slots__ = ("_control", "name")

    def __init__(self, control: type[CoupledControl]) -> None:
        self._control = control
        self.name = control.name

    def for_connection(self) -> Group:
        """The factory that one connection uses for all its subflows."""
        return Group(self._control)

    def __call__(self, mss_bytes: int, initial_window_bytes: int) -> CongestionControl:
        """A controller with nobody to be coupled to: of a regular TCP connection."""
        return self.for_connection()(mss_bytes, initial_window_bytes)
