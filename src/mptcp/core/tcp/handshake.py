"""The three-way handshake: what our SYN offers, what the peer's SYN accepts (RFC 9293 §3.5, RFC 7323, RFC 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mptcp.core.congestion.base import CongestionControl
from mptcp.core.congestion.cubic import Cubic
from mptcp.core.tcp import departure, timers
from mptcp.core.tcp.ecn import Ecn
from mptcp.core.tcp.extension import Verdict
from mptcp.core.tcp.receive_window import MAX_UNSCALED_WINDOW, MAX_WINDOW_SCALE, window_scale_for
from mptcp.core.tcp.sender import Sender, initial_window_bytes
from mptcp.core.tcp.states import State
from mptcp.core.units import MILLISECOND, NEVER
from mptcp.core.wire.segment import ACK, CWR, ECE, RST, SYN, Options, Segment
from mptcp.core.wire.sequence import MASK32
from mptcp.errors import ConnectionAborted, ConnectionRefused, ConnectionTimedOut

if TYPE_CHECKING:
    from mptcp.core.tcp.connection import Connection

#: RFC 3168 §6.1.1.1: a SYN that asks for ECN may be what some box drops; after so many the next ones do not ask.
ECN_SYN_ATTEMPTS: Final = 2
#: A peer that announces less is taken to mean this: a hostile MSS of 1 would turn every write into a storm.
MIN_PEER_MSS: Final = 88


def send_syn(connection: Connection, now: int) -> None:
    """Our SYN, or SYN/ACK, is to leave at the next poll, for the first time."""
    connection.syn_wanted = True
    connection.syn_started_at = connection.syn_sent_at = now
    connection.timer = now + connection.config.rto_initial_us


def make_syn(connection: Connection, now: int) -> Segment:
    """SYN in SYN-SENT, SYN/ACK in SYN-RECEIVED."""
    config, timestamps, receiver = connection.config, connection.timestamps, connection.receiver
    extension = connection.extension
    connection.syn_wanted = False
    answering = connection.state is State.SYN_RECEIVED
    mss = connection.path_mtu.link_mtu - connection.path_mtu.header_bytes
    if config.max_segment_bytes:
        mss = min(mss, config.max_segment_bytes)
    # RFC 7323 §1.3: options of a SYN/ACK only in answer to the same option of the SYN
    with_timestamps = timestamps.enabled if answering else config.timestamps
    with_scale = connection.window_scaling if answering else config.window_scaling
    with_sack = receiver.sack_enabled if answering else config.sack
    options = Options(
        # RFC 9293 §3.7.1: "TCP implementations SHOULD send an MSS Option in every SYN segment when its receive MSS
        # differs from the default [...] and MAY send it always (MAY-3)"
        mss=min(mss, 65535),
        window_scale=window_scale_for(config.receive_buffer_max_bytes) if with_scale else None,
        sack_permitted=with_sack,
        timestamp_value=timestamps.value(now) if with_timestamps else None,
        timestamp_echo=timestamps.recent if answering else 0,
        mptcp=extension.syn_options() if extension is not None else (),
    )
    if answering:
        flags = SYN | ACK
        if connection.ecn is not None:
            flags |= ECE
    else:
        flags = SYN
        if config.ecn and connection.syn_retransmissions < ECN_SYN_ATTEMPTS:
            flags |= ECE | CWR
    # RFC 7323 §2.2: "The window field in a segment where the SYN bit is set (i.e., a <SYN> or <SYN,ACK>) MUST NOT be
    # scaled"
    window = min(connection.receive_room(), MAX_UNSCALED_WINDOW)
    if answering:
        receiver.window.edge = max(receiver.window.edge, receiver.nxt + window)
        receiver.handle_ack_sent()
    connection.segments_sent += 1
    return Segment(
        connection.iss, receiver.nxt & MASK32 if answering else 0, flags, window=window, options=options, length=0
    )


def handle_listen(connection: Connection, segment: Segment, now: int) -> None:
    """RFC 9293 §3.10.7.2: the SYN of a passive open."""
    extension = connection.extension
    if extension is not None:
        verdict = extension.handle_syn_options(segment, now)
        if verdict is not Verdict.ACCEPT:
            if verdict is Verdict.RESET:
                connection.reply_reset(segment)
            connection.end(ConnectionAborted("the SYN was refused"), now)
            return
    take_syn(connection, segment, now)
    connection.become(State.SYN_RECEIVED)
    send_syn(connection, now)


def handle_syn_sent(connection: Connection, segment: Segment, now: int) -> None:
    """RFC 9293 §3.10.7.3."""
    flags = segment.flags
    counters = connection.counters
    has_ack = bool(flags & ACK)
    if has_ack and segment.ack != (connection.iss + 1) & MASK32:
        # §3.10.7.3: "If SEG.ACK =< ISS or SEG.ACK > SND.NXT, send a reset (unless the RST bit is set, if so drop the
        # segment and return)"
        counters.bump("syn_sent_bad_ack")
        if not flags & RST:
            connection.reply_reset(segment)
        return
    if flags & RST:
        # §3.10.7.3: "If the ACK was acceptable, then signal to the user "error: connection reset" [...] Otherwise (no
        # ACK), drop the segment and return"
        if has_ack:
            if connection.extension is not None:
                connection.extension.handle_reset(segment, now)
            connection.end(ConnectionRefused("the peer refused the connection"), now)
        else:
            counters.bump("syn_sent_reset_without_ack")  # RST in SYN-SENT that does not prove to answer our SYN
        return
    if not flags & SYN:
        counters.bump("syn_sent_no_syn")  # neither SYN nor RST in SYN-SENT
        return
    extension = connection.extension
    if extension is not None:
        verdict = extension.handle_syn_options(segment, now)
        if connection.state is not State.SYN_SENT:
            return
        if verdict is Verdict.DROP:
            counters.bump("dropped_by_extension")  # the extension (MPTCP) wanted the SYN/ACK ignored
            return
        if verdict is Verdict.RESET:
            refuse_syn_ack(connection, segment, now)
            return
    take_syn(connection, segment, now)
    # what our SYN has promised
    connection.receiver.window.edge += min(connection.receive_room(), MAX_UNSCALED_WINDOW)
    if has_ack:
        measure_rtt(connection, segment, now)
        connection.receiver.ack.due = True
        # RFC 7323 §2.2: the window of a SYN/ACK is not scaled
        take_window(connection, connection.irs, connection.iss + 1, segment.window)
        establish(connection, now)
        return
    # §3.10.7.3: "Otherwise, enter SYN-RECEIVED, form a SYN,ACK segment [...] and send it" (simultaneous open)
    connection.become(State.SYN_RECEIVED)
    take_window(connection, connection.irs, connection.iss, segment.window)
    connection.syn_wanted = True


def take_syn(connection: Connection, segment: Segment, now: int) -> None:
    """The peer's SYN: numbers and options."""
    config, options, receiver = connection.config, segment.options, connection.receiver
    connection.irs = segment.seq
    connection.last_received_us = now
    receiver.start(segment.seq)
    if segment.length:
        # Text on a SYN that no cookie vouches for is not taken; the peer sends it again (RFC 9293 §3.10.7.2 lets it
        # be queued, RFC 7413 says when that is safe)
        connection.counters.bump("syn_data_ignored")
    if options.mss is not None:
        connection.peer_mss = max(options.mss, MIN_PEER_MSS)
    receiver.sack_enabled = config.sack and options.sack_permitted
    if config.timestamps and options.timestamp_value is not None:
        connection.timestamps.start(options.timestamp_value, now)
    if config.window_scaling and options.window_scale is not None:
        # RFC 7323 §2.3: "If a Window Scale option is received with a shift.cnt value larger than 14, the TCP SHOULD
        # log the error but MUST use 14 instead of the specified value"
        if options.window_scale > MAX_WINDOW_SCALE:
            connection.counters.bump("window_scale_too_large")
        connection.send_scale = min(options.window_scale, MAX_WINDOW_SCALE)
        receiver.window.scale = window_scale_for(config.receive_buffer_max_bytes)
        connection.window_scaling = True
    if config.ecn:
        bits = segment.flags & (ECE | CWR)
        # RFC 3168 §6.1.1: an ECN-setup SYN has both flags, an ECN-setup SYN/ACK only ECE
        if bits == (ECE if segment.flags & ACK else ECE | CWR):
            connection.ecn = Ecn()


def establish(connection: Connection, now: int) -> None:
    """Our SYN has been acknowledged and the peer's received: ESTABLISHED, and on from there if a FIN waits."""
    connection.become(State.ESTABLISHED)
    connection.timer = NEVER
    start_sending(connection, now)
    timers.arm_slow(connection, now)
    extension = connection.extension
    if extension is not None:
        extension.handle_established(now)
        if connection.state is not State.ESTABLISHED:
            return
    if connection.fin_wanted:
        connection.fin_wanted = False
        connection.shutdown_write(now)


def take_window(connection: Connection, seq: int, ack: int, window: int) -> None:
    """The first window of the handshake: SND.WND, SND.WL1, SND.WL2."""
    connection.window_seq, connection.window_ack = seq, ack
    connection.max_window = max(connection.max_window, window)
    connection.sender.set_window(connection.iss + 1 + window)


def make_sender(connection: Connection) -> Sender:
    """Before the handshake: its segment size is a guess, but what is written already has a place to wait."""
    mss = connection.send_mss
    return Sender(connection.config, make_congestion(connection, mss), connection.iss + 1, mss, 0)


def make_congestion(connection: Connection, mss: int) -> CongestionControl:
    factory = connection.config.congestion or Cubic
    segments = connection.config.initial_window_segments
    if connection.syn_retransmissions > 1:
        # RFC 5681 §3.1: "if the SYN or SYN/ACK is lost, the initial window used by a sender after a correctly
        # transmitted SYN MUST be one segment"; one retransmission is forgiven, as RFC 6928 §4.2 allows
        segments = 1
    return factory(mss, initial_window_bytes(mss, segments))


def change_congestion(connection: Connection) -> None:
    """Another controller goes on with the windows of the one before."""
    sender = connection.sender
    old, new = sender.congestion, make_congestion(connection, sender.mss)
    new.cwnd_bytes, new.ssthresh_bytes = old.cwnd_bytes, old.ssthresh_bytes
    old.on_close()
    sender.congestion = new


def start_sending(connection: Connection, now: int) -> None:
    """Options are negotiated: the sender learns the segment size and begins with a fresh congestion window."""
    sender = connection.sender
    mss = connection.send_mss
    sender.set_mss(mss)
    sender.congestion.on_close()
    sender.congestion = make_congestion(connection, mss)
    sender.gso_max_bytes = max(mss, connection.gso_max_bytes)
    sender.sack_enabled = connection.receiver.sack_enabled
    sender.timestamps_enabled = connection.timestamps.enabled


def measure_rtt(connection: Connection, segment: Segment, now: int) -> None:
    """The handshake gives the first round-trip sample (RFC 6298 §2.2)."""
    timestamps = connection.timestamps
    if connection.syn_sent_at == NEVER:
        return  # of a SYN cookie nobody knows when it was sent
    if connection.syn_retransmissions == 0:
        connection.sender.rtt.on_sample(max(1, now - connection.syn_sent_at), now)
    elif timestamps.enabled and segment.options.timestamp_value is not None:
        # RFC 6298 §3: Karn's algorithm; the timestamp tells which of our SYNs was answered
        rtt_us = timestamps.echo_rtt_us(segment.options.timestamp_echo, now)
        if rtt_us >= 0:
            connection.sender.rtt.on_sample(max(rtt_us, MILLISECOND), now)
            return
    if connection.syn_retransmissions:
        connection.sender.rtt.on_syn_timeout()


def refuse_syn_ack(connection: Connection, segment: Segment, now: int) -> None:
    """The extension wants no connection on the terms of this SYN/ACK: RST with its options."""
    reset = departure.reset_for(segment)
    if reset is not None and connection.extension is not None:
        reset.options = Options(mptcp=connection.extension.reset_options())
    connection.end_with_reply(reset, ConnectionAborted("the SYN/ACK was refused"), now)


def handle_timeout(connection: Connection, now: int) -> None:
    """No answer to our SYN or SYN/ACK yet."""
    config = connection.config
    connection.syn_retransmissions += 1
    count = connection.syn_retransmissions
    answering = connection.state is State.SYN_RECEIVED
    limit = config.syn_ack_retries if connection.passive else config.syn_retries
    given_up = now - connection.syn_started_at >= config.user_timeout_us
    if count > limit or given_up:
        # no answer to any of our SYNs, or SYN/ACKs
        connection.counters.bump("syn_ack_timeout" if answering else "syn_timeout")
        connection.end(connection.soft_error or ConnectionTimedOut("no answer to the SYN"), now)
        return
    extension = connection.extension
    if extension is not None:
        extension.handle_syn_timeout(count, now)
        if connection.state not in (State.SYN_SENT, State.SYN_RECEIVED):
            return
    connection.syn_wanted = not answering or extension is None or extension.repeats_syn_ack
    # RFC 6298 §5.5: "The host MUST set RTO <- RTO * 2"
    connection.timer = now + min(config.rto_initial_us << count, config.rto_max_us)
