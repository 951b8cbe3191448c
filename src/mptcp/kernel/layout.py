"""The kernel's structures about MPTCP, read by the length that came back.

``struct mptcp_info`` and ``struct tcp_info`` only ever grow at their end: what a kernel does not have is 0 (or None
where 0 would say something else), what it has beyond this file is ignored. All of it is native-endian; addresses and
ports in a ``sockaddr`` are in network order.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from mptcp.info import Endpoint

#: ``MptcpInfo.flags`` (MPTCP_INFO_FLAG_*).
FLAG_FALLBACK: Final = 1
FLAG_REMOTE_KEY_RECEIVED: Final = 2

#: ``TcpInfo.state`` (net/tcp_states.h).
ESTABLISHED: Final = 1
SYN_SENT: Final = 2
SYN_RECV: Final = 3
FIN_WAIT1: Final = 4
FIN_WAIT2: Final = 5
TIME_WAIT: Final = 6
CLOSE: Final = 7
CLOSE_WAIT: Final = 8
LAST_ACK: Final = 9
LISTEN: Final = 10
CLOSING: Final = 11

AF_INET: Final = 2
AF_INET6: Final = 10
SOCKADDR_STORAGE: Final = 128
_V4_MAPPED: Final = bytes(10) + b"\xff\xff"
_PORT: Final = struct.Struct("!H")
_FAMILY: Final = struct.Struct("=H")

#: Where there is no address: an empty sockaddr, or one of a family that is not IP.
NOWHERE: Final = Endpoint(bytes(4), 0)


@dataclass(slots=True)
class MptcpInfo:
    """``struct mptcp_info``: the connection as a whole. Sizes in bytes; ``last_*`` in milliseconds ago."""

    subflows: int  # beyond the initial one
    add_addr_signal: int
    add_addr_accepted: int
    subflows_max: int  # the limits are those of the in-kernel path manager; 0 under the user-space one
    add_addr_signal_max: int
    add_addr_accepted_max: int
    flags: int
    token: int
    write_seq: int
    snd_una: int
    rcv_nxt: int
    local_addr_used: int
    local_addr_max: int
    checksum: bool
    retransmits: int
    bytes_retransmitted: int
    bytes_sent: int
    bytes_received: int
    bytes_acked: int
    endpoint_laminar_max: int
    subflows_total: int | None  # without the initial one once it is dead; None before Linux 6.7
    last_data_sent_ms: int | None  # None before Linux 6.10, as the next two
    last_data_received_ms: int | None
    last_ack_received_ms: int | None
    length: int  # of what the kernel gave

    @property
    def fell_back(self) -> bool:
        """The connection is plain TCP now."""
        return bool(self.flags & FLAG_FALLBACK)

    @property
    def key_received(self) -> bool:
        """The peer has shown its key: the connection is MPTCP, or was before it fell back."""
        return bool(self.flags & FLAG_REMOTE_KEY_RECEIVED)

    @property
    def has_counters(self) -> bool:
        """Whether the kernel counts bytes per connection (Linux 6.5)."""
        return self.length >= 80

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> MptcpInfo:
        """From as many octets as the kernel gave, none included."""
        length = len(data)
        if length < _MPTCP.size:
            data = bytes(data).ljust(_MPTCP.size, b"\0")
        (
            subflows, signal, accepted, subflows_max, signal_max, accepted_max, flags, token, write_seq, snd_una, rcv_nxt,
            addresses, addresses_max, checksum, retransmits, retransmitted, sent, received, acked, total, laminar,
            last_sent, last_received, last_ack,
        ) = _MPTCP.unpack_from(data)  # fmt: skip
        return cls(
            subflows, signal, accepted, subflows_max, signal_max, accepted_max, flags, token, write_seq, snd_una, rcv_nxt,
            addresses, addresses_max, bool(checksum), retransmits, retransmitted, sent, received, acked, laminar,
            total if length > 80 else None,
            last_sent if length >= 96 else None,
            last_received if length >= 96 else None,
            last_ack if length >= 96 else None,
            length,
        )  # fmt: skip


#: subflows .. add_addr_accepted_max | flags, token | sequence numbers | local_addr_*, csum | retransmits, bytes_* |
#: subflows_total, endp_laminar_max | last_*.
_MPTCP: Final = struct.Struct("=6B2x2I3Q3BxI4Q2B2x3I")
MPTCP_INFO_SIZE: Final = _MPTCP.size


@dataclass(slots=True)
class TcpInfo:
    """``struct tcp_info``: one subflow, in the kernel's order and names. Microseconds; windows and ``unacked`` ..
    ``retrans`` in segments; ``last_*`` in milliseconds ago; rates in bytes a second."""

    state: int
    ca_state: int
    retransmits: int  # of what is unacknowledged now
    probes: int
    backoff: int
    options: int
    scales: int  # tcpi_snd_wscale:4, tcpi_rcv_wscale:4
    limits: int  # tcpi_delivery_rate_app_limited:1, tcpi_fastopen_client_fail:2
    rto: int
    ato: int
    snd_mss: int
    rcv_mss: int
    unacked: int
    sacked: int
    lost: int
    retrans: int
    fackets: int
    last_data_sent: int
    last_ack_sent: int
    last_data_recv: int
    last_ack_recv: int
    pmtu: int
    rcv_ssthresh: int
    rtt: int
    rttvar: int
    snd_ssthresh: int
    snd_cwnd: int
    advmss: int
    reordering: int
    rcv_rtt: int
    rcv_space: int
    total_retrans: int
    pacing_rate: int
    max_pacing_rate: int
    bytes_acked: int
    bytes_received: int
    segs_out: int
    segs_in: int
    notsent_bytes: int
    min_rtt: int
    data_segs_in: int
    data_segs_out: int
    delivery_rate: int
    busy_time: int
    rwnd_limited: int
    sndbuf_limited: int
    delivered: int
    delivered_ce: int
    bytes_sent: int
    bytes_retrans: int
    dsack_dups: int
    reord_seen: int
    rcv_ooopack: int
    snd_wnd: int
    rcv_wnd: int
    rehash: int
    total_rto: int
    total_rto_recoveries: int
    total_rto_time: int

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> TcpInfo:
        """From as many octets as the kernel gave, none included."""
        if len(data) < _TCP.size:
            data = bytes(data).ljust(_TCP.size, b"\0")
        return cls(*_TCP.unpack_from(data))


#: state .. delivery_rate_app_limited | rto .. total_retrans | pacing rates, bytes | segs .. data_segs | delivery_rate ..
#: sndbuf_limited | delivered | bytes | dsack_dups .. rehash | total_rto*.
_TCP: Final = struct.Struct("=8B24I4Q6I4Q2I2Q6I2HI")
TCP_INFO_SIZE: Final = _TCP.size


def parse_sockaddr(data: bytes | bytearray | memoryview) -> Endpoint:
    """A ``sockaddr_in`` or ``sockaddr_in6``; an IPv4-mapped address is an IPv4 one. ``NOWHERE`` if it is neither."""
    if len(data) < 8:
        return NOWHERE
    family: int = _FAMILY.unpack_from(data)[0]
    port: int = _PORT.unpack_from(data, 2)[0]
    if family == AF_INET:
        return Endpoint(bytes(data[4:8]), port)
    if family == AF_INET6 and len(data) >= 24:
        return Endpoint(unmapped(bytes(data[8:24])), port)
    return NOWHERE


def unmapped(address: bytes) -> bytes:
    """The IPv4 address in an IPv4-mapped one (::ffff:a.b.c.d); any other as it is."""
    return address[12:] if len(address) == 16 and address.startswith(_V4_MAPPED) else address
