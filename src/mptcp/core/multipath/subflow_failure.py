"""Subflows that time out, are closed or end: what they carry goes to others, and what the connection makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.multipath.events import EventKind
from mptcp.core.units import NEVER
from mptcp.core.wire.mptcp_options import RST_MPTCP_SPECIFIC, MpFastclose
from mptcp.errors import ConnectionTimedOut, ConnectionWasReset

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection
    from mptcp.core.multipath.subflow import Subflow


def handle_timeout(connection: Connection, subflow: Subflow, now: int) -> None:
    """An RTO: what the subflow carries is given to others, and it gets nothing new until it answers."""
    connection.paths.subflow_failing(subflow, now)
    others = frozenset(
        s.id for s in connection.subflows_by_id.values() if s is not subflow and s.is_usable and not s.stale
    )
    if not others:
        return
    subflow.stale = True
    # RFC 8684 §3.3.6: "the sender will typically resend the data on other working subflows after a timeout and will
    # keep trying to retransmit the data on the failed subflow too"
    count = connection.data_sender.reinject_carried_by(subflow.id, others)
    subflow.bytes_reinjected += count
    connection.touch()


def relieve(connection: Connection, now: int) -> None:
    """A subflow works, for the first time or again: it takes over from those that have timed out without anybody
    to give their octets to."""
    for subflow in connection.subflows_by_id.values():
        if subflow.stale or subflow.tcp.sender.consecutive_timeouts:
            handle_timeout(connection, subflow, now)


def handle_fin(connection: Connection, subflow: Subflow, now: int) -> None:
    """The peer's FIN on one subflow: it sends nothing more there, and neither do we."""
    # RFC 8684 §3.3.3: "a standard TCP FIN on an individual subflow only shuts down the subflow on which it was sent"
    if is_needed(connection, subflow):
        # Our FIN would tell a peer that has fallen back that this was all. It can still take what it lacks.
        connection.half_closed = True
        return
    subflow.closing = True
    subflow.close_reason = subflow.close_reason or "peer"
    subflow.tcp.close(now)


def finish_half_closed(connection: Connection, now: int) -> None:
    connection.half_closed = False
    for subflow in list(connection.subflows_by_id.values()):
        if subflow.tcp.fin_received and not subflow.closing:
            handle_fin(connection, subflow, now)


def handle_closed(connection: Connection, subflow: Subflow, error: Exception | None, now: int) -> None:
    """A subflow is over (perhaps in TIME-WAIT): what it had in flight goes elsewhere."""
    connection.touch()
    subflow.tcp.sender.congestion.on_close()
    if connection.plain is not None:
        return
    if connection.rival is not None and not connection.rival.tcp.is_over:
        return  # ``racing.settle`` says what becomes of the connection
    if connection.state is ConnectionState.CONNECTING and not subflow.is_join:
        connection.end(error or ConnectionWasReset("the connection was reset"), now)
        return
    subflow.closing = True
    subflow.stale = False
    if not subflow.close_reason:
        subflow.close_reason = "timeout" if isinstance(error, ConnectionTimedOut) else "closed"
    connection.event(EventKind.SUBFLOW_CLOSED, now, subflow=subflow, reason=subflow.close_reason)
    if connection.config.fate_sharing and subflow.id == connection.initial_id and not _is_ended_well(connection):
        # RFC 6897 §4.2.2: "the MPTCP stack MAY close the whole MPTCP connection if the first subflow is closed"
        connection.reset_all(now, MpFastclose(connection.remote_key))
        connection.end(
            error or ConnectionWasReset("the first subflow has ended, and the connection shares its fate"), now
        )
        return
    alive = frozenset(s.id for s in connection.open_subflows() if s is not subflow and not s.is_half_open)
    # A copy on a subflow that does not answer is not worth much, unless there is no other subflow.
    working = frozenset(i for i in alive if not connection.subflows_by_id[i].stale)
    subflow.bytes_reinjected += connection.data_sender.reinject_carried_by(subflow.id, working or alive)
    connection.data_sender.drop_carrier(
        subflow.id, {i: s.tcp.sender.end - s.tcp.iss for i, s in connection.subflows_by_id.items() if i in alive}
    )
    if connection.state is ConnectionState.CLOSED:
        return
    if connection.fast_close and not alive:
        connection.end(None, now)
        return
    if not alive:
        if _is_ended_well(connection):
            connection.end(None, now)
            return
        was_reset = subflow.close_reason.startswith("reset") or subflow.close_reason == "refused"
        if was_reset and connection.is_client and not connection.is_fully_established and connection.is_alone(subflow):
            # RFC 8684 §3.1: no further subflow before the peer has shown that it knows our key: none can be waited for.
            connection.end(error or ConnectionWasReset("the connection was reset"), now)
            return
        if connection.failure is not None:
            connection.end(error or ConnectionWasReset("the connection was reset"), now)
            return
        if connection.lonely_since_us == NEVER:
            connection.lonely_since_us = now
        # RFC 8684 §3.2: "If the token is unknown ... containing an MP_TCPRST option (Section 3.6) with an "MPTCP
        # specific error" reason code." A RST without it says only that nobody listens on that port just now, or comes
        # from a box on the way: such a path may come back, and §3.3.3 has the connection wait for it.
        unknown = subflow.close_reason == f"reset-{RST_MPTCP_SPECIFIC}"
        if unknown and subflow.is_join and subflow.pending and connection.is_alone(subflow):
            # The peer does not know the connection any more: waiting for a path would be in vain.
            connection.end(ConnectionWasReset("the peer no longer knows this connection"), now)
            return
    connection.paths.subflow_closed(subflow, now)


def _is_ended_well(connection: Connection) -> bool:
    """Both streams have ended, and both sides know."""
    return connection.state is ConnectionState.CLOSED or (
        connection.data_sender.fin_acked and connection.data_receiver.fin_received
    )


def is_needed(connection: Connection, subflow: Subflow) -> bool:
    """Whether closing it could lose octets."""
    # RFC 8684 §3.3.3: "a host MUST NOT close all functioning subflows unless it is safe to do so, i.e., until all
    # outstanding data has been DATA_ACKed or until the segment with the DATA_FIN flag set is the only outstanding
    # segment."
    return (
        subflow.is_usable
        and connection.data_sender.buffered_bytes > 0
        and not any(s is not subflow and s.is_usable and not s.stale for s in connection.subflows_by_id.values())
    )
