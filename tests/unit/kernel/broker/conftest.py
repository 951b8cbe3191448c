"""A broker in this process: a real socket, real connections over loopback, but a control that only notes what it is asked."""

import errno
import os
import queue
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mptcp.info import Endpoint, Support
from mptcp.kernel import sockopt
from mptcp.kernel.addresses import LocalAddress
from mptcp.kernel.broker import service
from mptcp.kernel.broker.client import BrokerConnection, BrokerControl
from mptcp.kernel.broker.policy import Policy
from mptcp.kernel.control import Control
from mptcp.kernel.pm_events import EventsLost, PmEventSocket, PmEventSource

IPPROTO_MPTCP = 262

#: What the host has, in the eyes of the broker under test.
HOST = [
    LocalAddress(Endpoint.parse("10.0.0.1").address, 7, "eth0"),
    LocalAddress(Endpoint.parse("10.9.0.1").address, 8, "wlan0"),
    LocalAddress(Endpoint.parse("fd00::1").address, 8, "wlan0"),
]


def open_descriptors() -> set[str]:
    """This process's. What other tests have left to the collector or to a thread may be closed at any time, so that only what
    has come since means something: ``open_descriptors() - before``."""
    return set(os.listdir("/proc/self/fd"))


class NotingControl(Control):
    """Keeps (operation, inode of the socket, token, arguments), or fails with ``error``."""

    __slots__ = ("calls", "entered", "error", "gate")

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int, tuple[Any, ...]]] = []
        self.error: OSError | None = None
        #: When there is one, each operation waits for it.
        self.gate: threading.Event | None = None
        self.entered = threading.Event()

    def _note(self, operation: str, fd: int, token: int, *arguments: Any) -> None:
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        self.calls.append((operation, os.fstat(fd).st_ino, token, arguments))

    def announce(self, fd: int, token: int, local: Endpoint, address_id: int, interface: int = 0) -> None:
        self._note("announce", fd, token, local, address_id, interface)

    def remove(self, fd: int, token: int, address_id: int) -> None:
        self._note("remove", fd, token, address_id)

    def create_subflow(
        self, fd: int, token: int, local: Endpoint, local_id: int, remote: Endpoint, *, backup: bool = False, interface: int = 0
    ) -> None:  # fmt: skip
        self._note("create_subflow", fd, token, local, local_id, remote, backup, interface)

    def destroy_subflow(self, fd: int, token: int, local: Endpoint, remote: Endpoint) -> None:
        self._note("destroy_subflow", fd, token, local, remote)

    def reset_subflow(self, fd: int, token: int, local: Endpoint, remote: Endpoint) -> None:
        self._note("reset_subflow", fd, token, local, remote)

    def set_backup(self, fd: int, token: int, local: Endpoint, remote: Endpoint, backup: bool) -> None:
        self._note("set_backup", fd, token, local, remote, backup)

    def set_subflow_option(
        self, fd: int, token: int, local: Endpoint, remote: Endpoint, level: int, name: int, value: bytes
    ) -> None:
        self._note("set_subflow_option", fd, token, local, remote, level, name, value)

    def get_subflow_option(
        self, fd: int, token: int, local: Endpoint, remote: Endpoint, level: int, name: int, size: int
    ) -> bytes:
        self._note("get_subflow_option", fd, token, local, remote, level, name, size)
        return b"reno".ljust(size, b"\0")

    def event_source(self) -> PmEventSource:
        raise AssertionError("the broker has its own")

    def supports(self, operation: str) -> Support:
        return Support(operation != "announce", "no announcing today" * (operation == "announce"), "")

    def close(self) -> None:
        pass


class ScriptedEvents(PmEventSocket):
    """The kernel's events as a test writes them."""

    __slots__ = ("_events", "_signal")

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
        self._signal = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def happen(self, *events: bytes | Exception) -> None:
        for event in events:
            self._events.put(event)
        os.eventfd_write(self._signal, 1)

    def fileno(self) -> int:
        return self._signal

    def read_messages(self) -> list[memoryview]:
        try:
            os.eventfd_read(self._signal)
        except BlockingIOError:
            return []
        found: list[memoryview] = []
        while not self._events.empty():
            event = self._events.get()
            if isinstance(event, EventsLost | OSError):
                raise event
            assert isinstance(event, bytes)
            found.append(memoryview(event))
        return found

    def close(self) -> None:
        if self._signal >= 0:
            os.close(self._signal)
            self._signal = -1


class Running:
    """A broker, and what is around it."""

    def __init__(self, path: str, policy: Policy) -> None:
        self.path = path
        self.control = NotingControl()
        self.events = ScriptedEvents()
        self._opened = 0
        self.broker = service.Broker(
            service.listen(path), policy, control=self.control, open_events=self._open_events, addresses=lambda: HOST
        )
        self.broker._relay._evicted_at = -1e9  # as if it had run for a while
        self.thread = threading.Thread(target=self.broker.run)
        self.thread.start()

    def _open_events(self) -> ScriptedEvents:
        self._opened += 1
        if self._opened > 1:
            self.events = ScriptedEvents()
        return self.events

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(30)
        sock.connect(self.path)
        return sock

    def stop(self) -> None:
        self.broker.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts brokers with a policy (TOML, or the default one)."""
    brokers: list[Running] = []

    def run(policy: str = "", name: str = "broker.sock") -> Running:
        brokers.append(Running(str(tmp_path / name), Policy.parse(policy) if policy else Policy()))
        return brokers[-1]

    yield run
    for broker in brokers:
        if broker.thread.is_alive():
            broker.stop()


@pytest.fixture
def running(start: Callable[..., Running]) -> Running:
    return start()


@pytest.fixture
def control(running: Running) -> Iterator[BrokerControl]:
    control = BrokerControl(running.path)
    yield control
    control.close()


@pytest.fixture
def connection(running: Running) -> Iterator[BrokerConnection]:
    connection = BrokerConnection(running.path)
    yield connection
    connection.close()


class Pair:
    """An MPTCP connection over loopback; both ends are ours."""

    def __init__(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            self.client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
            self.client.connect(listener.getsockname())
            self.server, _ = listener.accept()
        self.fd = self.client.fileno()
        self.token = sockopt.mptcp_info(self.fd).token
        self.inode = os.fstat(self.fd).st_ino
        self.local = Endpoint.parse(*self.client.getsockname())
        self.remote = Endpoint.parse(*self.client.getpeername())

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture
def make_pair() -> Iterator[Callable[[], Pair]]:
    pairs: list[Pair] = []

    def make() -> Pair:
        try:
            pairs.append(Pair())
        except OSError as error:
            if (
                error.errno != errno.ENETUNREACH
                or subprocess.run(["ip", "link", "set", "lo", "up"], check=False).returncode
            ):
                pytest.skip(f"no MPTCP over loopback here: {error.strerror}")
            pairs.append(Pair())  # a new namespace has to be told first
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


@pytest.fixture
def pair(make_pair: Callable[[], Pair]) -> Pair:
    return make_pair()


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Waits until ``condition()`` is true, 30 s at most: other threads do it a moment later."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.002)

    return wait
