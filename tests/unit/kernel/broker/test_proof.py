"""Which descriptors prove something, and who has connected."""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from mptcp.kernel import sockopt
from mptcp.kernel.broker import proof
from mptcp.kernel.broker.proof import NamespaceMark, examine, peer_of
from mptcp.kernel.namespace import NetNamespace
from mptcp.testing import netns

from .conftest import IPPROTO_MPTCP, Pair

TCP = (socket.AF_INET, socket.SOCK_STREAM, 0)


@pytest.fixture
def mark() -> NamespaceMark:
    return NamespaceMark(NetNamespace())


def test_a_connection_of_ours_proves_itself(pair: Pair, mark: NamespaceMark) -> None:
    for sock in (pair.client, pair.server):
        found = examine(sock.fileno(), mark)
        assert found.token == sockopt.mptcp_info(sock.fileno()).token
        assert found.inode == os.fstat(sock.fileno()).st_ino
        assert found.uid == os.geteuid()
        assert found.is_v4
        assert sock.getsockname()  # it is still open
    assert examine(pair.fd, mark).subflows() == [(pair.local, pair.remote)]


def kinds(tmp_path: Path) -> list[tuple[str, Callable[[], int], int]]:
    def opened(*arguments: int) -> Callable[[], int]:
        return lambda: socket.socket(*arguments).detach()

    def file() -> int:
        return os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)

    return [
        ("file", file, errno.ENOTSOCK),
        ("directory", lambda: os.open(tmp_path, os.O_RDONLY), errno.ENOTSOCK),
        ("path", lambda: os.open(tmp_path, os.O_PATH), errno.ENOTSOCK),
        ("device", lambda: os.open("/dev/null", os.O_RDWR), errno.ENOTSOCK),
        ("eventfd", lambda: os.eventfd(0), errno.ENOTSOCK),
        ("UDP", opened(socket.AF_INET, socket.SOCK_DGRAM), errno.EPROTOTYPE),
        ("Unix", opened(socket.AF_UNIX, socket.SOCK_STREAM), errno.EPROTOTYPE),
        ("netlink", opened(socket.AF_NETLINK, socket.SOCK_RAW, 16), errno.EPROTOTYPE),
        ("TCP", opened(*TCP), errno.EOPNOTSUPP),
        ("MPTCP, not connected", opened(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP), errno.ENOTCONN),
    ]


@pytest.mark.parametrize("number", range(10))
def test_other_descriptors_prove_nothing(tmp_path: Path, mark: NamespaceMark, number: int) -> None:
    name, make, expected = kinds(tmp_path)[number]
    try:
        fd = make()
    except OSError as error:
        pytest.skip(f"no {name} here: {error.strerror}")
    try:
        with pytest.raises(OSError) as caught:
            examine(fd, mark)
        assert caught.value.errno == expected
        assert len(caught.value.strerror) > 20
        os.fstat(fd)  # it is still open
    finally:
        os.close(fd)


def test_a_listener_and_a_connection_that_fell_back_prove_nothing(pair: Pair, mark: NamespaceMark) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(OSError, match="not connected"):
            examine(listener.fileno(), mark)
        with socket.create_connection(listener.getsockname()) as plain, listener.accept()[0] as accepted:
            for sock in (plain, accepted):
                with pytest.raises(OSError, match="TCP, or fell back"):
                    examine(sock.fileno(), mark)
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
        with client:
            client.connect(server.getsockname())
            with pytest.raises(OSError, match="TCP, or fell back"):
                examine(client.fileno(), mark)


def test_a_closed_connection_proves_nothing(pair: Pair, mark: NamespaceMark) -> None:
    pair.client.close()
    with pytest.raises(OSError):
        examine(pair.fd, mark)


@pytest.mark.parametrize("has_cookie", [True, False])
def test_a_socket_of_another_namespace_proves_nothing(
    mark: NamespaceMark, monkeypatch: pytest.MonkeyPatch, has_cookie: bool
) -> None:
    if reason := netns.needs_namespaces():
        pytest.skip(reason)
    if not has_cookie:  # as on Linux < 5.14
        monkeypatch.setattr(proof, "_SO_NETNS_COOKIE", 9999)
        mark = NamespaceMark(NetNamespace())
    with netns.Namespace() as other:
        with other.entered():
            foreign = socket.socket(*TCP)
            there = NamespaceMark(NetNamespace())
        with foreign, socket.socket(*TCP) as own:
            assert (mark.has(own), mark.has(foreign)) == (True, False)
            assert (there.has(own), there.has(foreign)) == (False, True)
            with pytest.raises(OSError, match="another network namespace"):
                examine(foreign.fileno(), mark)


# who has connected


def test_a_peer_is_who_the_kernel_says() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        peer = peer_of(ours)
    assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
    assert os.getegid() in peer.gids
    assert peer.gids >= set(os.getgroups()) - {65534}


def test_who_has_no_number_here_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(socket.socket):
        def getsockopt(self, level: int, name: int, size: int = 0) -> bytes:  # type: ignore[override]
            if name == socket.SO_PEERCRED:
                return proof._CREDENTIALS.pack(5, 65534, 65534)
            return b"\xfe\xff\0\0\x07\0\0\0"

    with Odd(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        monkeypatch.setattr(proof, "_knows_everybody", lambda path: True)
        assert peer_of(sock).gids == {65534, 7}
        monkeypatch.setattr(proof, "_knows_everybody", lambda path: path.endswith("uid_map"))
        assert peer_of(sock).gids == {7}
        monkeypatch.setattr(proof, "_knows_everybody", lambda path: False)
        with pytest.raises(OSError, match="another user namespace") as caught:
            peer_of(sock)
        assert caught.value.errno == errno.EACCES


@pytest.mark.parametrize(
    ("table", "answer"),
    [
        ("         0          0 4294967295\n", True),
        ("0 1000 1\n", False),
        ("0 100000 65536\n65536 200000 10\n", False),
        ("nonsense\n", False),
        ("", False),
    ],
)
def test_only_a_whole_map_knows_everybody(tmp_path: Path, table: str, answer: bool) -> None:
    path = tmp_path / "uid_map"
    path.write_text(table)
    assert proof._knows_everybody(str(path)) is answer
    assert not proof._knows_everybody(str(tmp_path / "none"))
