"""sock_diag of the real kernel: connections and their subflows from outside, and the end of one subflow."""

import errno
import os
import socket

import pytest

from mptcp.errors import PathError
from mptcp.info import Endpoint
from mptcp.kernel import layout, sockopt
from mptcp.kernel.diag import Diag
from mptcp.kernel.namespace import NetNamespace
from mptcp.testing.netns import Lab, Namespace


def wait_subflows(sock: socket.socket, count: int, eventually) -> None:
    def alive() -> int:
        return sum(s.tcp.state == layout.ESTABLISHED for s in sockopt.full_info(sock.fileno()).subflows)

    eventually(lambda: alive() == count)


@pytest.mark.parametrize("family", [4, 6])
def test_a_connection_of_two_subflows(lab: Lab, make_pair, eventually, family: int) -> None:
    lab.server.mptcp_limits(subflows=8, add_addr_accepted=8)
    lab.client.mptcp_limits(subflows=8, add_addr_accepted=8)
    lab.client.mptcp_endpoint(lab.client_address(2, family), "subflow", "backup", id=5)
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    client, _ = make_pair(lab.client, lab.server_address(1, family), kind, server_in=lab.server)
    wait_subflows(client, 2, eventually)
    full = sockopt.full_info(client.fileno())
    with Diag(NetNamespace(lab.client.fileno())) as diag:
        [connection] = diag.mptcp_sockets()
        assert connection.token == full.mptcp.token
        assert connection.inode == os.fstat(client.fileno()).st_ino
        found = diag.mptcp_socket(connection.token)
        assert found is not None
        assert (found.local, found.remote, found.inode) == (connection.local, connection.remote, connection.inode)
        assert diag.mptcp_socket(connection.token ^ 1) is None
        subflows = diag.subflows(connection.inode)
        assert {(s.local, s.remote) for s in subflows} == {(s.local, s.remote) for s in full.subflows}
        initial, joined = sorted(subflows, key=lambda s: s.is_join)
        assert not initial.is_join
        assert joined.local_id == 5
        assert joined.backup
        assert not initial.backup
        assert joined.token_local == connection.token
        assert joined.congestion_control == "reno"
        assert diag.subflow(joined.local, joined.remote) is not None
        assert diag.subflow(joined.remote, joined.local) is None
        assert diag.subflows(inode=1) == []


def test_v4_in_v6_is_looked_up(host_namespace: Namespace, make_pair) -> None:
    client, server = make_pair(host_namespace, "::ffff:127.0.0.1", socket.AF_INET6)
    with Diag(NetNamespace(host_namespace.fileno())) as diag:
        for sock in (client, server):
            [entry] = sockopt.full_info(sock.fileno()).subflows
            found = diag.subflow(entry.local, entry.remote)
            assert found is not None
            assert found.inode == os.fstat(sock.fileno()).st_ino


def test_destroying_a_subflow_leaves_the_connection(lab: Lab, make_pair, eventually) -> None:
    for namespace in (lab.server, lab.client):
        namespace.mptcp_limits(subflows=8, add_addr_accepted=8)
    lab.client.mptcp_endpoint(lab.client_address(2), "subflow")
    client, server = make_pair(lab.client, lab.server_address(1), server_in=lab.server)
    wait_subflows(client, 2, eventually)
    first = sockopt.full_info(client.fileno()).subflows[0]
    with Diag(NetNamespace(lab.client.fileno())) as diag:
        diag.destroy(first.local, first.remote)
        wait_subflows(client, 1, eventually)
        wait_subflows(server, 1, eventually)
        with pytest.raises(OSError) as caught:
            diag.destroy(first.local, first.remote)
        assert caught.value.errno == errno.ENOENT
    client.sendall(b"still")
    assert server.recv(5, socket.MSG_WAITALL) == b"still"


def test_plain_tcp_is_not_destroyed(host_namespace: Namespace, make_pair) -> None:
    client, server = make_pair(host_namespace, "127.0.0.1", client_protocol=0)
    local, remote = (Endpoint.parse(*name) for name in (client.getsockname(), client.getpeername()))
    with Diag(NetNamespace(host_namespace.fileno())) as diag, pytest.raises(OSError) as caught:
        diag.destroy(local, remote)
    assert caught.value.errno == errno.ENOENT
    client.sendall(b"still")
    assert server.recv(5, socket.MSG_WAITALL) == b"still"


def test_one_that_ends_between_look_and_reset(make_steered, eventually, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make_steered()
    pair.client.open_subflow(pair.local(2), pair.remote(2))
    wait_subflows(pair.client_socket, 2, eventually)
    wait_subflows(pair.server_socket, 2, eventually)
    ends = pair.client.ids.endpoints(2)
    with Diag(NetNamespace(pair.lab.client.fileno())) as diag:
        seen = diag.subflow(*ends)
        assert seen is not None
        pair.client.close_subflow(2, True)
        eventually(lambda: diag.subflow(*ends) is None)
        monkeypatch.setattr(Diag, "subflow", lambda *_: seen)
        with pytest.raises(PathError, match="no subflow") as caught:
            diag.destroy(*ends)
    assert caught.value.errno == errno.ENOENT
    pair.exchange()
