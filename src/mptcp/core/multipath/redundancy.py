"""The same octets over more than one subflow (RFC 6897 Appendix A.3, REQ12)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mptcp.core.multipath.mapping import Mapping
from mptcp.core.multipath.transmission import give, refresh
from mptcp.core.schedulers.base import Redundancy
from mptcp.core.wire.sequence import MASK64

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection
    from mptcp.core.multipath.subflow import Subflow

#: Chunks looked at, from the head of the line, for what a subflow has not carried yet.
MAX_SCAN = 1024

#: Segments of a chunk while everything is copied: what is large for one path is long for another.
CHUNK_SEGMENTS = 8


def level_of(connection: Connection) -> Redundancy:
    return max(connection.redundancy, connection.scheduler.redundancy)


def push_copies(connection: Connection, now: int) -> None:
    """Gives every subflow that can send the first octets in flight that it does not carry yet."""
    # RFC 8684 §3.3.6: "a receiver will ignore these retransmissions": whichever copy comes first counts.
    sender = connection.data_sender
    if sender.una == sender.nxt or len(connection.subflows_by_id) < 2:
        return
    able: dict[int, Subflow] = {}
    for subflow in connection.subflows_by_id.values():
        if subflow.is_usable and connection.environment.has_room(subflow.interface):
            sendable = subflow.tcp.sendable_bytes(now)
            subflow.path.sendable_bytes = sendable
            if sendable > 0:
                refresh(subflow)
                able[subflow.id] = subflow
    if not able:
        return
    allowed = {p.id for p in connection.scheduler.select_copies([s.path for s in able.values()], now)}
    able = {number: subflow for number, subflow in able.items() if number in allowed}
    for chunk in sender.first_chunks(MAX_SCAN):
        if not able:
            return
        for number in [n for n in able if n not in chunk.carriers]:
            subflow = able[number]
            chunk.carriers += (number,)
            chunk.ssn_end = give(connection, subflow, chunk.dsn, chunk.payloads, chunk.end - chunk.dsn)
            subflow.bytes_copied += chunk.end - chunk.dsn
            connection.counters.bump("redundant_copy")
            if subflow.tcp.sendable_bytes(now) <= 0 or not connection.environment.has_room(subflow.interface):
                del able[number]


def copy_lost(connection: Connection, now: int) -> None:
    """What TCP of one subflow takes for lost is given to another one at once, not only after a timeout."""
    sender = connection.data_sender
    if sender.una == sender.nxt or len(connection.subflows_by_id) < 2:
        return
    for subflow in connection.subflows_by_id.values():
        tcp = subflow.tcp.sender
        if not tcp.queue.lost or (tcp.queue.lost, tcp.retransmissions) == subflow.lost_seen:
            continue
        subflow.lost_seen = (tcp.queue.lost, tcp.retransmissions)
        lost = {
            record.mapping.dsn for record in tcp.queue.records
            if record.lost and record.end > tcp.una and isinstance(record.mapping, Mapping)
        }  # fmt: skip
        for chunk in sender.first_chunks(MAX_SCAN):
            if chunk.dsn & MASK64 in lost and chunk.carriers == (subflow.id,) and sender.reinject_later(chunk):
                subflow.bytes_reinjected += chunk.end - chunk.dsn
                connection.counters.bump("redundant_retransmission")
