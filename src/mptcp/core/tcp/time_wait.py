"""TIME-WAIT: when a new SYN may take the place of a connection that is waiting (RFC 9293 §3.6.1, RFC 6191)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mptcp.core.tcp.states import State
from mptcp.core.wire.segment import ACK, RST, SYN, Segment
from mptcp.core.wire.sequence import MASK32, unwrap32

if TYPE_CHECKING:
    from mptcp.core.tcp.connection import Connection


def may_be_replaced(connection: Connection, segment: Segment) -> bool:
    """Whether ``segment`` is the SYN of a new incarnation that may be accepted now; the old one is then forgotten.

    The owner gives the new connection ``next_isn`` and the segment. False: hand it to the old connection.
    """
    if segment.flags & (SYN | ACK | RST) != SYN:
        return False
    if connection.state is not State.TIME_WAIT:
        return connection.state is State.CLOSED
    timestamps = connection.timestamps
    value = segment.options.timestamp_value
    if timestamps.enabled and value is not None and value != timestamps.recent:
        # RFC 6191 §2: accepted if its timestamp is greater than the last one of the old incarnation
        return not (value - timestamps.recent) & 0x80000000
    # RFC 9293 §3.6.1: "it MAY accept a new SYN from the remote TCP endpoint to reopen the connection directly from
    # TIME-WAIT state (MAY-2)"; one that is no old duplicate, as its larger number shows
    return unwrap32(segment.seq, connection.receiver.nxt) >= connection.receiver.nxt


def next_isn(connection: Connection) -> int:
    """RFC 9293 §3.6.1: an initial number that lies beyond the largest one of the connection before."""
    return (connection.sender.nxt + 65535 + 2) & MASK32
