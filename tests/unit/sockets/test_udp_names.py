"""The stack over UDP by outer addresses: what any program, or library, does that knows nothing of virtual ones."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import mptcp
from mptcp.sockets.udp import UdpStack
from mptcp.sockets.unmodified import patched

HOSTS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])


def free_port() -> int:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def closing() -> Iterator[list[Any]]:
    things: list[Any] = []
    yield things
    for thing in reversed(things):
        thing.close(*((0.2,) if isinstance(thing, UdpStack) else ()))


def two_stacks(closing: list[Any], family: int, *, port: int, **options: Any) -> tuple[UdpStack, UdpStack]:
    """(client, server); the server's UDP port is ``port``."""
    server = UdpStack([HOSTS[socket.AddressFamily(family)]], port)
    client = UdpStack([HOSTS[socket.AddressFamily(family)]], **options)
    closing.extend((server, client))
    return client, server


def hosts_of(family: int) -> tuple[tuple[str, str], int]:
    """((the address of that family, of the other), the other family)."""
    other = socket.AF_INET6 if family == socket.AF_INET else socket.AF_INET
    return (HOSTS[socket.AddressFamily(family)], HOSTS[other]), other


def listening(closing: list[Any], stack: UdpStack, family: int, port: int, host: str = "") -> mptcp.Socket:
    with mptcp.use(stack):
        listener = mptcp.create_server((host, port), family=family)
    closing.append(listener)
    return listener


def serve_once(listener: mptcp.Socket) -> threading.Thread:
    """Echoes what one client sends until its end."""

    def main() -> None:
        sock, _ = listener.accept()
        with sock:
            while data := sock.recv(65536):
                sock.sendall(data)

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    return thread


@FAMILIES
@pytest.mark.parametrize("way", ["same port", "peer_port", "reached before"])
def test_create_connection_to_an_outer_address(closing: list[Any], family: int, way: str) -> None:
    udp_port = free_port()
    tcp_port = udp_port if way == "same port" else 8000
    client, server = two_stacks(closing, family, port=udp_port, peer_port=udp_port if way == "peer_port" else 0)
    listener = listening(closing, server, family, tcp_port)
    host = HOSTS[socket.AddressFamily(family)]
    if way == "reached before":
        client.reach(host, udp_port)
    thread = serve_once(listener)
    with mptcp.use(client), mptcp.create_connection((host, tcp_port), timeout=10) as sock:
        assert sock.family == family
        assert sock.is_multipath
        assert sock.getpeername()[:2] == (host, tcp_port)
        assert sock.getsockname()[0] == host
        sock.sendall(b"outside")
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100) == b"outside"
        assert sock.recv(100) == b""
    thread.join(5)


@FAMILIES
def test_names_stay_when_the_path_is_gone(closing: list[Any], family: int) -> None:
    client, server = two_stacks(closing, family, port=(port := free_port()))
    host = HOSTS[socket.AddressFamily(family)]
    listener = listening(closing, server, family, port, "" if family == socket.AF_INET else host)
    with mptcp.use(client):
        sock = mptcp.create_connection((host, port), timeout=10)
    closing.append(sock)
    accepted, name = listener.accept()
    closing.append(accepted)
    assert name == accepted.getpeername() == sock.getsockname()
    assert accepted.getsockname() == sock.getpeername()
    assert sock.getpeername()[:2] == (host, port)
    client.rebind(client.links[0].name, "127.0.0.3" if family == socket.AF_INET else "::1")  # there, another port
    sock.sendall(b"moved")
    assert accepted.recv(10) == b"moved"
    assert accepted.getpeername() == name == sock.getsockname()


@FAMILIES
def test_asyncio_by_outer_addresses(closing: list[Any], family: int) -> None:
    client, server = two_stacks(closing, family, port=(port := free_port()))

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(100))
        writer.close()

    async def main() -> None:
        with mptcp.use(server):
            listener = await mptcp.start_server(echo, None, port)  # a socket for each family
        with mptcp.use(client):
            reader, writer = await mptcp.open_connection(HOSTS[socket.AddressFamily(family)], port)
        assert writer.get_extra_info("socket").is_multipath
        assert writer.get_extra_info("peername")[:2] == (HOSTS[socket.AddressFamily(family)], port)
        writer.write(b"asynchronous")
        assert await reader.read() == b"asynchronous"
        writer.close()
        listener.close()

    asyncio.run(asyncio.wait_for(main(), 20))


@FAMILIES
def test_connect_without_waiting(closing: list[Any], family: int) -> None:
    client, server = two_stacks(closing, family, port=(port := free_port()))
    listening(closing, server, family, port)
    sock = client.socket(family)
    closing.append(sock)
    sock.setblocking(False)
    address = (HOSTS[socket.AddressFamily(family)], port)
    assert sock.connect_ex(address) == errno.EINPROGRESS
    assert sock.connect_ex(address) == errno.EALREADY
    with pytest.raises(OSError, match="not connected"):
        sock.getpeername()
    assert not select.select([sock], [], [], 0)[0]
    assert select.select([], [sock], [], 10)[1]
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert sock.connect_ex(address) in (0, errno.EISCONN)
    assert sock.getpeername()[:2] == address


def test_who_listens_everywhere_for_ipv6_sees_virtual_addresses(closing: list[Any]) -> None:
    client, server = two_stacks(closing, socket.AF_INET6, port=(port := free_port()))
    listener = listening(closing, server, socket.AF_INET6, port)
    with mptcp.use(client):
        sock = mptcp.create_connection(("::1", port), timeout=10)
    closing.append(sock)
    accepted, name = listener.accept()
    closing.append(accepted)
    assert sock.getpeername()[0] == sock.getsockname()[0] == "::1"
    assert name == accepted.getpeername()
    assert name[:2] == (client.virtual_addresses[0], sock.getsockname()[1])
    assert accepted.getsockname()[:2] == (server.virtual_addresses[0], port)


@FAMILIES
def test_an_unmodified_program(closing: list[Any], family: int) -> None:
    client, server = two_stacks(closing, family, port=(port := free_port()))
    thread = serve_once(listening(closing, server, family, port))
    host = HOSTS[socket.AddressFamily(family)]
    with patched(client), socket.create_connection((host, port), 10) as sock:
        sock.sendall(b"as ever")
        assert sock.recv(100) == b"as ever"
        assert sock.is_multipath  # type: ignore[attr-defined]
    thread.join(5)


# --- errors -----------------------------------------------------------------------------------------------------------
@FAMILIES
def test_nobody_there(closing: list[Any], family: int) -> None:
    (host, other), other_family = hosts_of(family)
    client = UdpStack([host])
    closing.append(client)
    with client.socket(family) as sock:
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.connect((host, free_port()))
    with client.socket(other_family) as sock, pytest.raises(OSError, match="no link has an address") as caught:
        sock.connect((other, 4000))
    assert caught.value.errno == errno.EHOSTUNREACH
    with client.socket(family) as sock:
        assert sock.connect_ex(("0.0.0.0" if family == socket.AF_INET else "::", 4000)) == errno.ECONNREFUSED


@FAMILIES
def test_a_search_that_failed_is_told_to_whoever_asks_first(closing: list[Any], family: int) -> None:
    (host, other), other_family = hosts_of(family)
    client = UdpStack([host])
    closing.append(client)
    for ask in ("SO_ERROR", "connect"):
        with client.socket(other_family) as sock:
            sock.setblocking(False)
            assert sock.connect_ex((other, 4000)) == errno.EINPROGRESS
            assert select.select([], [sock], [], 10)[1]
            if ask == "SO_ERROR":
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EHOSTUNREACH
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            else:
                assert sock.connect_ex((other, 4000)) == errno.EHOSTUNREACH

    async def main() -> None:
        with mptcp.use(client), pytest.raises(OSError, match="no link has an address"):
            await mptcp.open_connection(other, 4000)

    asyncio.run(asyncio.wait_for(main(), 20))


@FAMILIES
def test_the_peer_is_there_and_refuses(closing: list[Any], family: int) -> None:
    client, _ = two_stacks(closing, family, port=(port := free_port()))
    with mptcp.use(client), pytest.raises(ConnectionRefusedError):
        mptcp.create_connection((HOSTS[socket.AddressFamily(family)], port), timeout=10)


@FAMILIES
def test_closed_while_it_searches(closing: list[Any], family: int) -> None:
    client, server = two_stacks(closing, family, port=(port := free_port()))
    address = (HOSTS[socket.AddressFamily(family)], port)
    listener = listening(closing, server, family, port)
    sock = client.socket(family)
    sock.setblocking(False)
    assert sock.connect_ex(address) == errno.EINPROGRESS
    sock.close()
    with mptcp.use(client):  # the search ends well, and nobody connects
        again = mptcp.create_connection(address, timeout=10)
    closing.append(again)
    accepted, name = listener.accept()
    closing.append(accepted)
    assert name[1] == again.getsockname()[1]
    listener.settimeout(0.1)
    with pytest.raises(TimeoutError):
        listener.accept()


@pytest.mark.parametrize(
    ("family", "ours", "here", "strange", "wildcard"),
    [
        (socket.AF_INET, ["127.0.0.1", "127.0.0.2"], "127.0.0.2", "127.0.0.9", "0.0.0.0"),
        (socket.AF_INET6, ["127.0.0.1", "::1"], "::1", "::9", "::"),
    ],
)
def test_where_it_may_be_bound(
    closing: list[Any], family: int, ours: list[str], here: str, strange: str, wildcard: str
) -> None:
    stack = UdpStack(ours)
    closing.append(stack)
    with stack.socket(family) as sock:
        sock.bind((here, 8000))
        assert sock.getsockname()[:2] == (here, 8000)
        with stack.socket(family) as second, pytest.raises(OSError, match="in use"):
            second.bind((here, 8000))
    with stack.socket(family) as sock, pytest.raises(OSError, match="assign requested address"):
        sock.bind((strange, 8000))
    with stack.socket(family) as sock:
        sock.bind(("", 8000))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.listen()
        assert sock.getsockname()[:2] == (wildcard, 8000)
        with stack.socket(family) as second, pytest.raises(OSError, match="in use"):
            second.bind(("", 8000))


@FAMILIES
def test_a_restarted_peer_is_found_again(closing: list[Any], family: int) -> None:
    port, host = free_port(), HOSTS[socket.AddressFamily(family)]
    client = UdpStack([host])
    closing.append(client)
    for _ in range(2):
        with UdpStack([host], port) as server:
            with mptcp.use(server):
                listener = mptcp.create_server(("", port), family=family)
            for _ in range(20):  # the path to the old one is still believed in
                with mptcp.use(client):
                    try:
                        sock = mptcp.create_connection((host, port), timeout=0.5)
                    except OSError:
                        continue
                break
            accepted, _ = listener.accept()
            for each in (sock, accepted, listener):
                each.close()
