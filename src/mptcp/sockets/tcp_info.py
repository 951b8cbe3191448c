"""``struct tcp_info`` of Linux, as getsockopt(TCP_INFO) gives it: what is known of the first subflow."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from mptcp.sockets.state import CLOSED, CONNECTING

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection

#: Length on Linux 6.x up to and including tcpi_rehash; a caller takes as much of it as it knows.
SIZE = 232

#: The states by their numbers in the kernel's ``net/tcp_states.h``.
_ESTABLISHED, _SYN_SENT, _FIN_WAIT_1, _CLOSE, _CLOSE_WAIT, _LISTEN = 1, 2, 4, 7, 8, 10


def pack_tcp_info(connection: Connection | None, listening: bool, subflow_id: int | None = None) -> bytes:
    """``SIZE`` octets; times in microseconds and windows in segments, as the structure wants them. Of one subflow, if
    ``subflow_id`` is given, else of the first there is."""
    buffer = bytearray(SIZE)
    buffer[0] = _state(connection, listening)
    if connection is None:
        return bytes(buffer)
    subflows = connection.subflows()
    if not subflows:
        return bytes(buffer)
    first = next((s for s in subflows if s.id == subflow_id), subflows[0])
    mss = max(first.mss_bytes, 1)
    # rto, ato, snd_mss, rcv_mss, unacked, sacked, lost, retrans, fackets
    in_flight = -(-first.in_flight_bytes // mss)
    struct.pack_into("=9I", buffer, 8, first.rto_us, 0, first.mss_bytes, first.mss_bytes, in_flight, 0, 0, 0, 0)
    # pmtu, rcv_ssthresh, rtt, rttvar, snd_ssthresh, snd_cwnd, advmss, reordering, rcv_rtt, rcv_space, total_retrans
    threshold = first.ssthresh_bytes // mss if first.ssthresh_bytes else 0x7FFFFFFF
    struct.pack_into(
        "=11I", buffer, 60, 0, 0, first.srtt_us, first.rttvar_us, min(threshold, 0x7FFFFFFF), first.cwnd_bytes // mss,
        first.mss_bytes, 3, 0, 0, first.retransmissions & 0xFFFFFFFF,
    )  # fmt: skip
    # pacing_rate, max_pacing_rate, bytes_acked, bytes_received
    struct.pack_into("=4Q", buffer, 104, 0, (1 << 64) - 1, first.bytes_acked, first.bytes_received)
    # segs_out, segs_in, notsent_bytes, min_rtt
    struct.pack_into(
        "=4I", buffer, 136, first.segments_sent & 0xFFFFFFFF, first.segments_received & 0xFFFFFFFF, 0, first.rtt_min_us
    )
    # bytes_sent, bytes_retrans
    struct.pack_into("=2Q", buffer, 200, first.bytes_sent, first.bytes_retransmitted)
    return bytes(buffer)


def _state(connection: Connection | None, listening: bool) -> int:
    if connection is None:
        return _LISTEN if listening else _CLOSE
    if connection.state is CONNECTING:
        return _SYN_SENT
    if connection.state is CLOSED:
        return _CLOSE
    if connection.write_closed:
        return _FIN_WAIT_1
    return _CLOSE_WAIT if connection.eof else _ESTABLISHED
