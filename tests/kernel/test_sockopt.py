"""getsockopt of the real kernel: what it says of connections old and new, fallen back, and of sockets that are none."""

import errno
import os
import socket
import struct

import pytest

from mptcp.errors import NotSupportedError
from mptcp.info import Endpoint
from mptcp.kernel import layout, sockopt
from mptcp.testing.netns import Namespace


def endpoint(name: tuple[object, ...]) -> Endpoint:
    return Endpoint.parse(str(name[0]), int(str(name[1])))


EITHER = pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])


@EITHER
def test_a_connection(host_namespace: Namespace, make_pair, host: str, family: int) -> None:
    client, server = make_pair(host_namespace, host, family, full=False)
    client.sendall(b"x" * 1000)
    assert len(server.recv(1000, socket.MSG_WAITALL)) == 1000
    assert sockopt.is_mptcp(client.fileno())
    assert sockopt.mptcp_info(client.fileno()).token
    info = sockopt.full_info(client.fileno())
    assert info.mptcp.token == sockopt.mptcp_info(client.fileno()).token
    [subflow] = info.subflows
    assert info.total == 1
    assert subflow.id > 0
    assert (subflow.local, subflow.remote) == (endpoint(client.getsockname()), endpoint(client.getpeername()))
    assert subflow.tcp.state == layout.ESTABLISHED
    assert subflow.tcp.bytes_sent == 1000
    assert subflow.tcp.rtt > 0
    assert sockopt.tcp_info(client.fileno()).snd_mss == subflow.tcp.snd_mss
    assert sockopt.full_info(server.fileno()).mptcp.bytes_received == 1000


def test_v4_in_v6_is_v4(host_namespace: Namespace, make_pair) -> None:
    client, server = make_pair(host_namespace, "::ffff:127.0.0.1", socket.AF_INET6)
    for sock in (client, server):
        [subflow] = sockopt.full_info(sock.fileno()).subflows
        assert subflow.local.address == subflow.remote.address == bytes([127, 0, 0, 1])


@EITHER
def test_not_yet_connected(host_namespace: Namespace, host: str, family: int) -> None:
    with host_namespace.entered(), socket.socket(family, socket.SOCK_STREAM, 262) as sock:
        assert sockopt.is_mptcp(sock.fileno())
        assert sockopt.mptcp_info(sock.fileno()).token == 0
        assert sockopt.full_info(sock.fileno()).total <= 1


@EITHER
def test_fallen_back(host_namespace: Namespace, make_pair, host: str, family: int) -> None:
    client, server = make_pair(host_namespace, host, family, server_protocol=0)
    for sock in (client, server):
        assert not sockopt.is_mptcp(sock.fileno())
        for read in (sockopt.mptcp_info, sockopt.full_info):
            with pytest.raises(NotSupportedError) as caught:
                read(sock.fileno())
            assert caught.value.errno == errno.EOPNOTSUPP
        assert sockopt.tcp_info(sock.fileno()).state == layout.ESTABLISHED


def test_what_is_no_socket() -> None:
    read, write = os.pipe()
    try:
        for reader in (sockopt.is_mptcp, sockopt.mptcp_info, sockopt.full_info, sockopt.tcp_info):
            with pytest.raises(OSError) as caught:
                reader(read)
            assert caught.value.errno == errno.ENOTSOCK
    finally:
        os.close(read)
        os.close(write)


@EITHER
def test_without_full_info(
    host_namespace: Namespace, make_pair, monkeypatch: pytest.MonkeyPatch, host: str, family: int
) -> None:
    """A kernel before 6.5, as far as this one can play it: the whole is read in parts."""
    client, _ = make_pair(host_namespace, host, family)
    whole = sockopt.full_info(client.fileno())
    monkeypatch.setattr(sockopt, "_read_full", lambda fd, buffers: -errno.EOPNOTSUPP)
    parts = sockopt.full_info(client.fileno())
    assert parts.mptcp.token == whole.mptcp.token
    assert [(s.id, s.local, s.remote) for s in parts.subflows] == [(0, s.local, s.remote) for s in whole.subflows]
    assert parts.subflows[0].tcp.snd_mss == whole.subflows[0].tcp.snd_mss


def test_more_subflows_than_there_was_room_for(
    host_namespace: Namespace, make_pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = make_pair(host_namespace, "127.0.0.1")
    rooms = []
    real = sockopt._parse_full

    def parse(buffers: sockopt._Buffers, length: int) -> sockopt.FullInfo:
        rooms.append(buffers.room)
        if buffers.room < 50:
            struct.pack_into("=I", buffers.header, 16, 50)  # as if there were that many
        return real(buffers, length)

    monkeypatch.setattr(sockopt, "_parse_full", parse)
    sockopt._local.buffers = None
    assert len(sockopt.full_info(client.fileno()).subflows) == 1
    assert rooms[0] < 50 <= rooms[1]


@EITHER
def test_tcp_info_of_one_subflow(host_namespace: Namespace, make_pair, host: str, family: int) -> None:
    client, server = make_pair(host_namespace, host, family, full=False)
    client.sendall(b"x" * 1000)
    assert len(server.recv(1000, socket.MSG_WAITALL)) == 1000
    [subflow] = sockopt.full_info(client.fileno()).subflows
    octets = sockopt.subflow_tcp_info(client.fileno(), subflow.local, subflow.remote)
    assert len(octets) >= layout.TCP_INFO_SIZE
    assert layout.TcpInfo.parse(octets).bytes_sent == 1000
    with pytest.raises(OSError, match="no subflow from") as caught:
        sockopt.subflow_tcp_info(client.fileno(), subflow.remote, subflow.local)
    assert caught.value.errno == errno.ENOENT
    with host_namespace.entered(), socket.socket(family) as plain, pytest.raises(NotSupportedError):
        sockopt.subflow_tcp_info(plain.fileno(), subflow.local, subflow.remote)
