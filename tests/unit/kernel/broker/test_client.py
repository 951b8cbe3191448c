"""The broker's client: it finds the broker, trusts no other, and takes no nonsense."""

import errno
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mptcp.info import Endpoint
from mptcp.kernel.broker import client, protocol
from mptcp.kernel.broker.client import BrokerConnection, BrokerControl
from mptcp.kernel.broker.protocol import Answer, Operation, Request

from .conftest import Pair, Running, open_descriptors

A = Endpoint.parse("10.0.0.1", 4000)
B = Endpoint.parse("192.0.2.1", 443)


def test_a_client_connects_again_when_the_broker_was_started_anew(start: Callable[..., Running], pair: Pair) -> None:
    first = start()
    control = BrokerControl(first.path)
    control.remove(pair.fd, 0, 1)
    first.stop()
    with pytest.raises(OSError) as caught:
        control.remove(pair.fd, 0, 2)
    assert "nobody listens there: start `mptcp broker`" in (caught.value.strerror or "")
    assert not control.supports("remove")
    second = start()
    control.remove(pair.fd, 0, 3)
    assert [arguments for _, _, _, arguments in second.control.calls] == [(3,)]
    control.close()


def test_a_forked_child_has_a_connection_of_its_own(running: Running, control: BrokerControl, pair: Pair) -> None:
    control.remove(pair.fd, 0, 1)
    pid = os.fork()
    if not pid:
        try:
            control.remove(pair.fd, 0, 2)
            os._exit(0)
        except BaseException:  # noqa: BLE001
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    control.remove(pair.fd, 0, 3)
    assert [arguments for _, _, _, arguments in running.control.calls] == [(1,), (2,), (3,)]


def test_many_threads_share_a_control(start: Callable[..., Running], pair: Pair) -> None:
    running = start("[[rule]]\nrate_per_s = 100000\nburst = 100000\n")
    control = BrokerControl(running.path)
    threads = [
        threading.Thread(target=lambda id_=number: [control.remove(pair.fd, 0, id_) for _ in range(20)])  # type: ignore[misc]
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    control.close()
    assert sorted(arguments[0] for _, _, _, arguments in running.control.calls) == sorted([*range(8)] * 20)


class Impostor:
    """Answers one request by what a test says, in place of a broker."""

    def __init__(self, path: str, *answers: bytes, descriptors: int = 0) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen()
        self.answers = answers
        self.descriptors = descriptors
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        with self.listener, self.listener.accept()[0] as sock, open(os.devnull) as file:
            for answer in self.answers:
                protocol.receive(sock, 4096).close()
                rights = struct.pack(f"={self.descriptors}i", *[file.fileno()] * self.descriptors)
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if self.descriptors else []
                sock.sendmsg([answer], ancillary)
            protocol.receive(sock, 4096).close()


@pytest.mark.parametrize(
    ("answer", "descriptors", "number"),
    [
        (b"nonsense", 0, errno.EPROTO),
        (Answer(Operation.REMOVE, 1).emit() + bytes(2000), 0, errno.EPROTO),
        (Answer(Operation.REMOVE, 99).emit(), 0, errno.EPROTO),
        (Answer(Operation.ANNOUNCE, 1).emit(), 0, errno.EPROTO),
        (Answer(Operation.REMOVE, 1).emit(), 2, errno.EPROTO),
        (b"", 0, errno.ECONNRESET),
        (Answer(Operation.REMOVE, 1, 4000, 0, b"\xff\xfe").emit(), 0, 4000),
    ],
)
def test_a_client_takes_no_nonsense(tmp_path: Path, pair: Pair, answer: bytes, descriptors: int, number: int) -> None:
    before = open_descriptors()
    impostor = Impostor(str(tmp_path / "s"), answer, descriptors=descriptors)
    connection = BrokerConnection(str(tmp_path / "s"))
    with pytest.raises(OSError) as caught:
        connection.ask(Request(Operation.REMOVE, address_id=1), pair.fd)
    assert caught.value.errno == number
    connection.close()
    impostor.thread.join(30)
    assert not open_descriptors() - before


def test_descriptors_that_nobody_asked_for_are_closed(tmp_path: Path, pair: Pair) -> None:
    before = open_descriptors()
    impostor = Impostor(str(tmp_path / "s"), Answer(Operation.REMOVE, 1).emit(), descriptors=1)
    control = BrokerControl(str(tmp_path / "s"))
    control.remove(pair.fd, 0, 1)
    control.close()
    impostor.thread.join(30)
    assert not open_descriptors() - before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_client_shows_its_connection_to_root_and_itself_only(tmp_path: Path, pair: Pair) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        try:
            os.seteuid(12345)
        except OSError as error:
            pytest.skip(f"this user namespace has no other users ({error.strerror})")
        try:
            listener.listen()
        finally:
            os.seteuid(0)
        connection = BrokerConnection(path)
        with pytest.raises(PermissionError, match="neither root nor this user, but uid 12345"):
            connection.ask(Request(Operation.REMOVE, address_id=1), pair.fd)
        accepted, _ = listener.accept()
        with accepted:
            assert protocol.receive(accepted, 4096).data == b""


def test_a_broker_that_does_not_answer_is_given_up(tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mptcp.kernel.broker.client.ANSWER_TIMEOUT_S", 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        connection = BrokerConnection(str(tmp_path / "s"))
        with pytest.raises(TimeoutError, match="does not answer"):
            connection.ask(Request(Operation.REMOVE, address_id=1), pair.fd)


@pytest.mark.parametrize(
    ("path", "number"), [("/nowhere/s", errno.ENOENT), ("/" + "x" * 200, errno.EINVAL), ("/dev/null/s", errno.ENOENT)]
)
def test_a_broker_that_is_not_there(path: str, number: int) -> None:
    control = BrokerControl(path)
    with pytest.raises(OSError, match="the broker at /") as caught:
        control.remove(0, 0, 1)
    assert caught.value.errno == number
    support = control.supports("remove")
    assert not support
    assert path in support.reason
    assert support.fix


def test_where_a_broker_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(client, "DEFAULT_SOCKET", str(tmp_path / "s"))
    assert client.broker_path({}) == ""
    assert client.broker_path({client.VARIABLE: "/some/where"}) == "/some/where"
    (tmp_path / "s").touch()
    assert client.broker_path({}) == ""
    (tmp_path / "s").unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "s"))
        assert client.broker_path({}) == str(tmp_path / "s")
        # A program with more rights than its user has does not listen to the user's environment.
        monkeypatch.setattr(client, "_AT_SECURE", 6)  # AT_PAGESZ, which is never 0
        assert client.broker_path({client.VARIABLE: "/some/where"}) == str(tmp_path / "s")


def test_options_that_cannot_be_are_not_sent(running: Running, control: BrokerControl, pair: Pair) -> None:
    for level, name, value in ((6, 1, b""), (6, 1, bytes(300)), (-1, 1, b"x"), (6, 1 << 31, b"x")):
        with pytest.raises(OSError, match="an option has 1 to 256 octets"):
            control.set_subflow_option(pair.fd, 0, A, B, level, name, value)
    assert len(control.get_subflow_option(pair.fd, 0, pair.local, pair.remote, 6, 13, 4096)) == protocol.MAX_VALUE
