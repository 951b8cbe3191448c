"""The UDP link on real sockets of this machine's loopback: packets, super-segments, errors, hostile datagrams."""

from __future__ import annotations

import errno
import select
import socket
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mptcp.core.packet import Packet
from mptcp.core.wire import checksum, icmp, ip, tcp
from mptcp.core.wire.icmp import IcmpKind
from mptcp.core.wire.offload import finish
from mptcp.core.wire.segment import ACK, Segment
from mptcp.errors import ConfigurationError
from mptcp.info import Endpoint
from mptcp.links import udp_frames as frames
from mptcp.links import udp_socket
from mptcp.links.udp import UdpLink
from mptcp.links.udp_node import UdpNode
from mptcp.links.udp_socket import DatagramSocket, endpoint_of, python_address, sockaddr

HOSTS = {4: "127.0.0.1", 6: "::1"}


def packet_between(source: str, destination: str, payload: bytes = b"", *, gso_size: int = 0, seq: int = 1) -> Packet:
    here, there = Endpoint.parse(source).address, Endpoint.parse(destination).address
    segment = Segment(seq, 5, ACK, 1000, payloads=(payload,) if payload else ())
    header = tcp.emit(segment, 1000, 2000, checksum.pseudo_sum(here, there, 6), partial=True)
    head = ip.emit_ipv6(here, there, len(header) + len(payload)) + header
    return Packet(head, (payload,) if payload else (), len(head) + len(payload), 40, gso_size, True)


class Two:
    """Two links that have met."""

    def __init__(self, family: int, **options: Any) -> None:
        self.near = UdpLink(HOSTS[family], node=UdpNode(seed=1), **options)
        self.far = UdpLink(HOSTS[family], node=UdpNode(seed=2), **options)
        self.inbox: dict[UdpLink, list[tuple[bytes, int, bool]]] = {self.near: [], self.far: []}

    def meet(self) -> None:
        introduction = self.near.node.introduce([sockaddr(self.far.local)])
        self.until(lambda: introduction.is_done)
        assert introduction.address == Endpoint.parse(self.far.address).address
        # The path MTU is known, too.
        self.until(lambda: not any(p.sizes for link in self.inbox for p in link._paths.by_address.values()))

    def until(self, done: Callable[[], Any], timeout: float = 30.0) -> None:
        end = time.monotonic() + timeout
        poller = select.epoll()
        for link in self.inbox:
            poller.register(link.fileno(), select.EPOLLIN)
        while not done():
            assert time.monotonic() < end, "it did not happen"
            poller.poll(0.05)
            for link, inbox in self.inbox.items():
                inbox += [(bytes(data), size, valid) for data, size, valid in link.receive()]
        poller.close()

    def packet(self, payload: bytes = b"", **options: Any) -> Packet:
        return packet_between(self.near.address, self.far.address, payload, **options)

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture(params=[4, 6])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def make(family: int) -> Iterator[Callable[..., Two]]:
    made: list[Two] = []

    def factory(**options: Any) -> Two:
        two = Two(family, **options)
        made.append(two)
        two.meet()
        return two

    yield factory
    for two in made:
        two.close()


def stream(packets: list[tuple[bytes, int, bool]]) -> bytes:
    return b"".join(data[60:] for data, _, _ in packets)


def test_packets_both_ways(make: Callable[..., Two]) -> None:
    two = make()
    there, back = two.packet(b"x" * 500), packet_between(two.far.address, two.near.address, b"y" * 30_000)
    assert two.near.send([there]) == 1
    assert two.far.send([back]) == 1
    two.until(lambda: all(two.inbox.values()))
    assert two.inbox[two.far] == [(bytes(there), 0, True)]
    assert two.inbox[two.near] == [(bytes(back), 0, True)]
    assert not two.near.counters
    assert not two.far.counters


def test_a_complete_checksum_is_not_vouched_for(make: Callable[..., Two]) -> None:
    two = make()
    octets = finish(two.packet(b"x" * 500))[0]
    two.near.send([Packet(octets, (), len(octets), 40)])
    two.until(lambda: two.inbox[two.far])
    assert two.inbox[two.far] == [(octets, 0, False)]


@pytest.mark.parametrize("offload", [True, False])
def test_super_segments(make: Callable[..., Two], offload: bool) -> None:
    """Cut on the way, by the kernel or by the link; the same octets in the same order come out."""
    two = make(mtu=1472, offload=offload)
    payload = bytes(i % 251 for i in range(60_000))
    assert two.near.send([two.packet(payload, gso_size=1400)]) == 1
    two.until(lambda: len(stream(two.inbox[two.far])) >= len(payload))
    assert stream(two.inbox[two.far]) == payload
    assert len(two.inbox[two.far]) < 15
    assert {size for _, size, _ in two.inbox[two.far]} <= {1400, 0}
    seqs = [int.from_bytes(data[44:48], "big") for data, _, _ in two.inbox[two.far]]
    assert seqs == sorted(seqs)


def test_many_small_packets_in_few_calls(make: Callable[..., Two], monkeypatch: pytest.MonkeyPatch) -> None:
    two = make()
    calls = []
    original = udp_socket._sendmmsg
    assert original is not None
    monkeypatch.setattr(udp_socket, "_sendmmsg", lambda *a: calls.append(a[2]) or original(*a))
    packets = [two.packet(i.to_bytes(4, "big") * 10) for i in range(200)]
    assert two.near.send(packets) == 200
    two.until(lambda: len(stream(two.inbox[two.far])) == 8000)
    assert calls == [64, 64, 64, 8]
    assert stream(two.inbox[two.far]) == b"".join(bytes(p.payloads[0]) for p in packets)


def test_without_sendmmsg_and_recvmmsg(make: Callable[..., Two], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_socket, "_sendmmsg", None)
    monkeypatch.setattr(udp_socket, "_recvmmsg", None)
    two = make(mtu=1472)
    payload = bytes(i % 251 for i in range(20_000))
    two.near.send([two.packet(payload, gso_size=1400), two.packet(b"small", seq=20_001)])
    two.until(lambda: len(stream(two.inbox[two.far])) >= 20_005)
    assert stream(two.inbox[two.far]) == payload + b"small"


def test_a_kernel_that_cannot_cut(make: Callable[..., Two], monkeypatch: pytest.MonkeyPatch) -> None:
    """The device refuses UDP_SEGMENT: from then on the link does it itself, and nothing is lost."""
    two = make(mtu=1472)
    original = DatagramSocket.send

    def send(self: DatagramSocket, where: bytes, parts: Any, segment_bytes: int = 0) -> None:
        if segment_bytes:
            raise OSError(errno.EIO, "no checksum offload")
        original(self, where, parts)

    monkeypatch.setattr(DatagramSocket, "send", send)
    payload = bytes(i % 251 for i in range(60_000))
    two.near.send([two.packet(payload, gso_size=1400)])
    two.until(lambda: len(stream(two.inbox[two.far])) >= len(payload))
    assert stream(two.inbox[two.far]) == payload
    assert two.near.counters == {"udp_gso_refused": 1}
    assert not two.near.has_gso


@pytest.mark.parametrize("offload", [True, False])
def test_a_full_socket_takes_the_rest_later(
    make: Callable[..., Two], monkeypatch: pytest.MonkeyPatch, offload: bool
) -> None:
    """Backpressure: what a full socket refuses is offered again, in order; part of a super-segment waits in the link."""
    two = make(mtu=1472, offload=offload)
    room = [3]
    original_send, original_flush = DatagramSocket.send, DatagramSocket.flush

    def send(self: DatagramSocket, where: bytes, parts: Any, segment_bytes: int = 0) -> None:
        if self is two.near._sock:
            if room[0] <= 0:
                raise BlockingIOError(errno.EAGAIN, "full")
            room[0] -= 1
        original_send(self, where, parts, segment_bytes)

    def flush(self: DatagramSocket) -> None:
        if self is two.near._sock and self.queued:
            if room[0] <= 0:
                raise BlockingIOError(errno.EAGAIN, "full")
            room[0] -= 1
        original_flush(self)

    monkeypatch.setattr(DatagramSocket, "send", send)
    monkeypatch.setattr(DatagramSocket, "flush", flush)
    payload = bytes(i % 251 for i in range(240_000))
    size = 60_000
    packets = [two.packet(payload[at : at + size], gso_size=1400, seq=1 + at) for at in range(0, len(payload), size)]
    while packets:
        del packets[: two.near.send(packets)]
        room[0] = 2
        two.until(lambda: True)
        two.near.receive()
    for _ in range(200):
        room[0] = 1
        two.near.receive()
        if not two.near._backlog and not two.near._sock.queued:
            break
    two.until(lambda: len(stream(two.inbox[two.far])) >= len(payload))
    assert stream(two.inbox[two.far]) == payload


def icmp_of(two: Two) -> icmp.IcmpError:
    two.until(lambda: two.inbox[two.near])
    [(octets, _, _)] = two.inbox[two.near]
    header = ip.parse(memoryview(octets))
    assert header is not None
    error = icmp.parse(memoryview(octets), header)
    assert error is not None
    assert error.source == Endpoint.parse(two.near.address).address
    return error


def test_a_packet_too_long_for_the_path_is_told_to_the_stack(make: Callable[..., Two]) -> None:
    two = make(mtu=1400)
    two.near.send([two.packet(bytes(1341), seq=77)])
    error = icmp_of(two)
    assert (error.kind, error.mtu, error.seq) == (IcmpKind.PACKET_TOO_BIG, 1400, 77)
    assert two.near.counters == {"udp_too_big": 1}


def test_what_the_system_finds_too_long_is_told_to_the_stack(
    make: Callable[..., Two], monkeypatch: pytest.MonkeyPatch
) -> None:
    """EMSGSIZE: a router has told the system of a narrower link."""
    two = make(mtu=1472)
    monkeypatch.setattr(DatagramSocket, "path_mtu", lambda self, where: 1408)

    def refuse(self: DatagramSocket) -> None:
        raise OSError(errno.EMSGSIZE, "too long")

    monkeypatch.setattr(DatagramSocket, "flush", refuse)
    two.near.send([two.packet(bytes(1400), seq=5)])
    outer = 28 if two.near.local.family == 4 else 48
    error = icmp_of(two)
    assert (error.kind, error.mtu, error.seq) == (IcmpKind.PACKET_TOO_BIG, 1408 - outer - frames.HEADER_BYTES, 5)
    assert two.near.counters == {"udp_send_emsgsize": 1, "udp_too_big": 1}


def test_no_path_is_host_unreachable(make: Callable[..., Two]) -> None:
    two = make()
    stranger = Endpoint(frames.virtual_address(b"stranger", 1)).host
    two.near.send([packet_between(two.near.address, stranger, b"x", seq=9)])
    error = icmp_of(two)
    assert (error.kind, error.seq) == (IcmpKind.HOST_UNREACHABLE, 9)
    assert two.near.counters == {"udp_unreachable": 1}


def test_ipv4_inside_is_dropped_and_counted(make: Callable[..., Two]) -> None:
    two = make()
    head = ip.emit_ipv4(bytes(4), bytes(4), 20) + bytes(20)
    assert two.near.send([Packet(head, (), 40)]) == 1
    assert two.near.counters == {"udp_send_not_ipv6": 1}


def test_a_peer_sends_from_its_own_address_only(make: Callable[..., Two]) -> None:
    two = make()
    other = Endpoint(frames.virtual_address(b"someone!", 1)).host
    two.near.send([packet_between(other, two.far.address, b"x" * 50), two.packet(b"fine")])
    two.until(lambda: two.inbox[two.far])
    assert stream(two.inbox[two.far]) == b"fine"
    assert two.far.counters == {"udp_not_its_address": 1}


def test_hostile_datagrams(make: Callable[..., Two], family: int) -> None:
    two = make()
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with socket.socket(kind, socket.SOCK_DGRAM) as attacker:
        target = python_address(sockaddr(two.far.local))
        tag = next(iter(two.near._paths.by_address.values())).tag
        hostile = [
            b"", b"x", bytes(7), bytes(8), b"M\x20" + bytes(100), b"\x4d\x10", frames.header(0, 1),
            frames.header(0, tag) + b"short", frames.header(0, tag) + bytes(100), *(bytes((77, 16 + k)) + bytes(60) for k in range(16)),
        ]  # fmt: skip
        for octets in hostile:
            attacker.sendto(octets, target)
        two.near.send([two.packet(b"still here")])
        two.until(lambda: two.inbox[two.far])
    assert stream(two.inbox[two.far]) == b"still here"
    assert two.far.counters["udp_other_protocol"] == 2
    assert two.far.counters["udp_malformed"] >= 3
    assert two.far.counters["udp_stray"] >= 1


def test_a_flood_of_nonsense_does_not_keep_receive_busy(make: Callable[..., Two], family: int) -> None:
    two = make(buffer_bytes=4 << 20)
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with socket.socket(kind, socket.SOCK_DGRAM) as attacker:
        for i in range(1500):
            attacker.sendto(bytes(20 + i % 3), python_address(sockaddr(two.far.local)))
    assert two.far.receive() == []
    assert 0 < two.far.counters["udp_other_protocol"] <= 1500


def test_rebind_keeps_the_path(make: Callable[..., Two]) -> None:
    """The socket of one end moves to another port; its peer follows, the virtual addresses stay."""
    two = make()
    before = two.near.local
    two.near.rebind(HOSTS[two.near.local.family])
    assert two.near.local.port != before.port
    two.until(lambda: two.far.endpoint(Endpoint.parse(two.near.address).address) == two.near.local)
    back = packet_between(two.far.address, two.near.address, b"found you")
    two.far.send([back])
    two.until(lambda: two.inbox[two.near])
    assert stream(two.inbox[two.near]) == b"found you"


def test_rebind_errors(make: Callable[..., Two], family: int) -> None:
    two = make()
    here = two.near.local
    with pytest.raises(ConfigurationError, match="another address family"):
        two.near.rebind(HOSTS[10 - family])
    with pytest.raises(OSError) as caught:
        two.near.rebind(HOSTS[family], two.far.local.port)
    assert caught.value.errno == errno.EADDRINUSE
    assert two.near.local == here
    two.near.send([two.packet(b"as before")])
    two.until(lambda: two.inbox[two.far])


def test_a_lost_address_makes_the_link_roam(make: Callable[..., Two], monkeypatch: pytest.MonkeyPatch) -> None:
    two = make()
    monkeypatch.setattr("mptcp.links.udp.can_bind", lambda local: False)
    original = DatagramSocket.flush
    broken = two.near._sock

    def flush(self: DatagramSocket) -> None:
        if self is broken and self.queued:
            raise OSError(errno.EINVAL, "the address is gone")
        original(self)

    monkeypatch.setattr(DatagramSocket, "flush", flush)
    two.near.send([two.packet(b"lost")])
    assert two.near.local.is_unspecified
    two.until(lambda: two.far.counters.get("udp_path_moved"))
    two.near.send([two.packet(b"on we go")])
    two.until(lambda: two.inbox[two.far])
    assert stream(two.inbox[two.far]) == b"on we go"
    assert two.near.counters["udp_roamed"] == 1


def test_other_errors_of_sending_are_told_and_counted(
    make: Callable[..., Two], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = make()

    def refuse(self: DatagramSocket) -> None:
        raise OSError(errno.EPERM, "a firewall")

    monkeypatch.setattr(DatagramSocket, "flush", refuse)
    two.near.send([two.packet(b"x", seq=3)])
    assert icmp_of(two).kind is IcmpKind.HOST_UNREACHABLE
    assert two.near.counters == {"udp_send_eperm": 1}


def test_after_many_refusals_datagrams_still_go_together(
    make: Callable[..., Two], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = make()
    original = DatagramSocket.flush

    def refuse(self: DatagramSocket) -> None:
        raise OSError(errno.EPERM, "a firewall")

    monkeypatch.setattr(DatagramSocket, "flush", refuse)
    two.near.send([two.packet(b"x")] * 100)
    monkeypatch.setattr(DatagramSocket, "flush", original)
    assert two.near._sock.queue(sockaddr(two.far.local), [b"x"], 1)
    assert two.near._sock.queued == 1


def test_a_system_that_shows_nothing_to_ordinary_users(family: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No netlink, as on some telephones: the link works all the same."""

    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, "no netlink for you")

    class Refusing(socket.socket):
        bind = refuse

    monkeypatch.setattr("mptcp.links._addresses.local_addresses", refuse)
    monkeypatch.setattr("mptcp.links._addresses.socket", types.SimpleNamespace(**{**vars(socket), "socket": Refusing}))
    link = UdpLink(HOSTS[family])
    assert link.mtu == 1500 - (28 if family == 4 else 48) - frames.HEADER_BYTES
    assert link._watch.fileno() == -1
    assert link.receive() == []
    link.close()


def test_what_cannot_work_is_said_at_once(family: int) -> None:
    with pytest.raises(ConfigurationError, match="no address to open"):
        UdpLink("somewhere")
    with pytest.raises(ConfigurationError, match="no address of this machine"):
        UdpLink("203.0.113.7" if family == 4 else "2001:db8::7")
    for mtu in (1279, 65_500):
        with pytest.raises(ConfigurationError, match="cannot be carried by UDP"):
            UdpLink(HOSTS[family], mtu=mtu)
    with pytest.raises(OSError) as caught:
        UdpLink(HOSTS[family], device="nosuchdev0")
    assert caught.value.errno == errno.ENODEV


def test_the_mtu_is_the_interface_s(family: int) -> None:
    link = UdpLink(HOSTS[family])
    assert link.mtu == min(65_536 - (28 if family == 4 else 48), 65_507) - frames.HEADER_BYTES
    link.close()
    link.close()  # twice is as good as once
    link = UdpLink("0.0.0.0" if family == 4 else "::")
    assert link.mtu == 1500 - (28 if family == 4 else 48) - frames.HEADER_BYTES
    link.close()


def test_a_socket_address_there_and_back(family: int) -> None:
    endpoint = Endpoint.parse(HOSTS[family], 4000)
    assert endpoint_of(sockaddr(endpoint)) == endpoint
    assert python_address(sockaddr(endpoint, 3))[:2] == (HOSTS[family], 4000)


def test_a_path_too_narrow_for_the_least_is_fragmented_by_the_system(
    make: Callable[..., Two], monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 8200 §5: a link that cannot carry 1,280 octets in one piece has to cut below IPv6."""
    two = make()
    modes: list[int] = []
    original = DatagramSocket.set_mode
    monkeypatch.setattr(DatagramSocket, "set_mode", lambda self, mode: modes.append(mode) or original(self, mode))
    path = next(iter(two.near._paths.by_address.values()))
    path.set_limit(1000)
    two.near.send([two.packet(bytes(1200))])
    two.until(lambda: two.inbox[two.far])
    assert udp_socket.MAY_FRAGMENT in modes
    assert stream(two.inbox[two.far]) == bytes(1200)
