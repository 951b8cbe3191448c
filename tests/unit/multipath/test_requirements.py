"""Requirements of RFC 8684 that no other test has for its subject, in the order of their sections."""

from __future__ import annotations

import hashlib

import pytest

from mptcp.core.entropy import Entropy
from mptcp.core.multipath import keys
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.keys import add_addr_hmac
from mptcp.core.units import SECOND
from mptcp.core.wire import mptcp_options
from mptcp.core.wire.mptcp_options import (
    FLAG_CHECKSUM,
    FLAG_HMAC_SHA256,
    AddAddr,
    Dss,
    MpCapable,
    MpFail,
    MpJoinAck,
    MpJoinSyn,
    MpJoinSynAck,
    MpPrio,
    MptcpOption,
    MpTcprst,
    RemoveAddr,
)
from mptcp.core.wire.segment import FIN, RST, SYN, URG
from mptcp.info import Endpoint, SubflowState
from mptcp.sim.middleboxes import StripOptions
from mptcp.testing import builders, connected
from mptcp.testing.pair import Pair
from mptcp.testing.peer import PEER_KEY, PEER_NONCE, ScriptedPeer
from mptcp.testing.scripted import ScriptedHost

#: The SHA-256 of this key ends in fffffa5a: the low half of the data sequence numbers wraps after 1,445 octets.
WRAPPING_KEY = 0x3D9A2


# --- §3 --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("signal", [True, False])
def test_duplicate_acks_with_signals_are_no_sign_of_congestion(signal: bool) -> None:
    # RFC 8684 §3: "an MPTCP implementation receiving a duplicate ACK that contains an MPTCP option MUST NOT treat it as a
    # signal of congestion."
    # RFC 8684 §4: "A duplicate ACK that includes any MPTCP signaling (with the exception of the DSS option) MUST NOT be
    # treated as a signal of congestion."
    host, peer, connection = connected.server()
    connection.write(b"x" * 8_000, host.now)
    host.poll()
    sender = next(iter(connection.subflows_by_id.values())).tcp.sender
    for _ in range(6):
        peer.acknowledges(*((MpPrio(False),) if signal else (builders.dss(data_ack=peer.data_ack),)))
    assert (sender.retransmissions == 0) is signal


@pytest.mark.parametrize(
    "option",
    [MpPrio(True), RemoveAddr((3,)), MpFail(1), "ADD_ADDR", "fastclose", "data ack"],
)
@pytest.mark.parametrize("wrong", ["seq", "ack"])
def test_signals_outside_of_the_window_are_not_looked_at(option: MptcpOption | str, wrong: str) -> None:
    # RFC 8684 §3: "standard TCP validity checks (such as ensuring that the sequence number and acknowledgment number are
    # within the window) MUST be undertaken before processing any MPTCP signals"
    # RFC 8684 §3.4.1: "As with all MPTCP signals, the receiver MUST undertake standard TCP validity checks, e.g., per
    # [RFC5961], before acting upon it."
    # RFC 8684 §3.4.2: "Typical TCP validity tests on the subflow (e.g., ensuring that sequence and ACK numbers are correct)
    # MUST also be undertaken."
    host, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2", address_id=3)
    second.takes()
    while connection.poll_event() is not None:
        pass
    assert peer.host_key is not None
    connection.write(b"data", host.now)
    host.poll()
    unacked = connection.data_sender.unacked_bytes
    if option == "ADD_ADDR":
        packed = Endpoint.parse("10.0.9.2").address
        option = AddAddr(7, packed, None, False, add_addr_hmac(PEER_KEY, peer.host_key, 7, packed, None))
    elif option == "fastclose":
        option = builders.mp_fastclose(peer.host_key)
    elif option == "data ack":
        option = builders.dss(data_ack=peer.data_ack + 4)
    assert not isinstance(option, str)
    seq, ack = peer.seq, peer.ack
    if wrong == "seq":
        seq += 1 << 24
    else:
        ack += 1 << 24
    before = dict(host.counters)
    peer.send_segment(builders.ack(option, seq=seq, ack=ack))
    changed = {name for name, value in host.counters.items() if value != before.get(name, 0)}
    assert changed <= {"segment_outside_window", "ack_outside_window", "challenge_ack_sent"}
    assert connection.poll_event() is None
    assert connection.is_multipath
    assert connection.data_sender.unacked_bytes == unacked
    assert len(connection.open_subflows()) == 2


# --- §3.1 ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("offered", [1, 2, 7, 15])
def test_the_version_of_the_answer_is_not_above_that_of_the_offer(offered: int) -> None:
    # RFC 8684 §3.1: "the receiver will signal the version number it wishes to use, which MUST be equal to or lower than the
    # version number indicated in the initial MP_CAPABLE."
    host = ScriptedHost()
    host.listen(80)
    host.receives(builders.syn(MpCapable(offered)), to_port=80)
    (syn_ack,) = host.sends()
    (capable,) = syn_ack.options.mptcp
    assert isinstance(capable, MpCapable)
    assert capable.version == 1


def test_a_key_is_unique_and_so_is_its_token() -> None:
    # RFC 8684 §3.1: "The key MUST be hard to guess, and it MUST be unique for the sending host across all its current MPTCP
    # connections."
    # RFC 8684 §3.1: "the tokens SHOULD be checked for uniqueness; however, if uniqueness is not met and there is no way to
    # generate an alternative verifiable key, then the connection MUST fall back": there always is one here.
    first = keys.new_key(Entropy(1), ())
    taken = {keys.token_of(first)}
    second = keys.new_key(Entropy(1), taken)
    assert second != first
    assert keys.token_of(second) not in taken


def test_what_our_syn_says_of_flags() -> None:
    # RFC 8684 §3.1: "The second bit, labeled "B", is an extensibility flag. It MUST be set to 0 for current implementations."
    # RFC 8684 §3.1: "It MUST be set to 0 for current implementations."
    # RFC 8684 §3.1: "An implementation that only supports this method MUST set bit "H" to 1 and bits "D" through "G" to 0."
    # RFC 8684 §3.1: "A crypto algorithm MUST be specified."
    host = ScriptedHost()
    host.connect()
    (syn,) = host.sends()
    (capable,) = syn.options.mptcp
    assert isinstance(capable, MpCapable)
    assert capable.flags & 0x5F == FLAG_HMAC_SHA256


@pytest.mark.parametrize("flags", [0x02, 0x1E])
def test_only_algorithms_that_we_do_not_have(flags: int) -> None:
    # RFC 8684 §3.1: "If a responder does not support (or does not want to support) any of the initiator's proposals, it MUST
    # respond without an MP_CAPABLE option, thus forcing a fallback to regular TCP."
    host = ScriptedHost()
    host.listen(80)
    host.receives(builders.syn(MpCapable(1, flags)), to_port=80)
    (syn_ack,) = host.sends()
    assert syn_ack.options.mptcp == ()


@pytest.mark.parametrize("key", [0, 1, PEER_KEY, 0xFFFFFFFFFFFFFFFF])
def test_token_and_idsn_of_a_key(key: int) -> None:
    # RFC 8684 §3.1: "the token MUST be a truncated (most significant 32 bits) SHA-256 hash [RFC6234] of the key."
    # RFC 8684 §3.1: "Note that the key MUST be hashed in network byte order."
    # RFC 8684 §3.1: "Also note that the "least significant" bits MUST be the rightmost bits of the SHA-256 digest"
    # RFC 8684 §3.1: "the IDSN of a host MUST be the least significant 64 bits of the SHA-256 hash of its key"
    digest = hashlib.sha256(bytes.fromhex(f"{key:016x}")).hexdigest()
    assert f"{keys.token_of(key):08x}" == digest[:8]
    assert f"{keys.idsn_of(key):016x}" == digest[-16:]


def test_a_responder_that_wants_checksums_gets_them_both_ways() -> None:
    # RFC 8684 §3.1: "if the initiator sets A=0 in the SYN but the responder sets A=1 in the SYN/ACK, checksums MUST be used
    # in both directions, and the initiator will set A=1 in the ACK."
    host = ScriptedHost()
    connection = host.connect(options=ConnectionConfig(checksum=False))
    (syn,) = host.sends()
    (offered,) = syn.options.mptcp
    assert isinstance(offered, MpCapable)
    assert not offered.flags & FLAG_CHECKSUM
    host.receives(builders.syn_ack(MpCapable(1, FLAG_HMAC_SHA256 | FLAG_CHECKSUM, PEER_KEY), ack=syn.seq + 1))
    (third,) = host.sends()
    (confirmed,) = third.options.mptcp
    assert isinstance(confirmed, MpCapable)
    assert confirmed.flags & FLAG_CHECKSUM
    connection.write(b"data", host.now)
    (data,) = host.sends()
    (capable,) = data.options.mptcp
    assert isinstance(capable, MpCapable)
    assert capable.checksum is not None


def test_a_compromised_handshake_is_the_end_of_mptcp() -> None:
    # RFC 8684 §3.1: "If at any point in the handshake either party thinks the MPTCP negotiation is compromised ... the host
    # MUST stop using MPTCP and no longer include MPTCP options in future TCP packets."
    host = ScriptedHost()
    listener = host.listen(80)
    host.receives(builders.syn(MpCapable()), to_port=80)
    (syn_ack,) = host.sends()
    seq, ack = builders.PEER_ISN + 1, syn_ack.seq + 1
    host.receives(builders.ack(MpCapable(1, FLAG_HMAC_SHA256, PEER_KEY, 0xBAD), seq=seq, ack=ack))
    connection = listener.accept()
    assert connection is not None
    connection.write(b"plain", host.now)
    host.receives(builders.data(b"hello", seq=seq, ack=ack))
    connection.shutdown_write(host.now)
    segments = host.sends()
    assert any(s.length for s in segments)
    assert any(s.flags & FIN for s in segments)
    assert all(s.options.mptcp == () for s in segments)
    assert connection.read(10) == b"hello"


# --- §3.2 ------------------------------------------------------------------------------------------------------------------
def test_address_identifiers_are_kept_for_both_sides() -> None:
    # RFC 8684 §3.2: "A host MUST store the mappings between Address IDs and addresses both for itself and the remote host."
    # RFC 8684 §3.4.1: "The Address ID MUST uniquely identify the address for the sender of the option (within the scope of
    # the connection)"
    host, peer, connection = connected.server()
    host.add_interface("10.0.5.1", "10.0.6.1")
    peer.joins(address="10.0.1.2", address_id=3)
    first = connection.add_address(Endpoint.parse("10.0.5.1"), host.now)
    second = connection.add_address(Endpoint.parse("10.0.6.1"), host.now)
    assert len({0, first, second}) == 3
    assert connection.add_address(Endpoint.parse("10.0.5.1"), host.now) == first
    assert [(i.local_address_id, i.remote_address_id) for i in connection.subflows()] == [(0, 0), (0, 3)]
    # RFC 8684 §3.4.1: "A host wishing to replace an existing Address ID MUST first remove the existing one (Section 3.4.2)."
    host.advance(host.now + 100_000)
    host.sends()
    connection.remove_address(Endpoint.parse("10.0.5.1").address, host.now)
    host.add_interface("10.0.7.1")
    assert connection.add_address(Endpoint.parse("10.0.7.1"), host.now) == first
    host.advance(host.now + 100_000)
    sent = [o for s in host.sends() for o in s.options.mptcp if isinstance(o, AddAddr | RemoveAddr)]
    assert [type(o) for o in sent] == [RemoveAddr, AddAddr]


def test_reserved_bits_are_zero() -> None:
    # RFC 8684 §3.2: "The MP_JOIN option on packets with the SYN flag set also includes 4 bits of flags, 3 of which are
    # currently reserved and MUST be set to 0 by the sender."
    # RFC 8684 §3.2: "The reserved bits in this option MUST be set to 0 by the sender."
    # RFC 8684 §3.3: "The remaining reserved bits MUST be set to 0 by an implementation of this specification."
    # RFC 8684 §3.6: "An implementation of this specification MUST set these flags to 0, and a receiver MUST ignore them."
    emit = mptcp_options.emit
    assert emit(MpJoinSyn(1, 2, 3, True))[2] == 0x11
    assert emit(MpJoinSynAck(bytes(8), 2, 3, True))[2] == 0x11
    assert emit(MpJoinAck(bytes(20)))[2:4] == b"\x10\x00"
    dss = emit(Dss(1, True, 2, True, 3, 4, 5, True))
    assert dss[2] == 0x20
    assert dss[3] & 0xE0 == 0
    assert emit(MpTcprst(5, True))[2] == 0x81
    assert emit(MpTcprst(5, False))[2] == 0x80
    flagged = bytearray(emit(MpTcprst(5, True)))
    flagged[2] |= 0x0E
    parsed = mptcp_options.parse(bytes(flagged), 0, len(flagged), RST)
    assert isinstance(parsed, MpTcprst)
    assert (parsed.reason, parsed.transient) == (5, True)


def test_a_join_that_may_not_be_is_reset() -> None:
    # RFC 8684 §3.2: "If the token received at Host B is unknown or local policy prohibits the acceptance of the new subflow,
    # the recipient MUST respond with a TCP RST for the subflow."
    host, peer, connection = connected.server(ConnectionConfig(max_subflows=1))
    assert peer.host_key is not None
    for token in (keys.token_of(peer.host_key), 1):
        host.receives(builders.syn(MpJoinSyn(token, PEER_NONCE, 1)), source=Endpoint.parse("10.0.1.2", 5000))
        (rst,) = host.sends()
        assert rst.flags & RST
    assert len(connection.open_subflows()) == 1


def test_a_syn_ack_without_mp_join_is_reset() -> None:
    # RFC 8684 §3.2: "a SYN/ACK is received without the MP_JOIN option (because it was either stripped on the return path, or
    # stripped on the outgoing path leading to Host B responding as if it was a new regular TCP session), then the subflow is
    # unusable and Host A MUST close it with a RST."
    # RFC 8684 §3.9.3: "an incorrect handshake MUST lead to the subflow being closed with a RST."
    host, _, connection = connected.client()
    host.sends()
    connection.open_subflow(Endpoint.parse("10.0.1.1"), connection.remote, host.now)
    (join,) = [e for e in host.sends_to() if e.segment.flags == SYN]
    answer = builders.syn_ack(ack=join.segment.seq + 1)
    host.receives(answer, source=join.destination, destination=join.source)
    assert [s.flags & RST for s in host.sends()] == [RST]


# --- §3.3 ------------------------------------------------------------------------------------------------------------------
def test_no_segment_of_a_mapping_has_an_urgent_pointer() -> None:
    # RFC 8684 §3.3.1: "a TCP subflow MUST NOT use the Urgent Pointer to interrupt an existing mapping."
    # RFC 8684 §3.3.1: "The mapping provided by a Data Sequence Mapping MUST apply to some or all of the subflow sequence
    # space in the TCP segment that carries the option."
    # RFC 8684 §3.3.1: "An implementation MUST send the full 64-bit data sequence number if it is transmitting at a
    # sufficiently high rate": it always is sent.
    host, peer, connection = connected.server()
    connection.write(b"x" * 9_000, host.now)
    iss = next(iter(connection.subflows_by_id.values())).tcp.iss
    segments = [s for s in peer.takes() if s.length]
    assert len(segments) > 3
    for segment in segments:
        assert not segment.flags & URG
        option = next(o for o in segment.options.mptcp if isinstance(o, Dss))
        start = segment.seq - iss & 0xFFFFFFFF
        assert option.ssn < start + segment.length
        assert start < option.ssn + option.length
        assert option.dsn_wide


def test_data_sequence_numbers_of_32_bits_are_promoted_when_they_wrap() -> None:
    # RFC 8684 §3.3.1: "Data sequence numbers are always 64-bit quantities and MUST be maintained as such in implementations."
    # RFC 8684 §3.3.1: "An implementation MUST be able to receive and process both 64-bit and 32-bit sequence number values"
    # RFC 8684 §3.3.1: "Implementations MUST accept a 32-bit DSN and implicitly promote it to a 64-bit quantity by
    # incrementing the upper 32 bits of the sequence number each time the lower 32 bits wrap."
    # RFC 8684 §3.3.1: "A sanity check MUST be implemented to ensure that a wrap occurs at an expected time (e.g., the
    # sequence number jumps from a very high number to a very low number) and is not triggered by out-of-order packets."
    host = ScriptedHost()
    listener = host.listen(80, options=connected.QUIET)
    peer = ScriptedPeer.connects(host, 80, key=WRAPPING_KEY)
    start = keys.idsn_of(WRAPPING_KEY) + 1
    sent = b""
    for number in range(6):
        piece = bytes([number]) * 500
        option = Dss(None, False, (start + len(sent)) & 0xFFFFFFFF, False, 1 + len(sent), 500)
        peer.send_segment(builders.data(piece, option, seq=peer.seq + len(sent), ack=peer.ack))
        sent += piece
    # one from before the wrap comes again, on new octets of the subflow: old data, not data 4 GiB ahead
    old = Dss(None, False, start & 0xFFFFFFFF, False, 1 + len(sent), 500)
    peer.send_segment(builders.data(b"\xff" * 500, old, seq=peer.seq + len(sent), ack=peer.ack))
    connection = listener.accept()
    assert connection is not None
    assert connection.read(10_000) == sent
    assert connection.data_receiver.nxt == start + 3_000
    assert start >> 32 != (start + 3_000) >> 32
    assert "data_out_of_window" not in host.counters


@pytest.mark.parametrize("wide", [True, False])
def test_data_acks_of_either_width_are_taken(wide: bool) -> None:
    # RFC 8684 §3.3.2: "an implementation MUST accept either in this situation."
    # RFC 8684 §3.3.2: "If the DSN received is 32 bits, an implementation can choose whether to send a 32-bit or 64-bit Data
    # ACK, and an implementation MUST accept either"
    host, peer, connection = connected.server()
    connection.write(b"data", host.now)
    peer.takes()
    number = peer.data_ack if wide else peer.data_ack & 0xFFFFFFFF
    peer.acknowledges(Dss(number, wide))
    assert connection.data_sender.unacked_bytes == 0


def test_a_window_without_a_data_ack_is_not_the_connections() -> None:
    # RFC 8684 §3.3.2: "an implementation MUST NOT use the RCV.WND field of a TCP segment at the connection level if it does
    # not also carry a DSS option with a Data ACK field."
    host, peer, connection = connected.server()
    peer.acknowledges()
    edge = connection.data_sender.window_edge
    peer.send_segment(builders.ack(MpPrio(False), seq=peer.seq, ack=peer.ack, window=65_535))
    assert connection.data_sender.window_edge == edge
    # RFC 8684 §3.3.5: "The sender MUST also remember the receive windows advertised by each subflow."
    connection.write(b"x" * 200_000, host.now)
    host.poll()
    (subflow,) = connection.subflows_by_id.values()
    assert subflow.tcp.sender.window_edge <= subflow.tcp.sender.una + 65_535


def test_what_a_subflow_has_not_acknowledged_is_kept_for_it() -> None:
    # RFC 8684 §3.3.2: "An MPTCP sender MUST NOT free data from the send buffer until it has been acknowledged by both a Data
    # ACK received on any subflow and at the subflow level by all subflows on which the data was sent."
    # RFC 8684 §3.3.6: "The sender MUST keep data in its send buffer as long as the data has not been acknowledged both (1) at
    # the connection level and (2) on all subflows on which it has been sent."
    host, first, connection = connected.server()
    second = first.joins(address="10.0.0.2")
    second.acknowledges(builders.dss(data_ack=first.data_ack))
    second.takes()
    first.takes()
    connection.write(b"precious", host.now)
    host.poll()
    carrier = first if connection.subflows_by_id[1].tcp.sender.unacked_bytes else second
    other = second if carrier is first else first
    other.acknowledges(builders.dss(data_ack=first.data_ack + 8))  # the data level has it, the subflow does not say so
    assert connection.data_sender.unacked_bytes == 0
    host.advance(host.now + 2 * SECOND)
    again = [s for s in carrier.takes() if s.length]
    assert len(again) > 1
    assert {bytes(s.payloads[0]) for s in again} == {b"precious"}


def test_acknowledgements_without_dss_are_valid_while_the_data_ack_stands_still() -> None:
    # RFC 8684 §3.3.2: "the Data ACK is present in segments only when the Data ACK value advances, and this behavior MUST be
    # treated as valid."
    host, first, connection = connected.server()
    second = first.joins(address="10.0.0.2")
    second.acknowledges(builders.dss(data_ack=first.data_ack))
    second.takes()
    first.takes()
    connection.write(b"x" * 60_000, host.now)
    host.poll()
    subflows = connection.subflows_by_id
    head = connection.data_sender.head()
    assert head is not None
    peers = {1: first, 2: second}
    holder = peers[head.carriers[-1]]
    other = second if holder is first else first
    segments = [s for s in other.takes() if s.length]
    assert len(segments) >= 9, "data that is behind the head, on the other subflow"
    for segment in segments:
        other.send_segment(builders.ack(seq=other.seq, ack=segment.seq + segment.length))
    assert "options_lost" not in host.counters
    assert [s.state for s in connection.subflows()].count(SubflowState.CLOSING) == 0
    assert len(subflows) == 2


def test_a_data_fin_alone_has_the_numbers_it_must_have() -> None:
    # RFC 8684 §3.3.3: "when the DATA_FIN is not attached to a TCP segment containing data, the DSS MUST have a subflow
    # sequence number of 0, a Data-Level Length of 1, and the data sequence number that corresponds with the DATA_FIN itself."
    host, peer, connection = connected.server()
    expected = peer.data_ack
    connection.shutdown_write(host.now)
    (ack,) = [s for s in peer.takes() if s.options.mptcp]
    (option,) = ack.options.mptcp
    assert isinstance(option, Dss)
    assert (option.data_fin, option.ssn, option.length, option.dsn) == (True, 0, 1, expected)


# --- §3.4 ------------------------------------------------------------------------------------------------------------------
def test_announced_addresses_are_soft_state() -> None:
    # RFC 8684 §3.4.1: "Therefore, a host MUST treat address advertisements as soft state, and it MAY choose to refresh
    # advertisements periodically."
    host, peer, connection = connected.client(ConnectionConfig())
    host.sends()
    assert peer.host_key is not None
    packed = Endpoint.parse("10.0.9.2").address
    option = AddAddr(7, packed, None, False, add_addr_hmac(PEER_KEY, peer.host_key, 7, packed, None))
    peer.acknowledges(option)
    joins = [e for e in host.sends_to() if e.segment.flags == SYN]
    assert {e.destination.host for e in joins} == {"10.0.9.2"}
    for join in joins:  # nobody is there
        reset = builders.rst(seq=0, ack=join.segment.seq + 1)
        host.receives(reset, source=join.destination, destination=join.source)
    host.advance(host.now + 60 * SECOND)
    again = [e for e in host.sends_to() if e.segment.flags == SYN and e.destination.host == "10.0.9.2"]
    assert again == []
    peer.acknowledges(option)  # refreshed
    joins = [e for e in host.sends_to() if e.segment.flags == SYN]
    assert {e.destination.host for e in joins} == {"10.0.9.2"}
    assert len(connection.open_subflows()) > 1


def test_a_subflow_that_works_is_closed_with_fin_when_its_address_goes() -> None:
    # RFC 8684 §3.4.2: "A subflow that is still functioning MUST be closed with a FIN exchange as in regular TCP, rather than
    # using this option."
    host, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2", address_id=3)
    second.takes()
    connection.close_subflow(2, host.now)
    assert [s.flags & FIN for s in second.takes()] == [FIN]
    assert not any(isinstance(o, RemoveAddr) for s in peer.takes() for o in s.options.mptcp)


# --- §3.7 ------------------------------------------------------------------------------------------------------------------
def test_failed_data_is_neither_kept_nor_acknowledged() -> None:
    # RFC 8684 §3.7: "The receiver of this option MUST discard all data following the data sequence number specified. Failed
    # data MUST NOT be DATA_ACKed and so will be retransmitted on other subflows (Section 3.3.6)."
    # RFC 8684 §3.7: "The receiver MUST discard all data that follows the data sequence number specified."
    _, peer, connection = connected.server(connected.QUIET, checksum=True)
    second = peer.joins(address="10.0.1.2")
    second.takes()
    peer.takes()
    start = peer.data_seq
    bad = builders.dss(data_ack=peer.data_ack, dsn=start, ssn=1, length=8, checksum=0x1234)
    second.send_segment(builders.data(b"tampered", bad, seq=second.seq, ack=second.ack))
    (rst,) = [s for s in second.takes() if s.flags & RST]
    assert MpFail(start) in rst.options.mptcp
    assert connection.read(100) == b""
    assert connection.data_receiver.nxt == start
    peer.sends(b"original")
    assert connection.read(100) == b"original"


def test_after_an_infinite_mapping_subflow_acknowledgements_alone_count() -> None:
    # RFC 8684 §3.7: "After a sender signals an infinite mapping, it MUST only use subflow ACKs to clear its send buffer."
    host, peer, connection = connected.server()
    peer.acknowledges(MpFail(peer.data_ack))
    assert not connection.is_multipath
    peer.takes()
    connection.write(b"plain text", host.now)
    host.poll()
    peer.acknowledges(builders.dss(data_ack=peer.data_ack + 100))
    assert connection.buffered_bytes == 10
    peer.takes()
    peer.acknowledges()
    assert connection.buffered_bytes == 0


def test_there_is_no_way_back_from_regular_tcp() -> None:
    # RFC 8684 §3.7: "Once MPTCP falls back to regular TCP, it MUST NOT revert to MPTCP later in the connection."
    host, peer, connection = connected.server()
    assert peer.host_key is not None
    peer.acknowledges(MpFail(peer.data_ack))
    peer.takes()
    peer.takes()
    join = MpJoinSyn(keys.token_of(peer.host_key), PEER_NONCE, 1)
    host.receives(builders.syn(join), source=Endpoint.parse("10.0.1.2", 5000))
    (rst,) = host.sends()
    assert rst.flags & RST
    peer.sends(b"with DSS")
    assert connection.read(100) == b"with DSS"
    connection.write(b"answer", host.now)
    later = peer.takes()
    assert later
    carried = [o for s in later for o in s.options.mptcp if isinstance(o, Dss) and o.length]
    assert carried == []


@pytest.mark.parametrize("way", ["syn", "all"])
def test_both_ends_agree_that_there_is_no_mptcp(way: str) -> None:
    # RFC 8684 §6: "If this is dropped, MPTCP SHOULD fall back to regular TCP."
    pair = Pair()
    pair.paths[0].add_middlebox(StripOptions(syn_only=way == "syn"))
    pair.connect()
    assert pair.transfer(20_000).is_exact
    assert not pair.client.is_multipath
    assert not pair.server.is_multipath


def test_at_most_two_signals_that_acknowledge_nothing_new_in_a_row() -> None:
    # RFC 8684 §3: "an MPTCP implementation SHOULD NOT send more than two duplicate ACKs in a row for the purposes of sending
    # MPTCP options alone"
    # RFC 8684 §4: "MPTCP SHOULD NOT send more than two duplicate ACKs containing (non-DSS) MPTCP signals in a row."
    host, peer, connection = connected.server()
    host.add_interface("10.0.5.1", "10.0.6.1", "10.0.7.1", "10.0.8.1")
    for number in (5, 6, 7, 8):
        connection.add_address(Endpoint.parse(f"10.0.{number}.1"), host.now)
    host.poll()

    def announced() -> int:
        return len({o for s in peer.takes() for o in s.options.mptcp if isinstance(o, AddAddr)})

    assert announced() == 2
    host.advance(host.now + 9_000)
    assert announced() == 0
    host.advance(host.now + 2_000)
    assert announced() == 2
