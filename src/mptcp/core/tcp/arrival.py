"""SEGMENT ARRIVES: RFC 9293 §3.10.7.4, in its order, with RFC 5961, RFC 7323 and RFC 3168 in their places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from mptcp.core.tcp import handshake
from mptcp.core.tcp.extension import Verdict
from mptcp.core.tcp.states import RECEIVING, State
from mptcp.core.wire.mptcp_options import Dss
from mptcp.core.wire.segment import ACK, ECE, FIN, RST, SYN, URG, Payload, Segment
from mptcp.core.wire.sequence import MASK32, unwrap32
from mptcp.errors import ConnectionAborted, ConnectionRefused, ConnectionWasReset

if TYPE_CHECKING:
    from mptcp.core.tcp.connection import Connection

_CLOSED: Final = State.CLOSED


def handle_segment(connection: Connection, segment: Segment, now: int) -> None:
    """Any segment, in any state."""
    state = connection.state
    counters = connection.counters
    if state is State.SYN_SENT:
        handshake.handle_syn_sent(connection, segment, now)
        return
    if state is State.CLOSED or state is State.LISTEN:
        # the host answers for connections that are gone; nothing is due here
        counters.bump("segment_for_closed_connection")
        return
    receiver, sender, timestamps = connection.receiver, connection.sender, connection.timestamps
    flags, length = segment.flags, segment.length
    seq = unwrap32(segment.seq, receiver.nxt)

    if state is State.SYN_RECEIVED and flags & SYN and not flags & RST and seq == connection.irs:
        if not flags & ACK:
            # the peer has not heard our SYN/ACK: once more, without counting it as a timeout
            connection.syn_wanted = True
            return
        # Simultaneous open: the peer's SYN/ACK repeats a SYN we have; what follows the SYN is processed
        # (RFC 9293 §3.5, figure 7)
        flags &= ~SYN
        seq += 1

    # RFC 7323 §5.3 R1: "If there is a Timestamps option in the arriving segment, SEG.TSval < TS.Recent, TS.Recent is
    # valid [...], and if the RST bit is not set, then treat the arriving segment as not acceptable"
    options = segment.options
    value = options.timestamp_value if timestamps.enabled else None
    if value is not None:
        if not flags & RST and timestamps.is_old(value, now):
            counters.bump("paws_rejected")  # older than the newest timestamp seen
            answer_unacceptable(connection, seq, length, now)
            return
    elif timestamps.enabled and not flags & RST:
        # RFC 7323 §3.2 says such a segment SHOULD be dropped; Linux takes it; so do we, because boxes that strip
        # options in mid-connection would otherwise end the connection
        counters.bump("timestamp_missing")

    # First, check sequence number
    fin = flags & FIN
    edge = receiver.window.edge
    if connection.extension is not None:
        # what the shared window admits by now is acceptable, even if this subflow has not announced it yet
        edge = max(edge, receiver.nxt + connection.extension.receive_window())
    sequence_length = length + fin + (flags >> 1 & 1)
    payload_allowed = True
    if not receiver.is_acceptable(seq, sequence_length, edge):
        # §3.10.7.4: "If the RCV.WND is zero, no segments will be acceptable, but special allowance should be made to
        # accept valid ACKs, URGs, and RSTs."
        if seq == receiver.nxt and edge <= receiver.nxt and not flags & (SYN | RST):
            payload_allowed = False
            receiver.ack.due = True
            counters.bump("zero_window_segment")  # at the edge of a closed window: its ACK counts, its data does not
        else:
            counters.bump("segment_outside_window")  # nothing of it is within the receive window
            if flags & RST:
                return
            if state is State.TIME_WAIT and fin:
                # §3.10.7.4: "The only thing that can arrive in this state is a retransmission of the remote FIN.
                # Acknowledge it, and restart the 2 MSL timeout."
                connection.timer = now + connection.config.time_wait_us
            answer_unacceptable(connection, seq, length, now, fin)
            return

    # Second, check the RST bit (RFC 5961 §3.2)
    if flags & RST:
        if seq != receiver.nxt:
            counters.bump("challenged_reset")  # RST within the window, but not exactly the next number
            send_challenge(connection, now)
            return
        take_reset(connection, segment, now)
        return

    # Third, security: nothing. Fourth, check the SYN bit (RFC 5961 §4.2)
    if flags & SYN:
        # RFC 9293 §3.10.7.4: "if the SYN bit is set, irrespective of the sequence number, TCP endpoints MUST send a
        # "challenge ACK" to the remote peer"
        counters.bump("challenged_syn")
        send_challenge(connection, now)
        return

    # Fifth, check the ACK field: "if the ACK bit is off, drop the segment and return"
    if not flags & ACK:
        counters.bump("segment_without_ack")
        return
    ack = unwrap32(segment.ack, sender.una)
    if state is State.SYN_RECEIVED:
        if ack != connection.iss + 1:
            # "If the segment acknowledgment is not acceptable, form a reset segment <SEQ=SEG.ACK><CTL=RST>"
            counters.bump("syn_received_bad_ack")
            connection.reply_reset(segment)
            return
    elif ack > sender.nxt or ack < sender.una - connection.max_window:
        # RFC 5961 §5.2: "All incoming segments whose ACK value doesn't satisfy the above condition MUST be discarded
        # and an ACK sent back."
        counters.bump("ack_outside_window")
        send_challenge(connection, now)
        return

    if value is not None and seq <= receiver.last_ack_sent:
        timestamps.update(value, now)
    connection.last_received_us = now

    extension = connection.extension
    if extension is not None:
        verdict = extension.handle_options(segment, now)
        if verdict is not Verdict.ACCEPT or connection.state is _CLOSED:
            refuse(connection, verdict, now)
            return

    if state is State.SYN_RECEIVED:
        handshake.measure_rtt(connection, segment, now)
        handshake.take_window(connection, seq, ack, segment.window << connection.send_scale)
        handshake.establish(connection, now)
        if connection.state is _CLOSED:
            return
    process_ack(connection, segment, seq, ack, now)
    if connection.state is _CLOSED:
        return

    # Sixth, check the URG bit
    if flags & URG and connection.state in RECEIVING and length:
        # §3.10.7.4: "RCV.UP <- max(RCV.UP,SEG.UP)"
        pointer = seq + segment.urgent_pointer
        if receiver.nxt < pointer <= edge + 0x10000 and pointer > connection.receive_urgent:
            connection.receive_urgent = pointer
            counters.bump("urgent_data")  # an urgent pointer moved on

    # Seventh, process the segment text. Eighth, check the FIN bit
    if (length or fin) and connection.state in RECEIVING:
        take_text(connection, segment, seq, edge, payload_allowed, bool(fin), now)


def take_text(
    connection: Connection, segment: Segment, seq: int, edge: int, payload_allowed: bool, fin: bool, now: int
) -> None:
    """Data and FIN of an acceptable segment, in a state that takes them."""
    receiver = connection.receiver
    length = segment.length
    end = seq + length
    if fin and receiver.fin_seq < 0 and end <= max(edge, receiver.nxt) and (payload_allowed or not length):
        if end < receiver.nxt:
            connection.counters.bump("fin_before_data")  # a FIN that lies before octets already taken
        else:
            receiver.fin_seq = end
    if length:
        if connection.orphan and connection.extension is None:
            # RFC 9293 §3.6.1: "if new data is received after CLOSE is called, its TCP implementation SHOULD send a RST
            # to show that data was lost (SHLD-3)"
            connection.counters.bump("data_after_close")
            connection.abort(now)
            return
        if connection.ecn is not None:
            connection.ecn.handle_data(segment.ecn, segment.flags)
        if payload_allowed:
            payloads = segment.payloads
            payload: Payload = payloads[0] if len(payloads) == 1 else b"".join(payloads)
            before = receiver.nxt
            pieces = receiver.take(seq, payload, edge, segment.mss, now, connection.config.quick_ack)
            if pieces is not None:
                deliver(connection, before, pieces, now)
                if connection.state is _CLOSED:
                    return
                if connection.extension is None:
                    tune_buffer(connection, segment, now)
    if receiver.fin_seq == receiver.nxt:
        take_fin(connection, now)
    elif fin:
        receiver.owe_duplicate_ack()


def take_fin(connection: Connection, now: int) -> None:
    """The peer's FIN is next: "advance RCV.NXT over the FIN, and send an acknowledgment for the FIN"."""
    receiver = connection.receiver
    receiver.nxt += 1
    receiver.reassembly = None
    receiver.ack.due = True
    connection.fin_received = True
    state = connection.state
    if state is State.ESTABLISHED:
        connection.become(State.CLOSE_WAIT)
    elif state is State.FIN_WAIT_1:
        # our FIN, had this segment acknowledged it, would have led to FIN-WAIT-2
        connection.become(State.CLOSING)
    elif state is State.FIN_WAIT_2:
        if connection.extension is not None:
            connection.extension.handle_fin(now)
        if connection.state is State.FIN_WAIT_2:
            connection.enter_time_wait(now)
        return
    if connection.extension is not None:
        connection.extension.handle_fin(now)


def deliver(connection: Connection, seq: int, pieces: Sequence[Payload], now: int) -> None:
    """In-order octets from ``seq`` on: to the extension while there is one, else to the connection's own buffer."""
    extension = connection.extension
    if extension is None:
        append = connection.receiver.buffer.append
        for piece in pieces:
            append(piece)
        return
    ssn = seq - connection.irs
    for piece in pieces:
        if extension is None:
            connection.receiver.buffer.append(piece)
            continue
        view = piece if isinstance(piece, memoryview) else memoryview(piece)
        extension.handle_data(ssn, view, now)
        if connection.state is _CLOSED:
            return
        ssn += len(view)
        extension = connection.extension  # it may have taken itself away


def tune_buffer(connection: Connection, segment: Segment, now: int) -> None:
    """Receive-buffer auto-tuning, once per round trip."""
    tuner = connection.receiver.tuner
    if tuner.size >= tuner.maximum or now < tuner.next_at:
        return
    rtt_us = -1
    if connection.timestamps.enabled and segment.options.timestamp_value is not None:
        rtt_us = connection.timestamps.echo_rtt_us(segment.options.timestamp_echo, now)
    elif connection.sender.rtt.samples:
        rtt_us = connection.sender.rtt.srtt_us
    tuner.update(connection.receiver.buffer.total_read, rtt_us, now)


def process_ack(connection: Connection, segment: Segment, seq: int, ack: int, now: int) -> None:
    """RFC 9293 §3.10.7.4, fifth: ``ack`` is within what RFC 5961 allows."""
    sender = connection.sender
    una = sender.una
    field = segment.window
    window = field << connection.send_scale
    # "If (SND.WL1 < SEG.SEQ or (SND.WL1 = SEG.SEQ and SND.WL2 =< SEG.ACK)), set SND.WND <- SEG.WND"
    if ack >= una and (connection.window_seq < seq or (connection.window_seq == seq and connection.window_ack <= ack)):
        connection.window_seq = seq
        connection.window_ack = ack
        connection.last_window_field = field
        if window > connection.max_window:
            connection.max_window = window
    else:
        window = -1  # an old segment: what it says of the window is out of date
    options = segment.options
    wire_blocks = options.sack_blocks
    blocks: Sequence[tuple[int, int]] = ()
    if wire_blocks and connection.receiver.sack_enabled:
        blocks = [(una + _signed(left - una), una + _signed(right - una)) for left, right in wire_blocks]
    rtt_us = -1
    if ack > una and connection.timestamps.enabled and options.timestamp_value is not None:
        rtt_us = connection.timestamps.echo_rtt_us(options.timestamp_echo, now)
    ece = connection.ecn is not None and segment.flags & ECE != 0
    # RFC 5681 §2: a duplicate acknowledgement has no data, no SYN or FIN (that the window is the same is for the sender
    # to see)
    pure = segment.length == 0 and not segment.flags & FIN
    if pure and options.mptcp and not blocks:
        # RFC 8684 §3.4.1: "an MPTCP implementation MUST NOT treat duplicate ACKs with any MPTCP option, with the
        # exception of the DSS option, as indications of congestion"
        pure = all(isinstance(option, Dss) for option in options.mptcp)
    acked = sender.handle_ack(ack, window, now, sack_blocks=blocks, rtt_echo_us=rtt_us, ece=ece, pure=pure)
    if acked <= 0:
        return
    if connection.user_timeout is not None:
        connection.user_timeout.progress_at = now
    if connection.path_mtu.trial_end >= 0:
        connection.path_mtu.handle_acked(sender.una)
    extension = connection.extension
    if extension is not None:
        extension.handle_acked(min(ack, sender.una) - connection.iss, now)
        if connection.state is _CLOSED:
            return
    state = connection.state
    if state is State.ESTABLISHED or state is State.CLOSE_WAIT:
        return
    if sender.una >= sender.end:
        fin_acked(connection, now)


def fin_acked(connection: Connection, now: int) -> None:
    """Everything we sent is acknowledged, our FIN included."""
    state = connection.state
    if state is State.FIN_WAIT_1:
        connection.become(State.FIN_WAIT_2)
        if connection.orphan:
            # nobody reads any more: the peer's FIN is waited for, but not for ever
            connection.timer = now + connection.config.fin_wait_2_us
    elif state is State.CLOSING:
        connection.enter_time_wait(now)
    elif state is State.LAST_ACK:
        connection.end(None, now)


def take_reset(connection: Connection, segment: Segment, now: int) -> None:
    """An RST with exactly the next sequence number: "TCP endpoints MUST reset the connection"."""
    state = connection.state
    connection.counters.bump("reset_received")  # an acceptable RST
    if connection.extension is not None and state is not State.TIME_WAIT:
        connection.extension.handle_reset(segment, now)
    if state is State.SYN_RECEIVED:
        # "If this connection was initiated with a passive OPEN [...] The user need not be informed. If [...] with an
        # active OPEN [...], then the connection was refused"
        if connection.passive:
            connection.end(ConnectionWasReset("reset during the handshake"), now)
        else:
            connection.end(ConnectionRefused("the peer refused the connection"), now)
    elif state is State.TIME_WAIT or state is State.CLOSING or state is State.LAST_ACK:
        connection.end(None if state is State.TIME_WAIT else ConnectionWasReset("reset by the peer"), now)
    else:
        connection.end(ConnectionWasReset("reset by the peer"), now)


def refuse(connection: Connection, verdict: Verdict, now: int) -> None:
    """The extension did not accept a segment, or has ended the connection meanwhile."""
    if connection.state is _CLOSED or verdict is Verdict.ACCEPT:
        return
    if verdict is Verdict.DROP:
        connection.counters.bump("dropped_by_extension")  # the extension (MPTCP) wanted the segment ignored
    else:
        connection.counters.bump("reset_by_extension")  # the extension (MPTCP) wanted the connection reset
        connection.abort(now, ConnectionAborted("reset because of the options of a segment"))


def answer_unacceptable(connection: Connection, seq: int, length: int, now: int, fin: int = 0) -> None:
    """ "If an incoming segment is not acceptable, an acknowledgment should be sent in reply"."""
    receiver = connection.receiver
    if length or fin:
        end = seq + length
        if length and seq < receiver.nxt and end <= receiver.nxt:
            # RFC 2883 §4.1: the first block reports the duplicate segment
            receiver.duplicate = (seq, end)
            receiver.owe_duplicate_ack()
        else:
            receiver.ack.due = True
    else:
        # nothing in it: two confused peers could answer each other for ever (RFC 5961 §10)
        send_challenge(connection, now)


def send_challenge(connection: Connection, now: int) -> None:
    """RFC 5961: an ACK for what looks wrong, at a limited rate."""
    if connection.allow_challenge(now):
        connection.counters.bump("challenge_ack_sent")  # an ACK that asks the peer whether it meant that
        connection.receiver.ack.due = True
    else:
        connection.counters.bump("challenge_ack_limited")  # RFC 5961 §7: more than the limit of provoked ACKs


def _signed(difference: int) -> int:
    return ((difference + 0x80000000) & MASK32) - 0x80000000
