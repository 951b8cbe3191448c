"""A network of UDP sockets in virtual time, and two nodes on it."""

from collections.abc import Callable

from mptcp.core.packet import Packet
from mptcp.core.units import SECOND
from mptcp.core.wire import ip
from mptcp.info import Endpoint
from mptcp.links import udp_frames as frames
from mptcp.links.udp_node import Introduction, UdpNode
from mptcp.links.udp_path import Path
from mptcp.links.udp_paths import (
    Paths,
)
from mptcp.links.udp_socket import sockaddr

Frame = tuple[bytes, bytes, bytes]  # from, to, octets


class World:
    """Sockets on a network without delay but with a clock; ``between`` decides what becomes of a datagram."""

    def __init__(self, family: int) -> None:
        self.family = family
        self.now = 1_000 * SECOND
        self.sockets: dict[bytes, Paths] = {}
        self.between: Callable[[bytes, bytes, bytes], Frame | None] = lambda source, to, octets: (source, to, octets)
        self.limit = 1440  # what the systems believe to fit, in inner packets
        self.sent: list[Frame] = []

    def where(self, host: int, port: int = 4000) -> bytes:
        text = f"192.0.2.{host}" if self.family == 4 else f"2001:db8::{host}"
        return sockaddr(Endpoint.parse(text, port))

    def endpoint(self, host: int, port: int = 4000) -> Endpoint:
        return Endpoint.parse(f"192.0.2.{host}" if self.family == 4 else f"2001:db8::{host}", port)

    def node(self, seed: int, **options: int) -> UdpNode:
        return UdpNode(seed=seed, clock=lambda: self.now, **options)

    def socket(self, node: UdpNode, host: int, **options: int) -> Paths:
        paths = Paths(node, self.endpoint(host), lambda where: self.limit, **options)
        self.sockets[self.where(host)] = paths
        return paths

    def deliver(self, source: bytes, to: bytes, octets: bytes) -> None:
        """One datagram arrives, as the link would hand it over."""
        paths = self.sockets.get(to)
        if paths is None:
            return
        magic, version_kind, _, tag = frames.HEADER.unpack_from(octets)
        assert (magic, version_kind >> 4) == (frames.MAGIC, frames.VERSION)
        if version_kind & 15:
            paths.handle_frame(version_kind & 15, tag, memoryview(octets), source, self.now)
            return
        path = paths.by_tag.get(tag)
        if path is None:
            paths.handle_unknown_tag(tag, source, len(octets), self.now)
        elif path.where != source:
            paths.handle_stray(path, source, len(octets), self.now)
        else:
            path.heard_us = self.now

    def settle(self) -> None:
        """Until nobody has anything more to say at this time."""
        for _ in range(50):
            moved = False
            for here, paths in list(self.sockets.items()):
                for to, octets, _ in paths.poll_frames():
                    moved = True
                    frame = self.between(here, to, octets)
                    if frame is not None:
                        self.sent.append(frame)
                        self.deliver(*frame)
            if not moved:
                return
        raise AssertionError("they talk for ever")

    def run(self, duration_us: int) -> None:
        """Lets time pass, timer by timer."""
        end = self.now + duration_us
        self.settle()
        while True:
            deadline = min(paths.deadline for paths in self.sockets.values())
            if deadline > end:
                break
            self.now = max(self.now, deadline)
            for paths in self.sockets.values():
                if paths.deadline <= self.now:
                    paths.handle_timeout(self.now)
            self.settle()
        self.now = end

    def kinds(self) -> list[int]:
        return [octets[1] & 15 for _, _, octets in self.sent]


class Two:
    """A client on host 1 and a server on host 2."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.client_node, self.server_node = world.node(1), world.node(2)
        self.client, self.server = world.socket(self.client_node, 1), world.socket(self.server_node, 2)

    def meet(self) -> Introduction:
        introduction = self.client_node.introduce([self.world.where(2)])
        self.world.settle()
        return introduction

    @property
    def ours(self) -> Path:
        return self.client.by_address[self.server.address]

    @property
    def theirs(self) -> Path:
        return self.server.by_address[self.client.address]


def data(path: Path, length: int = 100) -> bytes:
    return path.header + bytes(length)


def tcp_packet(source: bytes, destination: bytes) -> Packet:
    header = ip.emit_ipv6(source, destination, 20) + bytes(20)
    return Packet(header, (), len(header), 40)
