"""Path managers, profiles, numbers of subflows on sockets of the kernel's stack; two namespaces, two links."""

from __future__ import annotations

import errno
import socket as std
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mptcp
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.info import SubflowState
from mptcp.sockets.kernel import KernelStack
from mptcp.testing.netns import Lab


class Ends:
    """A client's stack and a server's; ``connect`` makes a connection over which data has gone both ways."""

    def __init__(self, lab: Lab, family: int) -> None:
        for namespace in (lab.client, lab.server):
            namespace.sysctl("net.mptcp.pm_type", 1)
        self.lab, self.family = lab, family
        self.client = KernelStack(namespace=lab.client.fileno())
        self.server = KernelStack(namespace=lab.server.fileno())
        self.kind = std.AF_INET if family == 4 else std.AF_INET6
        self.sockets: list[Any] = [self.server.socket(self.kind, proto=mptcp.IPPROTO_MPTCP)]
        self.sockets[0].bind(("", 0))
        self.sockets[0].listen()

    def connect(self, prepare: Callable[[Any], None] = lambda sock: None, **arguments: Any) -> tuple[Any, Any]:
        sock: Any = self.client.socket(self.kind, proto=mptcp.IPPROTO_MPTCP, **arguments)
        prepare(sock)
        sock.connect((self.lab.server_address(1, self.family), self.sockets[0].getsockname()[1]))
        accepted = self.sockets[0].accept()[0]
        for one in (sock, accepted):
            one.settimeout(10)
        self.sockets += [sock, accepted]
        sock.sendall(b"?")
        accepted.recv(1)
        accepted.sendall(b"!")
        sock.recv(1)
        return sock, accepted

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        self.client.close()
        self.server.close()


@pytest.fixture
def ends(lab: Lab, family: int) -> Iterator[Ends]:
    made = Ends(lab, family)
    yield made
    made.close()


def active(sock: Any) -> list[Any]:
    return [s for s in sock.subflows() if s.state is SubflowState.ACTIVE]


def test_none_named_means_none(ends: Ends) -> None:
    sock, _ = ends.connect()
    assert sock.path_manager == "userspace"
    assert len(sock.subflows()) == 1


def test_a_full_mesh_from_the_start(ends: Ends, eventually: Callable[..., None]) -> None:
    sock, _ = ends.connect(config=ConnectionConfig(path_manager=FullMesh))
    eventually(lambda: len(active(sock)) == 2)
    assert sock.path_manager == "fullmesh"
    assert {s.local.host for s in active(sock)} == {ends.lab.client_address(i, ends.family) for i in (1, 2)}


def test_a_path_manager_by_name_during_the_connection(ends: Ends, eventually: Callable[..., None]) -> None:
    sock, accepted = ends.connect()
    sock.set_path_manager("fullmesh")
    eventually(lambda: len(active(sock)) == 2)
    sock.close_subflow(next(s.id for s in sock.subflows() if not s.initial), how=mptcp.RST)
    eventually(lambda: len(active(accepted)) == 1)
    sock.sendall(b"on")
    assert accepted.recv(2) == b"on"
    with pytest.raises(OSError, match="there are") as caught:
        sock.set_path_manager("nonsense")
    assert caught.value.errno == errno.ENOENT


def test_hot_standby(ends: Ends, eventually: Callable[..., None]) -> None:
    sock, accepted = ends.connect(lambda sock: setattr(sock, "profile", "hot-standby"))
    eventually(lambda: len(active(sock)) == 2)
    assert [s.backup for s in active(sock)] == [False, True]
    eventually(lambda: [s.backup for s in active(accepted)] == [False, True])
    ends.lab.blackhole(1)
    sock.sendall(b"over the other")
    assert accepted.recv(14) == b"over the other"


def test_a_profile_of_the_policy(ends: Ends, eventually: Callable[..., None]) -> None:
    server = ends.lab.server_address(1, ends.family)
    ends.client.set_policy(mptcp.Policy(rules=(mptcp.Rule(network=server, profile="hot-standby"),)))
    sock, _ = ends.connect()
    eventually(lambda: len(active(sock)) == 2)
    assert sock.profile == "hot-standby"
    ends.client.set_policy(mptcp.Policy(profile="reliable"))
    with pytest.raises(mptcp.NotSupportedError):
        ends.connect()
    sock, _ = ends.connect(lambda sock: setattr(sock, "profile", "bulk"))
    assert sock.profile == "bulk"


def test_a_wanted_number(ends: Ends, eventually: Callable[..., None]) -> None:
    sock, _ = ends.connect()
    sock.wanted_subflows = 4
    eventually(lambda: len(active(sock)) == 4)
    sock.wanted_subflows = 2
    eventually(lambda: len(active(sock)) == 2)
    with pytest.raises(OSError, match="between 1 and 8"):
        sock.wanted_subflows = 99


def test_subflows_after_so_much_data(ends: Ends, eventually: Callable[..., None]) -> None:
    sock, accepted = ends.connect(lambda sock: sock.set_subflow_setup(after_bytes=50_000))
    assert len(sock.subflows()) == 1
    sock.sendall(bytes(60_000))
    left = 60_000
    while left:
        left -= len(accepted.recv(left))
    eventually(lambda: len(active(sock)) == 2)


def test_usage_is_what_each_subflow_has_carried(ends: Ends, eventually: Callable[..., None]) -> None:
    sock, accepted = ends.connect(config=ConnectionConfig(path_manager=FullMesh))
    eventually(lambda: len(active(sock)) == 2)
    sock.sendall(bytes(30_000))
    left = 30_000
    while left:
        left -= len(accepted.recv(left))
    usage = sock.usage()
    assert sum(one.bytes_sent for one in usage) >= 30_000
    assert sum(one.sent_share for one in usage) == pytest.approx(1)


def test_a_dead_path_is_left_at_once(ends: Ends, eventually: Callable[..., None]) -> None:
    sock, accepted = ends.connect(config=ConnectionConfig(path_manager=FullMesh))
    eventually(lambda: len(active(sock)) == 2)
    ends.lab.blackhole(1)
    sock.sendall(bytes(200_000))
    left = 200_000
    while left:
        left -= len(accepted.recv(left))
    eventually(lambda: {s.local.host for s in active(sock)} == {ends.lab.client_address(2, ends.family)})
    assert sock.getsockname()[0] == ends.lab.client_address(1, ends.family)
