"""One TCP connection of ours, without MPTCP and without a host, against the kernel's TCP over a TUN device."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from mptcp.core.counters import Counters
from mptcp.core.entropy import Entropy
from mptcp.core.packet import Packet
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.connection import Connection
from mptcp.core.tcp.departure import reset_for
from mptcp.core.tcp.states import State
from mptcp.core.wire import checksum, ip, tcp
from mptcp.core.wire.segment import RST, Segment
from mptcp.errors import ConnectionRefused, ConnectionWasReset
from mptcp.info import Endpoint
from mptcp.links.tun import TunLink
from mptcp.testing.kernel_peer import pattern
from mptcp.testing.netns import Namespace

KERNEL = {4: "10.77.9.2", 6: "fd77:9::2"}
OURS = {4: "10.77.9.1", 6: "fd77:9::1"}


class Driver:
    """Carries segments between one ``Connection`` and the kernel, and the data between application and kernel socket."""

    def __init__(self, namespace: Namespace, *, family: int = 4, offload: bool = True, loss: float = 0.0) -> None:
        self.namespace = namespace
        self.family = family
        self.loss = loss
        self.chance = random.Random(11)
        with namespace.entered():
            self.link = TunLink("ours%d", kernel_addresses=("10.77.9.2/24", "fd77:9::2/64"), offload=offload)
            self.kernel = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6)
        self.kernel.setsockopt(socket.SOL_TCP, socket.TCP_CONGESTION, b"reno")
        self.ours = Endpoint.parse(OURS[family], 40001)
        self.theirs = Endpoint.parse(KERNEL[family], 0)
        self.connection: Connection | None = None
        self.make: Callable[[Endpoint], Connection] | None = None
        self.seen: list[Segment] = []

    def now(self) -> int:
        return time.monotonic_ns() // 1000

    def new(self, config: TcpConfig, remote_port: int) -> Connection:
        remote = Endpoint(self.theirs.address, remote_port)
        self.connection = Connection(
            config, self.ours, remote, Entropy(5), Counters(), mtu=self.link.mtu, gso_max_bytes=self.link.gso_max_bytes
        )
        return self.connection

    def send(self, segment: Segment, port: int) -> None:
        source, destination = self.ours.address, self.theirs.address
        header = tcp.emit(segment, self.ours.port, port, checksum.pseudo_sum(source, destination, 6), partial=True)
        length = len(header) + segment.length
        emit = ip.emit_ipv4 if self.family == 4 else ip.emit_ipv6
        ip_header = emit(source, destination, length, traffic_class=segment.ecn)
        packet = Packet(
            ip_header + header, segment.payloads, len(ip_header) + length, len(ip_header), segment.mss,
            checksum_partial=True,
        )  # fmt: skip
        if self.chance.random() >= self.loss:
            self.link.send([packet])

    def flush(self) -> None:
        if self.connection is not None:
            while (segment := self.connection.poll_segment(self.now())) is not None:
                self.send(segment, self.connection.remote.port)

    def pump(self, wait_s: float = 0.01) -> None:
        """Whatever has come, whatever is due."""
        self.flush()
        connection = self.connection
        if connection is not None:
            wait_s = max(0.0, min(wait_s, (connection.poll_deadline() - self.now()) / 1e6))
        if select.select([self.link], [], [], wait_s)[0]:
            for data, gso_size, _ in self.link.receive():
                header = ip.parse(data)
                if header is None or header.protocol != 6 or self.chance.random() < self.loss:
                    continue
                segment = tcp.parse(data, header.transport_offset, header.end)
                assert segment is not None
                segment.ecn = header.traffic_class & 3
                segment.mss = gso_size
                self.seen.append(segment)
                port = int.from_bytes(data[header.transport_offset : header.transport_offset + 2], "big")
                if self.connection is None and self.make is not None:
                    self.connection = self.make(Endpoint(self.theirs.address, port))
                    self.connection.accept_syn(segment, self.now())
                elif self.connection is not None and not self.connection.is_closed:
                    self.connection.handle_segment(segment, self.now())
                elif (reset := reset_for(segment)) is not None:
                    self.send(reset, port)
        connection = self.connection
        if connection is not None and connection.poll_deadline() <= self.now():
            connection.handle_timeout(self.now())
        self.flush()

    def until(self, condition: Callable[[], bool], limit_s: float = 20.0) -> None:
        end = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < end, self.connection and (self.connection.state, self.connection.counters)
            self.pump()

    def connect(self, config: TcpConfig) -> tuple[Connection, socket.socket]:
        self.kernel.bind((KERNEL[self.family], 0))
        self.kernel.listen()
        self.kernel.setblocking(False)
        connection = self.new(config, self.kernel.getsockname()[1])
        connection.open(self.now())
        accepted: list[socket.socket] = []

        def arrived() -> bool:
            try:
                accepted.append(self.kernel.accept()[0])
            except BlockingIOError:
                return False
            return True

        self.until(lambda: connection.is_established and arrived())
        accepted[0].setblocking(False)
        return connection, accepted[0]

    def accept(self, config: TcpConfig) -> tuple[Connection, socket.socket]:
        self.make = lambda remote: self.new(config, remote.port)
        self.kernel.setblocking(False)
        self.kernel.connect_ex((OURS[self.family], self.ours.port))
        self.until(lambda: self.connection is not None and self.connection.is_established)
        assert self.connection is not None
        return self.connection, self.kernel

    def exchange(self, connection: Connection, sock: socket.socket, out: bytes, back: bytes) -> tuple[bytes, bytes]:
        """``out`` from us to the kernel and ``back`` from it at the same time; what arrived at each end."""
        there, here, out_view, back_view = bytearray(), bytearray(), memoryview(out), memoryview(back)
        end = time.monotonic() + 40
        while len(there) < len(out) or len(here) < len(back):
            assert time.monotonic() < end, (len(there), len(here), connection.state, connection.counters)
            if out_view:
                out_view = out_view[connection.write(out_view) :]
            self.pump(0.001)
            if connection.readable_bytes:
                here += connection.read(1 << 20)
                connection.window_update(self.now())
            with contextlib.suppress(BlockingIOError):
                if back_view:
                    back_view = back_view[sock.send(back_view[: 1 << 18]) :]
            with contextlib.suppress(BlockingIOError):
                there += sock.recv(1 << 20)
        return bytes(there), bytes(here)


@pytest.fixture
def make_driver(tun: None) -> Iterator[Callable[..., Driver]]:
    made: list[Driver] = []

    def make(**options: object) -> Driver:
        namespace = Namespace("tcp")
        sysctls = options.pop("sysctls", {})
        for name, value in sysctls.items():  # type: ignore[attr-defined]
            namespace.sysctl(name, value)
        made.append(Driver(namespace, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for driver in made:
        driver.kernel.close()
        driver.link.close()
        driver.namespace.close()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize("role", ["connect", "accept"])
def test_both_directions_at_once(make_driver: Callable[..., Driver], role: str, offload: bool, family: int) -> None:
    driver = make_driver(family=family, offload=offload)
    connection, sock = getattr(driver, role)(TcpConfig())
    out, back = pattern(3_000_000, 1), pattern(3_000_000, 2)
    assert driver.exchange(connection, sock, out, back) == (out, back)
    assert connection.sender.rtt.samples
    for name in ("paws_rejected", "ack_outside_window", "timestamp_missing"):
        assert name not in connection.counters


@pytest.mark.parametrize(
    ("config", "sysctls"),
    [
        (TcpConfig(), {}),
        (TcpConfig(), {"net.ipv4.tcp_timestamps": 0}),
        (TcpConfig(), {"net.ipv4.tcp_sack": 0}),
        (TcpConfig(timestamps=False, sack=False, window_scaling=False), {}),
    ],
)
@pytest.mark.parametrize("role", ["connect", "accept"])
def test_through_loss(
    make_driver: Callable[..., Driver], role: str, config: TcpConfig, sysctls: dict[str, int]
) -> None:
    driver = make_driver(offload=False, loss=0.02, sysctls=sysctls)
    connection, sock = getattr(driver, role)(config)
    out, back = pattern(300_000, 1), pattern(300_000, 2)
    assert driver.exchange(connection, sock, out, back) == (out, back)
    assert connection.sender.retransmissions


def test_ecn_with_the_kernel(make_driver: Callable[..., Driver]) -> None:  # RFC 3168 §6.1
    driver = make_driver(sysctls={"net.ipv4.tcp_ecn": 1})
    connection, sock = driver.connect(TcpConfig(ecn=True))
    assert connection.ecn is not None
    out, back = pattern(500_000, 1), pattern(500_000, 2)
    assert driver.exchange(connection, sock, out, back) == (out, back)
    assert any(segment.ecn == 2 for segment in driver.seen)


def test_half_close_and_orderly_end(make_driver: Callable[..., Driver]) -> None:  # RFC 9293 §3.6
    driver = make_driver()
    connection, sock = driver.connect(TcpConfig(time_wait_us=200_000))
    connection.write(b"only this")
    connection.shutdown_write(driver.now())
    driver.until(lambda: connection.state is State.FIN_WAIT_2)
    assert sock.recv(100) == b"only this"
    assert sock.recv(100) == b""
    back = pattern(400_000, 3)
    assert driver.exchange(connection, sock, b"", back)[1] == back
    sock.close()
    driver.until(lambda: connection.eof and connection.state is State.TIME_WAIT)
    driver.until(lambda: connection.is_closed)
    assert connection.error is None


def test_kernel_closes_first(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver()
    connection, sock = driver.accept(TcpConfig())
    sock.close()
    driver.until(lambda: connection.eof)
    connection.close(driver.now())
    driver.until(lambda: connection.is_closed)
    assert connection.error is None


def test_kernel_resets(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver()
    connection, sock = driver.connect(TcpConfig())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    sock.close()
    driver.until(lambda: connection.is_closed)
    assert isinstance(connection.error, ConnectionWasReset)


def test_kernel_believes_our_reset(make_driver: Callable[..., Driver]) -> None:  # RFC 5961 §3.2
    driver = make_driver()
    connection, sock = driver.connect(TcpConfig())
    connection.write(b"x" * 100)
    driver.pump()
    connection.abort(driver.now())

    def is_reset() -> bool:
        try:
            return sock.recv(1000) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    driver.until(is_reset)


def test_nobody_listens(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver()
    connection = driver.new(TcpConfig(), 1)
    connection.open(driver.now())
    driver.until(lambda: connection.is_closed)
    assert isinstance(connection.error, ConnectionRefused)
    assert driver.seen[0].flags & RST


def test_kernel_application_that_does_not_read(make_driver: Callable[..., Driver]) -> None:  # RFC 9293 §3.8.6.1
    driver = make_driver()
    connection, sock = driver.connect(TcpConfig(send_buffer_bytes=1 << 24))
    data = pattern(12_000_000, 4)
    written = 0
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        if written < len(data):
            written += connection.write(memoryview(data)[written:])
        driver.pump()
    assert connection.is_established
    assert connection.sender.una < connection.sender.end
    received = bytearray()

    def drained() -> bool:
        with contextlib.suppress(BlockingIOError):
            received.extend(sock.recv(1 << 20))
        return len(received) >= written

    driver.until(drained, 30)
    assert bytes(received) == data[:written]


def test_our_application_that_does_not_read(make_driver: Callable[..., Driver]) -> None:  # RFC 9293 §3.8.6
    driver = make_driver()
    connection, sock = driver.connect(TcpConfig(receive_buffer_bytes=50_000, receive_buffer_max_bytes=50_000))
    data = pattern(1_000_000, 4)
    sent = 0
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        with contextlib.suppress(BlockingIOError):
            sent += sock.send(data[sent:])
        driver.pump()
    assert connection.readable_bytes <= 50_000
    received = bytearray(connection.read(1 << 20))
    connection.window_update(driver.now())
    # the filler makes ``exchange`` wait for as many octets as are still to come
    back = driver.exchange(connection, sock, b"", data[sent:] + b"." * (sent - len(received)))[1]
    assert (bytes(received) + back)[: len(data)] == data
