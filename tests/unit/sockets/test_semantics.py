"""What a program sees of a socket is the same on the kernel's and on ours: values, exceptions, errno."""

from __future__ import annotations

import errno
import select
import socket as std
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest


def outcome(call: Callable[..., Any], *args: Any) -> tuple[type[BaseException], int | None]:
    with pytest.raises(OSError) as caught:
        call(*args)
    return caught.type, caught.value.errno


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


def readable(sock: Any, timeout: float = 0.0) -> bool:
    return bool(select.select([sock], [], [], timeout)[0])


def writable(sock: Any, timeout: float = 0.0) -> bool:
    return bool(select.select([], [sock], [], timeout)[1])


# --- data -------------------------------------------------------------------------------------------------------------
def test_octets_go_both_ways(world: Any) -> None:
    client, server = world.pair()
    assert client.send(b"ping") == 4
    assert server.recv(100) == b"ping"
    server.sendall(b"pong" * 1000)
    received = b""
    while len(received) < 4000:
        received += client.recv(1500)
    assert received == b"pong" * 1000


@pytest.mark.parametrize("make", [bytearray, memoryview, lambda data: memoryview(bytearray(data)).cast("H")])
def test_any_buffer_can_be_sent(world: Any, make: Callable[[bytes], Any]) -> None:
    client, server = world.pair()
    client.sendall(make(b"abcdef"))
    assert server.recv(6, std.MSG_WAITALL) == b"abcdef"


def test_what_was_sent_may_be_changed_afterwards(world: Any) -> None:
    client, server = world.pair()
    data = bytearray(b"x" * 50_000)
    client.sendall(data)
    data[:] = b"y" * len(data)
    assert server.recv(50_000, std.MSG_WAITALL) == b"x" * 50_000


def test_recv_into_and_sendmsg(world: Any) -> None:
    client, server = world.pair()
    assert client.sendmsg([b"ab", bytearray(b"cd"), memoryview(b"ef")]) == 6
    buffer = bytearray(10)
    assert server.recv_into(memoryview(buffer)[2:], 4) == 4
    assert buffer == b"\0\0abcd" + bytes(4)
    first, second = bytearray(1), bytearray(5)
    count, ancillary, flags, _ = server.recvmsg_into([first, second])
    assert (count, ancillary, flags, bytes(first), bytes(second)) == (2, [], 0, b"e", b"f" + bytes(4))
    client.send(b"tail")
    assert server.recvmsg(10)[0] == b"tail"


def test_peek_leaves_the_data(world: Any) -> None:
    client, server = world.pair()
    client.sendall(b"hello")
    assert server.recv(2, std.MSG_PEEK) == b"he"
    assert server.recv(5) == b"hello"


def test_wait_all_ends_early_at_the_end_of_the_stream(world: Any) -> None:
    client, server = world.pair()
    client.sendall(b"hel")
    client.shutdown(std.SHUT_WR)
    assert server.recv(5, std.MSG_WAITALL) == b"hel"
    assert server.recv(5) == b""


def test_wait_all_waits_for_several_sends(world: Any) -> None:
    client, server = world.pair()
    client.sendall(b"ab")
    timer = threading.Timer(0.01, client.sendall, [b"cd"])
    timer.start()
    assert server.recv(4, std.MSG_WAITALL) == b"abcd"
    timer.join()


def test_makefile_reads_lines(world: Any) -> None:
    client, server = world.pair()
    with server.makefile("rw", encoding="ascii", newline="\n") as file:
        client.sendall(b"one\ntwo\n")
        assert [file.readline(), file.readline()] == ["one\n", "two\n"]
        file.write("three\n")
        file.flush()
        assert client.recv(100) == b"three\n"


def test_the_last_file_closes_the_socket(world: Any) -> None:
    client, server = world.pair()
    file = server.makefile("rb")
    server.close()
    client.sendall(b"x\n")
    assert file.readline() == b"x\n"
    file.close()
    assert client.recv(1) == b""


def test_sendfile(world: Any, tmp_path: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 100)
    client, server = world.pair()
    with path.open("rb") as file:
        assert client.sendfile(file, 256, 512) == 512
        assert file.tell() == 768
    assert server.recv(512, std.MSG_WAITALL) == bytes(range(256)) * 2


# --- ends -------------------------------------------------------------------------------------------------------------
def test_half_close(world: Any) -> None:
    client, server = world.pair()
    client.sendall(b"question")
    client.shutdown(std.SHUT_WR)
    assert server.recv(100) == b"question"
    assert server.recv(100) == b""
    server.sendall(b"answer")
    assert client.recv(100) == b"answer"
    assert outcome(client.send, b"more") == (BrokenPipeError, errno.EPIPE)


def test_close_is_the_end_of_the_stream(world: Any) -> None:
    client, server = world.pair()
    client.sendall(b"last words")
    client.close()
    assert server.recv(100) == b"last words"
    assert server.recv(100) == b""
    assert server.recv(100) == b""


def test_linger_zero_resets_the_peer(world: Any) -> None:
    client, server = world.pair()
    client.setsockopt(std.SOL_SOCKET, std.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert outcome(server.recv, 1) == (ConnectionResetError, errno.ECONNRESET)
    assert server.recv(1) == b""  # told once
    assert outcome(server.send, b"x") == (BrokenPipeError, errno.EPIPE)


def test_the_reset_shows_in_so_error_once(world: Any) -> None:
    client, server = world.pair()
    client.setsockopt(std.SOL_SOCKET, std.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert readable(server, 30)
    assert server.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == errno.ECONNRESET
    assert server.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == 0


def test_close_with_unread_data_is_a_reset(world: Any) -> None:  # RFC 1122 §4.2.2.13
    client, server = world.pair()
    server.sendall(b"never read")
    assert readable(client, 30)
    client.close()
    assert outcome(server.recv, 1) == (ConnectionResetError, errno.ECONNRESET)


def test_shutdown_for_reading_ends_a_read_of_another_thread(world: Any) -> None:
    _, server = world.pair()
    results: list[bytes] = []
    thread = threading.Thread(target=lambda: results.append(server.recv(1)))
    thread.start()
    time.sleep(0.01)
    server.shutdown(std.SHUT_RD)
    thread.join(30)
    assert results == [b""]


def test_context_manager_closes(world: Any) -> None:
    client, _ = world.pair()
    with client:
        assert client.fileno() >= 0
    assert client.fileno() == -1
    assert outcome(client.recv, 1) == (OSError, errno.EBADF)
    assert outcome(client.send, b"x") == (OSError, errno.EBADF)
    client.close()


# --- wrong moments ----------------------------------------------------------------------------------------------------
def test_unconnected(world: Any) -> None:
    sock = world.client()
    assert outcome(sock.recv, 1) == (OSError, errno.ENOTCONN)
    assert outcome(sock.send, b"x") == (BrokenPipeError, errno.EPIPE)
    assert outcome(sock.getpeername) == (OSError, errno.ENOTCONN)
    assert outcome(sock.shutdown, std.SHUT_WR) == (OSError, errno.ENOTCONN)
    assert outcome(sock.accept) == (OSError, errno.EINVAL)
    assert sock.getsockname() == world.name(world.wildcard, 0)


def test_connected(world: Any) -> None:
    client, server = world.pair()
    assert client.getsockname() == server.getpeername()
    assert client.getpeername() == server.getsockname()
    assert outcome(client.connect, server.getsockname()) == (OSError, errno.EISCONN)
    assert outcome(client.bind, (world.client_host, 0)) == (OSError, errno.EINVAL)
    assert outcome(client.listen) == (OSError, errno.EINVAL)
    assert outcome(client.shutdown, 7) == (OSError, errno.EINVAL)


def test_listening(world: Any) -> None:
    server = world.listen()
    assert outcome(server.connect, (world.server_host, 9)) == (OSError, errno.EISCONN)
    assert outcome(server.recv, 1) == (OSError, errno.ENOTCONN)
    assert outcome(server.send, b"x") == (BrokenPipeError, errno.EPIPE)
    server.listen(5)
    assert server.getsockopt(std.SOL_SOCKET, std.SO_ACCEPTCONN) == 1


def test_bind_to_what_is_taken_or_not_ours(world: Any) -> None:
    server = world.listen()
    assert outcome(world.server().bind, server.getsockname()) == (OSError, errno.EADDRINUSE)
    assert outcome(world.server().bind, (world.nobody, 0)) == (OSError, errno.EADDRNOTAVAIL)
    bound = world.server()
    bound.bind((world.server_host, 0))
    assert bound.getsockname()[1] > 1023
    assert outcome(bound.bind, (world.server_host, 0)) == (OSError, errno.EINVAL)


def test_bind_again_after_a_connection_needs_reuse_address(world: Any) -> None:
    server = world.listen()
    name = server.getsockname()
    client = world.client()
    client.connect(name)
    accepted, _ = server.accept()
    server.close()
    assert outcome(world.server().bind, name) == (OSError, errno.EADDRINUSE)
    if world.is_ours:  # Linux wants the option on both
        again = world.server()
        again.setsockopt(std.SOL_SOCKET, std.SO_REUSEADDR, 1)
        again.bind(name)
        again.listen()
    accepted.close()


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda host: "text", TypeError),
        (lambda host: (host,), TypeError),
        (lambda host: (host, "80"), TypeError),
        (lambda host: (host, 1, 0, 0, 0) if ":" in host else (host, 1, 0, 0), TypeError),
        (lambda host: (host, 65536), OverflowError),
        (lambda host: (host, 1, 1 << 20) if ":" in host else (host, -1), OverflowError),  # a flow label has 20 bits
        (lambda host: (host, 1, "1") if ":" in host else (host, None), TypeError),
        (lambda host: (12, 80), TypeError),
    ],
)
def test_nonsense_addresses(world: Any, make: Callable[[str], Any], error: type[Exception]) -> None:
    for verb in ("connect", "bind", "connect_ex"):
        with pytest.raises(error):
            getattr(world.client(), verb)(make(world.server_host))


def test_addresses_of_the_other_family(world: Any) -> None:
    other = "::1" if world.family == std.AF_INET else "127.0.0.1"
    for verb in ("connect", "bind"):
        with pytest.raises(std.gaierror) as caught:
            getattr(world.client(), verb)((other, 80))
        assert caught.value.errno == std.EAI_ADDRFAMILY


def test_source_address(world: Any) -> None:
    server = world.listen()
    client = world.client()
    client.bind((world.client_host, 0))
    name = client.getsockname()
    client.connect(server.getsockname())
    assert client.getsockname() == name
    assert server.accept()[1] == name


# --- connecting -------------------------------------------------------------------------------------------------------
def closed_port(world: Any) -> tuple[Any, ...]:
    server = world.server()
    server.bind((world.server_host, 0))
    name: tuple[Any, ...] = server.getsockname()
    server.close()
    return name


def test_refused(world: Any) -> None:
    client = world.client()
    name = closed_port(world)
    assert outcome(client.connect, name) == (ConnectionRefusedError, errno.ECONNREFUSED)
    assert client.connect_ex(name) == errno.ECONNREFUSED
    server = world.listen()
    client.connect(server.getsockname())  # the socket is as good as new


def test_connect_without_blocking(world: Any) -> None:
    server = world.listen()
    client = world.client()
    client.setblocking(False)
    if world.is_ours:  # the kernel's loopback is done before connect returns
        assert outcome(client.connect, server.getsockname()) == (BlockingIOError, errno.EINPROGRESS)
    else:
        assert client.connect_ex(server.getsockname()) == errno.EINPROGRESS
    assert writable(client, 3)
    assert client.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == 0
    assert client.connect_ex(server.getsockname()) in (0, errno.EISCONN)
    assert client.connect_ex(server.getsockname()) == errno.EISCONN
    assert client.getpeername() == server.getsockname()


def test_refused_without_blocking(world: Any) -> None:
    client = world.client()
    client.setblocking(False)
    assert client.connect_ex(closed_port(world)) == errno.EINPROGRESS
    poll = select.poll()
    poll.register(client, select.POLLIN | select.POLLOUT)
    assert dict(poll.poll(3000))[client.fileno()] & select.POLLOUT
    assert readable(client, 30)
    assert client.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == errno.ECONNREFUSED
    assert client.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == 0
    assert outcome(client.getpeername) == (OSError, errno.ENOTCONN)


# --- timeouts ---------------------------------------------------------------------------------------------------------
def test_timeouts(world: Any) -> None:
    client, server = world.pair()
    client.settimeout(0.01)
    begin = time.monotonic()
    with pytest.raises(TimeoutError) as caught:
        client.recv(1)
    assert str(caught.value) == "timed out"
    assert caught.value.errno is None
    assert time.monotonic() - begin >= 0.01
    listener = world.listen()
    listener.settimeout(0.01)
    with pytest.raises(TimeoutError):
        listener.accept()
    server.settimeout(0.01)
    server.setsockopt(std.SOL_SOCKET, std.SO_SNDBUF, 65536)
    with pytest.raises(TimeoutError):
        server.sendall(bytes(32 << 20))


def test_timeout_settings(world: Any) -> None:
    sock = world.client()
    sock.settimeout(2)
    assert (sock.gettimeout(), sock.timeout, sock.getblocking()) == (2.0, 2.0, True)
    sock.setblocking(False)
    assert (sock.gettimeout(), sock.getblocking()) == (0.0, False)
    sock.setblocking(True)
    assert sock.gettimeout() is None
    with pytest.raises(ValueError):
        sock.settimeout(-1)


def test_accepted_sockets_block_although_the_listener_does_not(world: Any) -> None:
    server = world.listen()
    client = world.client()
    client.connect(server.getsockname())
    assert readable(server, 30)
    server.setblocking(False)
    accepted, address = server.accept()
    assert accepted.gettimeout() is None
    assert address == client.getsockname()
    accepted.close()
    assert outcome(server.accept) == (BlockingIOError, errno.EAGAIN)


def test_receive_timeout_option(world: Any) -> None:
    client, _ = world.pair()
    client.settimeout(None)
    client.setsockopt(std.SOL_SOCKET, std.SO_RCVTIMEO, struct.pack("ll", 0, 10_000))
    assert outcome(client.recv, 1) == (BlockingIOError, errno.EAGAIN)


def test_dont_wait(world: Any) -> None:
    client, _ = world.pair()
    assert outcome(client.recv, 1, std.MSG_DONTWAIT) == (BlockingIOError, errno.EAGAIN)


# --- descriptors ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["select", "poll", "epoll"])
def test_readiness(world: Any, kind: str) -> None:
    client, server = world.pair()

    def ready(sock: Any, timeout: float = 0.0) -> tuple[bool, bool]:
        fd = sock.fileno()
        if kind == "select":
            r, w, _ = select.select([fd], [fd] if timeout == 0 else [], [], timeout)
            return bool(r), bool(w)
        mask = select.POLLIN | (select.POLLOUT if timeout == 0 else 0)
        if kind == "poll":
            poll = select.poll()
            poll.register(fd, mask)
            events = dict(poll.poll(timeout * 1000))
        else:
            with select.epoll() as epoll:
                epoll.register(fd, mask)
                events = dict(epoll.poll(timeout))
        return bool(events.get(fd, 0) & select.POLLIN), bool(events.get(fd, 0) & select.POLLOUT)

    assert ready(client) == (False, True)
    server.send(b"xy")
    assert ready(client, 3)[0]
    assert client.recv(1) == b"x"
    assert ready(client) == (True, True)  # level-triggered: there is more
    assert client.recv(1) == b"y"
    assert ready(client) == (False, True)
    client.setblocking(False)
    sent = 0
    with suppress(BlockingIOError):
        while sent < 1 << 30:
            sent += client.send(bytes(1 << 20))
    assert ready(client) == (False, False)
    while sent:
        sent -= len(server.recv(1 << 20))
    assert writable(client, 3)
    server.close()
    assert ready(client, 3)[0]
    assert client.recv(1) == b""
    assert ready(client)[0]


def test_listener_is_readable_while_somebody_waits(world: Any) -> None:
    server = world.listen()
    assert not readable(server)
    clients = [world.client(), world.client()]
    for client in clients:
        client.connect(server.getsockname())
    for _ in clients:
        assert readable(server, 30)
        server.accept()[0].close()
    assert not readable(server)


def test_low_water_mark(world: Any) -> None:
    client, server = world.pair()
    server.setsockopt(std.SOL_SOCKET, std.SO_RCVLOWAT, 4)
    client.send(b"abc")
    wait_until(lambda: len(server.recv(9, std.MSG_PEEK | std.MSG_DONTWAIT)) == 3 if not world.is_ours else True)
    assert not readable(server, 0.02)
    client.send(b"d")
    assert readable(server, 30)
    assert server.recv(100) == b"abcd"


def test_detach(world: Any) -> None:
    client, server = world.pair()
    fd = client.detach()
    assert client.fileno() == -1
    again = world.client_stack.socket(fileno=fd) if world.is_ours else std.socket(fileno=fd)
    again.settimeout(30)
    server.sendall(b"still there")
    assert again.recv(100) == b"still there"
    assert again.fileno() == fd
    again.close()
    assert server.recv(1) == b""


# --- options ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("level", "option", "value"),
    [
        (std.SOL_SOCKET, std.SO_REUSEADDR, 1),
        (std.SOL_SOCKET, std.SO_KEEPALIVE, 1),
        (std.SOL_SOCKET, std.SO_RCVLOWAT, 7),
        (std.IPPROTO_TCP, std.TCP_NODELAY, 1),
        (std.IPPROTO_TCP, std.TCP_CORK, 1),
        (std.IPPROTO_TCP, std.TCP_KEEPIDLE, 33),
        (std.IPPROTO_TCP, std.TCP_KEEPINTVL, 44),
        (std.IPPROTO_TCP, std.TCP_KEEPCNT, 5),
        (std.IPPROTO_TCP, std.TCP_USER_TIMEOUT, 1234),
        (std.IPPROTO_TCP, std.TCP_SYNCNT, 3),
        (std.IPPROTO_TCP, std.TCP_LINGER2, 7),
        (std.IPPROTO_IP, std.IP_TOS, 0x10),
        (std.IPPROTO_IP, std.IP_TTL, 33),
        (std.IPPROTO_IPV6, std.IPV6_TCLASS, 0x10),
        (std.IPPROTO_IPV6, std.IPV6_UNICAST_HOPS, 33),
        (std.IPPROTO_IPV6, std.IPV6_V6ONLY, 1),
    ],
)
def test_numbers_are_kept(world: Any, level: int, option: int, value: int) -> None:
    sock = world.client()
    if level == std.IPPROTO_IPV6 and world.family == std.AF_INET:
        assert outcome(sock.setsockopt, level, option, value)[1] == errno.ENOPROTOOPT
        assert outcome(sock.getsockopt, level, option)[1] == errno.EOPNOTSUPP
        return
    sock.setsockopt(level, option, value)
    assert sock.getsockopt(level, option) == value
    sock.setsockopt(level, option, struct.pack("i", value))
    assert sock.getsockopt(level, option, 4) == struct.pack("i", value)
    client, _ = world.pair()
    if option == std.IPV6_V6ONLY and level == std.IPPROTO_IPV6:  # for before the bind
        assert outcome(client.setsockopt, level, option, value)[1] == errno.EINVAL
        return
    client.setsockopt(level, option, value)
    assert client.getsockopt(level, option) == value


@pytest.mark.parametrize(
    ("level", "option", "value", "becomes"),
    [
        (std.IPPROTO_IP, std.IP_TOS, 0x13, 0x10),  # the last two bits are ECN's
        (std.IPPROTO_IP, std.IP_TTL, -1, 64),
        (std.IPPROTO_IPV6, std.IPV6_TCLASS, 0x13, 0x10),
        (std.IPPROTO_IPV6, std.IPV6_TCLASS, -1, 0),
        (std.IPPROTO_IPV6, std.IPV6_UNICAST_HOPS, -1, 64),
    ],
)
def test_numbers_that_become_others(world: Any, level: int, option: int, value: int, becomes: int) -> None:
    sock = world.client()
    if level == std.IPPROTO_IPV6 and world.family == std.AF_INET:
        assert outcome(sock.setsockopt, level, option, value)[1] == errno.ENOPROTOOPT
        return
    sock.setsockopt(level, option, 0x20)
    sock.setsockopt(level, option, value)
    assert sock.getsockopt(level, option) == becomes


def test_accepted_sockets_inherit_options(world: Any) -> None:
    server = world.listen()
    server.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, 1)
    server.setsockopt(std.SOL_SOCKET, std.SO_KEEPALIVE, 1)
    client = world.client()
    client.connect(server.getsockname())
    accepted, _ = server.accept()
    assert accepted.getsockopt(std.IPPROTO_TCP, std.TCP_NODELAY) == 1
    assert accepted.getsockopt(std.SOL_SOCKET, std.SO_KEEPALIVE) == 1
    accepted.close()


@pytest.mark.parametrize(
    ("level", "option", "value", "code"),
    [
        (std.IPPROTO_TCP, std.TCP_KEEPIDLE, 0, errno.EINVAL),
        (std.IPPROTO_TCP, std.TCP_KEEPCNT, 128, errno.EINVAL),
        (std.IPPROTO_TCP, std.TCP_SYNCNT, 0, errno.EINVAL),
        (std.IPPROTO_TCP, std.TCP_MAXSEG, 40000, errno.EINVAL),
        (std.IPPROTO_TCP, std.TCP_CONGESTION, b"no such thing", errno.ENOENT),
        (std.IPPROTO_TCP, 9999, 1, errno.ENOPROTOOPT),
        (std.SOL_SOCKET, 9999, 1, errno.ENOPROTOOPT),
        (std.SOL_SOCKET, std.SO_LINGER, b"abc", errno.EINVAL),
        (std.IPPROTO_IP, std.IP_TTL, 256, errno.EINVAL),
        (std.IPPROTO_IPV6, std.IPV6_TCLASS, 256, errno.EINVAL),
        (std.IPPROTO_IPV6, std.IPV6_UNICAST_HOPS, 256, errno.EINVAL),
        (std.IPPROTO_IPV6, 9999, 1, errno.ENOPROTOOPT),
    ],
)
def test_wrong_values(world: Any, level: int, option: int, value: Any, code: int) -> None:
    sock = world.client()
    if level == std.IPPROTO_IPV6 and world.family == std.AF_INET:
        code = errno.ENOPROTOOPT
    assert outcome(sock.setsockopt, level, option, value)[1] == code


def test_structures_and_names(world: Any) -> None:
    sock = world.client()
    linger = struct.pack("ii", 1, 3)
    sock.setsockopt(std.SOL_SOCKET, std.SO_LINGER, linger)
    assert sock.getsockopt(std.SOL_SOCKET, std.SO_LINGER, 8) == linger
    timeval = struct.pack("ll", 3, 0)  # the kernel rounds to its tick
    sock.setsockopt(std.SOL_SOCKET, std.SO_SNDTIMEO, timeval)
    assert sock.getsockopt(std.SOL_SOCKET, std.SO_SNDTIMEO, 16) == timeval
    sock.setsockopt(std.IPPROTO_TCP, std.TCP_CONGESTION, b"reno")
    assert sock.getsockopt(std.IPPROTO_TCP, std.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"
    assert sock.getsockopt(std.SOL_SOCKET, std.SO_TYPE) == std.SOCK_STREAM
    assert sock.getsockopt(std.SOL_SOCKET, std.SO_DOMAIN) == world.family
    assert (sock.family, sock.type) == (world.family, std.SOCK_STREAM)


def test_tcp_info(world: Any) -> None:
    client, server = world.pair()
    client.sendall(b"12345")
    assert server.recv(5) == b"12345"
    server.sendall(b"1")
    assert client.recv(1) == b"1"
    info = client.getsockopt(std.IPPROTO_TCP, std.TCP_INFO, 232)
    assert info[0] == 1  # TCP_ESTABLISHED
    assert struct.unpack_from("=I", info, 8)[0] >= 200_000  # rto
    assert struct.unpack_from("=Q", info, 120)[0] in (5, 6)  # bytes_acked; the kernel counts the SYN
    assert struct.unpack_from("=Q", info, 128)[0] == 1  # bytes_received
    assert struct.unpack_from("=Q", info, 200)[0] == 5  # bytes_sent
    assert world.client().getsockopt(std.IPPROTO_TCP, std.TCP_INFO, 8)[0] == 7  # TCP_CLOSE
    assert world.listen().getsockopt(std.IPPROTO_TCP, std.TCP_INFO, 8)[0] == 10  # TCP_LISTEN


# --- threads ----------------------------------------------------------------------------------------------------------
def test_one_thread_reads_while_another_writes(world: Any) -> None:
    client, server = world.pair()
    size = 3_000_000

    def echo() -> None:
        while data := server.recv(65536):
            server.sendall(data)
        server.shutdown(std.SHUT_WR)

    def write() -> None:
        client.sendall(bytes(range(250)) * (size // 250))
        client.shutdown(std.SHUT_WR)

    threads = [threading.Thread(target=echo), threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    received = bytearray()
    while data := client.recv(65536):
        received += data
    for thread in threads:
        thread.join(30)
    assert received == bytes(range(250)) * (size // 250)


def test_many_connections_in_threads(world: Any) -> None:
    server = world.listen(64)
    errors: list[BaseException] = []

    def serve() -> None:
        for _ in range(20):
            accepted, _ = server.accept()
            threading.Thread(target=answer, args=(accepted,)).start()

    def answer(sock: Any) -> None:
        with sock:
            sock.settimeout(30)
            sock.sendall(sock.recv(100).upper())

    def ask(number: int) -> None:
        try:
            client = world.client()
            client.connect(server.getsockname())
            client.sendall(b"number %d" % number)
            assert client.recv(100) == b"NUMBER %d" % number
            assert client.recv(100) == b""
        except BaseException as error:  # noqa: BLE001 shown by the test
            errors.append(error)

    threads = [threading.Thread(target=serve), *(threading.Thread(target=ask, args=(n,)) for n in range(20))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
