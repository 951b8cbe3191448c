"""Segments on their way out: header fields and options around what the sender has chosen (RFC 9293 §3.4, §3.8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mptcp.core.tcp import handshake
from mptcp.core.tcp.option_space import MAX_OPTION_BYTES, padded_bytes, sack_blocks_that_fit
from mptcp.core.tcp.record import Record
from mptcp.core.tcp.states import State
from mptcp.core.tcp.timestamps import TIMESTAMP_OPTION_BYTES
from mptcp.core.units import MILLISECOND
from mptcp.core.wire.mptcp_options import MptcpOption
from mptcp.core.wire.segment import ACK, CWR, ECT0, FIN, NO_OPTIONS, NOT_ECT, PSH, RST, URG, Options, Segment
from mptcp.core.wire.sequence import MASK32

if TYPE_CHECKING:
    from mptcp.core.tcp.connection import Connection


def make_data(connection: Connection, record: Record, now: int) -> Segment:
    """The segment that carries ``record``."""
    receiver, sender = connection.receiver, connection.sender
    flags = ACK
    length = record.length
    if record.fin:
        flags = ACK | FIN
    if record.end == sender.end:
        flags |= PSH
    timestamps = connection.timestamps
    extension = connection.extension
    room = MAX_OPTION_BYTES - TIMESTAMP_OPTION_BYTES if timestamps.enabled else MAX_OPTION_BYTES
    mptcp: tuple[MptcpOption, ...] = (
        connection.take_parting(length > 0) if extension is None else extension.data_options(record, room)
    )
    blocks: tuple[tuple[int, int], ...] = ()
    sacks_left_out = False
    if (receiver.reassembly is not None or receiver.duplicate is not None) and receiver.sack_enabled:
        # the segment must not grow beyond the path MTU for them
        slack = sender.mss - length
        left = room - padded_bytes(mptcp)
        blocks = receiver.sack_blocks(sack_blocks_that_fit(min(left, slack)))
        sacks_left_out = not blocks
    is_retransmission = record.transmissions > 1
    ecn = NOT_ECT
    if connection.ecn is not None:
        flags |= connection.ecn.data_flags()
        # RFC 3168 §6.1.5: "a legitimate TCP data sender MUST NOT set an ECT codepoint on retransmitted data packets";
        # §6.1.4: nor on pure acknowledgements
        if length and not is_retransmission:
            ecn = ECT0
            if sender.cwr_pending:
                # RFC 3168 §6.1.2: CWR on "the first new data packet sent after the window reduction"
                sender.cwr_pending = False
                flags |= CWR
    urgent = 0
    if connection.send_urgent:
        ahead = connection.send_urgent - record.start
        if sender.una >= connection.send_urgent:
            connection.send_urgent = 0
        elif ahead > 0:
            # RFC 9293 §3.8.5: URG as long as the urgent data lies ahead; 65535 stands for everything farther away
            flags |= URG
            urgent = min(ahead, 0xFFFF)
    nxt = receiver.nxt
    window = receiver.window
    ack = receiver.ack
    if extension is not None:
        field = window.advertise_shared(nxt, extension.receive_window())
    elif nxt == receiver.last_ack_sent and window.told > nxt and not ack.due:
        # nothing has come in since, no update of the window is due: what was told still holds
        field = (window.told - nxt) >> window.scale
    else:
        free = receiver.free_bytes
        field = window.advertise(nxt, free, connection.window_step(free))
    # an acknowledgement with SACK blocks that found no room, or duplicates a peer without SACK counts, still go alone
    if sacks_left_out or receiver.duplicate_acks_owed:
        receiver.last_ack_sent = nxt
    elif ack.due or nxt != receiver.last_ack_sent or blocks:
        receiver.handle_ack_sent()
    if length:
        ack.handle_data_sent(now)
        if connection.user_timeout is not None and record.start == sender.una and not is_retransmission:
            connection.note_first_sent(now)
    connection.segments_sent += 1
    return Segment(
        record.start & MASK32,
        nxt & MASK32,
        flags,
        field,
        make_options(connection, blocks, mptcp, now),
        record.payloads,
        length,
        ecn,
        urgent,
        sender.mss if length > sender.mss else 0,
    )


def make_options(
    connection: Connection, blocks: tuple[tuple[int, int], ...], mptcp: tuple[MptcpOption, ...], now: int
) -> Options:
    """Timestamps if agreed, and these. The same object again while nothing in it changes (they are never modified)."""
    timestamps = connection.timestamps
    if not timestamps.enabled:
        return Options(sack_blocks=blocks, mptcp=mptcp) if blocks or mptcp else NO_OPTIONS
    value, echo = (now // MILLISECOND + timestamps.offset) & MASK32, timestamps.recent
    if blocks or mptcp:
        return Options(sack_blocks=blocks, mptcp=mptcp, timestamp_value=value, timestamp_echo=echo)
    cached = connection.cached_options
    if cached.timestamp_value != value or cached.timestamp_echo != echo:
        cached = connection.cached_options = Options(timestamp_value=value, timestamp_echo=echo)
    return cached


def make_ack(connection: Connection, now: int, seq: int = -1) -> Segment:
    """A pure acknowledgement: ``<SEQ=SND.NXT><ACK=RCV.NXT><CTL=ACK>``."""
    receiver = connection.receiver
    extension = connection.extension
    whole = extension is not None and extension.claims_whole_ack
    timed = connection.timestamps.enabled and not whole
    room = MAX_OPTION_BYTES - TIMESTAMP_OPTION_BYTES if timed else MAX_OPTION_BYTES
    mptcp: tuple[MptcpOption, ...] = (
        connection.take_parting(False) if extension is None else extension.ack_options(room)
    )
    blocks: tuple[tuple[int, int], ...] = ()
    if receiver.sack_enabled and (receiver.reassembly is not None or receiver.duplicate is not None):
        blocks = receiver.sack_blocks(sack_blocks_that_fit(room - padded_bytes(mptcp)))
    flags = ACK if connection.ecn is None else ACK | connection.ecn.data_flags()
    nxt = receiver.nxt
    if extension is None:
        free = receiver.free_bytes
        field = receiver.window.advertise(nxt, free, connection.window_step(free))
    else:
        field = receiver.window.advertise_shared(nxt, extension.receive_window())
    receiver.handle_ack_sent()
    connection.segments_sent += 1
    if seq < 0:
        seq = connection.sender.nxt
    options = Options(mptcp=mptcp) if whole else make_options(connection, blocks, mptcp, now)
    return Segment(seq & MASK32, nxt & MASK32, flags, field, options, (), 0)


def make_probe(connection: Connection, now: int) -> Segment:
    """A window probe or keep-alive: nothing, one octet before what is expected; the peer has to answer."""
    connection.probe_wanted = False
    # RFC 9293 §3.8.4: "SEG.SEQ = SND.NXT-1"
    return make_ack(connection, now, connection.sender.una - 1)


def make_reset(connection: Connection, now: int) -> Segment:
    """Our RST of a connection whose peer knows it."""
    extension = connection.extension
    mptcp: tuple[MptcpOption, ...] = () if extension is None else extension.reset_options()
    return Segment(
        connection.sender.nxt & MASK32,
        connection.receiver.nxt & MASK32,
        RST | ACK,
        0,
        make_options(connection, (), mptcp, now),
        (),
        0,
    )


def reset_for(segment: Segment, options: Options = NO_OPTIONS) -> Segment | None:
    """RFC 9293 §3.10.7.1: the RST that a segment for no connection is answered with; None: it is one itself."""
    flags = segment.flags
    if flags & RST:
        return None
    if flags & ACK:
        # "If the ACK bit is on, <SEQ=SEG.ACK><CTL=RST>"
        return Segment(segment.ack, 0, RST, 0, options, (), 0)
    # "If the ACK bit is off, sequence number zero is used, <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>"
    return Segment(0, (segment.seq + segment.sequence_length) & MASK32, RST | ACK, 0, options, (), 0)


def poll_not_sending(connection: Connection, now: int) -> Segment | None:
    """The states in which the sender has nothing to do: handshake, FIN-WAIT-2, TIME-WAIT, CLOSED."""
    state = connection.state
    if state is State.SYN_SENT or state is State.SYN_RECEIVED:
        if connection.syn_wanted:
            return handshake.make_syn(connection, now)
        if state is State.SYN_RECEIVED and (connection.receiver.ack.due or connection.receiver.duplicate_acks_owed):
            return make_ack(connection, now)
        return None
    if state is State.FIN_WAIT_2 or state is State.TIME_WAIT:
        if connection.acks_requested:
            connection.acks_requested -= 1
            return make_ack(connection, now)
        if connection.receiver.ack_wanted:
            return make_ack(connection, now)
        if connection.probe_wanted:
            return make_probe(connection, now)
    return None
