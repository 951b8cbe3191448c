"""What is read of a process: this one, whose answers are known another way too."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import threading

import pytest

from mptcp.kernel.launch import caller as module
from mptcp.kernel.launch.caller import Caller


@pytest.fixture
def me() -> Caller:
    return Caller(os.getpid())


def test_names(me: Caller) -> None:
    with open("/proc/self/comm") as file:
        assert me.name() == file.read().strip()
    assert os.path.basename(os.readlink("/proc/self/exe")) in me.program_names()


def test_a_name_cannot_write_on_the_terminal(me: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Caller, "_read", lambda *_: b"\x1b[2J\xff\nx\n")
    assert me.name() == "?[2J�?x"


def test_owner_namespace_and_process(me: Caller) -> None:
    assert me.owner() == (os.geteuid(), os.getegid())
    assert me.network_namespace() == (os.stat("/proc/self/ns/net").st_dev, os.stat("/proc/self/ns/net").st_ino)
    seen = []
    thread = threading.Thread(
        target=lambda: seen.append((threading.get_native_id(), Caller(threading.get_native_id()).process()))
    )
    thread.start()
    thread.join()
    assert seen[0][0] != os.getpid()
    assert seen[0][1] == os.getpid()


def test_descriptors(me: Caller) -> None:
    with socket.socket() as sock, select.epoll() as epoll:
        epoll.register(sock, select.EPOLLIN | select.EPOLLET)
        assert me.is_cloexec(sock.fileno())
        os.set_inheritable(sock.fileno(), True)
        assert not me.is_cloexec(sock.fileno())
        found = me.descriptors()
        assert found[sock.fileno()] == f"socket:[{os.fstat(sock.fileno()).st_ino}]"
        assert found[epoll.fileno()] == "anon_inode:[eventpoll]"
        ((events, data),) = me.epoll_registrations(epoll.fileno(), sock.fileno())
        assert events & (select.EPOLLIN | select.EPOLLET) == select.EPOLLIN | select.EPOLLET
        assert data & 0xFFFF_FFFF == sock.fileno()
        assert me.epoll_registrations(epoll.fileno(), sock.fileno() + 1) == []
        copy = socket.socket(fileno=me.duplicate(sock.fileno()))
        copy.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        copy.close()


def test_a_long_list_of_registrations(me: Caller) -> None:
    """/proc writes it as a whole, however long it is."""
    with select.epoll() as epoll:
        pairs = [socket.socketpair() for _ in range(200)]
        for pair in pairs:
            for sock in pair:
                epoll.register(sock, select.EPOLLIN)
        last = pairs[-1][1].fileno()
        assert len(me._read(f"fdinfo/{epoll.fileno()}")) > 1 << 14
        assert len(me.epoll_registrations(epoll.fileno(), last)) == 1
        ((events, data),) = me.epoll_registrations(epoll.fileno(), pairs[0][0].fileno())
        assert (events & select.EPOLLIN, data & 0xFFFF_FFFF) == (select.EPOLLIN, pairs[0][0].fileno())
        for pair in pairs:
            for sock in pair:
                sock.close()


def test_too_many_descriptors(me: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SEARCHED_DESCRIPTORS", 2)
    with pytest.raises(OSError, match="more than 2"):
        me.descriptors()


def test_memory(me: Caller) -> None:
    secret = ctypes.create_string_buffer(b"sixteen octets..", 16)
    assert me.memory(ctypes.addressof(secret), 16) == b"sixteen octets.."
    for wild in (0, 1 << 62):
        with pytest.raises(OSError):
            me.memory(wild, 16)
    assert me.memory(1 << 63, 16) == b""


def test_strange_files_are_read_as_nothing(me: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    for raw in (b"", b"tfd:", b"tfd: 1 events: 2", b"flags", b"Uid", b"\xff" * 50):
        monkeypatch.setattr(Caller, "_read", lambda *_, raw=raw: raw)
        assert me.epoll_registrations(3, 1) == []
        assert not me.is_cloexec(3)
        with pytest.raises(ProcessLookupError):
            me.owner()


@pytest.mark.parametrize("pid", [0, -1])
def test_who_cannot_be_seen(pid: int) -> None:
    with pytest.raises(ProcessLookupError, match="cannot be seen"):
        Caller(pid)


def test_who_has_gone() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    gone = Caller(child)
    for read in (gone.name, gone.program_names, gone.network_namespace, gone.owner, gone.process, gone.descriptors):
        with pytest.raises(OSError):
            read()
    with pytest.raises(OSError):
        gone.memory(0, 1)
    with pytest.raises(OSError):
        gone.duplicate(0)
