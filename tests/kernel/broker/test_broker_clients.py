"""The broker as root runs it, and clients of other users: their own connections they steer, those of others they do not.

Clients are children of the test, each with the user it is given; where this user namespace has no other users, root itself
goes through the broker, and tests that need another one skip.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
from collections.abc import Callable

import pytest

import mptcp
from mptcp.core.multipath.events import EventKind
from mptcp.info import Endpoint
from mptcp.kernel import features, sockopt
from mptcp.kernel.broker.client import VARIABLE, BrokerControl
from mptcp.kernel.connection import KernelConnection
from mptcp.kernel.control import DirectControl, find_control
from mptcp.kernel.diag import FLAG_BACKUP_REM, Diag
from mptcp.kernel.monitor import Monitor
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.pm_events import EventsLost, PmEventKind, PmEventSource

from .conftest import (
    ALICE,
    EITHER_FAMILY,
    MALLORY,
    BrokerProcess,
    Child,
    Far,
    Wait,
    connect,
    has_users,
    needs_users,
    second,
    until,
)

TCP_USER_TIMEOUT = 18
IPPROTO_MPTCP = 262


# what a client does with its own


@EITHER_FAMILY
def test_an_ordinary_user_opens_prioritises_and_closes_subflows_of_its_own(
    broker: BrokerProcess, far: Far, eventually: Wait
) -> None:
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
    heard: list[PmEventKind] = []

    def comes(kind: PmEventKind) -> bool:
        heard.extend(event.kind for event in far.events.read())
        return kind in heard

    # What reached the other host: two joins, a FIN and an RST, a priority, an address and its end.
    eventually(lambda: comes(PmEventKind.REMOVED))
    assert heard.count(PmEventKind.SUBFLOW_ESTABLISHED) == heard.count(PmEventKind.SUBFLOW_CLOSED) == 2
    assert PmEventKind.SUBFLOW_PRIORITY in heard
    assert PmEventKind.ANNOUNCED in heard


@EITHER_FAMILY
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
        for fd in (_steal(taken, int(number)) for number in os.listdir(f"/proc/{child.pid}/fd"))
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
        assert select.select([source], [], [], 30)[0]
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


@EITHER_FAMILY
def test_addresses_of_the_host_and_of_the_policy(start: Callable[..., BrokerProcess], far: Far) -> None:
    broker = start("[[rule]]\ninterfaces = ['c1']\naddresses = ['host']\n")

    def work() -> None:
        sock = connect(broker.lab, far)
        control = broker.control()
        control.announce(sock.fileno(), 0, Endpoint.parse(broker.lab.client_address(1, far.family), 5000), 3)
        for address, reason in (
            (second(broker.lab, far)[0].host, f"the interface of {second(broker.lab, far)[0].host} "),
            ("192.0.2.1" if far.family == 4 else "2001:db8::1", "not an address"),
        ):
            with pytest.raises(PermissionError, match=reason):
                control.announce(sock.fileno(), 0, Endpoint.parse(address), 4)
        with pytest.raises(PermissionError, match="the interface c2 is not in"):
            control.create_subflow(
                sock.fileno(), 0, Endpoint.parse(broker.lab.client_address(1, far.family)), 0,
                Endpoint.parse(broker.lab.server_address(1, far.family), far.port), interface=socket.if_nametoindex("c2"),
            )  # fmt: skip

    child = Child(broker.lab, work)
    far.accept(child)
    child.join()


@EITHER_FAMILY
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
            with mptcp.create_connection((lab.server_address(1, far.family), far.port), timeout=30) as sock:
                sock.sendall(b".")
                assert sock.recv(1) == b"."
                assert sock.is_multipath
                local, remote = second(lab, far)
                number = sock.open_subflow((remote.host, remote.port), (local.host, 0))
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
