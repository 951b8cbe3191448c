"""Who talks to whom: the kernel's stack, the one in user space and plain TCP, as client and as server, all nine pairs."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mptcp
from mptcp.cli.fetch import Fetch
from mptcp.cli.file_server import FileServer
from mptcp.info import SubflowState
from mptcp.kernel.watchdog import FailurePolicy
from mptcp.links.packet import PacketLink
from mptcp.sockets.kernel import KernelStack
from mptcp.sockets.user import UserStack
from mptcp.testing.netns import Lab, Namespace

KINDS = ("kernel", "user", "tcp")
PAIRS = [(client, server) for client in KINDS for server in KINDS]
#: Those that speak MPTCP.
MULTIPATH = [pair for pair in PAIRS if "tcp" not in pair]
PATHS = (1, 2)
UP, DOWN = 300_000, 1_000_000


class Side:
    """One end, by the public API; ``tcp`` is a program that knows nothing of this package."""

    def __init__(
        self, kind: str, namespace: Namespace, interfaces: dict[str, list[str]], gateways: dict[str, list[str]]
    ) -> None:
        """``interfaces``: the addresses on each, with prefixes; ``gateways``: who knows the way to the others there."""
        self.kind = kind
        self.namespace = namespace
        self.stack: mptcp.Stack | None = None
        if kind == "kernel":
            # On a busy machine a timer runs out though no path is dead, and no subflow is to be missing for it.
            self.stack = KernelStack(namespace=namespace.fileno(), failure_policy=FailurePolicy(timeouts=6))
        elif kind == "user":
            # The kernel must not answer for addresses that are the other stack's.
            for name in interfaces:
                namespace.ip(f"address flush dev {name}")
            namespace.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
            with namespace.entered():
                links = [PacketLink(name, own, gateways=gateways[name]) for name, own in interfaces.items()]
            self.stack = UserStack(links, interfaces)

    def connect(self, address: tuple[str, int], timeout: float | None = 30) -> Any:
        if self.stack is None:
            with self.namespace.entered():
                return socket.create_connection(address, timeout)
        with mptcp.use(self.stack):
            return mptcp.create_connection(address, timeout)

    def listen(self, family: int) -> Any:
        address = ("0.0.0.0", 0) if family == 4 else ("::", 0)
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        if self.stack is None:
            with self.namespace.entered():
                return socket.create_server(address, family=kind)
        with mptcp.use(self.stack):
            return mptcp.create_server(address, family=kind)

    def counters(self) -> dict[str, int]:
        """Of the kernel's MPTCP."""
        counters = self.namespace.counters()
        return {name.removeprefix("MPTcpExt"): n for name, n in counters.items() if name.startswith("MPTcpExt")}

    def close(self) -> None:
        if isinstance(self.stack, UserStack):
            self.stack.close(0)
        elif self.stack is not None:
            self.stack.close()


class Encounter:
    """A client and a server of these kinds, with two links between them, and their listener."""

    def __init__(self, lab: Lab, client: str, server: str, family: int) -> None:
        self.lab, self.family = lab, family
        lab.client.sysctl("net.mptcp.path_manager", "userspace")
        lab.server.mptcp_limits(subflows=8, add_addr_accepted=8)
        prefix = 24 if family == 4 else 64
        near = {i: lab.client_address(i, family) for i in PATHS}
        far = {i: lab.server_address(i, family) for i in PATHS}
        self.client = Side(
            client, lab.client, {f"c{i}": [f"{near[i]}/{prefix}"] for i in PATHS}, {f"c{i}": [far[i]] for i in PATHS}
        )
        self.server = Side(
            server, lab.server, {f"s{i}": [f"{far[i]}/{prefix}"] for i in PATHS}, {f"s{i}": [near[i]] for i in PATHS}
        )
        self.listener = self.server.listen(family)
        self.port: int = self.listener.getsockname()[1]

    def connect(self) -> Any:
        return self.client.connect((self.lab.server_address(1, self.family), self.port))

    def pair(self) -> tuple[Any, Any]:
        client = self.connect()
        server, _ = self.listener.accept()
        server.settimeout(30)
        return client, server

    def close(self) -> None:
        self.listener.close()
        self.client.close()
        self.server.close()


@pytest.fixture
def meet(make_lab: Callable[..., Lab]) -> Iterator[Callable[..., Encounter]]:
    made: list[Encounter] = []

    def make(client: str, server: str, family: int) -> Encounter:
        made.append(Encounter(make_lab(len(PATHS)), client, server, family))
        return made[-1]

    yield make
    for encounter in made:
        encounter.close()


def octets(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def drain(sock: Any) -> str:
    """SHA-256 of all that comes."""
    digest = hashlib.sha256()
    while data := sock.recv(1 << 16):
        digest.update(data)
    return digest.hexdigest()


def exchange(client: Any, server: Any) -> None:
    """A file each way at the same time, octet for octet."""
    up, down = octets(1, UP), octets(2, DOWN)
    got: dict[str, str] = {}

    def receive(name: str, sock: Any) -> None:
        got[name] = drain(sock)

    def send(sock: Any, data: bytes) -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    jobs: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
        (receive, ("up", server)), (receive, ("down", client)), (send, (client, up)), (send, (server, down)),
    ]  # fmt: skip
    threads = [threading.Thread(target=call, args=arguments, daemon=True) for call, arguments in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == {"up": hashlib.sha256(up).hexdigest(), "down": hashlib.sha256(down).hexdigest()}


def pour(source: Any, sink: Any, data: bytes) -> None:
    """``data`` one way; the connection stays open."""
    thread = threading.Thread(target=source.sendall, args=(data,), daemon=True)
    thread.start()
    digest, left = hashlib.sha256(), len(data)
    while left:
        part = sink.recv(min(left, 1 << 16))
        assert part
        digest.update(part)
        left -= len(part)
    thread.join(60)
    assert digest.digest() == hashlib.sha256(data).digest()


def check_kind(encounter: Encounter, client: Any, server: Any) -> None:
    """Whether they know what became of the connection, and the kernels agree."""
    both = "tcp" not in (encounter.client.kind, encounter.server.kind)
    for side, sock in ((encounter.client, client), (encounter.server, server)):
        if side.kind != "tcp":
            assert sock.is_multipath == both
            assert bool(sock.fallback_reason) == (not both), sock.fallback_reason
    asked = encounter.client.kind != "tcp"
    if encounter.client.kind == "kernel":
        assert encounter.client.counters()["MPCapableSYNTX"] == 1
        assert encounter.client.counters()["MPCapableSYNACKRX"] == both
        assert encounter.client.counters()["MPCapableFallbackSYNACK"] == (not both)
    elif encounter.client.kind == "tcp":
        assert encounter.client.counters()["MPCapableSYNTX"] == 0
    if encounter.server.kind == "kernel":
        assert encounter.server.counters()["MPCapableSYNRX"] == asked
        assert encounter.server.counters()["MPCapableACKRX"] == both


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("client", "server"), PAIRS)
def test_a_file_each_way(meet: Callable[..., Encounter], client: str, server: str, family: int) -> None:
    encounter = meet(client, server, family)
    near, far = encounter.pair()
    with contextlib.closing(near), contextlib.closing(far):
        check_kind(encounter, near, far)
        exchange(near, far)


@contextlib.contextmanager
def serving(encounter: Encounter, directory: Path) -> Iterator[list[str]]:
    """``mptcp serve``, or the standard library's server where that is plain TCP; what it says of each file."""
    said: list[str] = []
    server: Any
    if encounter.server.kind == "tcp":
        handler = functools.partial(Quiet, directory=str(directory))
        server = http.server.ThreadingHTTPServer(("", 0), handler, bind_and_activate=False)
        server.socket.close()
        server.socket = encounter.listener
    else:
        server = FileServer(encounter.listener, directory, said.append)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield said
    finally:
        server.shutdown()
        thread.join(5)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("client", "server"), PAIRS)
def test_a_request_by_http(
    meet: Callable[..., Encounter],
    tmp_path: Path,
    client: str,
    server: str,
    family: int,
    eventually: Callable[..., None],
) -> None:
    encounter = meet(client, server, family)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "file.bin").write_bytes(octets(3, DOWN))
    host = encounter.lab.server_address(1, family)
    url = f"http://{host if family == 4 else f'[{host}]'}:{encounter.port}/file.bin"
    seen: list[bool] = []

    def connected(sock: Any) -> None:
        if client != "tcp":
            seen.append(sock.is_multipath)

    with serving(encounter, tmp_path / "site") as said:
        fetch = Fetch(url, tmp_path / "file.bin", encounter.client.connect, timeout=30, on_connection=connected)
        fetched = fetch.run(want_sha256=True)
        assert fetched.sha256 == hashlib.sha256(octets(3, DOWN)).hexdigest()
        assert fetched.total == DOWN
        if client != "tcp":
            assert seen == [(client, server) in MULTIPATH]
        if server != "tcp":
            eventually(lambda: said)
            assert ("plain TCP" in said[0]) == ((client, server) not in MULTIPATH)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("client", "server"), MULTIPATH)
def test_over_two_paths(
    meet: Callable[..., Encounter], client: str, server: str, family: int, eventually: Callable[..., None]
) -> None:
    encounter = meet(client, server, family)
    near, far = encounter.pair()
    with contextlib.closing(near), contextlib.closing(far):
        pour(near, far, b"?")
        pour(far, near, b"!")
        lab = encounter.lab
        if client == "kernel":
            near.open_subflow((lab.server_address(2, family), encounter.port), (lab.client_address(2, family), 0))

        def links(sock: Any) -> set[str]:
            return {s.local.host for s in sock.subflows() if s.state is SubflowState.ACTIVE}

        # The stack in user space opens what there is by itself.
        eventually(lambda: len(links(near)) == 2 and len(far.subflows()) >= 2)
        assert links(near) == {lab.client_address(path, family) for path in PATHS}
        pour(near, far, octets(4, UP))
        pour(far, near, octets(5, DOWN))
        carried: Counter[str] = Counter()
        for info in near.subflows():
            carried[info.local.host] += info.bytes_sent + info.bytes_received
        assert min(carried.values()) > 0
        if server == "kernel":
            assert encounter.server.counters()["MPJoinAckRx"] >= 1
        if client == "kernel":
            assert encounter.client.counters()["MPJoinSynAckRx"] == 1
        exchange(near, far)
