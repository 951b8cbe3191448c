"""A TCP socket in the place of a fresh MPTCP one: options, flags and epoll registrations go along.

Fresh: neither bound nor connected nor listening. What cannot be taken along is a reason to leave the socket as it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from typing import Final

from mptcp.kernel.launch.caller import Caller
from mptcp.kernel.launch.notify import Listener, Notification
from mptcp.kernel.launch.options import IPPROTO_MPTCP, SOL_IP, SOL_IPV6, SOL_SOCKET, SOL_TCP

SO_SNDBUF, SO_RCVBUF = 7, 8
SO_BINDTODEVICE, SO_PROTOCOL, SO_NETNS_COOKIE = 25, 38, 71
#: All that an MPTCP socket can be told before it is bound or connected, in the order in which it is told the new one.
_OPTIONS: Final = (
    *((SOL_SOCKET, name) for name in (1, 2, SO_SNDBUF, SO_RCVBUF, 9, 12, 13, 15, 18, 20, 21)),
    *((SOL_SOCKET, name) for name in (SO_BINDTODEVICE, 29, 35, 36, 37, 46, 49, 69)),
    *((SOL_TCP, name) for name in (1, 2, 3, 4, 5, 6, 9, 13, 23, 25, 30, 34, 36)),
    *((SOL_IP, name) for name in (1, 15, 19, 24, 51)),
    *((SOL_IPV6, name) for name in (26, 75, 78)),
)
#: Longer than any of their values.
_MAX_VALUE: Final = 64

EPOLL_CTL_ADD: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)


class NotReplaceable(OSError):
    """Why a socket stays what it is."""


class _EpollEvent(ctypes.Structure):
    # The kernel's ABI packs it on x86_64 alone.
    if os.uname().machine == "x86_64":
        _pack_ = 1
        _layout_ = "ms"
    _fields_ = [("events", ctypes.c_uint32), ("data", ctypes.c_uint64)]


def is_fresh_mptcp(sock: socket.socket) -> bool:
    """Whether it is an MPTCP socket that is neither bound nor connected."""
    return sock.getsockopt(SOL_SOCKET, SO_PROTOCOL) == IPPROTO_MPTCP and sock.getsockname()[1] == 0


def replace_with_tcp(
    listener: Listener, notification: Notification, caller: Caller, fd: int, old: socket.socket
) -> None:
    """The caller's ``fd``, of which ``old`` is a duplicate, becomes a TCP socket. NotReplaceable if something would be lost."""
    references, registrations = _uses(caller, fd, old)
    if references > 1:
        raise NotReplaceable(f"it has {references} descriptors in the program")
    with socket.socket(old.family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as new:
        copy_state(old, new)
        if registrations:
            _register(caller, fd, new, registrations)
        cloexec = caller.is_cloexec(fd)
        listener.replace(notification.id, new.fileno(), fd, cloexec=cloexec)


def copy_state(old: socket.socket, new: socket.socket) -> None:
    """Gives a new TCP socket what a fresh MPTCP socket has been told. NotReplaceable names what it does not take."""
    with socket.socket(old.family, socket.SOCK_STREAM, IPPROTO_MPTCP) as untouched:
        cookies = {_value(sock, SOL_SOCKET, SO_NETNS_COOKIE) for sock in (old, untouched)}
        if len(cookies) > 1:
            raise NotReplaceable("it belongs to another network namespace")
        for level, name in _OPTIONS:
            value = _value(old, level, name)
            if value is None or value == _value(untouched, level, name):
                continue
            given = value
            if level == SOL_SOCKET and name in {SO_SNDBUF, SO_RCVBUF}:
                given = struct.pack("=i", struct.unpack_from("=i", value)[0] // 2)  # the kernel doubles what it is told
            with contextlib.suppress(OSError):
                new.setsockopt(level, name, given)
            if _value(new, level, name) != value:
                raise NotReplaceable(f"its option {name} of level {level} cannot be set here")
    flags = fcntl.fcntl(old.fileno(), fcntl.F_GETFL)
    if flags & os.O_ASYNC:
        raise NotReplaceable("it sends signals (O_ASYNC)")
    fcntl.fcntl(new.fileno(), fcntl.F_SETFL, flags)


def _value(sock: socket.socket, level: int, name: int) -> bytes | None:
    try:
        return sock.getsockopt(level, name, _MAX_VALUE)
    except OSError:
        return None


def _uses(caller: Caller, fd: int, old: socket.socket) -> tuple[int, list[tuple[int, int, int]]]:
    """How many descriptors of the caller are this socket, and its registrations: (epoll descriptor, events, data)."""
    ours = f"socket:[{os.fstat(old.fileno()).st_ino}]"
    references = 0
    registrations = []
    for number, what in caller.descriptors().items():
        if what == ours:
            references += 1
        elif what == "anon_inode:[eventpoll]":
            registrations += [(number, *entry) for entry in caller.epoll_registrations(number, fd)]
    return references, registrations


def _register(caller: Caller, fd: int, new: socket.socket, registrations: list[tuple[int, int, int]]) -> None:
    """Puts the new socket into the caller's epoll sets under the number that it will have there.

    An entry's key is the number in the table of whoever adds it: a child does it, whose table nobody else needs.
    """
    for epoll, events, data in registrations:
        duplicate = caller.duplicate(epoll)
        try:
            child = os.fork()
            if child == 0:
                os._exit(_register_here(duplicate, fd, new.fileno(), events, data))
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
                raise NotReplaceable("its epoll registration cannot be repeated")
        finally:
            os.close(duplicate)


def _register_here(epoll: int, number: int, sock: int, events: int, data: int) -> int:
    try:
        if epoll == number:
            epoll = fcntl.fcntl(epoll, fcntl.F_DUPFD, number + 1)
        if sock != number:
            os.dup2(sock, number)
        event = _EpollEvent(events, data)
        return 1 if _libc.epoll_ctl(epoll, EPOLL_CTL_ADD, number, ctypes.byref(event)) else 0
    except BaseException:  # noqa: BLE001  a child must not return into its parent's code
        return 1
