"""What tests against the kernel's own MPTCP need: laboratories of namespaces, connected sockets, or a reason to skip."""

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from mptcp.testing import netns

HERE = __file__.rpartition("/")[0]
IPPROTO_MPTCP = 262


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
        keep_listener: bool = True,
        full: bool = True,
    ) -> tuple[socket.socket, socket.socket]:
        """``full``: an octet has gone each way, so that the connection is fully established."""
        with (server_in or client_in).entered():
            listener = socket.socket(family, socket.SOCK_STREAM, server_protocol)
            opened.append(listener)
            listener.bind((host, 0))
            listener.listen()
        with client_in.entered():
            client = socket.socket(family, socket.SOCK_STREAM, client_protocol)
            opened.append(client)
            client.connect(listener.getsockname()[:2])
        server, _ = listener.accept()
        opened.append(server)
        if not keep_listener:
            listener.close()
        for sock in (client, server):
            sock.settimeout(10)
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
    """Waits until ``condition()`` is true, 5 s at most: what the kernel does next, it does a moment later."""

    def wait(condition: Callable[[], object], seconds: float = 5) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.002)

    return wait


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if str(item.path).startswith(HERE):
            item.add_marker(pytest.mark.interop)
