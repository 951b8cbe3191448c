"""Faults: which packets meet them, what becomes of packets, the same from the same seed."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from mptcp.core.entropy import Entropy
from mptcp.core.packet import Packet
from mptcp.core.wire import checksum, ip
from mptcp.errors import ConfigurationError
from mptcp.links.faults import MAX_HELD, Fault, FaultKind, FaultLink
from mptcp.testing.builders import parse_packet

MakePacket = Callable[..., Packet]
DROP, DUPLICATE, REORDER, CORRUPT = FaultKind.DROP, FaultKind.DUPLICATE, FaultKind.REORDER, FaultKind.CORRUPT
REWRITE = FaultKind.REWRITE


def seqs(octets: list[bytes]) -> list[int]:
    return [parse_packet(data)[0].seq for data in octets]


def send(link: FaultLink, make: MakePacket, count: int) -> None:
    for i in range(count):
        assert link.send([make(b"payload", seq=i)]) == 1


def test_without_faults_packets_pass_as_they_are(inner: Any, tcp_packet: MakePacket) -> None:
    link = FaultLink(inner, Entropy(1))
    large = tcp_packet(bytes(5000), gso_size=1000)
    arriving = (memoryview(b"x"), 0, True)
    inner.arriving = [arriving]
    assert link.send([large]) == 1
    assert inner.sent == [large]
    assert link.receive() == [arriving]
    assert link.counters == {}


def test_every_third_is_dropped_twice_at_most(inner: Any, tcp_packet: MakePacket) -> None:
    link = FaultLink(inner, Entropy(1), outgoing=[Fault(DROP, every=3, limit=2)])
    send(link, tcp_packet, 12)
    assert seqs(inner.sent_octets) == [0, 1, 3, 4, 6, 7, 8, 9, 10, 11]
    assert link.counters == {"fault_outgoing_drop": 2}
    assert link.outgoing[0].applied == 2


def test_predicate(inner: Any, tcp_packet: MakePacket) -> None:
    link = FaultLink(inner, Entropy(1), outgoing=[Fault(DROP, when=lambda data: parse_packet(data)[0].seq % 2 == 0)])
    send(link, tcp_packet, 6)
    assert seqs(inner.sent_octets) == [1, 3, 5]


def test_duplicate(inner: Any, tcp_packet: MakePacket) -> None:
    link = FaultLink(inner, Entropy(1), outgoing=[Fault(DUPLICATE, every=2)])
    send(link, tcp_packet, 4)
    assert seqs(inner.sent_octets) == [0, 1, 1, 2, 3, 3]


def test_reorder_by_distance(inner: Any, tcp_packet: MakePacket) -> None:
    link = FaultLink(inner, Entropy(1), outgoing=[Fault(REORDER, every=1, limit=1, distance=3)])
    send(link, tcp_packet, 6)
    assert seqs(inner.sent_octets) == [1, 2, 3, 0, 4, 5]


def test_no_more_than_a_limit_is_held(inner: Any, tcp_packet: MakePacket) -> None:
    link = FaultLink(inner, Entropy(1), outgoing=[Fault(REORDER, distance=10_000)])
    send(link, tcp_packet, MAX_HELD + 5)
    assert seqs(inner.sent_octets) == list(range(MAX_HELD, MAX_HELD + 5))


@pytest.mark.parametrize("family", [4, 6])
def test_corruption_is_found_by_the_checksum(inner: Any, tcp_packet: MakePacket, family: int) -> None:
    link = FaultLink(inner, Entropy(7), outgoing=[Fault(CORRUPT)])
    for _ in range(50):
        link.send([tcp_packet(b"a payload of some length", family=family, partial=True)])
    for data in inner.sent_octets:
        header = ip.parse(memoryview(data))
        assert header is not None
        pseudo = checksum.pseudo_sum(header.source, header.destination, 6)
        assert not checksum.verify_tcp(memoryview(data), header.transport_offset, header.end, pseudo)


@pytest.mark.parametrize("partial", [True, False])
@pytest.mark.parametrize("family", [4, 6])
def test_rewritten_payload_is_not_found_by_the_checksum(
    inner: Any, tcp_packet: MakePacket, family: int, partial: bool
) -> None:
    packets = [tcp_packet(data, family=family, partial=partial) for data in (b"a payload of odd length", b"", b"x")]
    link = FaultLink(inner, Entropy(7), outgoing=[Fault(REWRITE)], incoming=[Fault(REWRITE)])
    assert link.send(packets) == 3
    inner.arriving = [(memoryview(bytes(packet)), 0, partial) for packet in packets]
    for changed in (inner.sent_octets, [bytes(data) for data, _, _ in link.receive()]):
        for data, packet in zip(changed, packets, strict=True):
            header = ip.parse(memoryview(data))
            assert header is not None
            pseudo = checksum.pseudo_sum(header.source, header.destination, 6)
            assert checksum.verify_tcp(memoryview(data), header.transport_offset, header.end, pseudo)
            before, after = b"".join(packet.payloads), parse_packet(data)[0].payload
            assert sum((a ^ b).bit_count() for a, b in zip(before, after, strict=True)) == bool(before)
            assert data[: header.transport_offset + 16] == bytes(packet)[: header.transport_offset + 16]


@pytest.mark.parametrize("family", [4, 6])
def test_each_piece_of_a_super_segment_meets_its_own_fate(inner: Any, tcp_packet: MakePacket, family: int) -> None:
    large = tcp_packet(bytes(5000), gso_size=1000, family=family)
    link = FaultLink(inner, Entropy(1), outgoing=[Fault(DROP, every=2)], incoming=[Fault(DROP, every=2)])
    inner.arriving = [(memoryview(bytes(large)), 1000, True)]
    assert link.send([large]) == 1
    assert seqs(inner.sent_octets) == [0, 2000, 4000]
    received = link.receive()
    assert seqs([bytes(d) for d, _, _ in received]) == [0, 2000, 4000]
    assert {(g, c) for _, g, c in received} == {(0, False)}
    assert [bytes(d) for d, _, _ in received] == inner.sent_octets


def test_blackhole_either_way(inner: Any, tcp_packet: MakePacket) -> None:
    link = FaultLink(inner, Entropy(1))
    link.set_blackhole(True, incoming=False)
    inner.arriving = [(memoryview(bytes(tcp_packet(b"x"))), 0, False)] * 2
    send(link, tcp_packet, 2)
    assert inner.sent == []
    assert len(link.receive(1)) == 1
    link.set_blackhole(True)
    assert link.receive() == []
    link.set_blackhole(False)
    send(link, tcp_packet, 1)
    assert len(inner.sent) == 1
    assert link.counters == {"fault_outgoing_blackholed": 2, "fault_incoming_blackholed": 1}


def test_full_link_below_loses_nothing(inner: Any, tcp_packet: MakePacket) -> None:
    link = FaultLink(inner, Entropy(1), outgoing=[Fault(DUPLICATE)])
    packets = [tcp_packet(b"x", seq=i) for i in range(4)]
    inner.room = 3
    taken = link.send(packets)
    assert taken == 2
    assert link.send(packets[taken:]) == 0
    inner.room = 100
    taken += link.send(packets[taken:])
    assert taken == 4
    assert seqs(inner.sent_octets) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_probability_and_seed(inner: Any, tcp_packet: MakePacket) -> None:
    def run(seed: int) -> list[int]:
        inner.sent = []
        faults = [Fault(DROP, 0.2), Fault(DUPLICATE, 0.1), Fault(REORDER, 0.1)]
        send(FaultLink(inner, Entropy(seed), outgoing=faults), tcp_packet, 300)
        return seqs(inner.sent_octets)

    first = run(1)
    assert first == run(1)
    assert first != run(2)
    assert 200 < len(set(first)) < 280  # 300 less about 60
    assert 5 < sum(n > 1 for n in Counter(first).values()) < 60


@pytest.mark.parametrize(
    "wrong", [{"probability": 1.5}, {"probability": -0.1}, {"every": -1}, {"limit": -1}, {"distance": 0}]
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Fault(DROP, **wrong)


def test_close_closes_the_link_below(inner: Any) -> None:
    FaultLink(inner, Entropy(1)).close()
    assert inner.closed
