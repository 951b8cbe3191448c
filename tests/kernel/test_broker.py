"""The broker as root runs it, and clients of other users: their own connections they steer, those of others they do not.

Clients are children of the test, each with the user it is given; where this user namespace has no other users, root itself
goes through the broker, and tests that need another one skip.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mptcp
from mptcp.core.multipath.events import EventKind
from mptcp.info import Endpoint
from mptcp.kernel import features, sockopt
from mptcp.kernel.broker import privileges, protocol
from mptcp.kernel.broker.client import VARIABLE, BrokerControl
from mptcp.kernel.broker.protocol import Answer, Operation, Request
from mptcp.kernel.connection import KernelConnection
from mptcp.kernel.control import DirectControl, find_control
from mptcp.kernel.diag import FLAG_BACKUP_REM, Diag
from mptcp.kernel.monitor import Monitor
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.pm_events import EventsLost, PmEventKind, PmEventSocket, PmEventSource
from mptcp.testing import netns

Wait = Callable[..., None]

IPPROTO_MPTCP = 262
ALICE, MALLORY = 65534, 65533
#: Loaded here, since the interpreter's files may be closed to other users.
"host".encode("idna")
TCP_USER_TIMEOUT = 18


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
            deadline = time.monotonic() + 30
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
        status = self.process.wait(10)
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

    def __init__(self, lab: netns.Lab) -> None:
        self.lab = lab
        with lab.server.entered():
            self.events = PmEventSocket()
            self.listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
            self.listener.bind(("0.0.0.0", 0))
            self.listener.listen()
        self.port = self.listener.getsockname()[1]
        self.accepted: list[socket.socket] = []

    def accept(self, child: Child) -> socket.socket:
        """One connection, with an octet each way; or the child's failure."""
        if not select.select([self.listener, child], [], [], 10)[0] or child.has_failed():
            child.join()
        sock, _ = self.listener.accept()
        self.accepted.append(sock)
        sock.settimeout(10)
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
def far(two_hosts: netns.Lab) -> Iterator[Far]:
    far = Far(two_hosts)
    yield far
    far.close()


def connect(lab: netns.Lab, far: Far) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
    sock.settimeout(10)
    sock.connect((lab.server_address(1), far.port))
    sock.sendall(b".")
    assert sock.recv(1) == b"."
    return sock


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def second(lab: netns.Lab, far: Far) -> tuple[Endpoint, Endpoint]:
    return Endpoint.parse(lab.client_address(2)), Endpoint.parse(lab.server_address(2), far.port)


# what a client does with its own


def test_an_ordinary_user_opens_prioritises_and_closes_subflows_of_its_own(broker: BrokerProcess, far: Far) -> None:
    lab = broker.lab

    def work() -> None:
        sock = connect(lab, far)
        control = broker.control()
        monitor = Monitor(NetNamespace(), control)
        assert monitor.supports()
        connection = KernelConnection(sock.fileno(), NetNamespace(), control, monitor)
        for operation in ("announce", "create_subflow", "destroy_subflow", "reset_subflow", "set_backup", "events"):
            assert connection.supports(operation), connection.supports(operation)
        kinds: list[EventKind] = []

        def saw(kind: EventKind) -> bool:
            while (event := connection.poll_event()) is not None:
                kinds.append(event.kind)
            return kind in kinds

        local, remote = second(lab, far)
        number = connection.open_subflow(local, remote)
        until(lambda: saw(EventKind.SUBFLOW_ESTABLISHED))
        assert len(connection.subflows()) == 2
        connection.set_backup(number, True)
        until(lambda: next(s for s in connection.subflows() if s.id == number).backup)
        connection.close_subflow(number)
        until(lambda: saw(EventKind.SUBFLOW_CLOSED))
        kinds.clear()
        number = connection.open_subflow(local, remote, backup=True)
        until(lambda: saw(EventKind.SUBFLOW_ESTABLISHED))
        connection.close_subflow(number, reset=True)
        until(lambda: saw(EventKind.SUBFLOW_CLOSED))
        connection.add_address(local)
        connection.remove_address(local.address)
        assert len(connection.subflows()) == 1
        connection.close()
        monitor.close()

    child = Child(lab, work)
    far.accept(child)
    child.join()
    heard = [event.kind for event in far.events.read()]
    # What reached the other host: two joins, a FIN and an RST, a priority, an address and its end.
    assert heard.count(PmEventKind.SUBFLOW_ESTABLISHED) == heard.count(PmEventKind.SUBFLOW_CLOSED) == 2
    assert PmEventKind.SUBFLOW_PRIORITY in heard
    assert PmEventKind.ANNOUNCED in heard
    assert PmEventKind.REMOVED in heard


def test_the_priority_is_on_the_wire(broker: BrokerProcess, far: Far, eventually: Wait) -> None:
    lab = broker.lab
    go, done = os.pipe(), os.pipe()

    def work() -> None:
        sock = connect(lab, far)
        control = broker.control()
        local, remote = second(lab, far)
        control.create_subflow(sock.fileno(), 0, local, 1, remote)
        until(lambda: len(sockopt.full_info(sock.fileno()).subflows) == 2)
        entry = sockopt.full_info(sock.fileno()).subflows[1]
        until(lambda: sockopt.full_info(sock.fileno()).subflows[1].tcp.state == 1)
        control.set_backup(sock.fileno(), 0, entry.local, entry.remote, True)
        os.write(done[1], b".")
        os.read(go[0], 1)

    child = Child(lab, work)
    far.accept(child)
    os.read(done[0], 1)
    with Diag(NetNamespace(lab.server.fileno())) as diag:
        eventually(lambda: any(subflow.is_join and subflow.flags & FLAG_BACKUP_REM for subflow in diag.subflows()))
    os.write(go[1], b".")
    child.join()
    for fd in (*go, *done):
        os.close(fd)


def test_the_way_to_the_broker_is_found(broker: BrokerProcess, far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(broker.path))
    if not has_users():
        assert isinstance(find_control(), DirectControl)  # who has the privilege needs none
        return

    def work() -> None:
        control = find_control()
        assert isinstance(control, BrokerControl)
        assert control.supports("create_subflow")

    Child(broker.lab, work).join()


def test_options_of_one_subflow_within_the_policy(broker: BrokerProcess, far: Far) -> None:
    if reason := features.subflow_options(NetNamespace()).reason:
        pytest.skip(reason)

    def work() -> None:
        sock = connect(broker.lab, far)
        control = broker.control()
        (entry,) = sockopt.full_info(sock.fileno()).subflows
        who = (sock.fileno(), 0, entry.local, entry.remote)
        control.set_subflow_option(*who, socket.IPPROTO_TCP, TCP_USER_TIMEOUT, (1234).to_bytes(4, sys.byteorder))
        value = control.get_subflow_option(*who, socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 4)
        assert int.from_bytes(value, sys.byteorder) == 1234
        with pytest.raises(PermissionError, match="SO_MARK is not in `options`"):
            control.set_subflow_option(*who, socket.SOL_SOCKET, socket.SO_MARK, bytes(4))
        with pytest.raises(PermissionError, match="tcp_allowed_congestion_control"):
            control.set_subflow_option(*who, socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"nonesuch\0")

    child = Child(broker.lab, work)
    far.accept(child)
    child.join()


# what it does not do


def test_a_client_cannot_touch_what_is_not_its_own(broker: BrokerProcess, far: Far) -> None:
    """By the other's socket, by its addresses, by a socket of another namespace: the victim's connection stays."""
    needs_users()
    lab = broker.lab
    go, done = os.pipe(), os.pipe()

    def victim() -> None:
        sock = connect(lab, far)
        control = broker.control()
        control.create_subflow(sock.fileno(), 0, second(lab, far)[0], 1, second(lab, far)[1])
        until(lambda: len(sockopt.full_info(sock.fileno()).subflows) == 2)
        until(lambda: sockopt.full_info(sock.fileno()).subflows[1].tcp.state == 1)
        os.write(done[1], b".")
        os.read(go[0], 1)
        assert [entry.tcp.state for entry in sockopt.full_info(sock.fileno()).subflows] == [1, 1]

    child = Child(lab, victim)
    far.accept(child)
    os.read(done[0], 1)
    with Diag(NetNamespace(lab.client.fileno())) as diag:
        subflows = diag.subflows()
    assert {subflow.uid for subflow in subflows} == {ALICE}
    with lab.server.entered(), socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as within:
        within.bind((lab.server_address(1), 0))
        within.listen()
        foreign = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
        foreign.connect(within.getsockname())
    taken = os.pidfd_open(child.pid)

    def attack() -> None:
        sock = connect(lab, far)
        control = broker.control()
        fd = sock.fileno()
        for subflow in subflows:
            for refused in (control.reset_subflow, control.destroy_subflow):
                with pytest.raises(OSError) as caught:
                    refused(fd, 0, subflow.local, subflow.remote)
                assert caught.value.errno == errno.ENOENT, caught.value
            for call in (
                lambda s=subflow: control.set_subflow_option(
                    fd, 0, s.local, s.remote, 6, TCP_USER_TIMEOUT, b"\1\0\0\0"
                ),
                lambda s=subflow: control.set_backup(fd, 0, s.local, s.remote, True),
            ):
                with pytest.raises(OSError):
                    call()
        with pytest.raises(OSError, match="another network namespace") as elsewhere:
            control.remove(foreign.fileno(), 0, 0)
        assert elsewhere.value.errno == errno.EXDEV
        # Whoever owns the connection, its socket was made by ALICE, and MALLORY came by it somehow.
        with pytest.raises(PermissionError, match=f"made by uid {ALICE}"):
            control.remove(inherited, 0, 0)

    inherited = next(
        fd
        for fd in (_steal(taken, number) for number in range(3, 64))
        if fd >= 0 and _is_connection_of(fd, lab.server_address(1))
    )
    attacker = Child(lab, attack, MALLORY)
    far.accept(attacker)
    attacker.join()
    os.close(inherited)
    foreign.close()
    os.write(go[1], b".")
    child.join()
    for fd in (*go, *done, taken):
        os.close(fd)


def _steal(pidfd: int, number: int) -> int:
    """A descriptor of another process (pidfd_getfd), -1 if it has none of that number."""
    import ctypes

    return int(ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, number, 0))


def _is_connection_of(fd: int, host: str) -> bool:
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        return False
    try:
        found = sock.family == socket.AF_INET and sock.getpeername()[0] == host
    except OSError:
        found = False
    if not found:
        sock.close()
        return False
    sock.detach()
    return True


def test_a_client_hears_nothing_of_others(broker: BrokerProcess, far: Far) -> None:
    needs_users()
    lab = broker.lab
    go, done = os.pipe(), os.pipe()

    def listen() -> None:
        sock = connect(lab, far)
        source = broker.control().event_source()
        source.watch(sock.fileno(), 0)
        token = sockopt.mptcp_info(sock.fileno()).token
        os.write(done[1], b".")
        os.read(go[0], 1)
        broker.control().create_subflow(sock.fileno(), 0, second(lab, far)[0], 1, second(lab, far)[1])
        heard = read_until(source, PmEventKind.SUBFLOW_ESTABLISHED)
        assert {event[1] for event in heard} == {token}

    listener = Child(lab, listen)
    far.accept(listener)
    os.read(done[0], 1)

    def act() -> None:
        sock = connect(lab, far)
        broker.control().create_subflow(sock.fileno(), 0, second(lab, far)[0], 1, second(lab, far)[1])
        until(lambda: any(e.local.host == lab.client_address(2) and e.tcp.state == 1
                          for e in sockopt.full_info(sock.fileno()).subflows))  # fmt: skip

    other = Child(lab, act, MALLORY)
    far.accept(other)
    other.join()
    os.write(go[1], b".")
    listener.join()
    for fd in (*go, *done):
        os.close(fd)


def read_until(source: PmEventSource, kind: PmEventKind) -> list[tuple[PmEventKind, int]]:
    found: list[tuple[PmEventKind, int]] = []
    while kind not in [heard for heard, _ in found]:
        assert select.select([source], [], [], 5)[0]
        with contextlib.suppress(EventsLost):  # the broker says that it has just begun
            found += [(event.kind, event.token) for event in source.read()]
    return found


def test_the_policy_is_by_user(start: Callable[..., BrokerProcess], far: Far) -> None:
    needs_users()
    broker = start(f"[[rule]]\nusers = [{ALICE}]\n[[rule]]\ngroups = [{MALLORY}]\nallow = ['events']\n")

    def allowed() -> None:
        sock = connect(broker.lab, far)
        broker.control().announce(sock.fileno(), 0, second(broker.lab, far)[0], 1)

    def half() -> None:
        sock = connect(broker.lab, far)
        control = broker.control()
        with pytest.raises(PermissionError, match="announce is not in `allow`"):
            control.announce(sock.fileno(), 0, second(broker.lab, far)[0], 1)
        assert control.supports("events")

    def nothing() -> None:
        with pytest.raises(PermissionError, match="no rule is for this client"):
            broker.control().event_source()

    for work, uid, connects in ((allowed, ALICE, True), (half, MALLORY, True), (nothing, 12345, False)):
        child = Child(broker.lab, work, uid)
        if connects:
            far.accept(child)
        child.join()
    assert f"uid {MALLORY} pid " in broker.lines()
    assert "turned away: the broker's policy says no" in broker.lines()


def test_addresses_of_the_host_and_of_the_policy(start: Callable[..., BrokerProcess], far: Far) -> None:
    broker = start("[[rule]]\ninterfaces = ['c1']\naddresses = ['host']\n")

    def work() -> None:
        sock = connect(broker.lab, far)
        control = broker.control()
        control.announce(sock.fileno(), 0, Endpoint.parse(broker.lab.client_address(1, 4), 5000), 3)
        for address, reason in (
            (broker.lab.client_address(2), "the interface of 10.77.2.1 "),
            ("192.0.2.1", "not an address"),
        ):
            with pytest.raises(PermissionError, match=reason):
                control.announce(sock.fileno(), 0, Endpoint.parse(address), 4)
        with pytest.raises(PermissionError, match="the interface c2 is not in"):
            control.create_subflow(
                sock.fileno(), 0, Endpoint.parse(broker.lab.client_address(1)), 0,
                Endpoint.parse(broker.lab.server_address(1), far.port), interface=socket.if_nametoindex("c2"),
            )  # fmt: skip

    child = Child(broker.lab, work)
    far.accept(child)
    child.join()


# the service


def test_it_keeps_the_capabilities_it_needs(broker: BrokerProcess) -> None:
    status = broker.status
    assert int(status["CapEff"], 16) & ~(1 << 12 | 1 << 38 | 1 << 39) == 0
    assert int(status["CapEff"], 16) >> 12 & 1
    assert status["CapPrm"] == status["CapEff"] == status["CapBnd"]
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"] == "1"


def test_it_can_become_another_user(start: Callable[..., BrokerProcess], far: Far) -> None:
    needs_users()
    broker = start("", "--user", "nobody")
    assert broker.status["Uid"].split() == ["65534"] * 4
    assert int(broker.status["CapEff"], 16) >> 12 & 1

    def work() -> None:
        sock = connect(broker.lab, far)
        control = broker.control()
        control.create_subflow(sock.fileno(), 0, second(broker.lab, far)[0], 1, second(broker.lab, far)[1])
        until(lambda: len(sockopt.full_info(sock.fileno()).subflows) == 2)

    child = Child(broker.lab, work, MALLORY)
    far.accept(child)
    child.join()
    assert broker.stop() == 0


def test_it_takes_the_socket_that_systemd_passes(start: Callable[..., BrokerProcess], far: Far) -> None:
    broker = start(activate=True)

    def work() -> None:
        sock = connect(broker.lab, far)
        broker.control().announce(sock.fileno(), 0, second(broker.lab, far)[0], 1)

    child = Child(broker.lab, work)
    far.accept(child)
    child.join()
    assert broker.stop() == 0
    assert broker.path.exists()  # it is systemd's


def test_it_reads_its_policy_again(start: Callable[..., BrokerProcess], eventually: Wait) -> None:
    broker = start("[[rule]]\nallow = []\n")
    control = broker.control()
    assert not control.supports("events")
    broker.policy.write_text("[[rule]]\nallow = ['fly']\n")
    broker.process.send_signal(signal.SIGHUP)
    eventually(lambda: "the policy stays as it was" in broker.lines())
    assert f"{broker.policy}, line 2: allow: there is no operation 'fly'" in broker.lines()
    assert not control.supports("events")
    broker.policy.write_text("[[rule]]\nallow = ['events']\n")
    broker.process.send_signal(signal.SIGHUP)
    eventually(lambda: "the policy was read again" in broker.lines())
    assert control.supports("events")
    control.close()


def test_it_ends_when_told_and_leaves_nothing(start: Callable[..., BrokerProcess]) -> None:
    broker = start()
    assert oct(broker.path.stat().st_mode & 0o777) == "0o666"
    again = broker.lab.client.popen(
        sys.executable, "-m", "mptcp", "broker", "--socket", str(broker.path), stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, cwd="/",
    )  # fmt: skip
    _, said = again.communicate(timeout=30)
    assert again.returncode == 1
    assert "listens at" in said.decode()
    assert "already" in said.decode()
    source = broker.control().event_source()
    broker.process.send_signal(signal.SIGINT)
    assert broker.process.wait(10) == 0
    assert not broker.path.exists()
    assert select.select([source], [], [], 5)[0]
    with pytest.raises(ConnectionResetError, match="gives no more events"):
        source.read()
    source.close()


def test_without_the_privilege_it_says_so(namespaces: None, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mptcp", "broker", "--socket", str(folder / "s")], check=False, cwd="/",
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: privileges.drop(()),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "the broker needs CAP_NET_ADMIN in this network namespace: run it as root" in done.stderr
    assert not (folder / "s").exists()


def test_a_client_that_is_killed_in_the_middle_costs_nothing(broker: BrokerProcess, far: Far, eventually: Wait) -> None:
    lab = broker.lab
    control = broker.control()
    control.supports("announce")
    eventually(lambda: broker.clients() == 1)
    before = broker.descriptors()
    for _ in range(5):
        ready = os.pipe()

        def work(ready: tuple[int, int] = ready) -> None:
            sock = connect(lab, far)
            sources = [broker.control().event_source() for _ in range(3)]
            for source in sources:
                source.watch(sock.fileno(), 0)
            raw = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            raw.connect(str(broker.path))
            for _ in range(50):
                protocol.send(raw, Request(Operation.REMOVE, address_id=9).emit(), sock.fileno())
            os.write(ready[1], b".")
            signal.pause()

        child = Child(lab, work)
        far.accept(child)
        os.read(ready[0], 1)
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
        for fd in ready:
            os.close(fd)
        # Nobody holds the connection any more, so that the other end hears of its end.
        assert far.accepted[-1].recv(1) == b""
    eventually(lambda: broker.descriptors() == before)
    assert control.supports("announce")
    control.close()


def test_a_flood_of_one_user_keeps_nobody_else_out(start: Callable[..., BrokerProcess], far: Far) -> None:
    needs_users()
    broker = start("[[rule]]\nmax_clients = 4\nrate_per_s = 20\nburst = 20\n")
    lab = broker.lab
    ready = os.pipe()

    def flood() -> None:
        sock = connect(lab, far)
        told = False
        raws = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(8)]
        for raw in raws:
            raw.connect(str(broker.path))
            raw.setblocking(False)
        while True:
            for raw in raws:
                try:
                    protocol.send(raw, os.urandom(80), sock.fileno())
                except OSError:
                    told = told or bool(os.write(ready[1], b"."))

    flooding = Child(lab, flood, MALLORY)
    far.accept(flooding)
    os.read(ready[0], 1)

    def work() -> None:
        sock = connect(lab, far)
        control = broker.control()
        for number in range(1, 10):
            control.announce(sock.fileno(), 0, Endpoint.parse(lab.client_address(2), 5000 + number), number)
            control.remove(sock.fileno(), 0, number)

    child = Child(lab, work)
    far.accept(child)
    child.join()
    os.kill(flooding.pid, signal.SIGKILL)
    os.waitpid(flooding.pid, 0)
    for fd in ready:
        os.close(fd)
    lines = broker.lines()
    assert "serves 4 clients of this user already" in lines
    assert f"uid {MALLORY}" in lines
    assert lines.count("\n") < 200


def test_sockets_of_every_wrong_kind(broker: BrokerProcess, far: Far) -> None:
    def work() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as raw:
            raw.connect(str(broker.path))
            kinds = (
                (socket.AF_INET, socket.SOCK_DGRAM, 0),
                (socket.AF_INET, socket.SOCK_STREAM, 0),
                (socket.AF_INET6, socket.SOCK_STREAM, IPPROTO_MPTCP),
                (socket.AF_UNIX, socket.SOCK_STREAM, 0),
            )
            for family, kind, number in kinds:
                with socket.socket(family, kind, number) as wrong:
                    protocol.send(raw, Request(Operation.REMOVE, address_id=1).emit(), wrong.fileno())
                    answer = Answer.parse(protocol.receive(raw, protocol.MAX_ANSWER).data)
                    assert answer.error in {errno.EPROTOTYPE, errno.EOPNOTSUPP, errno.ENOTCONN}
                    assert answer.text

    Child(broker.lab, work).join()
    assert broker.lines().count("the socket is TCP, or fell back") == 1


def test_a_program_uses_the_stack_as_if_it_had_the_privilege(
    broker: BrokerProcess, far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_users()
    monkeypatch.setenv(VARIABLE, str(broker.path))
    lab = broker.lab

    def work() -> None:
        with mptcp.use(mptcp.KernelStack()) as stack:
            for operation in ("open_subflow", "set_backup", "events"):
                assert stack.supports(operation), stack.supports(operation)
            with mptcp.create_connection((lab.server_address(1), far.port), timeout=10) as sock:
                sock.sendall(b".")
                assert sock.recv(1) == b"."
                assert sock.is_multipath
                number = sock.open_subflow(local=(lab.client_address(2), 0), remote=(lab.server_address(2), far.port))
                for event in sock.events():
                    if event.kind is EventKind.SUBFLOW_ESTABLISHED and event.subflow_id == number:
                        break
                sock.set_backup(number, True)
                until(lambda: [s.backup for s in sock.subflows()] == [False, True])
                sock.close_subflow(number)
                until(lambda: len(sock.subflows()) == 1)

    child = Child(lab, work)
    far.accept(child)
    child.join()
