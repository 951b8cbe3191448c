"""A broker as root runs it, clients of other users, and a server for them to talk to."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mptcp.info import Endpoint
from mptcp.kernel import features, sockopt
from mptcp.kernel.broker.client import BrokerControl
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.pm_events import PmEventSocket
from mptcp.testing import netns

Wait = Callable[..., None]

IPPROTO_MPTCP = 262
ALICE, MALLORY = 65534, 65533
#: Loaded here, since the interpreter's files may be closed to other users.
"host".encode("idna")


def has_users() -> bool:
    """Whether a process here could become another user."""
    lines = Path("/proc/self/uid_map").read_text().splitlines()
    ranges = [tuple(map(int, line.split())) for line in lines]
    return all(any(first <= uid < first + count for first, _, count in ranges) for uid in (ALICE, MALLORY))


def needs_users() -> None:
    if not has_users():
        pytest.skip("this user namespace has no other users: run as root")


class BrokerProcess:
    """``mptcp broker`` in a namespace; the folder of its socket and policy is open to all users."""

    def __init__(self, lab: netns.Lab, folder: Path, policy: str = "", *arguments: str, activate: bool = False) -> None:
        self.lab, self.folder = lab, folder
        self.path, self.policy = folder / "broker.sock", folder / "broker.toml"
        self.log = (folder / "log").open("w+")
        if policy:
            self.policy.write_text(policy)
            arguments = ("--policy", str(self.policy), *arguments)
        notify = folder / "notify"
        notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(notify))
            notify.chmod(0o666)  # as systemd's own
            command = [sys.executable, "-m", "mptcp", "broker", "-v", *arguments]
            if activate:
                command = [sys.executable, "-c", ACTIVATE, str(self.path), *command]
            else:
                command += ["--socket", str(self.path)]
            environment = {**os.environ, "NOTIFY_SOCKET": str(notify), "PYTHONPATH": os.pathsep.join(sys.path)}
            self.process = lab.client.popen(
                *command, env=environment, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, cwd="/"
            )
            deadline = time.monotonic() + 60
            while not select.select([manager], [], [], 0.05)[0]:
                assert self.process.poll() is None, self.lines()
                if time.monotonic() > deadline:
                    self.process.kill()
                    raise AssertionError(f"the broker does not get ready: {self.lines()}")
            assert manager.recv(100) == b"READY=1"

    @property
    def status(self) -> dict[str, str]:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return dict(re.split(r":\s*", line, maxsplit=1) for line in lines)  # type: ignore[misc]

    def lines(self) -> str:
        return Path(self.log.name).read_text()

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def clients(self) -> int:
        """Each has a thread."""
        return int(self.status["Threads"]) - 2

    def control(self) -> BrokerControl:
        return BrokerControl(str(self.path))

    def stop(self) -> int:
        self.process.terminate()
        status = self.process.wait(30)
        self.log.close()
        return status


#: What systemd does: listens, and passes the socket as descriptor 3.
ACTIVATE = """
import os, socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o666)
sock.listen(128)
fd = sock.detach()
if fd != 3:
    os.dup2(fd, 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as path:
        yield path


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="mptcp-broker-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture(scope="module")
def two_hosts(namespaces: None) -> Iterator[netns.Lab]:
    """A laboratory whose both ends have the user-space path manager."""
    with netns.Lab(2, client_kernel=True) as lab:
        for namespace in (lab.client, lab.server):
            try:
                namespace.sysctl("net.mptcp.path_manager", "userspace")
            except OSError:  # Linux < 6.15
                namespace.sysctl("net.mptcp.pm_type", 1)
        yield lab


@pytest.fixture(scope="module")
def broker(two_hosts: netns.Lab) -> Iterator[BrokerProcess]:
    """One with the default policy, in the client's namespace, for all tests that leave it as it is."""
    with open_folder() as path:
        running = BrokerProcess(two_hosts, path)
        yield running
        assert running.stop() == 0


@pytest.fixture
def start(two_hosts: netns.Lab, folder: Path) -> Iterator[Callable[..., BrokerProcess]]:
    """Starts a broker of a test's own: policy, arguments."""
    started: list[BrokerProcess] = []

    def run(policy: str = "", *arguments: str, **options: bool) -> BrokerProcess:
        started.append(BrokerProcess(two_hosts, folder, policy, *arguments, **options))
        return started[-1]

    yield run
    for broker in started:
        if broker.process.poll() is None:
            broker.stop()


class Child:
    """``work`` in a child in the client's namespace, as another user where there are any; its failures are the test's."""

    def __init__(self, lab: netns.Lab, work: Callable[[], None], uid: int = ALICE) -> None:
        self._read, write = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(write)
            return
        status = 1
        try:
            with lab.client.entered():
                if has_users():
                    os.setgroups([])
                    os.setresgid(uid, uid, uid)
                    os.setresuid(uid, uid, uid)
                    assert not features.steering(NetNamespace())
                    assert os.getuid() == uid
                try:
                    work()
                    status = 0
                except BaseException:  # noqa: BLE001
                    os.write(write, traceback.format_exc().encode()[-60_000:])
        finally:
            os._exit(status)

    def fileno(self) -> int:
        """Readable when it has ended."""
        return self._read

    def has_failed(self) -> bool:
        return bool(select.select([self], [], [], 0)[0])

    def join(self) -> None:
        with open(self._read, "rb") as report:
            text = report.read().decode()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert status == 0, text


class Far:
    """The server: accepts one connection after another, and listens to events, without which it would take no joins."""

    def __init__(self, lab: netns.Lab, family: int) -> None:
        self.lab, self.family = lab, family
        self.kind = socket.AF_INET if family == 4 else socket.AF_INET6
        with lab.server.entered():
            self.events = PmEventSocket()
            self.listener = socket.socket(self.kind, socket.SOCK_STREAM, IPPROTO_MPTCP)
            self.listener.bind(("", 0))
            self.listener.listen()
        self.port = self.listener.getsockname()[1]
        self.accepted: list[socket.socket] = []

    def accept(self, child: Child) -> socket.socket:
        """One connection, with an octet each way; or the child's failure."""
        if not select.select([self.listener, child], [], [], 60)[0] or child.has_failed():
            child.join()
        sock, _ = self.listener.accept()
        self.accepted.append(sock)
        sock.settimeout(30)
        assert sock.recv(1) == b"."
        sock.sendall(b".")
        return sock

    def subflows(self) -> int:
        return sum(
            entry.tcp.state == 1 for sock in self.accepted for entry in sockopt.full_info(sock.fileno()).subflows
        )

    def close(self) -> None:
        for closable in (*self.accepted, self.listener, self.events):
            closable.close()


@pytest.fixture
def far_family() -> int:
    """Of the connections to ``far``; ``EITHER_FAMILY`` makes it both."""
    return 4


EITHER_FAMILY = pytest.mark.parametrize("far_family", [4, 6])


@pytest.fixture
def far(two_hosts: netns.Lab, far_family: int) -> Iterator[Far]:
    far = Far(two_hosts, far_family)
    yield far
    far.close()


def connect(lab: netns.Lab, far: Far) -> socket.socket:
    sock = socket.socket(far.kind, socket.SOCK_STREAM, IPPROTO_MPTCP)
    sock.settimeout(30)
    sock.connect((lab.server_address(1, far.family), far.port))
    sock.sendall(b".")
    assert sock.recv(1) == b"."
    return sock


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def second(lab: netns.Lab, far: Far) -> tuple[Endpoint, Endpoint]:
    local, remote = lab.client_address(2, far.family), lab.server_address(2, far.family)
    return Endpoint.parse(local), Endpoint.parse(remote, far.port)
