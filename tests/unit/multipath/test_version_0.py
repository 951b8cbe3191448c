"""MPTCP version 0 (RFC 6824): what differs from version 1, in both roles, and two of our stacks that speak it."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.connection import Connection
from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.multipath.mapping import dss_checksum
from mptcp.core.path_managers.base import PathManager
from mptcp.core.units import MBIT, MILLISECOND, SECOND
from mptcp.core.wire.mptcp_options import (
    FLAG_CHECKSUM,
    FLAG_EXTENSIBLE,
    FLAG_HMAC_SHA256,
    AddAddr,
    Dss,
    MpCapable,
    MpFail,
    MpFastclose,
    MpJoinAck,
    MpJoinSyn,
    MpJoinSynAck,
    MpPrio,
    MptcpOption,
    MpTcprst,
    RemoveAddr,
)
from mptcp.core.wire.segment import ACK, RST, SYN, Segment
from mptcp.info import Endpoint, SubflowState
from mptcp.sim.conditions import Conditions
from mptcp.sim.middleboxes import StripOptions
from mptcp.testing import builders
from mptcp.testing.pair import Pair
from mptcp.testing.scripted import ScriptedHost

KEY = 0x0123456789ABCDEF
NONCE = 0x11223344
SHA1 = FLAG_HMAC_SHA256  # the same bit H means HMAC-SHA1 in version 0
V0 = ConnectionConfig(version=0, path_manager=PathManager)
MASK64 = (1 << 64) - 1


def sha1_of(key: int) -> bytes:
    return hashlib.sha1(key.to_bytes(8, "big")).digest()


def token(key: int) -> int:
    return int.from_bytes(sha1_of(key)[:4], "big")


def first_dsn(key: int) -> int:
    return (int.from_bytes(sha1_of(key)[-8:], "big") + 1) & MASK64


def mac(own_key: int, other_key: int, own_nonce: int, other_nonce: int) -> bytes:
    # RFC 6824 §3.2: "Key = Key-A+Key-B, Message = R-A+R-B"
    return hmac.new(
        own_key.to_bytes(8, "big") + other_key.to_bytes(8, "big"),
        own_nonce.to_bytes(4, "big") + other_nonce.to_bytes(4, "big"), "sha1",
    ).digest()  # fmt: skip


class Peer:
    """The scripted far end of a first subflow that speaks version 0, its handshake done."""

    def __init__(self, host: ScriptedHost, connection: Connection, host_key: int, seq: int, ack: int) -> None:
        self.host = host
        self.connection = connection
        self.host_key = host_key
        self.seq = seq
        self.ack = ack
        self.local, self.remote = host.peer, host.local

    def sends(self, *options: MptcpOption, payload: bytes = b"") -> None:
        segment = builders.data(payload, *options, seq=self.seq, ack=self.ack) if payload else builders.ack(
            *options, seq=self.seq, ack=self.ack
        )  # fmt: skip
        self.seq += len(payload)
        self.host.receives(segment, source=self.local, destination=self.remote)

    def takes(self) -> list[Segment]:
        taken = []
        for entry in self.host.sends_to():
            if entry.source == self.remote and entry.destination == self.local:
                self.ack = max(self.ack, entry.segment.seq + entry.segment.length)
                taken.append(entry.segment)
        return taken


def server(config: ConnectionConfig = V0, flags: int = SHA1) -> Peer:
    """The host listened and is fully established by one octet."""
    host = ScriptedHost()
    listener = host.listen(80, options=config)
    host.receives(builders.syn(MpCapable(0, flags, KEY)), to_port=80)
    (syn_ack,) = host.sends()
    (capable,) = syn_ack.options.mptcp
    assert isinstance(capable, MpCapable)
    assert capable.sender_key is not None
    seq, ack = builders.PEER_ISN + 1, syn_ack.seq + 1
    host.receives(builders.ack(MpCapable(0, flags, KEY, capable.sender_key), seq=seq, ack=ack))
    connection = listener.accept()
    assert connection is not None
    peer = Peer(host, connection, capable.sender_key, seq, ack)
    checksum = None
    if capable.flags & FLAG_CHECKSUM:
        checksum = dss_checksum(first_dsn(KEY), 1, 1, (b"x",))
    peer.sends(Dss(first_dsn(peer.host_key), True, first_dsn(KEY), True, 1, 1, checksum), payload=b"x")
    assert connection.read(1) == b"x"
    host.sends()
    return peer


def client(config: ConnectionConfig = V0) -> Peer:
    """The host connected and has a second address 10.0.1.1."""
    host = ScriptedHost()
    host.add_interface("10.0.1.1")
    connection = host.connect(options=config)
    (syn,) = host.sends()
    (capable,) = syn.options.mptcp
    assert isinstance(capable, MpCapable)
    assert capable.sender_key is not None
    host.receives(builders.syn_ack(MpCapable(0, SHA1, KEY), seq=builders.PEER_ISN, ack=syn.seq + 1))
    peer = Peer(host, connection, capable.sender_key, builders.PEER_ISN + 1, syn.seq + 1)
    host.sends()
    peer.sends(Dss(first_dsn(peer.host_key), True))
    return peer


# --- MP_CAPABLE -----------------------------------------------------------------------------------------------------------
def test_the_key_is_in_the_syn_and_both_are_in_the_third_packet() -> None:
    # RFC 6824 §3.1: "SYN (A->B): A's Key for this connection." "ACK (A->B): A's Key followed by B's Key."
    # RFC 6824 §3.1: "The second bit, labeled "B", is an extensibility flag, and MUST be set to 0 for current implementations."
    host = ScriptedHost()
    connection = host.connect(options=V0)
    (syn,) = host.sends()
    (capable,) = syn.options.mptcp
    assert capable == MpCapable(0, SHA1, connection.local_key)
    host.receives(builders.syn_ack(MpCapable(0, SHA1, KEY), ack=syn.seq + 1))
    (ack,) = host.sends()
    assert ack.options.mptcp == (MpCapable(0, SHA1, connection.local_key, KEY),)
    assert connection.version == 0
    assert connection.remote_token == token(KEY)


def test_token_and_first_number_come_from_sha1() -> None:
    # RFC 6824 §3.1: "the token MUST be a truncated (most significant 32 bits) SHA-1 hash", "the IDSN of a host MUST be the
    # least significant 64 bits of the SHA-1 hash of its key"
    # RFC 6824 §3.1: "A different, 64-bit truncation (the least significant 64 bits) of the SHA-1 hash of the key MUST be used
    # as the initial data sequence number." "Also note that the "least significant" bits MUST be the rightmost bits of the
    # SHA-1 digest"
    peer = client()
    assert peer.connection.token == token(peer.host_key)
    peer.connection.write(b"data", peer.host.now)
    peer.host.poll()
    data = next(s for s in peer.takes() if s.length)
    option = next(o for o in data.options.mptcp if isinstance(o, Dss))
    # Version 0 has no MP_CAPABLE with data: the first mapping is a DSS already.
    assert (option.dsn, option.ssn, option.length) == (first_dsn(peer.host_key), 1, 4)
    assert option.data_ack == first_dsn(KEY)


def test_a_server_answers_in_version_0_with_its_key() -> None:
    peer = server()
    assert peer.connection.version == 0
    assert peer.connection.is_multipath
    assert peer.connection.is_fully_established


def test_a_server_knows_the_key_even_if_the_third_packet_is_lost() -> None:
    # RFC 6824 §3.1: the SYN has carried the key; what has a DSS shows that options pass
    host = ScriptedHost()
    listener = host.listen(80)
    host.receives(builders.syn(MpCapable(0, SHA1, KEY)), to_port=80)
    (syn_ack,) = host.sends()
    (capable,) = syn_ack.options.mptcp
    assert isinstance(capable, MpCapable)
    assert capable.sender_key is not None
    option = Dss(first_dsn(capable.sender_key), True, first_dsn(KEY), True, 1, 4)
    host.receives(builders.data(b"data", option, seq=builders.PEER_ISN + 1, ack=syn_ack.seq + 1))
    connection = listener.accept()
    assert connection is not None
    assert connection.is_multipath
    assert connection.read(10) == b"data"


@pytest.mark.parametrize("keys", ["own", "theirs", "none"])
def test_a_third_packet_with_wrong_keys_or_none_means_regular_tcp(keys: str) -> None:
    # RFC 6824 §3.1: "If the third packet (the ACK) does not contain the MP_CAPABLE option, then the session MUST fall back
    # to operating as a regular, single-path TCP."
    host = ScriptedHost()
    listener = host.listen(80)
    host.receives(builders.syn(MpCapable(0, SHA1, KEY)), to_port=80)
    (syn_ack,) = host.sends()
    (capable,) = syn_ack.options.mptcp
    assert isinstance(capable, MpCapable)
    assert capable.sender_key is not None
    own = capable.sender_key + (keys == "own")
    options = () if keys == "none" else (MpCapable(0, SHA1, KEY + (keys == "theirs"), own),)
    host.receives(builders.ack(*options, seq=builders.PEER_ISN + 1, ack=syn_ack.seq + 1))
    connection = listener.accept()
    assert connection is not None
    assert not connection.is_multipath


def test_a_syn_ack_without_mp_capable_means_regular_tcp() -> None:
    # RFC 6824 §3.1: "If a SYN contains an MP_CAPABLE option but the SYN/ACK does not, it is assumed that the passive opener
    # is not multipath capable; thus, the MPTCP session MUST operate as a regular, single-path TCP."
    host = ScriptedHost()
    connection = host.connect(options=V0)
    (syn,) = host.sends()
    host.receives(builders.syn_ack(ack=syn.seq + 1))
    (ack,) = host.sends()
    assert ack.options.mptcp == ()
    assert not connection.is_multipath


def test_a_syn_ack_of_version_1_to_a_syn_of_version_0_means_regular_tcp() -> None:
    # RFC 8684 §3.1: the version of the answer "MUST be equal to or lower than the version number indicated"
    host = ScriptedHost()
    connection = host.connect(options=V0)
    (syn,) = host.sends()
    host.receives(builders.syn_ack(MpCapable(1, SHA1, KEY), ack=syn.seq + 1))
    assert not connection.is_multipath
    assert "version" in connection.fallback_reason


def test_an_extensible_syn_is_not_answered_at_all() -> None:
    # RFC 6824 §3.1: "If receiving a message with the 'B' flag set to 1, and this is not understood, then this SYN MUST be
    # silently ignored"
    host = ScriptedHost()
    host.listen(80)
    host.receives(builders.syn(MpCapable(0, SHA1 | FLAG_EXTENSIBLE, KEY)), to_port=80)
    assert host.sends() == []
    assert host.counters["syn_extensible_ignored"] == 1


@pytest.mark.parametrize("flags", [0, 0x20, 0x02])
def test_a_syn_without_an_algorithm_of_ours_gets_regular_tcp(flags: int) -> None:
    # RFC 6824 §3.1: "If flag bits C through H are all 0, the MP_CAPABLE option MUST be treated as invalid and ignored"
    host = ScriptedHost()
    host.listen(80)
    host.receives(builders.syn(MpCapable(0, flags, KEY)), to_port=80)
    (syn_ack,) = host.sends()
    assert syn_ack.options.mptcp == ()


def test_a_syn_without_mp_capable_is_answered_without() -> None:
    # RFC 6824 §3.1: "If a SYN does not contain a MP_CAPABLE option, the SYN/ACK MUST NOT contain one in response."
    host = ScriptedHost()
    host.listen(80, options=V0)
    host.receives(builders.syn(), to_port=80)
    (syn_ack,) = host.sends()
    assert syn_ack.options.mptcp == ()


def test_keys_differ_and_their_tokens_too() -> None:
    # RFC 6824 §3.1: "The key MUST be hard to guess, and it MUST be unique for the sending host at any one time."
    # RFC 6824 §B.1.1: "The token MUST be unique among all established MPTCP connections, generated from the local key."
    host = ScriptedHost()
    connections = [host.connect(port=1000 + number, options=V0) for number in range(30)]
    assert len({connection.local_key for connection in connections}) == 30
    assert len({connection.token for connection in connections}) == 30
    assert all(connection.token == token(connection.local_key) for connection in connections)


def test_flag_c_is_no_ban_on_joins_in_version_0() -> None:
    """It belongs to the algorithms there."""
    peer = server(flags=SHA1 | 0x20)
    assert not peer.connection.remote_denies_join


@pytest.mark.parametrize(("client_asks", "server_asks"), [(True, False), (False, True)])
def test_checksums_are_used_if_either_side_requires_them(client_asks: bool, server_asks: bool) -> None:
    # RFC 6824 §3.1: "if either host requires the use of checksums, checksums MUST be used."
    peer = server(V0.changed(checksum=server_asks), SHA1 | (FLAG_CHECKSUM if client_asks else 0))
    assert peer.connection.checksum
    peer.connection.write(b"data", peer.host.now)
    (data,) = [s for s in peer.takes() if s.length]
    assert next(o for o in data.options.mptcp if isinstance(o, Dss)).checksum is not None


# --- data -------------------------------------------------------------------------------------------------------------------
def test_a_checksum_nobody_asked_for_is_ignored() -> None:
    # RFC 6824 §3.3: "If a checksum is present, but its use had not been negotiated in the MP_CAPABLE handshake, the checksum
    # field MUST be ignored."
    peer = server()
    peer.sends(Dss(first_dsn(peer.host_key), True, (first_dsn(KEY) + 1) & MASK64, True, 2, 4, 0x1234), payload=b"data")
    assert peer.connection.read(10) == b"data"
    assert peer.connection.is_multipath


def test_a_checksum_that_is_missing_breaks_the_subflow() -> None:
    # RFC 6824 §3.3: "If a checksum is not present when its use has been negotiated, the receiver MUST close the subflow with
    # a RST as it is considered broken."
    peer = server(V0.changed(checksum=True))
    peer.sends(Dss(first_dsn(peer.host_key), True, (first_dsn(KEY) + 1) & MASK64, True, 2, 4), payload=b"data")
    (rst,) = [s for s in peer.takes() if s.flags & RST]
    assert rst.options.mptcp == (), "version 0 has no MP_TCPRST"


def test_a_data_fin_alone_has_the_numbers_it_must_have() -> None:
    # RFC 6824 §3.3.3: "when the DATA_FIN is not attached to a TCP segment containing data, the Data Sequence Signal MUST have
    # a subflow sequence number of 0, a Data-Level Length of 1"
    peer = server()
    peer.connection.shutdown_write(peer.host.now)
    options = [o for s in peer.takes() for o in s.options.mptcp if isinstance(o, Dss) and o.data_fin]
    assert [(o.ssn, o.length, o.dsn) for o in options] == [(0, 1, first_dsn(peer.host_key))]


# --- MP_JOIN ----------------------------------------------------------------------------------------------------------------
def test_the_peer_joins() -> None:  # RFC 6824 §3.2
    peer = server()
    host = peer.host
    source = Endpoint.parse("10.0.1.2", 5000)
    host.receives(builders.syn(MpJoinSyn(token(peer.host_key), NONCE, 3)), source=source)
    (syn_ack,) = host.sends()
    (join,) = syn_ack.options.mptcp
    assert isinstance(join, MpJoinSynAck)
    # RFC 6824 §3.2: "a truncated (leftmost 64 bits) HMAC", of "Key-B+Key-A" over "R-B+R-A"
    assert join.hmac == mac(peer.host_key, KEY, join.nonce, NONCE)[:8]
    own = mac(KEY, peer.host_key, NONCE, join.nonce)
    host.receives(builders.ack(MpJoinAck(own), seq=builders.PEER_ISN + 1, ack=syn_ack.seq + 1), source=source)
    (fourth,) = host.sends()
    assert fourth.flags == ACK
    assert [s.state for s in peer.connection.subflows()] == [SubflowState.ACTIVE] * 2


def test_the_peers_join_with_a_wrong_hmac_is_reset() -> None:
    # RFC 6824 §3.2: "If Host B does not receive the expected HMAC, or the MP_JOIN option is missing from the ACK, it MUST
    # close the subflow with a TCP RST."
    peer = server()
    source = Endpoint.parse("10.0.1.2", 5000)
    peer.host.receives(builders.syn(MpJoinSyn(token(peer.host_key), NONCE, 3)), source=source)
    (syn_ack,) = peer.host.sends()
    peer.host.receives(
        builders.ack(MpJoinAck(bytes(20)), seq=builders.PEER_ISN + 1, ack=syn_ack.seq + 1), source=source
    )
    (rst,) = peer.host.sends()
    assert rst.flags & RST
    assert rst.options.mptcp == ()


def test_we_join() -> None:  # RFC 6824 §3.2
    peer = client()
    host = peer.host
    peer.takes()
    peer.connection.open_subflow(Endpoint.parse("10.0.1.1"), peer.connection.remote, host.now)
    host.poll()
    (entry,) = [e for e in host.sends_to() if e.segment.flags == SYN]
    (join,) = entry.segment.options.mptcp
    assert isinstance(join, MpJoinSyn)
    assert join.token == token(KEY)
    hmac_b = mac(KEY, peer.host_key, NONCE, join.nonce)
    host.receives(
        builders.syn_ack(MpJoinSynAck(hmac_b[:8], NONCE, 0), ack=entry.segment.seq + 1),
        source=entry.destination, destination=entry.source,
    )  # fmt: skip
    (third,) = host.sends()
    # RFC 6824 §3.2: "ACK: the entire HMAC", 160 bits of SHA-1
    assert third.options.mptcp == (MpJoinAck(mac(peer.host_key, KEY, join.nonce, NONCE)),)
    host.receives(builders.ack(Dss(first_dsn(peer.host_key), True), seq=builders.PEER_ISN + 1, ack=third.seq))
    assert [s.state for s in peer.connection.subflows()] == [SubflowState.ACTIVE] * 2


def test_an_hmac_of_version_1_does_not_do() -> None:
    peer = client()
    host = peer.host
    peer.takes()
    peer.connection.open_subflow(Endpoint.parse("10.0.1.1"), peer.connection.remote, host.now)
    host.poll()
    (entry,) = [e for e in host.sends_to() if e.segment.flags == SYN]
    (join,) = entry.segment.options.mptcp
    assert isinstance(join, MpJoinSyn)
    both = KEY.to_bytes(8, "big") + peer.host_key.to_bytes(8, "big")
    wrong = hmac.new(both, NONCE.to_bytes(4, "big") + join.nonce.to_bytes(4, "big"), "sha256").digest()[:8]
    host.receives(
        builders.syn_ack(MpJoinSynAck(wrong, NONCE, 0), ack=entry.segment.seq + 1),
        source=entry.destination, destination=entry.source,
    )  # fmt: skip
    assert [s.flags & RST for s in host.sends()] == [RST]
    assert host.counters["join_bad_hmac"] == 1


# --- addresses ----------------------------------------------------------------------------------------------------------------
def test_an_announcement_has_neither_hmac_nor_echo() -> None:  # RFC 6824 §3.4.1, Figure 12
    peer = client()
    peer.takes()
    announced = Endpoint.parse("10.0.9.2").address
    peer.sends(AddAddr(7, announced, None, False, None, 0))
    sent = [o for s in peer.takes() for o in s.options.mptcp]
    assert not any(isinstance(o, AddAddr) for o in sent)
    event = None
    while (seen := peer.connection.poll_event()) is not None:
        event = seen
    assert event is not None
    assert event.remote == Endpoint(announced, 80)


def test_an_identifier_announces_another_port_but_no_other_address() -> None:
    # RFC 6824 §3.4.1: "A host can send an ADD_ADDR message with an already assigned Address ID, but the Address MUST be the
    # same as previously assigned to this Address ID, and the Port MUST be different from one already in use"
    peer = client()
    peer.host.sends()
    peer.sends(AddAddr(7, Endpoint.parse("10.0.9.2").address, 8443, False, None, 0))
    peer.sends(AddAddr(7, Endpoint.parse("10.0.8.2").address, 8444, False, None, 0))
    assert peer.host.counters["add_addr_changed"] == 1
    peer.sends(AddAddr(7, Endpoint.parse("10.0.9.2").address, 8444, False, None, 0))
    announced = []
    while (event := peer.connection.poll_event()) is not None:
        if event.address_id == 7:
            announced.append(event.remote)
    assert announced == [Endpoint.parse("10.0.9.2", 8443), Endpoint.parse("10.0.9.2", 8444)]


def test_an_announced_address_is_joined() -> None:
    peer = client(ConnectionConfig(version=0))
    peer.host.sends()
    peer.sends(AddAddr(7, Endpoint.parse("10.0.9.2").address, 8443, False, None, 0))
    joins = [e for e in peer.host.sends_to() if e.segment.flags == SYN]
    assert {e.destination for e in joins} == {Endpoint.parse("10.0.9.2", 8443)}


def test_we_announce_once_on_every_subflow() -> None:
    # RFC 6824 §3.4.1: "it is RECOMMENDED that a sender should send these options on all available subflows"
    peer = server()
    host, connection = peer.host, peer.connection
    host.add_interface("10.0.5.1")
    source = Endpoint.parse("10.0.1.2", 5000)
    host.receives(builders.syn(MpJoinSyn(token(peer.host_key), NONCE, 3)), source=source)
    (syn_ack,) = host.sends()
    (join,) = syn_ack.options.mptcp
    assert isinstance(join, MpJoinSynAck)
    own = mac(KEY, peer.host_key, NONCE, join.nonce)
    host.receives(builders.ack(MpJoinAck(own), seq=builders.PEER_ISN + 1, ack=syn_ack.seq + 1), source=source)
    host.sends()
    address_id = connection.add_address(Endpoint.parse("10.0.5.1"), host.now)
    host.advance(host.now + 120 * SECOND)
    entries = host.sends_to()
    sent = [(e.destination, o) for e in entries for o in e.segment.options.mptcp if isinstance(o, AddAddr)]
    option = AddAddr(address_id, Endpoint.parse("10.0.5.1").address, None, False, None, 0)
    assert sorted(sent, key=lambda pair: pair[0]) == sorted(
        [(peer.local, option), (source, option)], key=lambda p: p[0]
    )
    connection.remove_address(Endpoint.parse("10.0.5.1").address, host.now)
    host.poll()
    removed = [e.destination for e in host.sends_to() if RemoveAddr((address_id,)) in e.segment.options.mptcp]
    assert sorted(removed) == sorted([peer.local, source])


def test_mp_prio_can_name_an_address() -> None:
    # RFC 6824 §3.3.8: "This applies the given setting of B to all subflows in this connection that use the address
    # identified by the given Address ID."
    peer = server()
    host = peer.host
    source = Endpoint.parse("10.0.1.2", 5000)
    host.receives(builders.syn(MpJoinSyn(token(peer.host_key), NONCE, 3)), source=source)
    (syn_ack,) = host.sends()
    (join,) = syn_ack.options.mptcp
    assert isinstance(join, MpJoinSynAck)
    own = mac(KEY, peer.host_key, NONCE, join.nonce)
    host.receives(builders.ack(MpJoinAck(own), seq=builders.PEER_ISN + 1, ack=syn_ack.seq + 1), source=source)
    first, second = peer.connection.subflows()
    assert not second.backup
    peer.sends(MpPrio(True, 3))
    assert [info.backup for info in peer.connection.subflows()] == [False, True]
    peer.sends(MpPrio(True))
    assert [info.backup for info in peer.connection.subflows()] == [True, True]
    peer.sends(MpPrio(False, 3))
    assert [info.backup for info in peer.connection.subflows()] == [True, False]
    assert first.remote_address_id == 0


# --- the end --------------------------------------------------------------------------------------------------------------------
def test_fast_close_is_an_ack_and_ends_with_the_peers_reset() -> None:
    # RFC 6824 §3.5: "Host A sends an ACK containing the MP_FASTCLOSE option on one subflow, containing the key of Host B"
    peer = server()
    peer.connection.abort(peer.host.now)
    (ack,) = peer.takes()
    assert ack.flags == ACK
    assert MpFastclose(KEY) in ack.options.mptcp
    assert peer.connection.is_closing
    peer.host.receives(builders.rst(seq=peer.seq), source=peer.local, destination=peer.remote)
    assert peer.connection.state is ConnectionState.CLOSED


def test_fast_close_without_answer_is_repeated_and_ends() -> None:
    # RFC 6824 §3.5: "it SHOULD retransmit the MP_FASTCLOSE ... A RECOMMENDED number is 3."
    peer = server()
    peer.connection.abort(peer.host.now)
    peer.host.poll()
    peer.host.advance(peer.host.now + 60 * SECOND)
    segments = peer.takes()
    assert sum(MpFastclose(KEY) in s.options.mptcp for s in segments) == 1 + 3
    assert segments[-1].flags & RST
    assert segments[-1].options.mptcp == ()


def test_the_peers_fast_close_is_answered_with_a_reset() -> None:
    # RFC 6824 §3.5: "Host B answers on the same subflow with a TCP RST and tears down all subflows."
    peer = server()
    peer.sends(MpFastclose(peer.host_key))
    (rst,) = peer.takes()
    assert rst.flags & RST
    assert rst.options.mptcp == ()
    assert isinstance(peer.connection.error, ConnectionResetError)


def test_no_reset_of_version_0_carries_a_reason() -> None:
    peer = server()
    peer.host.host.remove_address("10.0.0.1", peer.host.now)
    segments = [e.segment for e in peer.host.sends_to()]
    assert not any(isinstance(o, MpTcprst) for s in segments for o in s.options.mptcp)


def test_a_checksum_failure_is_told_with_mp_fail() -> None:
    # RFC 6824 §3.6: "it will send back an MP_FAIL option on the subflow-level ACK"
    peer = server(V0.changed(checksum=True))
    dsn = (first_dsn(KEY) + 1) & MASK64
    peer.sends(Dss(first_dsn(peer.host_key), True, dsn, True, 2, 4, 0x1234), payload=b"data")
    assert any(o == MpFail(dsn) for s in peer.takes() for o in s.options.mptcp)
    assert not peer.connection.is_multipath
    assert peer.connection.read(10) == b"data"


# --- two of our stacks --------------------------------------------------------------------------------------------------------
def pair(*, checksum: bool = False, paths: int = 2, single_homed: bool = True, server_version: int = 1) -> Pair:
    return Pair(
        paths=paths, single_homed_server=single_homed,
        conditions=Conditions(rate_bps=20 * MBIT, delay_us=5 * MILLISECOND),
        client_options=ConnectionConfig(version=0, checksum=checksum),
        server_options=ConnectionConfig(version=server_version),
    )  # fmt: skip


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("server_version", [0, 1])
def test_a_transfer_over_two_subflows(checksum: bool, server_version: int) -> None:
    two = pair(checksum=checksum, server_version=server_version)
    two.connect(subflows=2)
    assert two.client.version == two.server.version == 0
    for from_client in (True, False):
        receiver = two.transfer(300_000, from_client=from_client)
        assert receiver.is_exact
        assert receiver.progress.total == 300_000
    assert min(path.forward.bytes_delivered for path in two.paths) > 50_000
    assert two.client.error is two.server.error is None
    two.close()
    assert not two.client_host.stack.connections  # type: ignore[attr-defined]
    assert not two.server_host.stack.connections  # type: ignore[attr-defined]


def test_a_server_with_two_addresses_is_joined_on_both() -> None:
    two = pair(single_homed=False)
    two.connect(subflows=2)
    two.client.write(b"x", two.now)  # it is fully established, for the server, by a DSS of the client
    two.run(for_us=SECOND, while_=lambda: two.active_subflows() < 4)
    assert two.server.read(1) == b"x"
    assert {info.remote.host for info in two.client.subflows()} == {"10.0.0.2", "10.0.1.2"}
    assert two.transfer(100_000).is_exact


@pytest.mark.parametrize("syn_only", [True, False])
def test_stripped_options_mean_regular_tcp(syn_only: bool) -> None:
    # RFC 6824 §3.6: "In the case of the first subflow (i.e., that started with MP_CAPABLE), it MUST drop out of an MPTCP mode
    # back to regular TCP."
    two = pair(paths=1)
    two.paths[0].add_middlebox(StripOptions(syn_only=syn_only, spare_syn=not syn_only))
    two.connect()
    assert two.transfer(100_000).is_exact
    assert two.transfer(100_000, from_client=False).is_exact
    assert not two.client.is_multipath
    assert not two.server.is_multipath


def test_a_path_that_dies_loses_no_octet() -> None:
    two = pair()
    two.connect(subflows=2)
    two.paths[0].cut(two.now + 50_000)
    receiver = two.transfer(500_000)
    assert receiver.is_exact
    assert receiver.progress.total == 500_000


def test_abort_tells_the_other_side() -> None:
    two = pair()
    two.connect(subflows=2)
    two.client.abort(two.now)
    two.drain()
    assert isinstance(two.server.error, ConnectionResetError)
    two.server.close(two.now)
    two.drain(120 * SECOND)
    assert not two.client_host.stack.connections  # type: ignore[attr-defined]
    assert not two.server_host.stack.connections  # type: ignore[attr-defined]
