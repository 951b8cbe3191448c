"""The broker as a client meets it, over its socket."""

import contextlib
import errno
import logging
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mptcp.errors import ConfigurationError, NotSupportedError, PathError
from mptcp.info import Endpoint
from mptcp.kernel.broker import limits, protocol, service, session
from mptcp.kernel.broker.client import BrokerControl
from mptcp.kernel.broker.policy import Policy
from mptcp.kernel.broker.protocol import Answer, Operation, Request

from .conftest import Pair, Running, open_descriptors

A = Endpoint.parse("10.0.0.1", 4000)
B = Endpoint.parse("192.0.2.1", 443)


def ask(sock: socket.socket, request: Request | bytes, *descriptors: int) -> Answer:
    data = request if isinstance(request, bytes) else request.emit()
    rights = struct.pack(f"={len(descriptors)}i", *descriptors)
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else [])
    message = protocol.receive(sock, protocol.MAX_ANSWER)
    message.close()
    return Answer.parse(message.data)


# what is done


def test_each_operation_reaches_the_kernel_with_the_connection_itself(
    running: Running, control: BrokerControl, pair: Pair
) -> None:
    fd = pair.fd
    # The token is the broker's own reading: what the client says of it goes nowhere.
    control.announce(fd, 5, A, 3, 0)
    control.remove(fd, 5, 3)
    control.create_subflow(fd, 5, A, 1, B, backup=True)
    control.destroy_subflow(fd, 5, A, B)
    control.reset_subflow(fd, 5, pair.local, pair.remote)
    control.set_backup(fd, 5, A, B, True)
    control.set_subflow_option(fd, 5, pair.local, pair.remote, 6, 18, b"\x01\0\0\0")
    assert control.get_subflow_option(fd, 5, pair.local, pair.remote, 6, 13, 16) == b"reno".ljust(16, b"\0")
    assert [(name, arguments) for name, _, _, arguments in running.control.calls] == [
        ("announce", (A, 3, 0)),
        ("remove", (3,)),
        ("create_subflow", (A, 1, B, True, 0)),
        ("destroy_subflow", (A, B)),
        ("reset_subflow", (pair.local, pair.remote)),
        ("set_backup", (A, B, True)),
        ("set_subflow_option", (pair.local, pair.remote, 6, 18, b"\x01\0\0\0")),
        ("get_subflow_option", (pair.local, pair.remote, 6, 13, 16)),
    ]
    assert {(inode, token) for _, inode, token, _ in running.control.calls} == {(pair.inode, pair.token)}


def test_the_broker_keeps_no_descriptor(running: Running, control: BrokerControl, pair: Pair) -> None:
    control.remove(pair.fd, 0, 1)
    before = open_descriptors()
    for _ in range(20):
        control.remove(pair.fd, 0, 1)
        with pytest.raises(OSError):
            control.remove(0, 0, 1)
    assert not open_descriptors() - before
    pair.client.close()
    pair.server.settimeout(30)
    assert pair.server.recv(1) == b""  # nobody else has it open


def test_who_has_its_answer_holds_the_connection_alone(running: Running, pair: Pair) -> None:
    # The descriptor goes before the answer: a close right after it is the close of the connection.
    with running.connect() as sock:
        for _ in range(50):
            assert not ask(sock, Request(Operation.REMOVE, address_id=1), pair.fd).error
            holders = [name for name in os.listdir("/proc/self/fd") if _inode(name) == pair.inode]
            assert holders == [str(pair.fd)]


def _inode(name: str) -> int:
    try:
        return os.fstat(int(name)).st_ino
    except OSError:
        return 0


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (PathError("not yet", errno.EAGAIN), PathError),
        (PathError("no such subflow", errno.ENOENT), PathError),
        (NotSupportedError("in-kernel path manager"), NotSupportedError),
        (PermissionError(errno.EPERM, "no capability"), PermissionError),
        (OSError(errno.ENETUNREACH, "unreachable"), OSError),
    ],
)
def test_what_the_kernel_refuses_is_refused_as_if_there_were_no_broker(
    running: Running, control: BrokerControl, pair: Pair, raised: OSError, kind: type[OSError]
) -> None:
    running.control.error = raised
    with pytest.raises(kind) as caught:
        control.remove(pair.fd, 0, 1)
    assert (caught.value.errno, caught.value.strerror) == (raised.errno, raised.strerror)
    running.control.error = None
    control.remove(pair.fd, 0, 1)


def test_what_is_supported_is_what_the_policy_allows_and_the_kernel_can(start: Callable[..., Running]) -> None:
    running = start("[[rule]]\nallow = ['announce', 'remove', 'events']\n")
    control = BrokerControl(running.path)
    assert control.supports("remove")
    assert control.supports("events")
    assert control.supports("announce").reason == "no announcing today"
    refused = control.supports("set_backup")
    assert not refused
    assert "does not allow set_backup" in refused.reason
    assert "add it to `allow`" in refused.fix
    assert "no operation" in control.supports("fly").reason
    control.close()


# what is refused


def test_a_request_without_its_one_descriptor_is_refused(running: Running, pair: Pair) -> None:
    request = Request(Operation.REMOVE, 7, address_id=1)
    with running.connect() as sock:
        for descriptors in ((), (pair.fd, pair.fd), (pair.fd,) * 3, (pair.fd,) * 100):
            answer = ask(sock, request, *descriptors)
            assert answer.error == errno.EBADMSG
            assert "one descriptor" in answer.text
        answer = ask(sock, Request(Operation.EVENTS), pair.fd)
        assert "no descriptor" in answer.text
        assert ask(sock, request, pair.fd).error == 0
    assert len(running.control.calls) == 1


def test_foreign_descriptors_are_refused(running: Running, pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    others = [
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        socket.socket(socket.AF_INET, socket.SOCK_STREAM),
        (tmp_path / "file").open(),
    ]
    with running.connect() as sock:
        for other in others:
            answer = ask(sock, Request(Operation.REMOVE, address_id=1), other.fileno())
            assert answer.error
            assert answer.text
            other.close()
        assert ask(sock, Request(Operation.REMOVE, address_id=1), sock.fileno()).error == errno.EPROTOTYPE
    assert not running.control.calls


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a socket to another user")
def test_a_socket_of_another_user_is_refused(start: Callable[..., Running], pair: Pair) -> None:
    try:
        os.fchown(pair.fd, 12345, -1)
    except OSError as error:
        pytest.skip(f"this user namespace has no other users ({error.strerror})")
    control = BrokerControl(start().path)
    with pytest.raises(PermissionError, match="made by uid 12345"):
        control.remove(pair.fd, 0, 1)
    control.close()
    control = BrokerControl(start("[[rule]]\nsockets_of_others = true\n", "other.sock").path)
    control.remove(pair.fd, 0, 1)
    control.close()


def test_what_goes_by_addresses_goes_to_subflows_of_the_connection_only(
    running: Running, control: BrokerControl, pair: Pair, make_pair: Callable[[], Pair]
) -> None:
    other = make_pair()
    calls = (
        lambda local, remote: control.reset_subflow(pair.fd, 0, local, remote),
        lambda local, remote: control.set_subflow_option(pair.fd, 0, local, remote, 6, 18, bytes(4)),
        lambda local, remote: control.get_subflow_option(pair.fd, 0, local, remote, 6, 18, 4),
    )
    nowhere = Endpoint(bytes(4))
    for call in calls:
        for local, remote in ((other.local, other.remote), (pair.remote, pair.local), (nowhere, nowhere)):
            with pytest.raises(PathError, match="this connection has no subflow from") as caught:
                call(local, remote)
            assert caught.value.errno == errno.ENOENT
    assert not running.control.calls


def test_the_policy_is_asked_for_each_request(running: Running, control: BrokerControl, pair: Pair) -> None:
    with pytest.raises(PermissionError, match=r"8\.8\.8\.8 is not an address of this host"):
        control.announce(pair.fd, 0, Endpoint.parse("8.8.8.8"), 1)
    control.announce(pair.fd, 0, Endpoint.parse("::ffff:10.9.0.1"), 1)
    assert running.control.calls[0][3][0] == Endpoint.parse("10.9.0.1")
    running.broker.set_policy(Policy.parse("[[rule]]\nallow = ['events']\n"))
    with pytest.raises(PermissionError, match="announce is not in `allow`"):
        control.announce(pair.fd, 0, A, 1)
    running.broker.set_policy(Policy.parse("[[rule]]\nusers = []\n"))
    with pytest.raises(PermissionError, match="no rule is for this client"):
        control.announce(pair.fd, 0, A, 1)
    assert len(running.control.calls) == 1


def test_refusals_are_logged_with_their_reason(
    running: Running, control: BrokerControl, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "mptcp.broker"):
        with pytest.raises(PermissionError):
            control.announce(pair.fd, 0, Endpoint.parse("8.8.8.8"), 1)
        running.control.error = PathError("no such subflow", errno.ENOENT)
        with pytest.raises(PathError):
            control.remove(pair.fd, 0, 1)
        for _ in range(3 * limits.MAX_LOG_LINES):
            with pytest.raises(PermissionError):
                control.announce(pair.fd, 0, Endpoint.parse("8.8.8.8"), 1)
    lines = [record.getMessage() for record in caplog.records]
    who = f"uid {os.geteuid()} pid {os.getpid()}"
    assert lines[0] == f"{who}: refused announce: the broker's policy says no: 8.8.8.8 is not an address of this host"
    assert lines[1] == f"{who}: remove failed: no such subflow"
    assert len(lines) == limits.MAX_LOG_LINES  # a flood of refusals does not fill the log


# clients and their limits


def test_malformed_messages_are_refused_and_in_the_end_the_client_is(
    running: Running, eventually: Callable[..., None]
) -> None:
    with running.connect() as sock:
        for number in range(session.MAX_FAULTS):
            assert ask(sock, bytes([number]) * 70).error == errno.EBADMSG
        assert ask(sock, b"x" * 5000).text == f"a message has at most {protocol.MAX_REQUEST} octets and one descriptor"
        assert protocol.receive(sock, 16).data == b""
    eventually(lambda: running.broker.clients == 0)


def test_an_empty_message_is_the_end(running: Running, pair: Pair, eventually: Callable[..., None]) -> None:
    with running.connect() as sock:
        protocol.send(sock, b"", pair.fd)
        assert protocol.receive(sock, 16).data == b""
    eventually(lambda: running.broker.clients == 0)


def test_one_user_has_so_many_clients(
    start: Callable[..., Running], pair: Pair, eventually: Callable[..., None]
) -> None:
    running = start("[[rule]]\nmax_clients = 2\n")
    first, second, third = (running.connect() for _ in range(3))
    eventually(lambda: running.broker.clients == 2)
    with first, second, third:
        answer = Answer.parse(protocol.receive(third, protocol.MAX_ANSWER).data)
        assert (answer.error, answer.operation) == (errno.EBUSY, 0)
        control = BrokerControl(running.path)
        with pytest.raises(OSError, match="serves 2 clients of this user already") as caught:
            control.remove(pair.fd, 0, 1)
        assert caught.value.errno == errno.EBUSY
        second.close()
        eventually(lambda: running.broker.clients == 1)
        control.remove(pair.fd, 0, 1)
        control.close()
    eventually(lambda: running.broker.clients == 0)


def test_all_together_have_so_many(start: Callable[..., Running], eventually: Callable[..., None]) -> None:
    running = start("max_clients = 1\n[[rule]]\n")
    with running.connect():
        eventually(lambda: running.broker.clients == 1)
        with running.connect() as second:
            assert "serves 1 clients already" in Answer.parse(protocol.receive(second, protocol.MAX_ANSWER).data).text


def test_who_has_no_rule_is_turned_away_even_if_it_has_asked_already(start: Callable[..., Running], pair: Pair) -> None:
    running = start("[[rule]]\nusers = []\n")
    for _ in range(20):
        control = BrokerControl(running.path)
        with pytest.raises(PermissionError, match="no rule is for this client"):
            control.remove(pair.fd, 0, 1)
        control.close()
    assert running.broker.clients == 0


def test_a_client_that_dies_in_the_middle_leaves_nothing(
    running: Running, pair: Pair, eventually: Callable[..., None]
) -> None:
    before = open_descriptors()
    running.control.gate = threading.Event()
    sock = running.connect()
    protocol.send(sock, Request(Operation.REMOVE, address_id=1).emit(), pair.fd)
    for _ in range(20):
        protocol.send(sock, Request(Operation.REMOVE, address_id=2).emit(), pair.fd)
    assert running.control.entered.wait(30)
    sock.close()
    running.control.gate.set()
    eventually(lambda: running.broker.clients == 0)
    # What it had asked for before the broker saw that it is gone was done; what waited was not.
    assert [arguments for _, _, _, arguments in running.control.calls] == [(1,)]
    eventually(lambda: not open_descriptors() - before)


def test_a_client_that_does_not_read_its_answers_is_let_go(
    start: Callable[..., Running], eventually: Callable[..., None]
) -> None:
    running = start("[[rule]]\nrate_per_s = 100000\nburst = 100000\n")
    with running.connect() as sock:
        sock.setblocking(False)
        request = Request(Operation.SUPPORTS, name=1).emit()
        eventually(lambda: running.broker.clients == 1)

        def flooded() -> bool:
            try:
                for _ in range(100):
                    protocol.send(sock, request)
            except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                pass
            return running.broker.clients == 0

        eventually(flooded)


def test_a_flood_waits_and_others_do_not(start: Callable[..., Running], pair: Pair) -> None:
    running = start("[[rule]]\nrate_per_s = 1\nburst = 5\n")
    flood = running.connect()
    for _ in range(50):
        protocol.send(flood, Request(Operation.REMOVE, address_id=1).emit(), pair.fd)
    for _ in range(5):
        assert protocol.receive(flood, protocol.MAX_ANSWER).data
    flood.settimeout(0.05)
    answered = 5
    with contextlib.suppress(TimeoutError):
        while protocol.receive(flood, protocol.MAX_ANSWER).data:
            answered += 1
    assert answered < 10
    assert len(running.control.calls) < 10
    assert running.broker.clients == 1
    flood.close()
    running.stop()  # the one that waits does not hold it up


def test_a_stuck_client_holds_up_nobody_else(running: Running, control: BrokerControl, pair: Pair) -> None:
    running.control.gate = threading.Event()
    with running.connect() as stuck:
        protocol.send(stuck, Request(Operation.REMOVE, address_id=1).emit(), pair.fd)
        assert running.control.entered.wait(30)
        assert control.supports("remove")  # while the other waits for the kernel
        running.control.gate.set()
        assert protocol.receive(stuck, protocol.MAX_ANSWER).data


def test_a_descriptor_whose_close_waits_holds_up_its_client_only(
    running: Running, control: BrokerControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file of a user's own file system (FUSE) can make close wait as long as that user likes.
    closing, released = threading.Event(), threading.Event()
    reader, writer = os.pipe()
    inode = os.fstat(reader).st_ino
    really_close = os.close

    def slow(fd: int) -> None:
        if threading.current_thread().name.startswith("mptcp-broker") and os.fstat(fd).st_ino == inode:
            closing.set()
            assert released.wait(30)
        really_close(fd)

    with running.connect() as sock:
        monkeypatch.setattr(os, "close", slow)
        protocol.send(sock, Request(Operation.REMOVE, address_id=1).emit(), reader)
        assert closing.wait(30)
        assert control.supports("remove")
        released.set()
        assert Answer.parse(protocol.receive(sock, protocol.MAX_ANSWER).data).error == errno.ENOTSOCK
    for fd in (reader, writer):
        really_close(fd)


def test_a_broker_that_stops_lets_everybody_go(start: Callable[..., Running], pair: Pair) -> None:
    before = open_descriptors()
    running = start()
    sock = running.connect()
    assert not ask(sock, Request(Operation.REMOVE, address_id=1), pair.fd).error
    running.stop()
    assert protocol.receive(sock, 16).data == b""
    sock.close()
    assert not open_descriptors() - before


def test_without_descriptors_nobody_is_accepted_for_a_moment(
    running: Running,
    control: BrokerControl,
    pair: Pair,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    listener = running.broker._listener
    failures = [OSError(number, os.strerror(number)) for number in (errno.EMFILE, errno.ECONNABORTED)]

    class Failing:
        def accept(self) -> object:
            if failures:
                raise failures.pop()
            return listener.accept()

        def __getattr__(self, name: str) -> object:
            return getattr(listener, name)

    monkeypatch.setattr(running.broker, "_listener", Failing())
    control.remove(pair.fd, 0, 1)
    assert not failures
    assert "no client can be accepted" in caplog.text


def test_without_threads_a_client_is_turned_away(
    running: Running, control: BrokerControl, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OSError, match="no more threads"):
            control.remove(pair.fd, 0, 1)
    assert running.broker.clients == 0
    control.remove(pair.fd, 0, 1)


def test_addresses_are_those_the_host_has_now() -> None:
    from mptcp.kernel.addresses import local_addresses

    addresses = service._HostAddresses()
    for _ in range(2):
        assert sorted(map(str, addresses())) == sorted(map(str, local_addresses()))
    addresses.close()
    addresses.close()


# the socket


def test_the_socket_is_for_everybody_and_there_is_one_broker(tmp_path: Path) -> None:
    path = tmp_path / "run" / "mptcp" / "broker.sock"
    listener = service.listen(path)
    assert stat.S_IMODE(path.stat().st_mode) == service.SOCKET_MODE
    assert not stat.S_IMODE(path.parent.stat().st_mode) & 0o022
    with pytest.raises(PathError, match=r"listens at .* already") as caught:
        service.listen(path)
    assert caught.value.errno == errno.EADDRINUSE
    listener.close()
    service.listen(path).close()  # what a dead one left behind is replaced


def test_a_socket_where_others_could_put_theirs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigurationError, match="can be changed by others"):
        service.listen(tmp_path / "open" / "s")
    (tmp_path / "file").touch()
    with pytest.raises(PathError, match="no socket"):
        service.listen(tmp_path / "file")


def test_stopping_does_not_wait_for_the_stuck(running: Running, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "STOP_S", 0.05)
    running.control.gate = threading.Event()
    with running.connect() as stuck:
        protocol.send(stuck, Request(Operation.REMOVE, address_id=1).emit(), pair.fd)
        assert running.control.entered.wait(30)
        begin = time.monotonic()
        running.stop()
        assert time.monotonic() - begin < 5
        running.control.gate.set()
