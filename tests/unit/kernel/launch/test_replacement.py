"""A TCP socket for a fresh MPTCP one: everything that was set before goes along, or the socket stays."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable

import pytest

from mptcp.kernel.launch import replacement
from mptcp.kernel.launch.caller import Caller
from mptcp.kernel.launch.options import IPPROTO_MPTCP
from mptcp.kernel.launch.replacement import NotReplaceable, copy_state, is_fresh_mptcp, replace_with_tcp

from .conftest import Watched

Watch = Callable[..., Watched]
SO_PROTOCOL = 38
TCP_USER_TIMEOUT = (6, 18)


@pytest.fixture
def old() -> socket.socket:
    try:
        return socket.socket(socket.AF_INET6, socket.SOCK_STREAM, IPPROTO_MPTCP)
    except OSError as error:
        pytest.skip(f"the kernel makes no MPTCP socket: {error}")


@pytest.mark.parametrize(
    ("level", "name", "value"),
    [
        (1, socket.SO_REUSEADDR, 1),
        (1, socket.SO_REUSEPORT, 1),
        (1, socket.SO_KEEPALIVE, 1),
        (1, socket.SO_SNDBUF, 20_000),
        (1, socket.SO_RCVBUF, 30_000),
        (1, socket.SO_LINGER, struct.pack("ii", 1, 5)),
        (1, socket.SO_RCVTIMEO, struct.pack("ll", 3, 0)),
        (1, socket.SO_SNDTIMEO, struct.pack("ll", 4, 500_000)),
        (1, socket.SO_PRIORITY, 5),
        (6, socket.TCP_NODELAY, 1),
        (6, socket.TCP_CORK, 1),
        (6, socket.TCP_MAXSEG, 1000),
        (6, socket.TCP_KEEPIDLE, 11),
        (6, socket.TCP_KEEPINTVL, 12),
        (6, socket.TCP_KEEPCNT, 13),
        (6, socket.TCP_DEFER_ACCEPT, 1),
        (6, socket.TCP_CONGESTION, b"reno"),
        (6, socket.TCP_NOTSENT_LOWAT, 4096),
        (0, socket.IP_TOS, 16),
        (0, 24, 1),  # IP_BIND_ADDRESS_NO_PORT
        (41, socket.IPV6_V6ONLY, 1),
    ],
)
def test_options_go_along(old: socket.socket, level: int, name: int, value: int | bytes) -> None:
    with old, socket.socket(old.family, socket.SOCK_STREAM) as new:
        untouched = new.getsockopt(level, name, 64)
        with contextlib.suppress(PermissionError):  # reno may be what this system allows only root
            old.setsockopt(level, name, value)
        copy_state(old, new)
        assert new.getsockopt(level, name, 64) == old.getsockopt(level, name, 64)
        # What was not set stays as it was: buffers keep growing by themselves.
        for other, option in ((1, socket.SO_SNDBUF), (1, socket.SO_RCVBUF)):
            if (other, option) != (level, name):
                with socket.socket(old.family, socket.SOCK_STREAM) as fresh:
                    assert new.getsockopt(other, option) == fresh.getsockopt(other, option)
    assert len(untouched) > 0


def test_non_blocking_goes_along(old: socket.socket) -> None:
    with old, socket.socket(old.family, socket.SOCK_STREAM) as new:
        old.setblocking(False)
        copy_state(old, new)
        assert not os.get_blocking(new.fileno())


def test_signals_are_a_reason_to_stay(old: socket.socket) -> None:
    with old, socket.socket(old.family, socket.SOCK_STREAM) as new:
        fcntl.fcntl(old.fileno(), fcntl.F_SETFL, fcntl.fcntl(old.fileno(), fcntl.F_GETFL) | 0o20000)
        with pytest.raises(NotReplaceable, match="signals"):
            copy_state(old, new)


def test_an_option_that_cannot_be_set_is_a_reason_to_stay(old: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    with old, socket.socket(old.family, socket.SOCK_STREAM) as new:
        old.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        real = replacement._value

        def value(sock: socket.socket, level: int, name: int) -> bytes | None:
            return b"\0\0\0\0" if sock is new and name == socket.SO_KEEPALIVE else real(sock, level, name)

        monkeypatch.setattr(replacement, "_value", value)
        with pytest.raises(NotReplaceable, match="option 9 of level 1"):
            copy_state(old, new)


@pytest.mark.usefixtures("loopback")
def test_fresh_is_neither_bound_nor_connected(old: socket.socket) -> None:
    with old:
        assert is_fresh_mptcp(old)
        old.bind(("::1", 0))
        assert not is_fresh_mptcp(old)
    with socket.socket() as tcp:
        assert not is_fresh_mptcp(tcp)


def replaced(child: Watched) -> None:
    """Does what the supervisor does when the child's option comes."""
    asked = child.next()
    caller = Caller(asked.pid)
    try:
        # Our duplicate has to be closed first: as long as it is there epoll knows the old socket too.
        with socket.socket(fileno=caller.duplicate(asked.integer(0))) as sock:
            replace_with_tcp(child.listener, asked, caller, asked.integer(0), sock)
    finally:
        child.listener.proceed(asked.id)


def an_mptcp_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)


@pytest.mark.parametrize("cloexec", [True, False])
def test_the_programs_socket_is_tcp_before_its_option_is_set(watch: Watch, cloexec: bool) -> None:
    def work() -> object:
        sock = an_mptcp_socket()
        os.set_inheritable(sock.fileno(), not cloexec)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(*TCP_USER_TIMEOUT, 1234)
        return (
            sock.getsockopt(socket.SOL_SOCKET, SO_PROTOCOL),
            sock.getsockopt(*TCP_USER_TIMEOUT),
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR),
            os.get_inheritable(sock.fileno()),
        )

    child = watch(work, (TCP_USER_TIMEOUT,))
    replaced(child)
    assert child.result() == repr((socket.IPPROTO_TCP, 1234, 1, not cloexec))


@pytest.mark.usefixtures("loopback")
def test_epoll_goes_on_telling_of_it(watch: Watch) -> None:
    """nginx adds a socket to its epoll set, edge-triggered and with a pointer, before it connects."""

    def work() -> object:
        server = socket.create_server(("127.0.0.1", 0))
        sock = an_mptcp_socket()
        sock.setblocking(False)
        level, edge = select.epoll(), select.epoll()
        level.register(sock, select.EPOLLOUT)
        edge.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        sock.setsockopt(*TCP_USER_TIMEOUT, 1234)
        with contextlib.suppress(BlockingIOError):
            sock.connect(server.getsockname())
        told = [events for fd, events in level.poll(5) + edge.poll(5) if fd == sock.fileno()]
        edge.modify(sock, select.EPOLLIN)  # the key is as it was
        level.unregister(sock)
        peer, _ = server.accept()
        peer.send(b"x")
        return told, edge.poll(5) == [(sock.fileno(), select.EPOLLIN)], level.poll(0)

    child = watch(work, (TCP_USER_TIMEOUT,))
    # The server's socket(2) and the option.
    asked = child.next()
    child.listener.proceed(asked.id)
    replaced(child)
    assert child.result() == repr(([select.EPOLLOUT, select.EPOLLOUT], True, []))


def test_a_copy_of_the_descriptor_is_a_reason_to_stay(watch: Watch) -> None:
    def work() -> object:
        sock = an_mptcp_socket()
        copy = sock.dup()
        with contextlib.suppress(OSError):
            sock.setsockopt(*TCP_USER_TIMEOUT, 1234)
        return sock.getsockopt(1, SO_PROTOCOL), copy.getsockopt(1, SO_PROTOCOL)

    child = watch(work, (TCP_USER_TIMEOUT,))
    with pytest.raises(NotReplaceable, match="2 descriptors"):
        replaced(child)
    assert child.result() == repr((IPPROTO_MPTCP, IPPROTO_MPTCP))
