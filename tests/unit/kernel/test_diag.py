"""Answers of sock_diag, whole, cut short and invented."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcp.errors import NotSupportedError
from mptcp.info import Endpoint
from mptcp.kernel import diag
from mptcp.kernel.diag import parse_mptcp_socket, parse_subflow
from mptcp.kernel.netlink import NetlinkError, attribute

LOCAL, REMOTE = Endpoint.parse("10.0.0.1", 1000), Endpoint.parse("10.0.0.2", 443)


def answer(*attributes: bytes, local: Endpoint = LOCAL, remote: Endpoint = REMOTE, family: int = 2) -> bytes:
    """``struct inet_diag_msg`` and what follows it."""
    head = struct.pack("=4B", family, 1, 0, 0) + diag.sockid(local, remote, 7)
    return head + struct.pack("=5I", 0, 11, 12, 1000, 4711) + b"".join(attributes)


def ulp(name: bytes = b"mptcp\0", flags: int = diag.FLAG_JOIN_LOC | diag.FLAG_FULLY_ESTABLISHED) -> bytes:
    told = [
        (1, struct.pack("=I", 0xAA)), (2, struct.pack("=I", 0xBB)), (8, struct.pack("=I", flags)), (9, b"\2"), (10, b"\3"),
    ]  # fmt: skip
    inner = b"".join(attribute(kind, value) for kind, value in told)
    return attribute(19, attribute(1, name) + attribute(3 | 0x8000, inner))


def test_a_subflow() -> None:
    tcp_info = bytes([1]) + bytes(67) + struct.pack("=I", 250) + bytes(100)
    payload = answer(attribute(2, tcp_info), attribute(4, b"reno\0"), ulp())
    subflow = parse_subflow(memoryview(payload))
    assert subflow is not None
    assert (subflow.local, subflow.remote, subflow.interface, subflow.inode) == (LOCAL, REMOTE, 7, 4711)
    assert (subflow.token_remote, subflow.token_local, subflow.remote_id, subflow.local_id) == (0xAA, 0xBB, 2, 3)
    assert subflow.is_join
    assert subflow.fully_established
    assert not subflow.backup
    assert subflow.congestion_control == "reno"
    assert subflow.tcp is not None
    assert subflow.tcp.rtt == 250
    assert subflow.sockid == diag.sockid(LOCAL, REMOTE, 7)


@pytest.mark.parametrize("flag", [diag.FLAG_BACKUP_LOC, diag.FLAG_BACKUP_REM])
def test_backup_is_what_either_side_wants(flag: int) -> None:
    subflow = parse_subflow(memoryview(answer(ulp(flags=flag))))
    assert subflow is not None
    assert subflow.backup


def test_other_sockets_are_no_subflows() -> None:
    assert parse_subflow(memoryview(answer())) is None
    assert parse_subflow(memoryview(answer(ulp(b"tls\0")))) is None


def test_an_mptcp_socket() -> None:
    info = bytearray(96)
    struct.pack_into("=I", info, 12, 0xCAFE)
    sock = parse_mptcp_socket(memoryview(answer(attribute(2, bytes(info)))))
    assert sock is not None
    assert (sock.token, sock.local, sock.remote, sock.uid) == (0xCAFE, LOCAL, REMOTE, 1000)
    assert (sock.receive_queue, sock.send_queue) == (11, 12)
    bare = parse_mptcp_socket(memoryview(answer()))
    assert bare is not None
    assert (bare.info, bare.token) == (None, 0)


def test_v4_in_v6() -> None:
    mapped = Endpoint(bytes(10) + b"\xff\xff" + LOCAL.address, LOCAL.port)
    sock = parse_mptcp_socket(memoryview(answer(local=mapped, family=10)))
    assert sock is not None
    assert sock.local == LOCAL


@given(st.binary(max_size=200))
def test_any_octets(data: bytes) -> None:
    assert parse_subflow(memoryview(data)) is None
    parse_mptcp_socket(memoryview(data))


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 255))
def test_a_spoilt_answer(end: int, position: int, value: int) -> None:
    payload = bytearray(answer(attribute(2, bytes(96)), ulp()))
    payload[position % len(payload)] = value
    for parse in (parse_subflow, parse_mptcp_socket):
        parse(memoryview(payload)[:end])


def test_a_kernel_that_lists_no_mptcp_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    class Netlink:
        def dump(self, kind: int, body: bytes, what: str) -> list[object]:
            raise NetlinkError(errno.ENOENT, "", what)

        def close(self) -> None:
            pass

    monkeypatch.setattr(diag, "NetlinkSocket", lambda protocol, namespace: Netlink())
    with diag.Diag() as made, pytest.raises(NotSupportedError, match="mptcp_diag"):
        made.mptcp_sockets()
