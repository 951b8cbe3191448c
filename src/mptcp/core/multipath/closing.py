"""How connections end: DATA_FIN on both sides (RFC 8684 §3.3.3), MP_FASTCLOSE (§3.5), and the timers of the data level."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.tcp.extension import Verdict
from mptcp.core.units import MILLISECOND, NEVER
from mptcp.core.wire.mptcp_options import RST_TOO_MUCH_OUTSTANDING_DATA, MpFastclose, MpTcprst
from mptcp.core.wire.segment import RST, Segment
from mptcp.errors import ConnectionTimedOut, ConnectionWasReset

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection
    from mptcp.core.multipath.subflow import Subflow

#: How long the head of the line may be acknowledged by its subflow but not at the data level, at the least.
DATA_TIMEOUT_MIN_US = 300 * MILLISECOND

#: A DATA_FIN that is never acknowledged is given up after this many repetitions.
DATA_FIN_RETRIES = 8


def data_deadline(connection: Connection) -> int:
    sender = connection.data_sender
    if sender.una == sender.nxt and not (sender.fin_sent and not sender.fin_acked) and not connection.fast_close:
        if connection.user_closed and sender.fin_acked:
            return connection.last_progress_us + connection.config.tcp.fin_wait_2_us
        return NEVER
    longest = 0
    for subflow in connection.subflows_by_id.values():
        if not subflow.stale and subflow.tcp.sender.rtt.rto_us > longest:
            longest = subflow.tcp.sender.rtt.rto_us
    if sender.una == sender.nxt or connection.fast_close:
        return connection.last_progress_us + (max(longest, 1000) << min(sender.retries, 10))
    return connection.last_progress_us + (max(2 * longest, DATA_TIMEOUT_MIN_US) << min(sender.retries, 6))


def handle_data_timeout(connection: Connection, now: int) -> None:
    """The data level makes no progress although subflows may: a lost DATA_FIN, or data lost above TCP."""
    sender = connection.data_sender
    if connection.fast_close:
        _handle_fastclose_timeout(connection, now)
        return
    if sender.una == sender.nxt:
        if sender.fin_acked:
            # The peer does not close its side, and nobody is left here to read what it sends.
            connection.reset_all(now, MpFastclose(connection.remote_key))
            connection.end(None, now)
            return
        sender.retries += 1
        connection.last_progress_us = now
        if sender.retries > DATA_FIN_RETRIES:
            connection.reset_all(now, MpFastclose(connection.remote_key))
            connection.end(ConnectionTimedOut("the DATA_FIN was never acknowledged"), now)
            return
        connection.repeat_data_fin()
        return
    sender.retries += 1
    connection.last_progress_us = now
    # RFC 8684 §3.3.6: "A timer is set when the head of the connection level is ACKed at the subflow level but is not
    # DATA_ACKed at the data level. This timer will guard against retransmission failures by middleboxes that
    # proactively ACK data." What TCP still works on is left to it.
    acked = {s.id: s.tcp.sender.una - s.tcp.iss for s in connection.subflows_by_id.values()}
    head = sender.head()
    if head is not None and acked.get(head.carriers[-1], 1 << 62) >= head.ssn_end:
        connection.counters.bump("data_timeout_reinjection", sender.reinject_lost(acked))


def _handle_fastclose_timeout(connection: Connection, now: int) -> None:
    # RFC 8684 §3.5: "If Host A does not receive a TCP RST in reply to its MP_FASTCLOSE after one retransmission
    # timeout (RTO) ... it SHOULD retransmit the MP_FASTCLOSE ... SHOULD send a TCP RST with the MP_FASTCLOSE option
    # itself when it releases state"
    connection.last_progress_us = now
    subflow = connection.signalling_subflow()
    if connection.fast_close > connection.config.fastclose_retries or subflow is None:
        connection.reset_all(now, MpFastclose(connection.remote_key))
        connection.end(None, now)
        return
    connection.fast_close += 1
    subflow.signal(MpFastclose(connection.remote_key))


def handle_fastclose(
    connection: Connection, subflow: Subflow, option: MpFastclose, segment: Segment, now: int
) -> Verdict:
    if option.receiver_key != connection.local_key or connection.plain is not None:
        connection.counters.bump("fastclose_bad_key")
        return Verdict.ACCEPT
    if connection.state is ConnectionState.CLOSED:
        return Verdict.ACCEPT
    # RFC 8684 §3.5: "Upon receipt of an ACK with MP_FASTCLOSE by Host B, containing the valid key, Host B answers on
    # the same subflow with a TCP RST and tears down all subflows also through sending TCP RST signals."
    connection.end(ConnectionWasReset("the peer closed the connection abruptly (MP_FASTCLOSE)"), now)
    by_reset = bool(segment.flags & RST)
    for other in connection.open_subflows():
        if not (by_reset and other is subflow):
            other.close_reason = "fastclose"
            if other is not subflow:
                other.tcp.abort(now)
    subflow.close_reason = "fastclose"
    return Verdict.ACCEPT if by_reset else Verdict.RESET


def finish(connection: Connection, now: int) -> None:
    # RFC 8684 §3.3.3: "Once a DATA_FIN has been acknowledged, all remaining subflows MUST be closed with standard FIN
    # exchanges." "A connection is considered closed once both hosts' DATA_FINs have been acknowledged by DATA_ACKs."
    for subflow in connection.open_subflows():
        subflow.closing = True
        subflow.close_reason = subflow.close_reason or "connection closed"
        if subflow.pending or not subflow.tcp.is_established:
            subflow.tcp.abort(now)
        elif subflow.stale:
            # "any subflows where there is still outstanding data queued ... MAY be closed with a RST with an
            # MP_TCPRST (Section 3.6) error code for "too much outstanding data"": where a timeout has shown that the
            # path does not work, that is. What is merely on its way gets its acknowledgement and its FIN.
            subflow.reset_reason = MpTcprst(RST_TOO_MUCH_OUTSTANDING_DATA)
            subflow.tcp.abort(now)
        else:
            subflow.tcp.close(now)
    connection.end(None, now)
