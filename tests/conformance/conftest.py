"""One suite for every stack: what the application interface says must be so whatever carries the octets.

A ``World`` is a client with three local addresses and a server with two, on two paths, in one family: the user-space
stack over loopback links, and the kernel's in two network namespaces. Where the kernel's stack differs, a test says so:

    @pytest.mark.kernel_differs("Linux closes a subflow for both directions only", errno=errno.EOPNOTSUPP)

With ``errno`` (and ``family``) the test must end there with that error; without, it has a branch for it. Tests of what the world of one
stack alone can show are marked ``only_on``; those of what takes more privilege than a namespace gives, ``needs_support``.
"""

from __future__ import annotations

import contextlib
import socket as std
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.packet import Packet
from mptcp.core.path_managers.base import PathManager
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.core.wire import ip
from mptcp.core.wire import tcp as tcp_wire
from mptcp.core.wire.segment import Segment
from mptcp.kernel.watchdog import FailurePolicy
from mptcp.links.base import Link, ReceivedPacket
from mptcp.links.loopback import LoopbackLink
from mptcp.sockets.kernel import KernelStack
from mptcp.sockets.options import IPPROTO_MPTCP
from mptcp.sockets.user import UserStack
from mptcp.testing import netns

PORT = 8080
#: Of the kernel's stacks: on a busy machine a timer runs out though no path is dead, and no subflow is to be missing for it.
PATIENT = FailurePolicy(timeouts=6)


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
        seen = look(octets, outgoing, self.number)
        assert seen is not None
        self.seen.append(seen)


def look(octets: bytes, outgoing: bool, link: int) -> Seen | None:
    """An IP packet with a TCP segment; None for any other."""
    header = ip.parse(memoryview(octets))
    if header is None or header.protocol != std.IPPROTO_TCP:
        return None
    start = header.transport_offset
    segment = tcp_wire.parse(memoryview(octets), start, header.end)
    if segment is None:
        return None
    ports = [int.from_bytes(octets[start + i : start + i + 2], "big") for i in (0, 2)]
    family = std.AF_INET if header.version == 4 else std.AF_INET6
    ends = [std.inet_ntop(family, end) for end in (header.source, header.final_destination)]
    return Seen(outgoing, link, *ends, header, *ports, segment, octets)


class World(ABC):
    """``client_addresses[i]`` is on path ``i % 2``; the third, beside the first, is the one nobody expects."""

    #: Of the stack.
    name = ""
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
    def refuse_joins(self) -> None:
        """The server's side takes no joins at the address that was connected to; before the first socket."""

    @abstractmethod
    def link_name(self, path: int) -> str:
        """The client's interface on that path."""

    @abstractmethod
    def if_index(self, path: int) -> int:
        """``if_idx`` of that interface."""

    @abstractmethod
    def answer_over(self, address: str, path: int) -> None:
        """Packets to one of the client's addresses come over that path from now on, where routes decide it."""

    @abstractmethod
    def make_room_for_options(self) -> None:
        """Linux sends no ADD_ADDR of an IPv6 address with a port beside TCP timestamps: there is no room."""

    @abstractmethod
    def client_stack_is(self, **settings: Any) -> None:
        """Other settings of the client's side (path manager, policy, hidden addresses); before the first socket."""

    @abstractmethod
    def add_address(self, address: str, path: int) -> None:
        """The client has one more, on that path."""

    @abstractmethod
    def remove_address(self, address: str, path: int) -> None: ...

    def keep(self, sock: Any) -> Any:
        self.sockets.append(sock)
        sock.settimeout(30)
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

    def until(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it never came about"
            time.sleep(0.002)

    def echo(self, client: Any, accepted: Any, size: int = 100_000) -> None:
        """So many octets both ways, exact."""
        for source, destination in ((client, accepted), (accepted, client)):
            data = bytes(i * 7 & 0xFF for i in range(size))
            sender = threading.Thread(target=source.sendall, args=(data,))
            sender.start()
            assert self.read(destination, size) == data
            sender.join()

    def read(self, sock: Any, size: int) -> bytes:
        """So many octets, or those before the end."""
        data = bytearray()
        while len(data) < size and (more := sock.recv(size - len(data))):
            data += more
            _ = self.wire  # what a tap has seen does not wait in a bounded queue
        return bytes(data)

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

    name = "user"
    #: What a test may derive a link from that does something to packets.
    link_base = RecordingLink

    def __init__(self, family: int, exits: ExitStack) -> None:
        super().__init__(family)
        self.exits = exits
        self.wire = []
        self._settings: dict[str, Any] = {}
        self._stacks: tuple[UserStack, UserStack] | None = None
        self._server_settings: dict[str, Any] = {}

    def client_stack_is(self, **settings: Any) -> None:
        self._settings = settings

    def refuse_multipath(self) -> None:
        self._server_settings["multipath"] = False

    def refuse_joins(self) -> None:
        self._server_settings["deny_join_initial"] = True

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
            path_manager=settings.pop("server_path_manager", NoPaths), **self._server_settings
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

    def if_index(self, path: int) -> int:
        return path + 1

    def answer_over(self, address: str, path: int) -> None:
        """As the client's packets came."""

    def make_room_for_options(self) -> None:
        """This stack leaves timestamps out where there is none."""

    def add_address(self, address: str, path: int) -> None:
        self.stacks[0].add_address(address, self.link_name(path))

    def remove_address(self, address: str, path: int) -> None:
        self.stacks[0].remove_address(address)


class Tap:
    """Every packet of a namespace's links, by AF_PACKET."""

    def __init__(self, namespace: netns.Namespace, links: Sequence[str]) -> None:
        with namespace.entered():
            self._socket = std.socket(std.AF_PACKET, std.SOCK_DGRAM, std.htons(0x0003))
        with contextlib.suppress(OSError):
            self._socket.setsockopt(std.SOL_SOCKET, 33, 1 << 27)  # SO_RCVBUFFORCE: nothing is read while data moves
        self._socket.setblocking(False)
        self._links = {name: number for number, name in enumerate(links)}
        self.seen: list[Seen] = []

    def read(self) -> list[Seen]:
        """All there was so far."""
        while True:
            try:
                octets, (link, _, kind, *_) = self._socket.recvfrom(1 << 17)
            except BlockingIOError:
                return self.seen
            if link in self._links:
                seen = look(octets, kind == std.PACKET_OUTGOING, self._links[link])
                if seen is not None:
                    self.seen.append(seen)

    def close(self) -> None:
        self._socket.close()


class KernelWorld(World):
    """Two network namespaces with two links between them, under the user-space path manager."""

    name = "kernel"

    def __init__(self, family: int, exits: ExitStack) -> None:
        super().__init__(family)
        if reason := netns.needs_kernel_mptcp():
            pytest.skip(reason)
        self.exits = exits
        self.near = exits.enter_context(netns.Namespace("client"))
        self.far = exits.enter_context(netns.Namespace("server"))
        self._lay_links()
        self._tap = Tap(self.near, ("c0", "c1"))
        exits.callback(self._tap.close)
        self._settings: dict[str, Any] = {}
        self._stacks: tuple[KernelStack, KernelStack] | None = None

    @property
    def wire(self) -> list[Seen]:  # type: ignore[override]
        return self._tap.read()

    def _lay_links(self) -> None:
        for namespace in (self.near, self.far):
            for name, value in (
                ("net.ipv4.conf.all.rp_filter", 0),
                ("net.ipv4.conf.default.rp_filter", 0),
                ("net.ipv6.conf.all.accept_dad", 0),
                ("net.ipv6.conf.default.accept_dad", 0),
                ("net.ipv6.conf.default.router_solicitations", 0),
                ("net.ipv4.tcp_congestion_control", "reno"),
                ("net.mptcp.pm_type", 1),
            ):
                with contextlib.suppress(OSError):
                    namespace.sysctl(name, value)
        far = self.far.fileno()
        one, two, three = self.client_addresses
        size, other = (24, 64) if self.family == 4 else (64, 24)
        client = ["link set lo up"]
        server = ["link set lo up"]
        client += [
            f"link add c{i} index {100 + i} type veth peer name s{i} index {200 + i} netns /proc/self/fd/{far}"
            for i in range(2)
        ]
        if self.family == 6:
            client.append(f"addr add {three}/{size} dev c0 nodad")  # the last one is the first choice
        for i, (ours, theirs) in enumerate(((one, self.server_addresses[0]), (two, self.server_addresses[1]))):
            client.append(f"addr add {ours}/{size} dev c{i}" + " nodad" * (self.family == 6))
            server.append(f"addr add {theirs}/{size} dev s{i}" + " nodad" * (self.family == 6))
        if self.family == 4:
            client.append(f"addr add {three}/{size} dev c0")
        for lines, address, name in (
            (client, self.other_family_client, "c0"), (server, self.other_family_server, "s0"),
        ):  # fmt: skip
            lines.append(f"addr add {address}/{other} dev {name}" + " nodad" * (self.family == 4))
        for i in range(2):
            client.append(f"link set c{i} up")
            server.append(f"link set s{i} up")
        self.near.ip(*client, extra=(far,))
        self.far.ip(*server)
        # Any of the client's addresses may reach any of the server's, by its own link.
        rules = []
        for i, ours in enumerate((one, two, three)):
            rules.append(f"rule add from {ours} table {i + 1}")
            link = f"c{i % 2}"
            rules.append(f"route add default via {self.server_addresses[i % 2]} dev {link} table {i + 1} onlink")
        back = [f"route add {ours} dev s{i % 2} metric 1" for i, ours in enumerate((one, two, three))]
        self.near.ip(*rules, family=self.family)
        self.far.ip(*back, family=self.family)

    def client_stack_is(self, **settings: Any) -> None:
        self._settings = settings

    def refuse_joins(self) -> None:
        self.far.sysctl("net.mptcp.allow_join_initial_addr_port", 0)

    def refuse_multipath(self) -> None:
        self.far.sysctl("net.mptcp.enabled", 0)

    @property
    def stacks(self) -> tuple[KernelStack, KernelStack]:
        if self._stacks is None:
            # Where none is named, the user-space stack has a full mesh, and the kernel's leaves paths to the namespace.
            settings = {"config": ConnectionConfig(path_manager=NoPaths), "failure_policy": PATIENT, **self._settings}
            settings["config"] = settings["config"].changed(path_manager=settings["config"].path_manager or FullMesh)
            server = ConnectionConfig(path_manager=settings.pop("server_path_manager", NoPaths) or FullMesh)
            self._stacks = (
                self.exits.enter_context(KernelStack(namespace=self.near.fileno(), **settings)),
                self.exits.enter_context(
                    KernelStack(namespace=self.far.fileno(), config=server, failure_policy=PATIENT)
                ),
            )
        return self._stacks

    def client(self, proto: int = IPPROTO_MPTCP) -> Any:
        return self.keep(self.stacks[0].socket(self.kind, proto=proto))

    def server(self, proto: int = IPPROTO_MPTCP) -> Any:
        sock = self.keep(self.stacks[1].socket(self.kind, proto=proto))
        sock.setsockopt(std.SOL_SOCKET, std.SO_REUSEADDR, 1)
        return sock

    def link_name(self, path: int) -> str:
        return f"c{path}"

    def if_index(self, path: int) -> int:
        return 100 + path

    def answer_over(self, address: str, path: int) -> None:
        self.far.ip(f"route replace {address} dev s{path} metric 1", family=self.family)
        if self.family == 6:
            words = self.near.run("ip", "-o", "link", "show", f"c{path}").split()
            self.far.ip(f"neigh replace {address} lladdr {words[words.index('link/ether') + 1]} dev s{path}")

    def make_room_for_options(self) -> None:
        for namespace in (self.near, self.far):
            namespace.sysctl("net.ipv4.tcp_timestamps", 0)

    def add_address(self, address: str, path: int) -> None:
        size = "/24" if ":" not in address else "/64"
        self.near.ip(f"addr add {address}{size} dev c{path}" + " nodad" * (":" in address))

    def remove_address(self, address: str, path: int) -> None:
        size = "/24" if ":" not in address else "/64"
        self.near.ip(f"addr del {address}{size} dev c{path}")


WORLDS: dict[str, Callable[[int, ExitStack], World]] = {"user": UserWorld, "kernel": KernelWorld}


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Network namespaces can be made; where only a user namespace may, this process moves into one for good."""
    reason = netns.needs_namespaces()
    if reason and not netns.become_namespace_root():
        pytest.skip(reason)


def _make(name: str, family: int, request: pytest.FixtureRequest) -> Iterator[World]:
    if name == "kernel":
        request.getfixturevalue("namespaces")
    with ExitStack() as exits:
        made = WORLDS[name](family, exits)
        exits.callback(made.close)
        yield made


@pytest.fixture(params=[f"{name}-v{family}" for name in WORLDS for family in (4, 6)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    name, _, family = request.param.rpartition("-v")
    yield from _make(name, int(family), request)


@pytest.fixture(params=list(WORLDS))
def world6(request: pytest.FixtureRequest) -> Iterator[World]:
    """For what IPv6 alone has."""
    yield from _make(request.param, 6, request)


def _world_of(item: pytest.Item) -> str:
    for name in ("world", "world6"):
        param = getattr(item, "callspec", None) and item.callspec.params.get(name)  # type: ignore[attr-defined]
        if param:
            return str(param).partition("-")[0]
    return ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    elsewhere = [
        item
        for item in items
        if (mark := item.get_closest_marker("only_on")) is not None and _world_of(item) not in ("", mark.args[0])
    ]
    if elsewhere:
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = [item for item in items if item not in elsewhere]


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    mark = pyfuncitem.get_closest_marker("kernel_differs")
    needed = pyfuncitem.get_closest_marker("needs_support")
    if needed is not None and _world_of(pyfuncitem) == "kernel":
        with KernelStack() as stack:
            if not (support := stack.supports(needed.args[0])):
                pytest.skip(f"{support.reason}: {support.fix}")
    number = None
    if mark is not None and _world_of(pyfuncitem) == "kernel":
        family = mark.kwargs.get("family")
        if family is None or pyfuncitem.callspec.params.get("world", "").endswith(str(family)):
            number = mark.kwargs.get("errno")
    try:
        result = yield
    except OSError as error:
        if number is not None and error.errno == number and len(str(error)) > 8:
            return True
        raise
    if number is not None:
        pytest.fail("the kernel's stack was documented to fail here, and does not")
    return result
