"""The threats of RFC 6181 and RFC 7430, and what they come to here; docs/security.md has the table."""

from __future__ import annotations

import random

import pytest

from mptcp.core.entropy import Entropy
from mptcp.core.multipath import keys
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.multipath.joining import MAX_HALF_OPEN_JOINS
from mptcp.core.multipath.keys import add_addr_hmac, join_hmac, token_of
from mptcp.core.multipath.listener import MAX_HALF_OPEN
from mptcp.core.units import SECOND
from mptcp.core.wire.mptcp_options import (
    AddAddr,
    Dss,
    MpCapable,
    MpFastclose,
    MpJoinAck,
    MpJoinSyn,
    MpJoinSynAck,
    MpPrio,
    RemoveAddr,
)
from mptcp.core.wire.segment import ACK, RST, SYN
from mptcp.errors import ConnectionTimedOut
from mptcp.info import Endpoint
from mptcp.testing import builders, connected
from mptcp.testing.pair import Pair
from mptcp.testing.peer import PEER_KEY, PEER_NONCE, ScriptedPeer
from mptcp.testing.scripted import ScriptedHost

VICTIM = Endpoint.parse("10.0.66.6", 6666)


def announcement(peer: ScriptedPeer, host: str, address_id: int = 7, port: int | None = None) -> AddAddr:
    assert peer.host_key is not None
    packed = Endpoint.parse(host).address
    return AddAddr(address_id, packed, port, False, add_addr_hmac(PEER_KEY, peer.host_key, address_id, packed, port))


def spoofed(number: int) -> Endpoint:
    return Endpoint(bytes((10, 7, number >> 8 & 255, number & 255)), 1024 + number % 60_000)


# --- RFC 7430 §2: ADD_ADDR attack (session hijack) --------------------------------------------------------------------------
@pytest.mark.parametrize(
    "forged", ["no key", "other address", "other port", "other identifier", "keys reversed", "absent"]
)
def test_a_forged_announcement_leads_to_no_join(forged: str) -> None:
    # RFC 8684 §5: "This effectively prevents an attacker from diverting an MPTCP connection through an off-path ADD_ADDR
    # injection into the stream."
    host, peer, _ = connected.client(ConnectionConfig())
    host.sends()
    assert peer.host_key is not None
    right = announcement(peer, "10.0.9.2")
    packed = right.address
    option = {
        "no key": AddAddr(7, packed, None, False, add_addr_hmac(1, 2, 7, packed, None)),
        "other address": AddAddr(7, Endpoint.parse("10.0.66.6").address, None, False, right.hmac),
        "other port": AddAddr(7, packed, 6666, False, right.hmac),
        "other identifier": AddAddr(8, packed, None, False, right.hmac),
        "keys reversed": AddAddr(7, packed, None, False, add_addr_hmac(peer.host_key, PEER_KEY, 7, packed, None)),
        "absent": AddAddr(7, packed, None, False, None, 0),
    }[forged]
    peer.acknowledges(option)
    host.advance(host.now + 10 * SECOND)
    assert {e.destination.host for e in host.sends_to()} == {"10.0.0.2"}
    assert host.counters["add_addr_bad_hmac"] >= 1


def test_an_echo_that_nobody_awaits_does_nothing() -> None:
    host, peer, connection = connected.client(ConnectionConfig())
    host.sends()
    peer.acknowledges(AddAddr(7, VICTIM.address, None, True))
    host.advance(host.now + SECOND)
    assert {e.destination.host for e in host.sends_to()} == {"10.0.0.2"}
    assert connection.is_multipath


def test_a_server_never_knocks_at_announced_doors() -> None:
    """RFC 7430 §2: "on the current Linux implementation, the server does not create subflows. Only the client does so." """
    host, peer, _ = connected.server(ConnectionConfig())
    for number in range(1, 20):
        peer.acknowledges(announcement(peer, f"10.0.66.{number}", number))
    host.advance(host.now + 10 * SECOND)
    assert [s for s in host.sends() if s.flags == SYN] == []


def test_a_client_knocks_at_few_doors_only() -> None:
    # RFC 8684 §5: "This feature of MPTCP could be a target for denial-of-service exploits, with malicious participants in
    # MPTCP connections encouraging the recipient to target other hosts in the network."
    host, peer, connection = connected.client(ConnectionConfig())
    host.sends()
    for number in range(1, 250):
        peer.acknowledges(announcement(peer, f"10.0.66.{number}", number))
    syns = [e for e in host.sends_to() if e.segment.flags == SYN]
    assert len({e.destination for e in syns}) <= connection.config.max_remote_addresses
    assert len(connection.open_subflows()) <= connection.config.max_subflows


# --- RFC 7430 §3, §4: half-open joins, amplification ------------------------------------------------------------------------
def test_a_flood_of_joins_with_the_token_does_not_keep_the_peer_out() -> None:
    # RFC 7430 §3: "The attacker can simply exhaust this limit by sending multiple SYN+MP_JOINs with different 5-tuples."
    host, peer, connection = connected.server()
    assert peer.host_key is not None
    token = token_of(peer.host_key)
    for number in range(500):
        host.receives(builders.syn(MpJoinSyn(token, number, 9)), source=spoofed(number))
    assert len(connection.open_subflows()) == 1 + MAX_HALF_OPEN_JOINS
    assert host.counters["join_recycled"] == 500 - MAX_HALF_OPEN_JOINS
    host.sends()
    second = peer.joins(address="10.0.1.2")
    assert second.takes()
    assert len([i for i in connection.subflows() if i.state.value == "active"]) == 2


def test_half_open_joins_do_not_keep_a_connection_without_paths_alive() -> None:
    host, peer, connection = connected.server()
    assert peer.host_key is not None
    token = token_of(peer.host_key)
    peer.resets()
    for number in range(70):
        host.receives(builders.syn(MpJoinSyn(token, number, 9)), source=spoofed(number), after_us=SECOND)
    assert isinstance(connection.error, ConnectionTimedOut)
    connection.close(host.now)
    host.advance(host.now + 300 * SECOND)
    assert not host.host.connections
    assert not host.host._flows


def test_a_spoofed_join_is_answered_once_and_never_again() -> None:
    # RFC 7430 §4: "SYN Flooding Amplification": no more packets go to a forged source than came from it.
    host, peer, connection = connected.server()
    assert peer.host_key is not None
    syn = builders.syn(MpJoinSyn(token_of(peer.host_key), 5, 9))
    host.receives(syn, source=VICTIM)
    host.advance(host.now + 120 * SECOND)
    sent = [e for e in host.sends_to() if e.destination == VICTIM]
    assert [e.segment.flags for e in sent] == [SYN | ACK]
    assert len(connection.open_subflows()) == 1, "forgotten after a while"


def test_a_join_whose_answer_is_lost_is_answered_again() -> None:
    host, peer, connection = connected.server()
    assert peer.host_key is not None
    source = Endpoint.parse("10.0.1.2", 5000)
    syn = builders.syn(MpJoinSyn(token_of(peer.host_key), PEER_NONCE, 9))
    host.receives(syn, source=source)
    host.sends()
    host.receives(syn, source=source, after_us=SECOND)
    (again,) = host.sends()
    assert again.flags == SYN | ACK
    (join,) = again.options.mptcp
    assert isinstance(join, MpJoinSynAck)
    own = join_hmac(PEER_KEY, peer.host_key, PEER_NONCE, join.nonce)
    third = builders.ack(builders.mp_join_ack(own), seq=syn.seq + 1, ack=again.seq + 1)
    host.receives(third, source=source)
    assert [i.state.value for i in connection.subflows()] == ["active", "active"]


def test_blind_joins_get_one_small_answer_each() -> None:
    """Without the token: one RST for one SYN, no state."""
    host, _, connection = connected.server()
    chance = random.Random(1)
    for number in range(300):
        host.receives(builders.syn(MpJoinSyn(chance.getrandbits(32), number, 9)), source=spoofed(number))
    answers = host.sends()
    assert len(answers) == 300
    assert all(a.flags & RST for a in answers)
    assert len(host.host._flows) == 1
    assert len(connection.open_subflows()) == 1
    host.advance(host.now + 120 * SECOND)
    assert host.sends() == []


def test_a_flood_of_syns_leaves_bounded_state() -> None:  # RFC 6181 §5, RFC 4987 §3.3
    host, peer, connection = connected.server()
    for number in range(2 * MAX_HALF_OPEN):
        host.receives(builders.syn(MpCapable()), source=spoofed(number), to_port=80)
    assert len(host.host.connections) <= MAX_HALF_OPEN + 1
    assert len(host.host._tokens) <= MAX_HALF_OPEN + 1
    peer.sends(b"unharmed")
    assert connection.read(10) == b"unharmed"
    host.advance(host.now + 300 * SECOND)
    assert len(host.host._tokens) == 1


# --- RFC 6181 §5: flooding a third party with data ---------------------------------------------------------------------------
def test_nothing_is_sent_to_an_address_that_has_not_proved_itself() -> None:
    # RFC 8684 §5: "Provide verification that the peer can receive traffic at a new address before using it as part of a
    # connection."
    host, peer, connection = connected.server()
    assert peer.host_key is not None
    host.receives(builders.syn(MpJoinSyn(token_of(peer.host_key), 5, 9)), source=VICTIM)
    connection.write(b"x" * 100_000, host.now)
    connection.shutdown_write(host.now)
    host.advance(host.now + 5 * SECOND)
    sent = [e.segment for e in host.sends_to() if e.destination == VICTIM]
    assert len(sent) == 1
    assert sent[0].length == 0


def test_a_guessed_third_packet_does_not_prove_anything() -> None:
    host, peer, connection = connected.server()
    assert peer.host_key is not None
    chance = random.Random(2)
    for number in range(50):
        source = spoofed(number)
        host.receives(builders.syn(MpJoinSyn(token_of(peer.host_key), number, 9)), source=source)
        (syn_ack,) = host.sends()
        guess = MpJoinAck(chance.randbytes(20))
        host.receives(builders.ack(guess, seq=builders.PEER_ISN + 1, ack=syn_ack.seq + 1), source=source)
        (rst,) = host.sends()
        assert rst.flags & RST
    assert host.counters["join_bad_hmac"] == 50
    assert len(connection.open_subflows()) == 1


# --- RFC 6181 §6: hijacking, also shifted in time ----------------------------------------------------------------------------
def test_a_recorded_handshake_cannot_be_replayed() -> None:
    # RFC 8684 §5: "the handshakes use single-use random numbers (nonces) at both ends -- this ensures that the HMAC will
    # never be the same on two handshakes."
    host, peer, connection = connected.server()
    assert peer.host_key is not None
    source = Endpoint.parse("10.0.1.2", 5000)
    syn = builders.syn(MpJoinSyn(token_of(peer.host_key), PEER_NONCE, 9))
    host.receives(syn, source=source)
    (first,) = host.sends()
    (join,) = first.options.mptcp
    assert isinstance(join, MpJoinSynAck)
    recorded = builders.mp_join_ack(join_hmac(PEER_KEY, peer.host_key, PEER_NONCE, join.nonce))
    host.receives(builders.ack(recorded, seq=syn.seq + 1, ack=first.seq + 1), source=source)
    assert len(connection.open_subflows()) == 2
    host.sends()
    host.receives(builders.rst(seq=syn.seq + 1), source=source)
    assert len(connection.open_subflows()) == 1
    host.receives(syn, source=source)  # the attacker, later, from the same address
    (second,) = host.sends()
    (other,) = second.options.mptcp
    assert isinstance(other, MpJoinSynAck)
    assert other.nonce != join.nonce
    assert other.hmac != join.hmac
    host.receives(builders.ack(recorded, seq=syn.seq + 1, ack=second.seq + 1), source=source)
    (rst,) = host.sends()
    assert rst.flags & RST
    assert len(connection.open_subflows()) == 1


def test_a_recorded_answer_cannot_be_replayed_to_us() -> None:
    host, peer, connection = connected.client()
    peer.takes()
    recorded = None
    nonces = set()
    for _ in range(2):
        connection.open_subflow(Endpoint.parse("10.0.1.1"), connection.remote, host.now)
        (entry,) = [e for e in host.sends_to() if e.segment.flags == SYN]
        (join,) = entry.segment.options.mptcp
        assert isinstance(join, MpJoinSyn)
        nonces.add(join.nonce)
        assert peer.host_key is not None
        if recorded is None:
            recorded = MpJoinSynAck(join_hmac(PEER_KEY, peer.host_key, PEER_NONCE, join.nonce)[:8], PEER_NONCE, 0)
        answer = builders.syn_ack(recorded, ack=entry.segment.seq + 1)
        host.receives(answer, source=entry.destination, destination=entry.source)
        (reply,) = host.sends()
        if len(nonces) == 1:
            assert reply.flags == ACK
            host.receives(builders.rst(seq=builders.PEER_ISN + 1), source=entry.destination, destination=entry.source)
        else:
            assert reply.flags & RST
    assert len(nonces) == 2
    assert host.counters["join_bad_hmac"] == 1


def test_keys_are_on_the_wire_in_the_first_handshake_and_nowhere_else() -> None:
    # RFC 8684 §5: "keys that are shared once at the start of the first subflow and are never sent again over the network
    # (unless used in the Fast Close mechanism (Section 3.5))". Who sees that handshake can do all that the peers can.
    pair = Pair(paths=2, keep_packets=100_000)
    client, server = pair.connect(subflows=2)
    assert pair.transfer(50_000).is_exact
    secrets = [client.local_key.to_bytes(8, "big"), server.local_key.to_bytes(8, "big")]
    assert pair.world.trace is not None
    before_data = True
    carrying = 0
    for packet in pair.world.trace.packets:
        segment, _, _ = builders.parse_packet(packet.data)
        capable = any(isinstance(o, MpCapable) for o in segment.options.mptcp)
        has_key = any(secret in packet.data for secret in secrets)
        assert not has_key or capable
        carrying += has_key
        before_data = before_data and not segment.length
    assert 2 <= carrying < 10
    assert not before_data


# --- signals with in-window numbers of one subflow ---------------------------------------------------------------------------
@pytest.mark.parametrize("offset", [1, 1_000, 1 << 20, 1 << 31, 1 << 40])
def test_a_data_ack_of_what_was_never_sent_frees_nothing(offset: int) -> None:
    # RFC 8684 §3.8: data acknowledgements are believed within what has been sent
    host, peer, connection = connected.server()
    connection.write(b"data", host.now)
    host.poll()
    end = connection.data_sender.nxt
    peer.acknowledges(Dss((end + offset) & (1 << 64) - 1, True))
    assert connection.data_sender.unacked_bytes == 4
    assert host.counters["data_ack_beyond"] == 1
    edge = connection.data_sender.window_edge
    peer.acknowledges(Dss((end - (1 << 32)) & (1 << 64) - 1, True))  # long ago
    assert connection.data_sender.unacked_bytes == 4
    assert connection.data_sender.window_edge == edge


def test_injected_mappings_far_away_are_dropped_and_cost_no_memory() -> None:
    # RFC 8684 §3.8: "DSN out of window (during normal operation): drop the data; do not send Data ACKs"
    host, peer, connection = connected.server()
    for number in range(50):
        dsn = (peer.data_seq + (1 << 26) + number * 1_000) & (1 << 64) - 1
        option = builders.dss(data_ack=peer.data_ack, dsn=dsn, ssn=peer.seq - peer.isn, length=10)
        peer.send_segment(builders.data(b"0123456789", option, seq=peer.seq, ack=peer.ack))
        peer.seq += 10
    reorder = connection.data_receiver.reorder
    assert reorder is None or reorder.octets == 0
    assert host.counters["data_out_of_window"] == 50
    peer.sends(b"right")
    assert connection.read(100) == b"right"


def test_what_has_been_delivered_cannot_be_changed_by_another_subflow() -> None:
    # RFC 8684 §3.3.1: "an implementation SHOULD treat the first data that is received ... as the data that should be delivered"
    _, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2")
    second.takes()
    start = peer.data_seq
    peer.sends(b"genuine")
    option = builders.dss(data_ack=peer.data_ack, dsn=start, ssn=1, length=7)
    second.send_segment(builders.data(b"FORGED!", option, seq=second.seq, ack=second.ack))
    assert connection.read(100) == b"genuine"


def test_one_subflow_cannot_be_told_to_rest_over_another() -> None:
    # RFC 8684 §5: "this document specifies the removal of the AddrID field [RFC6824] in the MP_PRIO option"
    host, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2", address_id=3)
    second.takes()
    second.acknowledges(MpPrio(True, 0))
    assert [info.backup for info in connection.subflows()] == [False, False]
    assert host.counters["prio_with_address"] == 1
    second.acknowledges(MpPrio(True))
    assert [info.backup for info in connection.subflows()] == [False, True]


def test_all_subflows_as_backup_are_used_all_the_same() -> None:
    """Diverted traffic: a peer, or who plays one, asks every subflow to rest; data goes on."""
    host, peer, connection = connected.server()
    peer.acknowledges(MpPrio(True))
    connection.write(b"goes on", host.now)
    assert [bytes(s.payloads[0]) for s in peer.takes() if s.length] == [b"goes on"]


@pytest.mark.parametrize("ids", [(0,), tuple(range(200))])
def test_remove_addr_of_the_only_address_does_not_end_what_works(ids: tuple[int, ...]) -> None:
    # RFC 8684 §3.4.2: "For security purposes, if a host receives a REMOVE_ADDR option, it must ensure that the affected path
    # or paths are no longer in use before it instigates closure."
    host, peer, connection = connected.server()
    for first in range(0, len(ids), 8):
        peer.acknowledges(RemoveAddr(ids[first : first + 8]))
    for _ in range(30):
        if peer.takes():
            peer.acknowledges()
        host.advance(host.now + 200_000)
    assert connection.state is ConnectionState.ESTABLISHED
    assert len(connection.open_subflows()) == 1
    peer.sends(b"still here")
    assert connection.read(100) == b"still here"


def test_a_flood_of_remove_addr_is_no_amplifier() -> None:
    host, peer, connection = connected.server()
    for _ in range(100):
        peer.acknowledges(RemoveAddr((0,)))
    probes = peer.takes()
    assert len(probes) <= 100
    assert len(connection.paths._removals or ()) == 1
    host.advance(host.now + 10 * SECOND)
    assert len(peer.takes()) <= 2


@pytest.mark.parametrize("by_reset", [True, False])
def test_fast_close_needs_the_key(by_reset: bool) -> None:
    host, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2")
    second.takes()
    wrong = MpFastclose(0xBAD)
    if by_reset:
        second.resets(wrong)
    else:
        second.acknowledges(wrong)
    assert connection.error is None
    assert connection.state is ConnectionState.ESTABLISHED
    assert host.counters["fastclose_bad_key"] == 1
    peer.sends(b"still here")
    assert connection.read(100) == b"still here"


# --- keys and tokens -----------------------------------------------------------------------------------------------------------
def test_a_key_whose_token_is_taken_is_not_used() -> None:
    # RFC 8684 §3.1: "an implementation SHOULD check its list of connection tokens to ensure that there is no collision before
    # sending its key"
    plain = keys.new_key(Entropy(5), ())
    collisions = {token_of(plain)}
    for _ in range(20):
        key = keys.new_key(Entropy(5), collisions)
        assert token_of(key) not in collisions
        collisions.add(token_of(key))
    assert len(collisions) == 21


def test_a_join_is_for_the_one_connection_that_its_token_names() -> None:
    """Two connections, the token of one with the HMAC of the other."""
    host = ScriptedHost()
    listener = host.listen(80, options=connected.QUIET)
    first = ScriptedPeer.connects(host, 80)
    first.sends(b"x")
    second = ScriptedPeer.connects(host, 80, key=PEER_KEY + 1, local=Endpoint.parse("10.0.0.3", 4000))
    second.sends(b"x")
    one, two = listener.accept(), listener.accept()
    assert one is not None
    assert two is not None
    assert first.host_key is not None
    assert second.host_key is not None
    source = Endpoint.parse("10.0.1.2", 5000)
    syn = builders.syn(MpJoinSyn(token_of(first.host_key), PEER_NONCE, 9))
    host.receives(syn, source=source)
    join = next(
        (s, o) for s in host.sends() for o in s.options.mptcp if isinstance(o, MpJoinSynAck)
    )  # fmt: skip
    forged = builders.mp_join_ack(join_hmac(PEER_KEY + 1, second.host_key, PEER_NONCE, join[1].nonce))
    host.receives(builders.ack(forged, seq=syn.seq + 1, ack=join[0].seq + 1), source=source)
    assert len(one.open_subflows()) == len(two.open_subflows()) == 1
    assert host.counters["join_bad_hmac"] == 1
