"""Segment Routing for one subflow of the kernel's, on the wire."""

import contextlib
import errno
import gc
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mptcp
from mptcp.info import Endpoint, SubflowState
from mptcp.kernel import segment_routing, sockopt
from mptcp.kernel.connection import KernelConnection
from mptcp.kernel.control import DirectControl
from mptcp.kernel.monitor import Monitor
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.path_manager import PathManagerNetlink
from mptcp.kernel.segment_routing import FIRST_TABLE, RULE_PRIORITY, TABLES, Mode, SegmentRoutes, free_port
from mptcp.sockets.kernel import KernelStack
from mptcp.testing.netns import Lab, Namespace

Pair = tuple[socket.socket, socket.socket]

SEGMENT = "fd77:aaaa::1"
ETH_P_ALL, ETH_P_IPV6 = 0x0003, 0x86DD
ROUTING_HEADER, SEGMENT_ROUTING = 43, 4


class Tap:
    """What leaves by one link."""

    def __init__(self, namespace: Namespace, interface: str) -> None:
        with namespace.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
            self._socket.bind((interface, ETH_P_ALL))
        self._socket.setblocking(False)

    def packets(self) -> list[tuple[int, bytes | None]]:
        """(source port of TCP, segments of the header in the order of travel) since the last call."""
        found: list[tuple[int, bytes | None]] = []
        while select.select([self._socket], [], [], 0)[0]:
            octets, address = self._socket.recvfrom(65_536)
            if address[2] != socket.PACKET_OUTGOING or address[1] != ETH_P_IPV6:
                continue
            if octets[6] == socket.IPPROTO_TCP:
                found.append((int.from_bytes(octets[40:42], "big"), None))
            elif octets[6] == ROUTING_HEADER and octets[42] == SEGMENT_ROUTING:
                start = 40 + 8 + 8 * octets[41]
                entries = [octets[place : place + 16] for place in range(48, start, 16)]
                after = start + 40 if octets[40] == socket.IPPROTO_IPV6 else start
                found.append((int.from_bytes(octets[after : after + 2], "big"), b"".join(reversed(entries))))
        return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A server that is also the segment."""
    lab = make_lab(2)
    told = SegmentRoutes(NetNamespace(lab.client.fileno())).supports()
    if not told:
        pytest.skip(f"{told.reason}: {told.fix}")
    lab.server.ip(f"address add {SEGMENT}/128 dev s2 nodad", family=6)
    for interface in ("all", "s1", "s2"):
        lab.server.sysctl(f"net.ipv6.conf.{interface}.seg6_enabled", 1)
    lab.server.mptcp_limits(subflows=8, add_addr_accepted=8)
    lab.client.sysctl("net.mptcp.path_manager", "userspace")
    return lab


@pytest.fixture
def routes(lab: Lab) -> Iterator[SegmentRoutes]:
    with SegmentRoutes(NetNamespace(lab.client.fileno())) as routes:
        yield routes


@pytest.fixture
def tap(lab: Lab) -> Iterator[Callable[[int], Tap]]:
    taps: list[Tap] = []

    def make(path: int) -> Tap:
        taps.append(Tap(lab.client, f"c{path}"))
        return taps[-1]

    yield make
    for tap in taps:
        tap.close()


def rules(lab: Lab) -> list[str]:
    return [line for line in lab.client.run("ip", "-6", "rule", "show").splitlines() if "proto 109" in line]


def tables(lab: Lab) -> list[str]:
    return [line for line in lab.client.run("ip", "-6", "route", "show", "table", "all").splitlines() if "seg6" in line]


def ends_of(sock: socket.socket) -> tuple[Endpoint, Endpoint]:
    return Endpoint.parse(*sock.getsockname()[:2]), Endpoint.parse(*sock.getpeername()[:2])


@pytest.mark.parametrize("mode", Mode, ids=lambda mode: mode.name.lower())
def test_on_one_subflow_and_on_no_other(
    lab: Lab, routes: SegmentRoutes, tap: Callable[[int], Tap], make_pair: Callable[..., Pair],
    eventually: Callable[..., None], mode: Mode,
) -> None:  # fmt: skip
    """From its SYN to its end; two subflows from and to the same addresses differ."""
    client, server = make_pair(lab.client, lab.server_address(1, 6), socket.AF_INET6, server_in=lab.server)
    first, second = tap(1), tap(2)
    token = sockopt.mptcp_info(client.fileno()).token
    remote = ends_of(client)[1]
    address = Endpoint.parse(lab.client_address(2, 6)).address
    namespace = NetNamespace(lab.client.fileno())
    routed, plain = (Endpoint(address, free_port(address, namespace)) for _ in range(2))
    route = routes.add(routed, remote, [Endpoint.parse(SEGMENT).address], mode=mode)
    assert FIRST_TABLE <= route.table < FIRST_TABLE + TABLES
    with contextlib.closing(PathManagerNetlink(namespace)) as steer:
        # Linux: an id is of an address with its port.
        for number, local in enumerate((routed, plain), 1):
            steer.create_subflow(token, local, number, remote)
        eventually(lambda: sum(s.tcp.state == 1 for s in sockopt.full_info(client.fileno()).subflows) == 3)
        for _ in range(20):
            client.sendall(bytes(10_000))
            left = 10_000
            while left:
                left -= len(server.recv(left))
        with_header = Endpoint.parse(SEGMENT).address + (remote.address if mode is Mode.INLINE else b"")
        seen = second.packets()
        assert {segments for port, segments in seen if port == routed.port} == {with_header}
        assert {segments for port, segments in seen if port == plain.port} == {None}
        assert {segments for _, segments in first.packets()} == {None}
        routes.remove(route)
        steer.destroy_subflow(token, routed, remote)
        eventually(lambda: sum(s.tcp.state == 1 for s in sockopt.full_info(client.fileno()).subflows) == 2)
    eventually(lambda: {segments for port, segments in second.packets() if port == routed.port} == {None})
    assert not rules(lab)
    assert not tables(lab)


def test_while_it_lives_it_can_be_moved(
    lab: Lab, routes: SegmentRoutes, tap: Callable[[int], Tap], make_pair: Callable[..., Pair]
) -> None:
    """The header comes and goes on an established subflow."""
    client, server = make_pair(lab.client, lab.server_address(2, 6), socket.AF_INET6, server_in=lab.server)
    seen = tap(2)
    local, remote = ends_of(client)
    for add in (True, False, True):
        route = None
        if add:
            route = routes.add(local, remote, [Endpoint.parse(SEGMENT).address] * 2)
            assert routes.routes() == [route]
        seen.packets()
        client.sendall(b"hello")
        assert server.recv(5) == b"hello"
        segments = {segments for port, segments in seen.packets() if port == local.port}
        assert segments == {Endpoint.parse(SEGMENT).address * 2 + remote.address if add else None}
        if route is not None:
            routes.remove(route)
            routes.remove(route)


def test_what_is_added_and_what_is_left(lab: Lab, routes: SegmentRoutes) -> None:
    """What the administrator has made stays as it is."""
    local, remote = (
        Endpoint.parse(a, port) for a, port in ((lab.client_address(1, 6), 5), (lab.server_address(1, 6), 80))
    )
    before = lab.client.run("ip", "-6", "rule", "show"), lab.client.run("ip", "-6", "route", "show", "table", "all")
    route = routes.add(local, remote, [Endpoint.parse(SEGMENT).address])
    [rule] = rules(lab)
    assert rule.startswith(f"{RULE_PRIORITY}:\tfrom {local.host} to {remote.host} ipproto tcp sport 5 dport 80")
    [line] = tables(lab)
    assert f"encap seg6 mode inline segs 2 [ {SEGMENT} :: ] dev c1 table {route.table} proto 109" in line
    routes.close()
    routes.close()
    assert (
        lab.client.run("ip", "-6", "rule", "show"), lab.client.run("ip", "-6", "route", "show", "table", "all")
    ) == before  # fmt: skip


def test_one_that_is_forgotten_is_removed(lab: Lab) -> None:
    routes = SegmentRoutes(NetNamespace(lab.client.fileno()))
    local, remote = (Endpoint.parse(a, 80) for a in (lab.client_address(1, 6), lab.server_address(1, 6)))
    routes.add(local, remote, [Endpoint.parse(SEGMENT).address])
    assert rules(lab)
    del routes
    gc.collect()
    assert not rules(lab)
    assert not tables(lab)


def test_a_child_leaves_the_routes_of_its_parent(lab: Lab, routes: SegmentRoutes) -> None:
    local, remote = (Endpoint.parse(a, 80) for a in (lab.client_address(1, 6), lab.server_address(1, 6)))
    routes.add(local, remote, [Endpoint.parse(SEGMENT).address])
    child = os.fork()
    if not child:
        status = 1
        try:
            assert routes.routes() == []
            routes.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert len(rules(lab)) == len(tables(lab)) == 1


def test_what_a_killed_process_has_left(lab: Lab, routes: SegmentRoutes, make_pair: Callable[..., Pair]) -> None:
    """Subflows that live keep theirs, and rules of others stay."""
    client, _ = make_pair(lab.client, lab.server_address(1, 6), socket.AF_INET6, server_in=lab.server)
    plain, _ = make_pair(
        lab.client, lab.server_address(1, 6), socket.AF_INET6, server_in=lab.server, client_protocol=socket.IPPROTO_TCP
    )
    segments = [Endpoint.parse(SEGMENT).address]
    remote = Endpoint.parse(lab.server_address(1, 6), 80)
    with SegmentRoutes(NetNamespace(lab.client.fileno())) as other:
        other.add(*ends_of(client), segments)
        other.add(*ends_of(plain), segments)
        other.add(Endpoint.parse(lab.client_address(1, 6), 7), remote, segments)
        routes.add(Endpoint.parse(lab.client_address(1, 6), 8), remote, segments)
        lab.client.ip("rule add from fd99::1 table 77 protocol 109", family=6)
        assert len(rules(lab)) == 5
        assert routes.remove_orphans() == 1
        assert len(rules(lab)) == 4
        assert len(tables(lab)) == 3
        assert routes.remove_orphans() == 0


def test_what_cannot_be(lab: Lab, routes: SegmentRoutes) -> None:
    local, remote = (Endpoint.parse(a, 80) for a in (lab.client_address(1, 6), lab.server_address(1, 6)))
    segment = Endpoint.parse(SEGMENT).address
    v4 = Endpoint.parse("10.77.1.1", 80)
    for arguments in (
        (v4, v4, [segment]), (local, v4, [segment]), (local, remote, []), (local, remote, [v4.address]),
        (local, remote, [bytes(16)]), (local, remote, [segment] * 17), (local, Endpoint(remote.address), [segment]),
        (Endpoint(local.address, 70_000), remote, [segment]),
    ):  # fmt: skip
        with pytest.raises(OSError, match=r"segments|ports") as caught:
            routes.add(*arguments)
        assert caught.value.errno == errno.EINVAL
    routes.add(local, remote, [segment])
    with pytest.raises(OSError, match="has segments already") as caught:
        routes.add(local, remote, [segment])
    assert caught.value.errno == errno.EEXIST
    with pytest.raises(OSError, match="no way from") as caught:
        routes.add(Endpoint.parse("fd77:9::1", 80), Endpoint.parse("fd99::1", 80), [segment])
    assert caught.value.errno == errno.ENETUNREACH
    with pytest.raises(OSError) as caught:
        routes.add(Endpoint(local.address, 81), remote, [segment], interface=9_999)
    assert caught.value.errno == errno.ENODEV
    assert len(rules(lab)) == len(tables(lab)) == len(routes.routes()) == 1
    with pytest.raises(OSError, match="fd99::1") as caught:
        free_port(Endpoint.parse("fd99::1").address, NetNamespace(lab.client.fileno()))
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_as_many_as_there_may_be(lab: Lab, routes: SegmentRoutes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mptcp.kernel.segment_routing.MAX_ROUTES", 2)
    local, remote = (Endpoint.parse(a, 80) for a in (lab.client_address(1, 6), lab.server_address(1, 6)))
    segments = [Endpoint.parse(SEGMENT).address]
    for port in (1, 2):
        routes.add(Endpoint(local.address, port), remote, segments)
    with pytest.raises(OSError, match="2 subflows") as caught:
        routes.add(local, remote, segments)
    assert caught.value.errno == errno.ENOBUFS


def test_when_the_link_is_gone_removing_still_works(lab: Lab, routes: SegmentRoutes) -> None:
    local, remote = (Endpoint.parse(a, 80) for a in (lab.client_address(1, 6), lab.server_address(1, 6)))
    route = routes.add(local, remote, [Endpoint.parse(SEGMENT).address])
    lab.client.ip("link delete c1")
    assert not tables(lab)
    routes.remove(route)
    assert not rules(lab)


def test_through_the_public_interface(lab: Lab, eventually: Callable[..., None]) -> None:
    """As in the user-space stack: the header takes its room from every segment."""
    with contextlib.ExitStack() as exits:
        stacks = [KernelStack(namespace=side.fileno()) for side in (lab.client, lab.server)]
        for stack in stacks:
            exits.callback(stack.close)
        with mptcp.use(stacks[1]):
            listener = exits.enter_context(contextlib.closing(mptcp.create_server(("::", 0), family=socket.AF_INET6)))
        port = listener.getsockname()[1]
        with mptcp.use(stacks[0]):
            client = mptcp.create_connection((lab.server_address(1, 6), port), 10)
        exits.enter_context(contextlib.closing(client))
        server, _ = listener.accept()
        exits.enter_context(contextlib.closing(server))
        client.sendall(b"?")
        assert server.recv(1) == b"?"
        number = client.open_subflow(
            (lab.server_address(2, 6), port), (lab.client_address(2, 6), 0), segments=[SEGMENT]
        )
        eventually(lambda: sum(s.state is SubflowState.ACTIVE for s in client.subflows()) == 2)
        sizes = {subflow.id: subflow.mss_bytes for subflow in client.subflows()}
        assert sizes[number] == sizes[1] - 40
        assert len(rules(lab)) == 1
        with pytest.raises(OSError, match="segments are") as caught:
            client.open_subflow((lab.server_address(2, 6), port), (lab.client_address(2, 6), 0), segments=["::1"] * 17)
        assert caught.value.errno == errno.EINVAL
    assert not rules(lab)
    assert not tables(lab)


def test_without_the_capability() -> None:
    """Root of a user namespace that has no say in the network namespace it is in."""
    program = (
        "from mptcp.kernel.segment_routing import SegmentRoutes; from mptcp.info import Endpoint\n"
        "routes, end = SegmentRoutes(), Endpoint.parse('fd77:9::1', 80)\n"
        "print(routes.supports().ok)\n"
        "try: routes.add(end, end, [end.address], interface=1)\n"
        "except PermissionError as error: print(error.strerror)"
    )
    source = str(Path(segment_routing.__file__).parents[2])
    done = subprocess.run(
        ["unshare", "-Ur", sys.executable, "-c", program],
        check=False, capture_output=True, text=True, timeout=30, env={**os.environ, "PYTHONPATH": source},
    )  # fmt: skip
    if done.stderr.startswith("unshare"):
        pytest.skip(f"user namespaces cannot be made here: {done.stderr.strip()}")
    assert "False" in done.stdout, done.stderr
    assert "CAP_NET_ADMIN" in done.stdout


def test_a_subflow_of_a_connection(
    lab: Lab, tap: Callable[[int], Tap], make_pair: Callable[..., Pair], eventually: Callable[..., None]
) -> None:
    """The header is there from the SYN; rule and route go with the subflow, and with the connection."""
    namespace = NetNamespace(lab.client.fileno())
    with contextlib.ExitStack() as exits:
        control = DirectControl(namespace)
        exits.callback(control.close)
        monitor = Monitor(namespace, control)
        exits.callback(monitor.close)
        client, _ = make_pair(lab.client, lab.server_address(1, 6), socket.AF_INET6, server_in=lab.server)
        connection = KernelConnection(client.fileno(), namespace, control, monitor)
        exits.callback(connection.close)
        seen = tap(2)
        local, segments = Endpoint.parse(lab.client_address(2, 6)), [Endpoint.parse(SEGMENT).address]
        with pytest.raises(OSError, match="segments are"):
            connection.open_subflow(local, connection.initial_remote, segments=[b"1234"])
        numbers = [connection.open_subflow(local, connection.initial_remote, segments=segments) for _ in range(2)]
        plain = connection.open_subflow(local, connection.initial_remote)
        eventually(lambda: sum(s.state is SubflowState.ACTIVE for s in connection.subflows()) == 4)
        ports = {subflow.id: subflow.local.port for subflow in connection.subflows()}
        packets = seen.packets()
        for number in numbers:
            assert {s for port, s in packets if port == ports[number]} == {
                segments[0] + connection.initial_remote.address
            }
        assert {s for port, s in packets if port == ports[plain]} == {None}
        assert len(rules(lab)) == len(tables(lab)) == 2
        connection.close_subflow(numbers[0])
        eventually(lambda: len(rules(lab)) == len(tables(lab)) == 1)
        connection.close()
        assert not rules(lab)
        assert not tables(lab)


def test_a_subflow_that_has_to_wait_has_no_rule_before(
    lab: Lab, make_pair: Callable[..., Pair], eventually: Callable[..., None]
) -> None:
    """A rule without a subflow is taken for one that a killed process has left."""
    namespace = NetNamespace(lab.client.fileno())
    with contextlib.ExitStack() as exits:
        control = DirectControl(namespace)
        exits.callback(control.close)
        monitor = Monitor(namespace, control)
        exits.callback(monitor.close)
        client, server = make_pair(
            lab.client, lab.server_address(1, 6), socket.AF_INET6, server_in=lab.server, full=False
        )
        connection = KernelConnection(client.fileno(), namespace, control, monitor)
        exits.callback(connection.close)
        local, segments = Endpoint.parse(lab.client_address(2, 6)), [Endpoint.parse(SEGMENT).address]
        number = connection.open_subflow(local, connection.initial_remote, segments=segments, wait=True)
        assert not rules(lab)
        client.sendall(b"x")
        assert server.recv(1) == b"x"
        eventually(lambda: {s.id for s in connection.subflows() if s.state is SubflowState.ACTIVE} == {1, number})
        assert len(rules(lab)) == len(tables(lab)) == 1
