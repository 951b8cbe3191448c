"""A link whose other side is the test, and packets to send through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from mptcp.core.packet import Packet
from mptcp.core.wire import checksum, ip, tcp
from mptcp.core.wire.segment import ACK, FIN, PSH, Segment
from mptcp.info import Endpoint
from mptcp.links.base import Link, ReceivedPacket

from .udp_world import Two, World


class ScriptedLink(Link):
    """Takes up to ``room`` packets and keeps them in ``sent``; gives what is in ``arriving``."""

    def __init__(self) -> None:
        self.name, self.mtu, self.gso_max_bytes = "scripted", 1500, 65_455
        self.room = 1 << 30
        self.sent: list[Packet] = []
        self.arriving: list[ReceivedPacket] = []
        self.closed = False

    def fileno(self) -> int:
        return 0

    def receive(self, limit: int = 64) -> Sequence[ReceivedPacket]:
        received, self.arriving = self.arriving[:limit], self.arriving[limit:]
        return received

    def send(self, packets: Sequence[Packet]) -> int:
        taken = min(len(packets), self.room)
        self.room -= taken
        self.sent += packets[:taken]
        return taken

    def close(self) -> None:
        self.closed = True

    @property
    def sent_octets(self) -> list[bytes]:
        return [bytes(packet) for packet in self.sent]


def make_packet(
    payload: bytes = b"", *, seq: int = 0, family: int = 4, gso_size: int = 0, partial: bool = False
) -> Packet:
    """A TCP segment as the host would hand it to a link; its payload in two views."""
    hosts = ("10.0.0.1", "10.0.0.2") if family == 4 else ("fd00::1", "fd00::2")
    source, destination = Endpoint.parse(hosts[0], 1000), Endpoint.parse(hosts[1], 2000)
    views = (payload[:7], memoryview(payload)[7:]) if payload else ()
    segment = Segment(seq, 5, ACK | PSH | FIN, 1000, payloads=views)
    pseudo = checksum.pseudo_sum(source.address, destination.address, 6)
    transport = tcp.emit(segment, 1000, 2000, pseudo, partial=partial or gso_size > 0)
    emit = ip.emit_ipv4 if family == 4 else ip.emit_ipv6
    header = emit(source.address, destination.address, len(transport) + len(payload))
    return Packet(
        header + transport,
        views,
        len(header + transport) + len(payload),
        len(header),
        gso_size,
        partial or gso_size > 0,
    )


@pytest.fixture
def inner() -> ScriptedLink:
    return ScriptedLink()


@pytest.fixture
def tcp_packet() -> Callable[..., Packet]:
    return make_packet


@pytest.fixture(params=[4, 6])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


@pytest.fixture
def two(world: World) -> Two:
    return Two(world)
