"""The broker as a service: its privileges, its socket, its policy read again, clients that die and clients that flood."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mptcp.info import Endpoint
from mptcp.kernel import sockopt
from mptcp.kernel.broker import privileges, protocol
from mptcp.kernel.broker.protocol import Answer, Operation, Request

from .conftest import MALLORY, BrokerProcess, Child, Far, Wait, connect, needs_users, second, until

IPPROTO_MPTCP = 262


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
    _, said = again.communicate(timeout=60)
    assert again.returncode == 1
    assert "listens at" in said.decode()
    assert "already" in said.decode()
    source = broker.control().event_source()
    broker.process.send_signal(signal.SIGINT)
    assert broker.process.wait(30) == 0
    assert not broker.path.exists()
    assert select.select([source], [], [], 30)[0]
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
    idle: list[int] = []
    for _ in range(5):
        ready = os.pipe()

        def work(ready: tuple[int, int] = ready) -> None:
            sock = connect(lab, far)
            with pytest.raises(OSError, match="id 9"):
                broker.control().remove(sock.fileno(), 0, 9)  # answered: what follows may find its client gone already
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
        assert control.supports("announce")
        eventually(lambda: broker.clients() == 1)
        idle.append(broker.descriptors())
    # What it needs for its work it opens once.
    assert len(set(idle)) == 1
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
