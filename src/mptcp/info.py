"""One vocabulary for both stacks, the command line, schedulers and tests: what a path, a subflow, a connection is like."""

import ipaddress
from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """An address and a port. ``address`` is packed (4 octets for IPv4, 16 for IPv6), as everywhere in the core."""

    address: bytes
    port: int = 0

    @classmethod
    def parse(cls, host: str, port: int = 0) -> "Endpoint":
        """From text ("10.0.0.1", "fd00::1"); ValueError if it is no address."""
        return cls(ipaddress.ip_address(host.partition("%")[0]).packed, port)

    @property
    def host(self) -> str:
        return str(ipaddress.ip_address(self.address))

    @property
    def family(self) -> int:
        """4 or 6."""
        return 4 if len(self.address) == 4 else 6

    @property
    def is_unspecified(self) -> bool:
        return not any(self.address)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if len(self.address) == 4 else f"[{self.host}]:{self.port}"


class SubflowState(Enum):
    """Where a subflow is in its life (the TCP state, as far as a user of MPTCP cares)."""

    CONNECTING = "connecting"
    PENDING = "pending"  # MP_JOIN done on our side, waiting for the fourth ACK (RFC 8684 §3.2)
    ACTIVE = "active"
    STALE = "stale"  # not acknowledging: kept, but not used while another works
    CLOSING = "closing"
    CLOSED = "closed"


@dataclass(slots=True)
class PathInfo:
    """What a strategy (scheduler, path manager, coupled congestion control) may know of one subflow.

    The connection refreshes one object per subflow in place; a strategy reads it during a call and keeps nothing.
    """

    id: int
    local: Endpoint
    remote: Endpoint
    backup: bool = False
    stale: bool = False
    srtt_us: int = 0  # 0: no sample yet
    rtt_min_us: int = 0
    rttvar_us: int = 0
    mss_bytes: int = 1400
    cwnd_bytes: int = 0
    in_flight_bytes: int = 0
    sendable_bytes: int = 0  # what congestion window and peer window allow now
    loss_events: int = 0
    bytes_sent: int = 0
    bytes_acked: int = 0
    weight: int = 1  # the application's preference; 0: only when nothing else works


@dataclass(slots=True)
class SubflowInfo:
    """A snapshot of one subflow. Times in microseconds, sizes in bytes, counters since it was opened."""

    id: int
    local: Endpoint
    remote: Endpoint
    local_address_id: int
    remote_address_id: int
    state: SubflowState
    initial: bool = False
    backup: bool = False
    srtt_us: int = 0
    rttvar_us: int = 0
    rtt_min_us: int = 0
    rto_us: int = 0
    mss_bytes: int = 0
    cwnd_bytes: int = 0
    ssthresh_bytes: int = 0
    in_flight_bytes: int = 0
    bytes_sent: int = 0
    bytes_acked: int = 0
    bytes_received: int = 0
    bytes_retransmitted: int = 0
    bytes_reinjected: int = 0
    segments_sent: int = 0
    segments_received: int = 0
    retransmissions: int = 0
    timeouts: int = 0
    congestion_control: str = ""
    interface: str = ""
    close_reason: str = ""
    weight: int = 1  # the application's preference; 0: only when nothing else works
    bytes_copied: int = 0  # sent here although another subflow carries them, too


@dataclass(slots=True)
class ConnectionInfo:
    """A snapshot of one connection."""

    is_multipath: bool
    fallback_reason: str
    token: int  # local token; 0 when not multipath
    remote_token: int
    version: int  # MPTCP version in use; -1 when not multipath
    checksum: bool
    state: str
    bytes_sent: int = 0
    bytes_acked: int = 0
    bytes_received: int = 0
    bytes_retransmitted: int = 0
    receive_window_bytes: int = 0
    send_window_bytes: int = 0
    send_buffered_bytes: int = 0
    receive_buffered_bytes: int = 0
    missed_events: int = 0
    subflows: list[SubflowInfo] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Support:
    """Whether something can be done; if not, why, and what would change it. True or false in a condition."""

    ok: bool
    reason: str = ""
    fix: str = ""

    def __bool__(self) -> bool:
        return self.ok
