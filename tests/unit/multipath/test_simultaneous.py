"""SYNs that cross: two ends that open the same subflow at once, and two that open a connection to one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.connection import Connection
from mptcp.core.multipath.keys import token_of
from mptcp.core.path_managers.base import PathManager
from mptcp.core.units import MILLISECOND, SECOND
from mptcp.core.wire.mptcp_options import MpJoinAck, MpJoinSyn, MpJoinSynAck
from mptcp.core.wire.segment import ACK, RST, SYN
from mptcp.info import Endpoint, SubflowState
from mptcp.sim.middlebox import Middlebox
from mptcp.testing import builders, connected
from mptcp.testing.pair import SERVER_PORT, Pair
from mptcp.testing.peer import PEER_NONCE

FAMILIES = pytest.mark.parametrize("ipv6", [False, True], ids=["v4", "v6"])


class LoseFirstSyn(Middlebox):
    """The first SYN in one direction."""

    def __init__(self, forward: bool) -> None:
        self.forward = forward
        self.lost = 0

    def process(self, data: bytes, forward: bool, now: int) -> Sequence[bytes]:
        segment, _, _ = builders.parse_packet(data)
        if forward is self.forward and segment.flags == SYN and not self.lost:
            self.lost = 1
            return ()
        return (data,)


def two_paths(ipv6: bool = False, version: int = 1) -> tuple[Pair, Endpoint, Endpoint]:
    """A connection on the first path, and the two ends of a second subflow that nobody has opened."""
    config = ConnectionConfig(path_manager=PathManager, version=version)
    made = Pair(
        paths=2, single_homed_server=False, ipv6=ipv6, client_options=config, server_options=config, keep_packets=1000
    )
    client, server = made.connect()
    exchange(made)
    prefix = "fd00:0:0:1::" if ipv6 else "10.0.1."
    return made, Endpoint.parse(prefix + "1", client.local.port), Endpoint.parse(prefix + "2", server.local.port)


def exchange(made: Pair) -> None:
    for source, sink in ((made.client, made.server), (made.server, made.client)):
        source.write(bytes(1000), made.now)
        made.run(for_us=SECOND)
        assert sink.read(2000) == bytes(1000)


def active(connection: Connection) -> list[tuple[Endpoint, Endpoint]]:
    return sorted((s.local, s.remote) for s in connection.subflows() if s.state is SubflowState.ACTIVE)


@FAMILIES
@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("head_start_ms", [-4, -1, 0, 1, 4])
def test_joins_that_cross_make_one_subflow(head_start_ms: int, version: int, ipv6: bool) -> None:
    # RFC 8684 §3.9.2: "standard TCP simultaneous-open logic should take care of this situation and only one subflow will be
    # established between the address pairs"
    made, near, far = two_paths(ipv6, version)
    ends = [(made.client, near, far), (made.server, far, near)]
    if head_start_ms < 0:
        ends.reverse()
    numbers = []
    for connection, local, remote in ends:
        numbers.append(connection.open_subflow(local, remote, made.now))
        if len(numbers) == 1 and head_start_ms:
            made.run(for_us=abs(head_start_ms) * MILLISECOND)
    made.run(for_us=SECOND)
    assert active(made.client)[1:] == [(near, far)]
    assert active(made.server)[1:] == [(far, near)]
    # Both programs were given a number; it is that of the subflow which came about.
    assert [[s.id for s in c.subflows() if s.local == local] for c, local, _ in ends] == [[n] for n in numbers]
    assert made.server_host.stack.counters["join_crossed"] == 1
    assert made.client_host.stack.counters["join_crossed_ignored"] == 1
    made.server.set_backup(next(s.id for s in made.server.subflows() if s.initial), True, made.now)
    exchange(made)
    assert next(s for s in made.client.subflows() if s.local == near).bytes_received >= 1000
    made.run(for_us=60 * SECOND)
    assert len(active(made.client)) == len(active(made.server)) == 2


@pytest.mark.parametrize("forward", [True, False])
def test_one_of_the_crossing_syns_is_lost(forward: bool) -> None:
    made, near, far = two_paths()
    made.paths[1].add_middlebox(LoseFirstSyn(forward))
    made.client.open_subflow(near, far, made.now)
    made.server.open_subflow(far, near, made.now)
    made.run(for_us=5 * SECOND)
    assert active(made.client)[1:] == [(near, far)]
    assert active(made.server)[1:] == [(far, near)]
    exchange(made)


@pytest.mark.parametrize("options", [(), (MpJoinSyn(0xBAD, 1, 1),)], ids=["bare", "another token"])
@pytest.mark.parametrize("role", ["client", "server"])
def test_a_foreign_syn_does_not_end_a_join(role: str, options: tuple[MpJoinSyn, ...]) -> None:
    """Who guesses addresses and ports, and nothing else, does no harm to the attempt."""
    host, peer, connection = connected.client() if role == "client" else connected.server()
    if role == "server":
        host.add_interface("10.0.1.1")
    peer.takes()
    number = connection.open_subflow(Endpoint.parse("10.0.1.1"), connection.remote, host.now)
    (entry,) = [e for e in host.sends_to() if e.segment.flags == SYN]
    ends: dict[str, Any] = {"source": entry.destination, "destination": entry.source}
    host.receives(builders.syn(*options), **ends)
    assert not any(e.segment.flags & RST for e in host.sends_to())
    (join,) = entry.segment.options.mptcp
    assert isinstance(join, MpJoinSyn)
    assert peer.host_key is not None
    subflow = connection.subflows_by_id[number]
    subflow.remote_nonce = PEER_NONCE
    answer = MpJoinSynAck(subflow.expected_hmac()[:8], PEER_NONCE, 4)
    host.receives(builders.syn_ack(answer, ack=entry.segment.seq + 1), **ends)
    (third,) = host.sends()
    assert third.options.mptcp == (MpJoinAck(subflow.own_hmac()[:20]),)


def test_whoever_answers_to_a_crossing_join_still_wants_the_hmac() -> None:
    host, peer, connection = connected.server()
    host.add_interface("10.0.1.1")
    peer.takes()
    connection.open_subflow(Endpoint.parse("10.0.1.1"), connection.remote, host.now)
    (entry,) = [e for e in host.sends_to() if e.segment.flags == SYN]
    ends: dict[str, Any] = {"source": entry.destination, "destination": entry.source}
    assert peer.host_key is not None
    crossing = builders.syn(MpJoinSyn(token_of(peer.host_key), PEER_NONCE, 5))
    host.receives(crossing, **ends)
    (answer,) = host.sends()
    # RFC 9293 §3.5, figure 7: our own SYN's number again, now with the acknowledgement of the peer's
    assert (answer.flags, answer.seq, answer.ack) == (SYN | ACK, entry.segment.seq, crossing.seq + 1)
    assert isinstance(answer.options.mptcp[0], MpJoinSynAck)
    connection.write(b"x" * 1000, host.now)
    assert all(e.destination != entry.destination for e in host.sends_to() if e.source == entry.source)
    host.receives(builders.ack(MpJoinAck(bytes(20)), seq=crossing.seq + 1, ack=answer.seq + 1), **ends)
    assert [e.segment.flags & RST for e in host.sends_to() if e.source == entry.source] == [RST]
    assert host.counters["join_bad_hmac"] == 1
    assert len(connection.open_subflows()) == 1


@FAMILIES
def test_connects_that_cross_make_one_connection_of_regular_tcp(ipv6: bool) -> None:
    # RFC 9293 §3.5 (MUST-10): simultaneous open. RFC 8684 gives MP_CAPABLE no meaning in it: no SYN/ACK answers a SYN there.
    made = Pair(ipv6=ipv6)
    near = Endpoint(made.client_ports[0].addresses[0], 5000)
    far = Endpoint(made.server_ports[0].addresses[0], SERVER_PORT + 1)
    one = made.client_host.connect(far, local=near)
    other = made.server_host.connect(near, local=far)
    made.run(for_us=SECOND)
    assert one.error is other.error is None
    assert not one.is_multipath
    assert not other.is_multipath
    for source, sink, data in ((one, other, b"this way"), (other, one, b"and that")):
        source.write(data, made.now)
        made.run(for_us=SECOND)
        assert sink.read(100) == data
    one.close(made.now)
    other.close(made.now)
    made.run(for_us=120 * SECOND)
    assert not made.client_host.stack.connections  # type: ignore[attr-defined]
    assert not made.server_host.stack.connections  # type: ignore[attr-defined]
