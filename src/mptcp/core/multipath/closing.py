"""How connections end: DATA_FIN on both sides (RFC 8684 §3.3.3), MP_FASTCLOSE (§3.5), and the timers of the data level."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.tcp.extension import Verdict
from mptcp.core.units import MILLISECOND, NEVER
from mptcp.core.wire.mptcp_options import (
    RST_MIDDLEBOX_INTERFERENCE,
    RST_TOO_MUCH_OUTSTANDING_DATA,
    MpFastclose,
    MpTcprst,
)
from mptcp.core.wire.segment import RST, Segment
from mptcp.errors import ConnectionTimedOut, ConnectionWasReset

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection
    from mptcp.core.multipath.subflow import Subflow

#: How long the head of the line may be acknowledged by its subflow but not at the data level, at the least.
DATA_TIMEOUT_MIN_US = 100 * MILLISECOND

#: A DATA_FIN that is never acknowledged is given up after as many repetitions as data is; or, once the application has
#: closed the connection, after these.
DATA_FIN_ORPHAN_RETRIES = 8


def data_deadline(connection: Connection) -> int:
    sender = connection.data_sender
    if sender.una == sender.nxt and not (sender.fin_sent and not sender.fin_acked) and not connection.fast_close:
        if sender.stream.length:
            return _window_probe_deadline(connection)
        if connection.user_closed and sender.fin_acked:
            return connection.last_progress_us + connection.config.tcp.fin_wait_2_us
        return NEVER
    longest = longest_srtt = 0
    for subflow in connection.subflows_by_id.values():
        if not subflow.stale:
            rtt = subflow.tcp.sender.rtt
            longest = max(longest, rtt.rto_us)
            longest_srtt = max(longest_srtt, rtt.srtt_us)
    if connection.fast_close:
        return connection.last_progress_us + (max(longest, MILLISECOND) << min(sender.retries, 10))
    if sender.una == sender.nxt:
        return _data_fin_deadline(connection)
    return connection.last_progress_us + (max(2 * longest_srtt, DATA_TIMEOUT_MIN_US) << min(sender.retries, 8))


def _data_fin_deadline(connection: Connection) -> int:
    longest = max((s.tcp.sender.rtt.rto_us for s in connection.subflows_by_id.values() if s.is_usable), default=0)
    if not longest:
        return NEVER  # it cannot be sent; how long that may last is a question of its own (``lonely_since_us``)
    wait = min(longest << min(connection.data_sender.retries, 10), connection.config.tcp.rto_max_us)
    return connection.last_progress_us + wait


def _window_probe_deadline(connection: Connection) -> int:
    """Data waits, everything before it is acknowledged. If it is the shared window that is closed, and TCP's own of a
    subflow is not (its edge is older, and never moves back), then no persist timer of TCP asks for it."""
    sender = connection.data_sender
    if sender.window_edge > sender.nxt:
        return NEVER
    longest = 0
    for subflow in connection.subflows_by_id.values():
        if subflow.is_usable:
            if subflow.tcp.sender.window_edge <= subflow.tcp.sender.nxt:
                return NEVER
            longest = max(longest, subflow.tcp.sender.rtt.rto_us)
    if not longest:
        return NEVER
    return connection.last_progress_us + min(longest << min(sender.retries, 10), connection.config.tcp.rto_max_us)


def handle_data_timeout(connection: Connection, now: int) -> None:
    """The data level makes no progress although subflows may: a lost DATA_FIN, or data lost above TCP."""
    sender = connection.data_sender
    if connection.fast_close:
        _handle_fastclose_timeout(connection, now)
        return
    if sender.una == sender.nxt:
        if sender.stream.length:
            sender.retries += 1
            connection.last_progress_us = now
            subflow = connection.signalling_subflow()
            if subflow is not None:
                # RFC 9293 §3.8.6.1: "The sending TCP peer must regularly transmit ... in order to "probe" the window."
                connection.counters.bump("data_window_probe")
                subflow.tcp.send_keepalive(now)
            return
        if sender.fin_acked:
            # The peer does not close its side, and nobody is left here to read what it sends.
            connection.reset_all(now, MpFastclose(connection.remote_key))
            connection.end(None, now)
            return
        sender.retries += 1
        connection.last_progress_us = now
        limit = connection.config.tcp.data_retries
        if sender.retries > (min(limit, DATA_FIN_ORPHAN_RETRIES) if connection.user_closed else limit):
            connection.reset_all(now, MpFastclose(connection.remote_key))
            connection.end(ConnectionTimedOut("the DATA_FIN was never acknowledged"), now)
            return
        connection.repeat_data_fin()
        return
    connection.last_progress_us = now
    if connection.failure is not None:
        return  # a peer that has reverted acknowledges with TCP alone
    sender.retries += 1
    # RFC 8684 §3.3.6: "A timer is set when the head of the connection level is ACKed at the subflow level but is not
    # DATA_ACKed at the data level. This timer will guard against retransmission failures by middleboxes that
    # proactively ACK data." The DATA_ACK may only be late, or lost: the peer is asked for it before anything is sent
    # again.
    carrier = delivered_by(connection)
    if carrier is not None:
        connection.counters.bump("data_timeout")
        if sender.retries > connection.config.tcp.data_retries:
            # TCP answers there, but nobody who knows the data level.
            carrier.close_reason = "middlebox"
            connection.break_subflow(carrier, MpTcprst(RST_MIDDLEBOX_INTERFERENCE))
            return
        connection.asked_us = now
        carrier.tcp.send_keepalive(now)


def delivered_by(connection: Connection) -> Subflow | None:
    """The subflow whose TCP has delivered the head of the line, though the data level has not acknowledged it."""
    head = connection.data_sender.head()
    if head is None:
        return None
    carrier = connection.subflows_by_id.get(head.carriers[-1])
    if carrier is None or carrier.tcp.sender.una - carrier.tcp.iss < head.ssn_end:
        return None  # TCP is still at it
    return carrier


def handle_answer(connection: Connection, subflow: Subflow, now: int) -> None:
    """A DATA_ACK has come after the peer was asked: what it still lacks was lost above TCP, and is sent again."""
    carrier = delivered_by(connection)
    if carrier is None:
        connection.asked_us = NEVER
    elif subflow is carrier and (
        # What was on its way already is no answer. The path may have become shorter than its RTT was, so that the
        # measure shrinks with every question.
        now - connection.asked_us >= subflow.tcp.sender.rtt.srtt_us >> max(1, connection.data_sender.retries)
    ):
        connection.asked_us = NEVER
        acked = {s.id: s.tcp.sender.una - s.tcp.iss for s in connection.subflows_by_id.values()}
        connection.counters.bump("data_timeout_reinjection", connection.data_sender.reinject_lost(acked))
        connection.data_sender.retries = 0  # the peer is there


def abort(connection: Connection, now: int) -> None:
    """Ends the connection at once: MP_FASTCLOSE (RFC 8684 §3.5), or RST after fallback."""
    subflows = connection.open_subflows()
    by_reset = connection.config.fastclose_by_reset and connection.version > 0  # RFC 6824 has the ACK alone
    if connection.plain is None and connection.remote_key and not by_reset and subflows:
        # RFC 8684 §3.5, option A: "an ACK containing the MP_FASTCLOSE option on one subflow ... On all the other
        # subflows, Host A sends a regular TCP RST"
        chosen = connection.signalling_subflow() or subflows[0]
        connection.fast_close = 1
        connection.last_progress_us = now
        chosen.signal(MpFastclose(connection.remote_key))
        for subflow in subflows:
            if subflow is not chosen:
                subflow.tcp.abort(now)
        connection.state = ConnectionState.CLOSING
        connection.touch()
        return
    connection.reset_all(now, MpFastclose(connection.remote_key) if connection.remote_key else None)
    connection.end(None, now)


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
