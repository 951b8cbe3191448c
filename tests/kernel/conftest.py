"""What tests against the kernel's own MPTCP need: laboratories of namespaces, connected sockets, or a reason to skip."""

import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from mptcp.info import Endpoint, Support
from mptcp.kernel.connection import KernelConnection
from mptcp.kernel.control import Control, DirectControl, NoControl
from mptcp.kernel.monitor import Monitor
from mptcp.kernel.namespace import NetNamespace
from mptcp.testing import netns

HERE = __file__.rpartition("/")[0]
IPPROTO_MPTCP = 262

# A shell without job control lets what it starts in the background ignore SIGINT, and so would every program started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Network namespaces can be made, with MPTCP in them; where only a user namespace may, this process moves into one."""
    reason = netns.needs_namespaces()
    if reason and not netns.become_namespace_root():
        pytest.skip(reason)
    if reason := netns.needs_kernel_mptcp():
        pytest.skip(reason)


@pytest.fixture
def make_lab(namespaces: None) -> Iterator[Callable[..., netns.Lab]]:
    """Builds laboratories (arguments of ``Lab``) whose both ends are the kernel's; torn down after the test."""
    labs: list[netns.Lab] = []

    def make(paths: int = 2, **options: object) -> netns.Lab:
        labs.append(netns.Lab(paths, client_kernel=True, **options))  # type: ignore[arg-type]
        return labs[-1]

    yield make
    for lab in labs:
        lab.close()


@pytest.fixture
def lab(make_lab: Callable[..., netns.Lab]) -> netns.Lab:
    """Two paths without rate limits between two namespaces."""
    return make_lab(2)


@pytest.fixture
def host_namespace(namespaces: None) -> Iterator[netns.Namespace]:
    """One namespace with nothing but a loopback device."""
    with netns.Namespace("host") as namespace:
        namespace.ip("link set lo up")
        namespace.sysctl("net.ipv4.tcp_congestion_control", "reno")
        yield namespace


@pytest.fixture(params=[4, 6])
def family(request: pytest.FixtureRequest) -> int:
    """Of ``make_steered``; what is about one of them alone, or takes long, says ``parametrize("family", [4])``."""
    number: int = request.param
    return number


@pytest.fixture
def make_pair() -> Iterator[Callable[..., tuple[socket.socket, socket.socket]]]:
    """Connects two sockets of the kernel: (client, server), both in this process."""
    opened: list[socket.socket] = []

    def make(
        client_in: netns.Namespace,
        host: str,
        family: int = socket.AF_INET,
        *,
        server_in: netns.Namespace | None = None,
        client_protocol: int = IPPROTO_MPTCP,
        server_protocol: int = IPPROTO_MPTCP,
        bind: str | None = None,
        keep_listener: bool = True,
        full: bool = True,
    ) -> tuple[socket.socket, socket.socket]:
        """``bind``: where the listener is, if not at ``host`` alone. ``full``: an octet has gone each way, so that the connection is fully established."""
        with (server_in or client_in).entered():
            listener = socket.socket(family, socket.SOCK_STREAM, server_protocol)
            opened.append(listener)
            listener.bind((host if bind is None else bind, 0))
            listener.listen()
        with client_in.entered():
            client = socket.socket(family, socket.SOCK_STREAM, client_protocol)
            opened.append(client)
            client.connect((host, listener.getsockname()[1]))
        server, _ = listener.accept()
        opened.append(server)
        if not keep_listener:
            listener.close()
        for sock in (client, server):
            sock.settimeout(30)
        if full:
            client.sendall(b".")
            server.recv(1)
            server.sendall(b".")
            client.recv(1)
        return client, server

    yield make
    for sock in opened:
        sock.close()


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Waits until ``condition()`` is true, 30 s at most: what the kernel does next, it does a moment later."""

    def wait(condition: Callable[[], object], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.002)

    return wait


@pytest.fixture(scope="module")
def steered_lab(namespaces: None) -> Iterator[netns.Lab]:
    """Three paths between two namespaces with the user-space path manager; shared by a module's tests."""
    with netns.Lab(3, client_kernel=True) as lab:
        for namespace in (lab.client, lab.server):
            try:
                namespace.sysctl("net.mptcp.path_manager", "userspace")
            except FileNotFoundError:
                namespace.sysctl("net.mptcp.pm_type", 1)
        yield lab


@pytest.fixture
def room_for_options(steered_lab: netns.Lab) -> Iterator[None]:
    """Linux sends no ADD_ADDR of an IPv6 address with a port beside TCP timestamps: there is no room."""
    for namespace in (steered_lab.client, steered_lab.server):
        namespace.sysctl("net.ipv4.tcp_timestamps", 0)
    yield
    for namespace in (steered_lab.client, steered_lab.server):
        namespace.sysctl("net.ipv4.tcp_timestamps", 1)


class Steered:
    """Both ends of a connection between two namespaces, each steered and watched by its own side."""

    def __init__(
        self,
        lab: netns.Lab,
        family: int,
        client: socket.socket,
        server: socket.socket,
        sides: Callable[..., KernelConnection],
    ) -> None:
        self.lab, self.family, self.client_socket, self.server_socket = lab, family, client, server
        self.client = sides(client, lab.client, accepted=False)
        self.server = sides(server, lab.server, accepted=True)
        self.port = server.getsockname()[1]

    def local(self, path: int, port: int = 0, family: int = 0) -> Endpoint:
        """The client's address on a path, of the connection's family or that one."""
        return Endpoint.parse(self.lab.client_address(path, family or self.family), port)

    def remote(self, path: int, port: int = 0, family: int = 0) -> Endpoint:
        """The server's address on a path, with the port it listens on."""
        return Endpoint.parse(self.lab.server_address(path, family or self.family), port or self.port)

    def nowhere(self, port: int = 0) -> Endpoint:
        """An address that nobody has."""
        return Endpoint.parse("192.0.2.1" if self.family == 4 else "2001:db8::1", port)

    def exchange(self, count: int = 1000) -> None:
        """The connection still carries octets both ways."""
        for sender, receiver in (
            (self.client_socket, self.server_socket), (self.server_socket, self.client_socket)
        ):  # fmt: skip
            sender.sendall(bytes(count))
            left = count
            while left:
                left -= len(receiver.recv(left))


@pytest.fixture
def make_steered(
    steered_lab: netns.Lab, make_pair: Callable[..., tuple[socket.socket, socket.socket]], family: int
) -> Iterator[Callable[..., Steered]]:
    """Connects across ``steered_lab``, in the ``family`` of the test. ``heard``: with the kernel's events; ``privileged``: with the right to steer."""
    made: list[KernelConnection] = []
    monitors: dict[tuple[int, bool, bool], tuple[NetNamespace, Control, Monitor]] = {}

    def side(where: netns.Namespace, heard: bool, privileged: bool) -> tuple[NetNamespace, Control, Monitor]:
        key = where.fileno(), heard, privileged
        if key not in monitors:
            namespace = NetNamespace(where.fileno())
            nobody = NoControl(Support(False, "steering connections needs CAP_NET_ADMIN", "ask for it"))
            control: Control = DirectControl(namespace) if privileged else nobody
            monitors[key] = namespace, control, Monitor(namespace, control if heard else nobody)
        return monitors[key]

    def make(
        family: int = family, *, heard: bool = True, privileged: bool = True, full: bool = True, **options: object
    ) -> Steered:
        for where in (steered_lab.client, steered_lab.server):
            side(where, heard, privileged)  # what happens while connecting is heard of, too
        pair = make_pair(
            steered_lab.client,
            steered_lab.server_address(1, family),
            socket.AF_INET if family == 4 else socket.AF_INET6,
            server_in=steered_lab.server,
            bind="",
            full=full,
            **options,
        )

        def connection(sock: socket.socket, where: netns.Namespace, accepted: bool) -> KernelConnection:
            made.append(KernelConnection(sock.fileno(), *side(where, heard, privileged), accepted=accepted))
            return made[-1]

        return Steered(steered_lab, family, *pair, connection)

    yield make
    for connection in made:
        connection.close()
    for namespace, control, monitor in monitors.values():
        monitor.close()
        control.close()
        namespace.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if str(item.path).startswith(HERE):
            item.add_marker(pytest.mark.interop)
