"""Signalling options on their way out: ADD_ADDR, MP_PRIO and the like, each on a pure ACK of one subflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mptcp.core.units import MILLISECOND, NEVER
from mptcp.core.wire.mptcp_options import Dss, MptcpOption, padded_length

if TYPE_CHECKING:
    from mptcp.core.multipath.subflow import Subflow

#: Options that wait for a pure ACK of one subflow; more are dropped, and what matters among them is repeated.
MAX_SIGNALS = 32
#: RFC 8684 §3: "an MPTCP implementation SHOULD NOT send more than two duplicate ACKs in a row for the purposes of sending
#: MPTCP options alone": then there is a pause of a round trip, of this at least.
MAX_SIGNAL_BURST = 2
SIGNAL_PAUSE_MIN_US = 10 * MILLISECOND


class Signals:
    """Made for the first signal of a subflow; forgotten when a pause ends and nothing waits."""

    __slots__ = ("burst", "resume_at", "waiting")

    def __init__(self) -> None:
        self.waiting: list[MptcpOption] = []
        self.burst = 0  # of them have gone since the last pause
        self.resume_at = NEVER

    def add(self, subflow: Subflow, option: MptcpOption) -> None:
        if len(self.waiting) < MAX_SIGNALS and option not in self.waiting:
            self.waiting.append(option)
            if self.burst < MAX_SIGNAL_BURST:
                subflow.tcp.send_ack()
            subflow.connection.touch()

    @property
    def claims_whole_ack(self) -> bool:
        # An ADD_ADDR with IPv6 address, port and HMAC takes 32 octets; with timestamps there are 28. It goes on a pure
        # ACK without timestamps, which RFC 7323 §3.2 lets a receiver drop; repetition until the echo is what there is.
        return bool(self.waiting) and padded_length(self.waiting[0]) > 28

    def options(self, subflow: Subflow, room: int) -> tuple[MptcpOption, ...]:
        """Those of the next ACK: the signal at the head of the line, and the DATA_ACK as far as it fits."""
        receiver = subflow.connection.data_receiver
        if self.burst >= MAX_SIGNAL_BURST:
            return (Dss(*receiver.data_ack),)
        option = self.waiting[0]
        size = padded_length(option)
        if size > room:
            # Beside data there is less room: a pure ACK of its own takes it.
            subflow.tcp.send_ack()
            return (Dss(*receiver.data_ack),) if room >= 12 else ()
        del self.waiting[0]
        fits = room - size >= 12
        self.burst += 1
        pause = max(subflow.tcp.sender.rtt.srtt_us, SIGNAL_PAUSE_MIN_US)
        self.resume_at = min(self.resume_at, subflow.connection.environment.now + pause)
        subflow.arm()
        if self.waiting or not fits:
            # Also for the DATA_ACK that finds no room beside a long ADD_ADDR: the peer's data waits for it.
            subflow.tcp.send_ack()
        return (option, Dss(*receiver.data_ack)) if fits else (option,)

    def handle_pause_over(self, subflow: Subflow) -> None:
        self.burst = 0
        self.resume_at = NEVER
        if self.waiting:
            subflow.tcp.send_ack()
        else:
            subflow.signals = None
