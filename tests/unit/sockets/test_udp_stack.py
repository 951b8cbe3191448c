"""Two of our stacks over UDP on loopback: transfers, NATs that forget, loss, paths that are cut, and wrong use."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mptcp
from mptcp.core.entropy import Entropy
from mptcp.errors import ConfigurationError
from mptcp.links.faults import FaultLink
from mptcp.links.udp import UdpLink
from mptcp.sockets.udp import UdpStack, usable_addresses
from mptcp.testing.udp_relay import UdpRelay

PORT = 8000
BLOCKS = re.findall(
    r"^```python\n(.*?)^```$", (Path(__file__).parents[3] / "docs/udp.md").read_text(), re.MULTILINE | re.DOTALL
)
SETS = {4: ["127.0.0.1", "127.0.0.2"], 6: ["::1"]}
NOT_OURS = {"127.0.0.1": "203.0.113.1", "::1": "2001:db8::77"}


def free_port() -> int:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A stack that takes what it gets, and answers with its length and SHA-256; or sends ``send_bytes`` first."""

    def __init__(self, addresses: list[str], **options: Any) -> None:
        self.port = free_port()
        self.stack = UdpStack(addresses, self.port, **options)
        with mptcp.use(self.stack):
            self.listener = mptcp.create_server(("::", PORT), family=socket.AF_INET6)
        self.threads: list[threading.Thread] = []
        self.accepted: list[mptcp.Socket] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.accepted.append(sock)
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            thread.start()
            self.threads.append(thread)

    def _serve(self, sock: mptcp.Socket) -> None:
        digest, count = hashlib.sha256(), 0
        try:
            while data := sock.recv(1 << 18):
                digest.update(data)
                count += len(data)
            sock.sendall(f"{count} {digest.hexdigest()}".encode())
        except OSError:
            pass
        finally:
            sock.close()

    def close(self) -> None:
        self.listener.close()
        self.stack.close(0.2)


@pytest.fixture
def closing() -> Iterator[list[Any]]:
    things: list[Any] = []
    yield things
    for thing in reversed(things):
        thing.close()


@pytest.fixture(params=NOT_OURS, ids=["v4", "v6"])
def host(request: pytest.FixtureRequest) -> str:
    """The one address of both machines."""
    address: str = request.param
    return address


def both(first: str) -> list[str]:
    """An address of each family, that one first."""
    return sorted(NOT_OURS, key=lambda address: address != first)


def active(sock: mptcp.Socket) -> int:
    return sum(info.state is mptcp.SubflowState.ACTIVE for info in sock.subflows())


def upload(sock: mptcp.Socket, size: int, on_half: Any = None, *, subflows: int = 1) -> None:
    """Sends octets and checks what the server says of them. Further subflows may begin once something was sent."""
    block = random.Random(7).randbytes(1 << 16)
    sock.sendall(block)
    digest = hashlib.sha256(block)
    wait_for(lambda: active(sock) >= subflows)
    for at in range(0, size, len(block)):
        if on_half is not None and at >= size // 2:
            on_half()
            on_half = None
        digest.update(block)
        sock.sendall(block)
    sock.shutdown(socket.SHUT_WR)
    sock.settimeout(30)
    answer = b""
    while data := sock.recv(1000):
        answer += data
    count, hexdigest = answer.decode().split()
    assert (int(count), hexdigest) == ((1 + -(-size // len(block))) * len(block), digest.hexdigest())


def wait_for(condition: Any, timeout: float = 10.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("family", [4, 6])
def test_a_transfer(closing: list[Any], family: int) -> None:
    server = Server(SETS[family])
    closing.append(server)
    client = UdpStack(SETS[family])
    closing.append(client)
    sock = client.connect_udp((SETS[family][0], server.port), PORT, timeout=10)
    assert sock.is_multipath
    assert sock.getpeername()[:2] == (server.stack.virtual_addresses[0], PORT)
    [info] = sock.subflows()
    local, remote = client.outer(info.local, info.remote)
    assert (local.host, remote.host, remote.port) == (SETS[family][0], SETS[family][0], server.port)
    assert client.outer(info.remote, info.local) == (info.remote, info.local)  # not ours: given back
    upload(sock, 4 << 20, subflows=len(SETS[family]) ** 2)
    sock.close()


def test_both_families_are_two_paths(closing: list[Any], host: str) -> None:
    server = Server(both(host))
    closing.append(server)
    client = UdpStack(both(host))
    closing.append(client)
    sock = client.connect_udp((host, server.port), PORT, timeout=10)
    carried: set[int] = set()
    upload(
        sock,
        1 << 20,
        lambda: carried.update(client.outer(s.local, s.remote)[1].family for s in sock.subflows()),
        subflows=2,
    )
    assert carried == {4, 6}
    sock.close()


def test_the_first_path_is_one_that_works(closing: list[Any], host: str) -> None:
    """The first of our addresses cannot reach the peer: the connection begins from another."""
    server = Server([host])
    closing.append(server)
    client = UdpStack(both(host)[::-1])
    closing.append(client)
    sock = client.connect_udp((host, server.port), PORT, timeout=10)
    assert sock.getsockname()[0] == client.virtual_addresses[1]
    sock.close()


def test_a_nat_that_forgets_in_the_middle(closing: list[Any], host: str) -> None:
    """New ports on the server's side: the subflow, and the connection, go on as they were."""
    server = Server([host])
    closing.append(server)
    relay = UdpRelay((host, server.port), host)
    closing.append(relay)
    client = UdpStack([host], link_options={"mtu": 8000})
    closing.append(client)
    sock = client.connect_udp(relay.address, PORT, timeout=10)
    ids = [s.id for s in sock.subflows()]
    upload(sock, 3 << 20, relay.forget)
    assert server.stack.node.counters["udp_path_moved"] >= 1
    assert [s.id for s in sock.subflows()] in (ids, [])
    sock.close()


def test_a_lossy_path(closing: list[Any], host: str) -> None:
    server = Server([host])
    closing.append(server)
    relay = UdpRelay((host, server.port), host, seed=3)
    relay.loss = 0.03
    closing.append(relay)
    client = UdpStack([host], link_options={"mtu": 1400})
    closing.append(client)
    sock = client.connect_udp(relay.address, PORT, timeout=20)
    upload(sock, 300_000)
    sock.close()


def test_one_of_two_paths_is_cut(closing: list[Any], host: str) -> None:
    """The path to the server's first address vanishes without a word: the one of the other family carries the rest."""
    server = Server(both(host))
    closing.append(server)
    relay = UdpRelay((host, server.port), host)
    closing.append(relay)
    client = UdpStack(both(host), link_options={"mtu": 8000})
    closing.append(client)
    sock = client.connect_udp(relay.address, PORT, timeout=10)

    def cut() -> None:
        relay.is_cut = True

    upload(sock, 3 << 20, cut, subflows=2)
    assert relay.forwarded > 10
    sock.close()


def test_our_address_changes_in_the_middle(closing: list[Any], host: str) -> None:
    server = Server([host])
    closing.append(server)
    client = UdpStack([host], link_options={"mtu": 8000})
    closing.append(client)
    sock = client.connect_udp((host, server.port), PORT, timeout=10)
    name, before = client.links[0].name, client.links[0].local
    after = "127.0.0.3" if host == "127.0.0.1" else "::1"  # IPv6 has one loopback address: the port changes
    upload(sock, 2 << 20, lambda: client.rebind(name, after))
    assert client.links[0].local.host == after
    assert client.links[0].local != before
    assert server.stack.node.counters["udp_path_moved"] == 1
    with pytest.raises(ConfigurationError, match="no link is called 'nope'"):
        client.rebind("nope")
    with pytest.raises(OSError) as caught:
        client.rebind(name, NOT_OURS[host])
    assert caught.value.errno == errno.EADDRNOTAVAIL
    with pytest.raises(ConfigurationError, match="of another address family"):
        client.rebind(name, both(host)[1])
    sock.close()


def test_a_server_that_restarts_refuses_nothing_in_silence(closing: list[Any], host: str) -> None:
    """The old connection fails; a new one to the same endpoint works."""
    server = Server([host])
    client = UdpStack([host])
    closing.append(client)
    old = client.connect_udp((host, server.port), PORT, timeout=10)
    with server.stack.pump.lock:
        for connection in list(server.stack.pump.host.connections):
            connection.owner = None  # a crash: nobody says goodbye
    port = server.port
    for link in server.stack.links:
        link._sock.close()
    again = UdpStack([host], port)
    closing.append(again)
    with mptcp.use(again):
        listener = mptcp.create_server(("::", PORT), family=socket.AF_INET6)
    new = client.connect_udp((host, port), PORT, timeout=10)
    assert new.getpeername()[0] == again.virtual_addresses[0] != old.getpeername()[0]
    new.close()
    listener.close()
    old.close()


def test_links_can_be_wrapped(closing: list[Any], host: str) -> None:
    seen: list[UdpLink] = []

    def wrap(link: UdpLink) -> FaultLink:
        seen.append(link)
        return FaultLink(link, Entropy(1))

    server = Server([host])
    closing.append(server)
    client = UdpStack([host], wrap=wrap)
    closing.append(client)
    assert seen == client.links
    sock = client.connect_udp((host, server.port), PORT, timeout=10)
    upload(sock, 100_000)
    sock.close()


def test_asyncio_streams(closing: list[Any], host: str) -> None:
    """The same program as over anything else: only the address comes from ``reach``."""
    server, client = UdpStack(both(host), free_port()), UdpStack(both(host))
    closing += [server, client]

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def main() -> None:
        with mptcp.use(server):
            listening = await mptcp.start_server(echo, "::", PORT, family=socket.AF_INET6)
        address = await asyncio.to_thread(client.reach, host, server.links[0].local.port)
        with mptcp.use(client):
            reader, writer = await mptcp.open_connection(address, PORT)
        octets = os.urandom(1 << 20)
        writer.write(octets)
        writer.write_eof()
        assert await reader.read(-1) == octets
        writer.close()
        listening.close()

    asyncio.run(asyncio.wait_for(main(), 20))


@pytest.mark.parametrize("block", BLOCKS)
def test_the_documentation_runs(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, "docs/udp.md", "exec"), {})
    assert capsys.readouterr().out == "b'hello' True\n127.0.0.1:47011\n"


# --- wrong use --------------------------------------------------------------------------------------------------------
def test_nobody_answers(closing: list[Any], host: str) -> None:
    client = UdpStack([host])
    closing.append(client)
    text = re.escape(f"no mptcp stack could be reached at {host} port 9")
    with pytest.raises(mptcp.HostUnreachable, match=text) as caught:
        client.connect_udp((host, 9), PORT, timeout=0.3)
    assert caught.value.errno == errno.EHOSTUNREACH


def test_no_link_of_that_family(closing: list[Any], host: str) -> None:
    client = UdpStack([host])
    closing.append(client)
    with pytest.raises(mptcp.HostUnreachable, match="no link has an address of that family"):
        client.reach(both(host)[1], 4000)


@pytest.mark.parametrize("family", [4, 6])
def test_ourselves(closing: list[Any], family: int) -> None:
    port = free_port()
    stack = UdpStack(SETS[family], port)
    closing.append(stack)
    with pytest.raises(mptcp.HostUnreachable, match="that is this very stack"):
        stack.reach(SETS[family][-1], port)


def test_a_name_that_does_not_exist(closing: list[Any], host: str) -> None:
    client = UdpStack([host])
    closing.append(client)
    with pytest.raises(socket.gaierror):
        client.reach("", 4000)


def test_a_service_that_is_not_there(closing: list[Any], host: str) -> None:
    server = Server([host])
    closing.append(server)
    client = UdpStack([host])
    closing.append(client)
    with pytest.raises(ConnectionRefusedError):
        client.connect_udp((host, server.port), 81, timeout=5)


def test_ports_that_are_taken_and_addresses_that_are_not_ours(host: str) -> None:
    free = "127.0.0.2" if host == "127.0.0.1" else "127.0.0.1"
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((host, 0))
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=re.escape(f"UDP {host} port {port}")) as caught:
            UdpStack([free, host], port)
        assert caught.value.errno == errno.EADDRINUSE
        UdpStack([free], port).close()  # what was opened before it failed is closed
    with pytest.raises(ConfigurationError, match="no address of this machine"):
        UdpStack([NOT_OURS[host]])


def test_a_closed_stack_reaches_nobody(host: str) -> None:
    client = UdpStack([host])
    client.close()
    with pytest.raises(OSError) as caught:
        client.reach(host, 4000)
    assert caught.value.errno == errno.ENETDOWN


def test_usable_addresses() -> None:
    assert "127.0.0.1" in usable_addresses("127.0.0.9")
    assert "::1" in usable_addresses("::1")
    everything = usable_addresses()
    assert everything
    assert all(address.startswith("127.") or address == "::1" for address in everything) or not any(
        address.startswith("127.") or address == "::1" for address in everything
    )


def test_nothing_of_it_needs_privilege(host: str) -> None:
    """In a process of nobody's: no capability is used anywhere."""
    if os.getuid():
        pytest.skip("whoever is not root shows it with every other test here")
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            server = UdpStack([host], 0)
            client = UdpStack([host])
            client.reach(host, server.links[0].local.port, timeout=5)
            client.close(0)
            server.close(0)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
