"""Whatever arrives, nothing raises, memory stays bounded, and connections it does not belong to go on."""

import random

import pytest

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.multipath.joining import MAX_HALF_OPEN_JOINS
from mptcp.core.multipath.listener import MAX_HALF_OPEN
from mptcp.core.wire.mptcp_options import (
    AddAddr,
    Dss,
    MpCapable,
    MpFail,
    MpFastclose,
    MpJoinAck,
    MpJoinSyn,
    MpPrio,
    MptcpOption,
    MpTcprst,
    RemoveAddr,
)
from mptcp.core.wire.options import length as options_length
from mptcp.core.wire.segment import ACK, FIN, PSH, RST, SYN, URG, Options, Segment
from mptcp.info import Endpoint
from mptcp.testing import builders, connected
from mptcp.testing.peer import ScriptedPeer
from mptcp.testing.scripted import ScriptedHost


def some_option(chance: random.Random, peer: ScriptedPeer) -> MptcpOption:
    """Any MPTCP option, its fields now right, now wrong."""
    number = chance.choice([0, 1, chance.getrandbits(32), peer.data_seq, peer.data_ack, chance.getrandbits(64)])
    wide = chance.random() < 0.7
    near = (number + chance.choice([0, 0, -1, 1, 100, 1 << 20])) & ((1 << 64) - 1 if wide else 0xFFFFFFFF)
    octets = chance.randbytes(20)
    kind = chance.randrange(15)
    if kind < 4:
        mapped = chance.random() < 0.7
        return Dss(
            near if chance.random() < 0.8 or not mapped else None, wide,
            (peer.data_seq + chance.choice([0, 0, -5, 5, 1 << 30])) & ((1 << 64) - 1) if mapped else None, mapped,
            (peer.seq - peer.isn + chance.choice([0, 0, 3, -3, 1 << 20])) & 0xFFFFFFFF if mapped else 0,
            chance.choice([0, 1, 5, 1400, 65535]) if mapped else 0,
            chance.getrandbits(16) if mapped and chance.random() < 0.2 else None,
            mapped and chance.random() < 0.2,
        )  # fmt: skip
    return [
        MpCapable(chance.choice([0, 1, 1]), chance.getrandbits(8), chance.getrandbits(64), peer.host_key),
        MpCapable(1, 1, chance.getrandbits(64), peer.host_key, chance.choice([0, 5, 65535])),
        MpJoinAck(octets),
        AddAddr(chance.getrandbits(8), octets[:4], chance.choice([None, 80]), False, octets[:8]),
        AddAddr(chance.getrandbits(8), octets[:4], chance.choice([None, 80]), True),
        AddAddr(chance.getrandbits(8), octets[:16], None, False, octets[:8]),
        RemoveAddr(tuple(chance.randbytes(chance.randrange(1, 9)))),
        MpPrio(chance.random() < 0.5),
        MpFail(chance.getrandbits(64)),
        MpFastclose(chance.getrandbits(64)),
        MpTcprst(chance.getrandbits(8), chance.random() < 0.5),
    ][kind - 4]


def some_segment(chance: random.Random, peer: ScriptedPeer) -> Segment:
    flags = chance.choice(
        [ACK, ACK, ACK | PSH, ACK | PSH, FIN | ACK, SYN, SYN | ACK, RST, RST | ACK, 0, URG | ACK, 0x1FF]
    )
    options: list[MptcpOption] = []
    for _ in range(chance.randrange(4)):
        option = some_option(chance, peer)
        if (
            not (flags & SYN and isinstance(option, MpCapable | MpJoinAck))
            and options_length(Options(mptcp=(*options, option))) <= 40
        ):
            options.append(option)
    return Segment(
        (peer.seq + chance.choice([0, 0, 0, -1, 1, 5, -2000, 1 << 16, chance.getrandbits(32)])) & 0xFFFFFFFF,
        (peer.ack + chance.choice([0, 0, 0, -1, 1, 1000, chance.getrandbits(32)])) & 0xFFFFFFFF,
        flags, chance.choice([0, 1, 1000, 65535]), Options(mptcp=tuple(options)),
        (chance.randbytes(chance.choice([0, 0, 1, 5, 1400])),), urgent_pointer=chance.choice([0, 1, 65535]),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_any_segment_on_a_connection(seed: int) -> None:
    chance = random.Random(seed)
    host, peer, connection = connected.server(
        ConnectionConfig(version=chance.choice([0, 1])), checksum=chance.random() < 0.3
    )
    second = peer.joins(address="10.0.1.2") if chance.random() < 0.5 else None
    bystander = ScriptedPeer.connects(host, 80, local=Endpoint.parse("10.0.7.7", 777))
    for _ in range(120):
        end = second if second is not None and chance.random() < 0.5 else peer
        end.send_segment(some_segment(chance, end))
        if chance.random() < 0.2:
            connection.write(bytes(chance.choice([1, 3000])), host.now)
        if chance.random() < 0.2:
            connection.read(1000)
        if chance.random() < 0.1:
            host.advance(host.now + chance.choice([1_000, 1_000_000, 30_000_000]))
        end.takes()
    bystander.sends(b"unharmed")
    # the kernel of the matter: another connection does not notice
    assert [s for s in bystander.takes() if s.flags & RST] == []
    connection.abort(host.now)
    host.advance(host.now + 400_000_000)
    assert connection.state is ConnectionState.CLOSED


@pytest.mark.parametrize("seed", range(20))
def test_any_octets(seed: int) -> None:
    chance = random.Random(seed)
    host, peer, connection = connected.server()
    good = builders.packet(
        builders.data(
            b"hello", builders.dss(data_ack=peer.data_ack, dsn=peer.data_seq, ssn=2, length=5), seq=peer.seq, ack=peer.ack
        ),
        peer.local, peer.remote,
    )  # fmt: skip
    for _ in range(300):
        octets = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            octets[chance.randrange(len(octets))] = chance.getrandbits(8)
        if chance.random() < 0.3:
            octets = octets[: chance.randrange(len(octets))]
        if chance.random() < 0.2:
            octets += chance.randbytes(chance.randrange(100))
        host.host.handle_packet(0, memoryview(octets), host.now, 0, chance.random() < 0.5)
        host.poll()
    assert connection.environment.now == host.now


def test_a_flood_of_syns_is_bounded_and_harms_nobody() -> None:  # RFC 4987
    host, peer, connection = connected.server()
    for number in range(MAX_HALF_OPEN + 300):
        source = Endpoint.parse(f"10.8.{number >> 8}.{number & 255}", 1024 + number)
        host.receives(builders.syn(MpCapable()), source=source, destination=peer.remote)
        host.sent.clear()
    listener = next(iter(host.host.listeners.values()))
    assert len(listener.half_open) == MAX_HALF_OPEN
    assert listener.cookies == 300
    assert len(host.host.connections) <= MAX_HALF_OPEN + 10
    peer.sends(b"unharmed")
    assert connection.read(100) == b"unharmed"
    # and a real client gets in even now
    late = ScriptedPeer.connects(host, 80, local=Endpoint.parse("10.0.7.7", 777))
    late.sends(b"hello")
    accepted = listener.accept()
    assert accepted is not None
    assert accepted.read(10) == b"hello"
    # what never answers is given up, all of it
    host.advance(host.now + 400_000_000)
    assert len(listener.half_open) == 0


def test_a_flood_of_joins_is_bounded() -> None:
    host, peer, connection = connected.server()
    assert peer.host_key is not None
    from mptcp.core.multipath.keys import token_of

    token = token_of(peer.host_key)
    for number in range(300):
        host.receives(
            builders.syn(MpJoinSyn(token, number, number & 255)), source=Endpoint.parse("10.8.0.9", 1024 + number),
            destination=peer.remote,
        )  # fmt: skip
        host.receives(
            builders.syn(MpJoinSyn(number + 1, number, 1)), source=Endpoint.parse("10.8.0.8", 1024 + number),
            destination=peer.remote,
        )  # fmt: skip
    # those nobody has proved are few, and the oldest gives way
    assert len(connection.subflows_by_id) <= 1 + MAX_HALF_OPEN_JOINS + 1
    assert host.counters["join_recycled"] == 300 - MAX_HALF_OPEN_JOINS
    assert host.counters["join_unknown_token"] == 300
    peer.sends(b"unharmed")
    assert connection.read(100) == b"unharmed"


def test_answers_to_a_flood_are_bounded() -> None:
    host = ScriptedHost()
    for number in range(1000):
        segment = builders.syn()
        octets = builders.packet(segment, Endpoint.parse("10.8.0.9", 1024 + number), Endpoint(host.local.address, 81))
        host.host.handle_packet(0, memoryview(octets), host.now)
    assert len(host.sends()) <= 256
    assert host.counters["reply_dropped"] == 1000 - 256


def test_octets_in_front_of_the_stream_are_bounded_in_count() -> None:
    """A peer that sends single octets with holes between them cannot make us keep a packet for each for ever."""
    host, peer, connection = connected.server()
    for number in range(12_000):
        option = builders.dss(data_ack=peer.data_ack, dsn=peer.data_seq + 2 * number + 1, ssn=2 + number, length=1)
        peer.send_segment(builders.data(b"x", option, seq=peer.seq + number, ack=peer.ack))
        host.sent.clear()
    reorder = connection.data_receiver.reorder
    assert reorder is not None
    assert len(reorder) <= 8192


def test_the_same_seed_gives_the_same_packets() -> None:
    def run(seed: int) -> list[bytes]:
        chance = random.Random(3)
        host, peer, connection = connected.server()
        del seed
        result = []
        for _ in range(50):
            connection.write(chance.randbytes(2000), host.now)
            result += [s.payload + repr(s.options).encode() for s in peer.takes()]
            peer.acknowledges()
        return result

    assert run(1) == run(1)
