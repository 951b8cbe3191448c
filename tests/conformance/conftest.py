"""One suite for every stack: what the application interface says must be so whatever carries the octets.

A ``World`` is a client with three local addresses and a server with two, on two paths, in one family. Today there is the
user-space stack over loopback links; another stack is another subclass here, and another name in ``WORLDS``.
"""

from __future__ import annotations

import socket as std
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.packet import Packet
from mptcp.core.path_managers.base import PathManager
from mptcp.core.wire import ip
from mptcp.core.wire import tcp as tcp_wire
from mptcp.core.wire.segment import Segment
from mptcp.links.base import Link, ReceivedPacket
from mptcp.links.loopback import LoopbackLink
from mptcp.sockets.options import IPPROTO_MPTCP
from mptcp.sockets.user import UserStack

PORT = 8080


@dataclass(frozen=True)
class Seen:
    """One packet on the wire, as the client's side saw it."""

    outgoing: bool
    link: int
    source: str
    destination: str
    header: ip.IpHeader
    source_port: int
    destination_port: int
    segment: Segment
    octets: bytes

    def has(self, kind: type) -> bool:
        return any(isinstance(option, kind) for option in self.segment.options.mptcp)

    def option(self, kind: type) -> Any:
        return next(option for option in self.segment.options.mptcp if isinstance(option, kind))


class NoPaths(PathManager):
    """Opens and announces nothing: what happens is what the test has asked for."""

    name = "no-paths"


class RecordingLink(Link):
    """Passes everything on and keeps it."""

    def __init__(self, inner: Link, number: int, seen: list[Seen]) -> None:
        self.inner, self.number, self.seen = inner, number, seen
        self.name, self.mtu, self.gso_max_bytes = inner.name, inner.mtu, inner.gso_max_bytes

    def fileno(self) -> int:
        return self.inner.fileno()

    def receive(self, limit: int = 64) -> Sequence[ReceivedPacket]:
        received = self.inner.receive(limit)
        for data, _, _ in received:
            self._keep(bytes(data), False)
        return received

    def send(self, packets: Sequence[Packet]) -> int:
        taken = self.inner.send(packets)
        for packet in packets[:taken]:
            self._keep(bytes(packet), True)
        return taken

    def close(self) -> None:
        self.inner.close()

    def _keep(self, octets: bytes, outgoing: bool) -> None:
        header = ip.parse(memoryview(octets))
        assert header is not None
        start = header.transport_offset
        segment = tcp_wire.parse(memoryview(octets), start, header.end)
        assert segment is not None
        ports = [int.from_bytes(octets[start + i : start + i + 2], "big") for i in (0, 2)]
        family = std.AF_INET if header.version == 4 else std.AF_INET6
        ends = [std.inet_ntop(family, end) for end in (header.source, header.final_destination)]
        self.seen.append(Seen(outgoing, self.number, *ends, header, *ports, segment, octets))


class World(ABC):
    """``client_addresses[i]`` is on path ``i % 2``; the third, beside the first, is the one nobody expects."""

    #: What is on the wire, in order; None where this stack's world cannot look at it.
    wire: list[Seen] | None = None

    def __init__(self, family: int) -> None:
        self.family = family
        self.kind = std.AF_INET if family == 4 else std.AF_INET6
        if family == 4:
            self.client_addresses = ["10.0.0.1", "10.0.1.1", "10.0.0.11"]
            self.server_addresses = ["10.0.0.2", "10.0.1.2"]
        else:
            self.client_addresses = ["fd00::1", "fd00:0:0:1::1", "fd00::11"]
            self.server_addresses = ["fd00::2", "fd00:0:0:1::2"]
        #: One of the client's in the other family, on the first path, and one of the server's.
        self.other_family_client = "fd00::1" if family == 4 else "10.0.0.1"
        self.other_family_server = "fd00::2" if family == 4 else "10.0.0.2"
        self.sockets: list[Any] = []
        self.listener: Any = None

    @abstractmethod
    def client(self, proto: int = IPPROTO_MPTCP) -> Any:
        """A client's socket."""

    @abstractmethod
    def server(self, proto: int = IPPROTO_MPTCP) -> Any: ...

    @abstractmethod
    def refuse_multipath(self) -> None:
        """From now on the server's side speaks regular TCP only."""

    @abstractmethod
    def link_name(self, path: int) -> str:
        """The client's interface on that path."""

    @abstractmethod
    def client_stack_is(self, **settings: Any) -> None:
        """Other settings of the client's side (path manager, policy, hidden addresses); before the first socket."""

    def keep(self, sock: Any) -> Any:
        self.sockets.append(sock)
        sock.settimeout(10)
        return sock

    def listen(self, host: str | None = None, port: int = PORT, prepare: Callable[[Any], None] | None = None) -> Any:
        """A listening socket on the wildcard, or one address."""
        listener = self.server()
        if self.family == 6:
            listener.setsockopt(std.IPPROTO_IPV6, std.IPV6_V6ONLY, 0)
        if prepare is not None:
            prepare(listener)
        listener.bind((host or "", port))
        listener.listen()
        self.listener = listener
        return listener

    def connect(self, client: Any, server: int = 0, port: int = PORT) -> tuple[Any, Any]:
        """(client, accepted), with data exchanged both ways, so that subflows may follow."""
        if self.listener is None:
            self.listen()
        client.connect((self.server_addresses[server], port))
        accepted = self.keep(self.listener.accept()[0])
        client.sendall(b"?")
        assert accepted.recv(1) == b"?"
        accepted.sendall(b"!")
        assert client.recv(1) == b"!"
        return client, accepted

    def pair(self, proto: int = IPPROTO_MPTCP) -> tuple[Any, Any]:
        return self.connect(self.client(proto))

    def two_paths(self) -> tuple[Any, Any, int]:
        """A connection from the first address, and a second subflow from the second address to the server's second."""
        client, accepted = self.pair()
        number = client.open_subflow((self.server_addresses[1], PORT), (self.client_addresses[1], 0))
        self.wait_active(client, 2)
        self.wait_active(accepted, 2)
        return client, accepted, number

    def wait_active(self, sock: Any, count: int) -> None:
        self.until(lambda: sum(s.state.value == "active" for s in sock.subflows()) == count)

    def until(self, condition: Callable[[], bool], seconds: float = 8.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it never came about"
            time.sleep(0.002)

    def echo(self, client: Any, accepted: Any, size: int = 100_000) -> None:
        """So many octets both ways, exact."""
        for source, destination in ((client, accepted), (accepted, client)):
            data = bytes(i * 7 & 0xFF for i in range(size))
            source.sendall(data)
            assert destination.recv(size, std.MSG_WAITALL) == data

    def packets(self, kind: type | None = None, *, outgoing: bool = True) -> list[Seen]:
        """Those on the wire so far with an MPTCP option of ``kind``; skips where nobody can look."""
        if self.wire is None:
            pytest.skip("this stack's world has no view of the wire")
        return [p for p in list(self.wire) if p.outgoing == outgoing and (kind is None or p.has(kind))]

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


class UserWorld(World):
    """Two user-space stacks, joined by two loopback links."""

    #: What a test may derive a link from that does something to packets.
    link_base = RecordingLink

    def __init__(self, family: int, exits: ExitStack) -> None:
        super().__init__(family)
        self.exits = exits
        self.wire = []
        self._settings: dict[str, Any] = {}
        self._stacks: tuple[UserStack, UserStack] | None = None
        self._server_multipath = True

    def client_stack_is(self, **settings: Any) -> None:
        self._settings = settings

    def refuse_multipath(self) -> None:
        self._server_multipath = False

    @property
    def stacks(self) -> tuple[UserStack, UserStack]:
        if self._stacks is None:
            self._stacks = self._build()
        return self._stacks

    def wrap_server_link(self, link: Link) -> Link:
        return link

    def _build(self) -> tuple[UserStack, UserStack]:
        assert self.wire is not None
        pairs = [LoopbackLink.pair(f"path{i}") for i in range(2)]
        near = [RecordingLink(pair[0], i, self.wire) for i, pair in enumerate(pairs)]
        far = [self.wrap_server_link(pair[1]) for pair in pairs]
        one, two, three = self.client_addresses
        settings = {"config": ConnectionConfig(path_manager=NoPaths), **self._settings}
        server_config = ConnectionConfig(
            path_manager=settings.pop("server_path_manager", NoPaths), multipath=self._server_multipath
        )
        client = UserStack(
            near, {near[0].name: [one, three, self.other_family_client], near[1].name: [two]}, seed=1, **settings
        )
        server = UserStack(
            far,
            {
                far[0].name: [self.server_addresses[0], self.other_family_server],
                far[1].name: [self.server_addresses[1]],
            },
            seed=2,
            config=server_config,
        )
        self.exits.callback(server.close, 0)
        self.exits.callback(client.close, 0)
        return client, server

    def client(self, proto: int = IPPROTO_MPTCP) -> Any:
        return self.keep(self.stacks[0].socket(self.kind, proto=proto))

    def server(self, proto: int = IPPROTO_MPTCP) -> Any:
        return self.keep(self.stacks[1].socket(self.kind, proto=proto))

    def link_name(self, path: int) -> str:
        return self.stacks[0].interfaces()[path][1]


WORLDS: dict[str, Callable[[int, ExitStack], World]] = {"user": UserWorld}


@pytest.fixture(params=[f"{name}-v{family}" for name in WORLDS for family in (4, 6)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    name, _, family = request.param.rpartition("-v")
    with ExitStack() as exits:
        made = WORLDS[name](int(family), exits)
        exits.callback(made.close)
        yield made


@pytest.fixture(params=list(WORLDS))
def world6(request: pytest.FixtureRequest) -> Iterator[World]:
    """For what IPv6 alone has."""
    with ExitStack() as exits:
        made = WORLDS[request.param](6, exits)
        exits.callback(made.close)
        yield made
