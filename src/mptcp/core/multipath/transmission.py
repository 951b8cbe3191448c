"""Giving data to subflows (RFC 8684 §3.3.5): the scheduler's choice, mappings, reinjection, the shared window, DATA_FIN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mptcp.core.multipath import checksum_failure, closing
from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.multipath.data_sender import MAX_MAPPING, Chunk
from mptcp.core.multipath.mapping import Mapping, dss_checksum
from mptcp.core.multipath.subflow import Subflow
from mptcp.core.schedulers.base import Redundancy
from mptcp.core.units import NEVER
from mptcp.core.wire.segment import Payload

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection


#: How much of the shared window is filled while there are several subflows. Enough for the receiver to see, from what
#: it reads in a round trip, that a larger window would be used.
USABLE_WINDOW_PERCENT = 60

#: Chunks that an idle subflow takes over from a slower one in one round.
MAX_HELP_CHUNKS = 16
LEAST_USED_WINDOW = 1460

#: With copies of everything, segments of a mapping: what is short for a fast path is long for a slow one.
MAX_COPIED_SEGMENTS = 8


def push(connection: Connection, now: int) -> None:
    if connection.failure is not None and not checksum_failure.push(connection, now):
        return
    sender = connection.data_sender
    while sender.has_reinjections and push_reinjection(connection, now):
        pass
    copied = connection.redundancy is Redundancy.ALL or connection.scheduler.redundancy is Redundancy.ALL
    if copied:
        connection.push_copies(now)
    stream = sender.stream
    tcp_config = connection.config.tcp
    while stream.length:
        room = window_room(connection)
        if connection.scheduler.watches_window:
            connection.scheduler.on_window(room + sender.nxt - sender.una, room)
        if room <= 0:
            break
        subflow = select(connection, stream.length, now, None)
        if subflow is None:
            break
        tcp = subflow.tcp
        mss = tcp.sender.mss
        length = min(stream.length, room, subflow.path.sendable_bytes, max(tcp.sender.gso_max_bytes, mss), MAX_MAPPING)
        if copied:
            length = min(length, MAX_COPIED_SEGMENTS * mss)
        if length < stream.length and length > mss:
            length -= length % mss
        if length < mss:
            # RFC 9293 §3.7.4 (Nagle), at the level where the stream is: a small piece waits while data is in flight, as
            # both levels see it. (A DATA_ACK may come over another subflow before TCP's own acknowledgement; and where
            # a middlebox removes DATA_ACKs, it is further data that shows it.)
            if length == stream.length:
                if sender.fin_dsn < 0 and (
                    tcp_config.cork or (not tcp_config.no_delay and sender.una < sender.nxt and in_flight(connection))
                ):
                    break
            # RFC 9293 §3.8.6.2.1: nor is a small window filled while more room must be on its way
            elif sender.una < sender.nxt:
                break
        if sender.una == sender.nxt:
            connection.last_progress_us = now
        chunk = sender.assign(length, subflow.id)
        chunk.sent_us = now
        chunk.ssn_end = give(connection, subflow, chunk.dsn, chunk.payloads, length)
        connection.scheduler.on_given(subflow.path, length)
        if copied:
            connection.push_copies(now)
    if len(connection.subflows_by_id) > 1 and (not stream.length or window_room(connection) < LEAST_USED_WINDOW):
        help_out(connection, now)
    if sender.fin_dsn >= 0 and not sender.fin_sent and not stream.length and send_data_fin(connection):
        connection.last_progress_us = now
    if sender.fin_acked and connection.data_receiver.fin_received and connection.state is not ConnectionState.CLOSED:
        closing.finish(connection, now)


def window_room(connection: Connection) -> int:
    """Octets of new data for which there is room in as much of the shared window as is used."""
    sender = connection.data_sender
    window = sender.window_edge - sender.una
    if len(connection.subflows_by_id) > 1:
        # What follows octets that are late waits at the receiver. Linux counts its bookkeeping against the buffer that
        # the window was made of: packets of one segment each, on top of a hole, fill that buffer when the window is
        # filled to 0.62, and then there is no room for what would close the hole either, for ever.
        # One segment may always go: a window smaller than that would otherwise never be filled.
        window = max(window * USABLE_WINDOW_PERCENT // 100, min(window, LEAST_USED_WINDOW))
    return window - (sender.nxt - sender.una)


def push_reinjection(connection: Connection, now: int) -> bool:
    sender = connection.data_sender
    chunk = sender.next_reinjection()
    if chunk is None:
        return False
    subflow = select(connection, chunk.end - chunk.dsn, now, chunk)
    if subflow is None:
        return False
    limit = min(subflow.path.sendable_bytes, max(subflow.tcp.sender.gso_max_bytes, subflow.tcp.sender.mss), MAX_MAPPING)
    start, views = sender.take_reinjection(chunk, limit, subflow.id)
    chunk.ssn_end = give(connection, subflow, start, views, sum(map(len, views)))
    return True


def select(connection: Connection, length: int, now: int, chunk: Chunk | None) -> Subflow | None:
    """Asks the scheduler; ``chunk`` is None for new data."""
    candidates: list[Subflow] = []
    room = False
    for subflow in connection.subflows_by_id.values():
        if not subflow.pending and not subflow.closing and subflow.tcp.is_established:
            sendable = subflow.tcp.sendable_bytes(now)
            if sendable > 0:
                if connection.environment.has_room(subflow.interface):
                    room = True
                else:
                    connection.environment.hold(connection)
                    sendable = 0
            subflow.path.sendable_bytes = sendable
            candidates.append(subflow)
    if not room:
        return None  # the ordinary end of a round, so that no facts are gathered for it
    if chunk is not None and len(candidates) > 1:
        candidates = [s for s in candidates if s.id not in chunk.carriers] or candidates
    if len(candidates) == 1:
        only = candidates[0]
        return only if only.path.sendable_bytes > 0 else None
    for subflow in candidates:
        refresh(subflow)
    paths = [s.path for s in candidates]
    select = connection.scheduler.select if chunk is None else connection.scheduler.select_reinjection
    path = select(paths, length, now)
    if path is None or path.sendable_bytes <= 0:
        return None
    return connection.subflows_by_id[path.id]


def in_flight(connection: Connection) -> bool:
    """Whether some subflow waits for an acknowledgement of data."""
    for subflow in connection.subflows_by_id.values():
        sender = subflow.tcp.sender
        if sender.una < sender.end and not subflow.stale:
            return True
    return False


def give(connection: Connection, subflow: Subflow, dsn: int, payloads: Sequence[Payload], length: int) -> int:
    """Queues octets of the stream on a subflow, under a mapping; the subflow number after them."""
    tcp = subflow.tcp
    ssn = tcp.sender.end - tcp.iss
    checksum = dss_checksum(dsn, ssn, length, payloads) if connection.checksum else None
    mapping = Mapping(dsn & 0xFFFFFFFFFFFFFFFF, ssn & 0xFFFFFFFF, length, checksum)
    tcp.send_mapped(payloads, length, mapping)
    connection.environment.use_room(subflow.interface, length)
    return ssn + length


def help_out(connection: Connection, now: int) -> None:
    """No new data can be given out: the shared window is full, or there is none. Then a subflow that is idle sends again
    what a slower one holds up at the head of the line, so that the window moves on, or the stream ends, at the pace of
    the faster one."""
    sender = connection.data_sender
    subflows = connection.subflows_by_id
    if len(subflows) < 2 or sender.una == sender.nxt or not connection.scheduler.helps_out:
        return
    idle = [
        s for s in subflows.values()
        if s.is_usable and not s.stale and not s.path.backup and s.path.weight and s.tcp.sender.una == s.tcp.sender.end
    ]  # fmt: skip
    if not idle:
        return
    helper = min(idle, key=lambda s: s.tcp.sender.rtt.srtt_us)
    srtt_us = helper.tcp.sender.rtt.srtt_us
    for chunk in sender.first_chunks(MAX_HELP_CHUNKS):
        carriers = [subflows[c] for c in chunk.carriers if c in subflows and not subflows[c].tcp.is_over]
        if len(carriers) > 1 or (carriers and (carriers[0] is helper or carriers[0].tcp.sender.rtt.srtt_us <= srtt_us)):
            return
        # Sent so lately that the slower subflow may bring it as soon as the faster one could: leave it.
        if now - chunk.sent_us < srtt_us or helper.tcp.sendable_bytes(now) <= 0 or not sender.reinject(chunk):
            return
        connection.counters.bump("helping_reinjection")
        if not push_reinjection(connection, now):
            return


def send_data_fin(connection: Connection) -> bool:
    # RFC 8684 §3.3.3: the DATA_FIN is the last number of the stream; it goes on every subflow that can carry it, so
    # that the loss of one does not delay the close.
    sent = False
    for subflow in connection.subflows_by_id.values():
        if subflow.is_usable:
            subflow.fin_signal = True
            subflow.tcp.send_ack()
            sent = True
    if sent:
        connection.data_sender.fin_sent = True
    return sent


def refresh(subflow: Subflow) -> None:
    """Brings ``subflow.path`` up to date for a strategy, but for ``sendable_bytes``."""
    path, sender = subflow.path, subflow.tcp.sender
    path.stale = subflow.stale
    path.srtt_us = sender.rtt.srtt_us
    path.rttvar_us = sender.rtt.rttvar_us
    path.rtt_min_us = 0 if sender.rtt.min_us == NEVER else sender.rtt.min_us
    path.loss_events = sender.fast_recoveries + sender.timeouts
    path.mss_bytes = sender.mss
    path.cwnd_bytes = sender.congestion.cwnd_bytes
    path.in_flight_bytes = sender.in_flight_bytes
    path.bytes_sent = sender.bytes_sent
    path.bytes_acked = sender.bytes_acked
