"""What the kernel's sockets do not do, or do elsewhere: several paths, creating, closing, forgetting, forking."""

from __future__ import annotations

import errno
import gc
import os
import select
import socket as std
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest

import mptcp
from mptcp.core.path_managers.base import PathManager
from mptcp.links.loopback import LoopbackLink
from mptcp.sockets.create import current_stack
from mptcp.sockets.kernel import KernelStack
from mptcp.sockets.notifier import Notifier


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


# --- several paths ----------------------------------------------------------------------------------------------------
def test_facts_of_a_multipath_connection(ours: Any) -> None:
    client, server = ours.pair()
    assert client.is_multipath
    assert server.is_multipath
    assert client.fallback_reason == ""
    assert client.connection_id == server.info().remote_token != 0
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    wait_until(lambda: len(client.subflows()) == 2)  # the addresses of the other family find each other
    assert {s.local.host for s in client.subflows()} == set(ours.client_hosts)
    assert "multipath" in repr(client)


@pytest.mark.parametrize(
    ("hosts", "there"),
    [(("10.0.0.1", "10.0.1.1"), "10.0.0.2"), (("fd00::1", "fd00:0:0:1::1"), "fd00::2")],
    ids=["v4", "v6"],
)
def test_subflows_opened_closed_and_made_backup(hosts: tuple[str, str], there: str) -> None:
    near, far = LoopbackLink.pair()
    size, family = ("/64", std.AF_INET6) if ":" in there else ("/24", std.AF_INET)
    config = mptcp.ConnectionConfig(path_manager=NoPaths)
    with (
        mptcp.UserStack([near], [host + size for host in hosts], seed=1, config=config) as one,
        mptcp.UserStack([far], {far.name: [there]}, seed=2, config=config) as two,
    ):
        with mptcp.use(two):
            listener = mptcp.create_server(("", 8080), family=family)
        with mptcp.use(one):
            client = mptcp.create_connection((there, 8080), timeout=5)
        server, _ = listener.accept()
        client.sendall(b"x")
        assert server.recv(1) == b"x"
        wait_until(lambda: client._connection.is_fully_established)  # its DATA_ACK may still be on its way
        number = client.open_subflow(backup=True)
        wait_until(lambda: len(server.subflows()) == 2 and server.subflows()[1].state.value == "active")
        second = next(s for s in client.subflows() if s.id == number)
        assert (second.local.host, second.backup) == (hosts[1], True)
        assert server.subflows()[1].backup  # as the client has asked for
        with pytest.raises(mptcp.PathError) as caught:
            client.open_subflow()
        assert caught.value.errno == errno.EADDRNOTAVAIL
        client.set_backup(number, False)
        wait_until(lambda: not server.subflows()[1].backup)
        client.close_subflow(number)
        wait_until(lambda: len(server.subflows()) == 1)
        server.sendall(b"still")
        assert client.recv(5) == b"still"
        with pytest.raises(mptcp.PathError):
            client.close_subflow(99)
        for sock in (client, server, listener):
            sock.close()


class NoPaths(PathManager):
    name = "none"


def test_without_multipath_the_reason_is_told(ours: Any) -> None:
    listener = ours.listen()
    with mptcp.use(ours.client_stack):
        client = mptcp.create_connection(listener.getsockname()[:2], 5, config=mptcp.ConnectionConfig(multipath=False))
    server, _ = listener.accept()
    assert (client.is_multipath, server.is_multipath) == (False, False)
    assert client.fallback_reason
    assert server.fallback_reason
    assert client.getsockopt(std.IPPROTO_TCP, 43) == 0
    client.sendall(b"plain")
    assert server.recv(5) == b"plain"
    with pytest.raises(mptcp.PathError):
        client.open_subflow()
    client.close()
    server.close()


# --- creating ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_without_a_stack_in_use_it_is_the_kernels(host: str) -> None:
    stack = current_stack()
    assert isinstance(stack, KernelStack)
    assert current_stack() is stack
    with (
        mptcp.create_server((host, 0), family=std.AF_INET6 if ":" in host else std.AF_INET) as server,
        mptcp.create_connection(server.getsockname()[:2]) as client,
        server.accept()[0] as accepted,
    ):
        client.sendall(b"hello")
        assert accepted.recv(5) == b"hello"
        assert client.is_multipath is accepted.is_multipath is bool(stack.multipath)


def test_use_nests_and_the_default_is_for_threads(ours: Any) -> None:
    with mptcp.use(ours.client_stack):
        with mptcp.use(ours.server_stack):
            assert current_stack() is ours.server_stack
        assert current_stack() is ours.client_stack
    found = []
    mptcp.set_default_stack(ours.server_stack)
    try:
        thread = threading.Thread(target=lambda: found.append(current_stack()))
        thread.start()
        thread.join()
    finally:
        mptcp.set_default_stack(None)
    assert found == [ours.server_stack]


def test_create_connection_tells_all_errors(ours: Any) -> None:
    closed = (ours.server_host, 9)
    with mptcp.use(ours.client_stack):
        with pytest.raises(ConnectionRefusedError) as refused:
            mptcp.create_connection(closed, 5)
        assert isinstance(refused.value.__cause__, mptcp.ConnectionRefused)
        with pytest.raises(ExceptionGroup) as group:
            mptcp.create_connection(closed, 5, all_errors=True)
        assert [type(e) for e in group.value.exceptions] == [ConnectionRefusedError]
        with pytest.raises(OSError) as unreachable:
            mptcp.create_connection((ours.nobody, 9), 0.01)
        assert isinstance(unreachable.value, TimeoutError)
        with pytest.raises(OSError) as wrong:
            mptcp.create_connection(closed, 5, source_address=(ours.nobody, 0))
        assert wrong.value.errno == errno.EADDRNOTAVAIL


def test_ipv6_and_dual_stack(ours: Any) -> None:
    with mptcp.use(ours.server_stack):
        both = mptcp.create_server(("", 0), family=std.AF_INET6, dualstack_ipv6=True)
        only = mptcp.create_server(("::", 0), family=std.AF_INET6)
    for host, shown in (("10.0.0.2", "::ffff:10.0.0.1"), ("fd00::2", "fd00::1")):
        with mptcp.use(ours.client_stack):
            client = mptcp.create_connection((host, both.getsockname()[1]), 5)
        server, address = both.accept()
        assert address == (shown, client.getsockname()[1], 0, 0)
        assert server.getpeername() == address
        client.close()
        server.close()
    with mptcp.use(ours.client_stack), pytest.raises(ConnectionRefusedError):
        mptcp.create_connection(("10.0.0.2", only.getsockname()[1]), 5)
    mapped = ours.client(std.AF_INET6)
    mapped.connect(("::ffff:10.0.0.2", both.getsockname()[1]))
    assert mapped.getpeername()[0] == "::ffff:10.0.0.2"
    both.close()
    only.close()


def test_create_server_in_use(ours: Any) -> None:
    family, here = ours.family, (ours.server_host, 0)
    with mptcp.use(ours.server_stack):
        with mptcp.create_server(here, family=family) as first, pytest.raises(OSError) as taken:
            mptcp.create_server(first.getsockname(), family=family)
        assert taken.value.errno == errno.EADDRINUSE
        assert "while attempting to bind" in str(taken.value)
        mptcp.create_server(here, family=family).close()
        with pytest.raises(OSError) as not_ours:
            mptcp.create_server((ours.nobody, 0), family=family)
        assert not_ours.value.errno == errno.EADDRNOTAVAIL
        with pytest.raises(mptcp.NotSupportedError):
            mptcp.create_server(here, family=family, reuse_port=True)
        with pytest.raises(ValueError):
            mptcp.create_server(here, dualstack_ipv6=True)


@pytest.mark.parametrize(
    ("links", "addresses", "message"),
    [
        (0, None, "at least one link"),
        (1, None, "at least one address"),
        (1, {"other": ["10.0.0.1"]}, "no link is called 'other'"),
        (2, ["10.0.0.1"], "which address is on which"),
    ],
)
def test_wrong_stacks(links: int, addresses: Any, message: str) -> None:
    with pytest.raises(mptcp.ConfigurationError, match=message):
        mptcp.UserStack(LoopbackLink.pair()[:links], addresses)


@pytest.mark.parametrize(
    ("family", "kind", "proto", "code"),
    [
        (std.AF_UNIX, std.SOCK_STREAM, 0, errno.EAFNOSUPPORT),
        (std.AF_INET, std.SOCK_DGRAM, 0, errno.ESOCKTNOSUPPORT),
        (std.AF_INET6, std.SOCK_DGRAM, 0, errno.ESOCKTNOSUPPORT),
        (std.AF_INET, std.SOCK_STREAM, 17, errno.EPROTONOSUPPORT),
        (std.AF_INET6, std.SOCK_STREAM, 17, errno.EPROTONOSUPPORT),
    ],
)
def test_sockets_there_are_not(ours: Any, family: int, kind: int, proto: int, code: int) -> None:
    with pytest.raises(OSError) as caught:
        ours.client_stack.socket(family, kind, proto)
    assert caught.value.errno == code


def test_supports(ours: Any) -> None:
    stack = ours.client_stack
    assert stack.supports("open_subflow")
    assert stack.supports("TCP_NODELAY")
    for feature in ("SO_REUSEPORT", "nonsense"):
        answer = stack.supports(feature)
        assert not answer
        assert answer.reason
    assert stack.socket(type=std.SOCK_STREAM | std.SOCK_NONBLOCK).gettimeout() == 0


# --- closing and forgetting -------------------------------------------------------------------------------------------
def test_close_wakes_reader_and_writer(ours: Any) -> None:
    client, _ = ours.pair()
    errors: list[int | None] = []

    def run(call: Callable[[], object]) -> None:
        try:
            call()
        except OSError as error:
            errors.append(error.errno)

    threads = [
        threading.Thread(target=run, args=(lambda: client.recv(1),)),
        threading.Thread(target=run, args=(lambda: client.sendall(bytes(64 << 20)),)),
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    client.close()
    for thread in threads:
        thread.join(30)
    assert errors == [errno.EBADF, errno.EBADF]


def test_close_wakes_accept_and_connect(ours: Any) -> None:
    listener = ours.listen()
    lonely = ours.client()
    ours.far_link.send = len  # the server's answers get lost
    errors: list[int | None] = []

    def run(call: Callable[..., object], *args: Any) -> None:
        try:
            call(*args)
        except OSError as error:
            errors.append(error.errno)

    threads = [
        threading.Thread(target=run, args=(listener.accept,)),
        threading.Thread(target=run, args=(lonely.connect, (ours.server_host, 1))),
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    listener.close()
    lonely.close()
    for thread in threads:
        thread.join(30)
    assert errors == [errno.EBADF, errno.EBADF]


def test_a_forgotten_socket_is_closed(ours: Any) -> None:
    client, server = ours.pair()
    ours._sockets.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del client
        gc.collect()
    assert [w for w in caught if w.category is ResourceWarning and ours.client_host in str(w.message)]
    server.settimeout(30)
    assert server.recv(1) == b""
    server.close()


def test_what_was_written_is_delivered_although_the_stack_is_closed_at_once(ours: Any) -> None:
    client, server = ours.pair()
    data = os.urandom(3_000_000)
    received = bytearray()

    def read() -> None:
        while piece := server.recv(1 << 20):
            received.extend(piece)

    thread = threading.Thread(target=read)
    thread.start()
    client.sendall(data)
    client.close()
    ours.client_stack.close()
    thread.join(30)
    assert received == data


def test_a_closed_stack_says_so(ours: Any) -> None:
    client, server = ours.pair()
    results: list[int | None] = []

    def read() -> None:
        try:
            client.recv(1)
        except OSError as error:
            results.append(error.errno)

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.01)
    ours.client_stack.close()
    thread.join(30)
    assert results == [errno.ENETDOWN]
    with pytest.raises(OSError) as caught:
        client.recv(1)
    assert caught.value.errno == errno.ENETDOWN
    with pytest.raises(OSError):
        ours.client_stack.socket()
    with pytest.raises(ConnectionResetError):  # an open connection is aborted
        server.recv(1)
    ours.client_stack.close()


@pytest.mark.parametrize("hosts", [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")], ids=["v4", "v6"])
def test_stacks_leave_no_descriptors_and_threads(hosts: tuple[str, str]) -> None:
    here, there = hosts

    def once() -> None:
        near, far = LoopbackLink.pair()
        with (
            mptcp.UserStack([near], [here], seed=1) as one,
            mptcp.UserStack([far], [there], seed=2) as two,
        ):
            with mptcp.use(two):
                listener = mptcp.create_server(("", 8080), family=std.AF_INET6 if ":" in there else std.AF_INET)
            with mptcp.use(one):
                client = mptcp.create_connection((there, 8080), 5)
            server, _ = listener.accept()
            for sock in (client, server, listener):
                sock.fileno()
                sock.close()

    once()
    # What other tests have left behind may end meanwhile: what counts is what is there in addition.
    descriptors, threads = set(os.listdir("/proc/self/fd")), set(threading.enumerate())
    for _ in range(3):
        once()
    assert not set(os.listdir("/proc/self/fd")) - descriptors
    assert not set(threading.enumerate()) - threads


def test_after_fork_the_stack_refuses(ours: Any) -> None:
    client, server = ours.pair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            for call in (lambda: client.send(b"x"), lambda: client.recv(1), ours.client_stack.socket):
                try:
                    call()
                except mptcp.NotSupportedError:
                    continue
                break
            else:
                client.close()
                ours.client_stack.close()
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    client.sendall(b"parent")
    assert server.recv(6) == b"parent"


def test_close_by_the_collector_while_the_lock_is_held(ours: Any) -> None:
    client, server = ours.pair()
    with ours.client_stack.pump.lock:
        client.close()  # as the finalizer of a file over it would do
    assert client.fileno() == -1
    assert server.recv(1) == b""


def test_defer_accept(ours: Any) -> None:
    listener = ours.listen()
    listener.setsockopt(std.IPPROTO_TCP, std.TCP_DEFER_ACCEPT, 1)
    assert listener.getsockopt(std.IPPROTO_TCP, std.TCP_DEFER_ACCEPT) == 1
    silent, talking = ours.client(), ours.client()
    for client in (silent, talking):
        client.connect(listener.getsockname())
    listener.settimeout(0.02)
    with pytest.raises(TimeoutError):
        listener.accept()
    talking.send(b"hello")
    listener.settimeout(30)
    server, address = listener.accept()
    assert (address, server.recv(5)) == (talking.getsockname(), b"hello")
    server.close()
    silent.close()  # its end counts as news
    server, address = listener.accept()
    assert server.recv(1) == b""
    server.close()
    listener._options = listener._options.changed(defer_accept_us=20_000)
    late = ours.client()
    began = time.monotonic()
    late.connect(listener.getsockname())
    assert select.select([listener], [], [], 30)[0]  # after the time that was set, also without data
    assert time.monotonic() - began >= 0.02
    server, address = listener.accept()
    assert address == late.getsockname()
    server.close()


# --- the descriptor ---------------------------------------------------------------------------------------------------
def test_notifier_shows_all_four_states() -> None:
    notifier = Notifier()
    poll = select.poll()
    poll.register(notifier.fileno(), select.POLLIN | select.POLLOUT)
    for _ in range(2):
        for readable, writable in ((False, True), (True, True), (True, False), (False, False), (True, True)):
            notifier.show(readable, writable)
            events = dict(poll.poll(0)).get(notifier.fileno(), 0)
            assert (bool(events & select.POLLIN), bool(events & select.POLLOUT)) == (readable, writable)
    notifier.close()


def test_sockets_without_fileno_use_no_descriptor(ours: Any) -> None:
    def exchange() -> None:
        client, server = ours.pair()
        client.sendall(b"x")
        assert server.recv(1) == b"x"

    exchange()  # the drivers' seats are made
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        exchange()
    assert len(os.listdir("/proc/self/fd")) <= before + 4  # a third driver at the same moment needs a seat, too
