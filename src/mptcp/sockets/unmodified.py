"""Programs that know nothing of this package: while ``patched(stack)`` holds, the stream sockets they make are the stack's.

``socket.socket`` becomes a class that makes ours for AF_INET and AF_INET6 streams, and the system's for everything else
(datagrams, AF_UNIX, descriptors). ``socket.create_connection`` and ``create_server``, ``http.client``, ``socketserver``, asyncio's
selector loop and whatever is built on these follow without being touched. ``ssl.SSLContext.wrap_socket`` takes both kinds.
"""

from __future__ import annotations

import asyncio
import socket as std
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mptcp.sockets import create
from mptcp.sockets.base import Stack
from mptcp.sockets.kernel_socket import KernelSocket
from mptcp.sockets.socket import Socket
from mptcp.sockets.tls import TlsSocket, wrap_socket

_SystemSocket = std.socket
_new: Any = std.socket.__new__
_STREAMS = (std.AF_INET, std.AF_INET6)


class _Kind(type):
    """``isinstance(sock, socket.socket)`` is true of ours as well: programs ask it to tell sockets from other things."""

    def __instancecheck__(cls, instance: object) -> bool:
        if cls is StreamOrSystemSocket:
            return isinstance(instance, (_SystemSocket, Socket, TlsSocket))
        return super().__instancecheck__(instance)


class StreamOrSystemSocket(_SystemSocket, metaclass=_Kind):
    """What ``socket.socket`` is while ``patched`` holds. Subclasses are sockets of the system."""

    __slots__ = ()

    def __new__(
        cls,
        family: int = -1,
        type: int = -1,  # noqa: A002 the standard library's name
        proto: int = -1,
        fileno: int | None = None,
    ) -> Any:
        kind = type & ~(std.SOCK_NONBLOCK | std.SOCK_CLOEXEC) if type != -1 else std.SOCK_STREAM
        if cls is StreamOrSystemSocket and fileno is None and kind == std.SOCK_STREAM:
            wanted = std.AF_INET if family == -1 else family
            if wanted in _STREAMS:
                return create.current_stack().socket(wanted, std.SOCK_STREAM if type == -1 else type, max(proto, 0))
        return _new(cls, family, type, proto, fileno)


def _wrap(
    self: ssl.SSLContext,
    sock: Any,
    server_side: bool = False,
    do_handshake_on_connect: bool = True,
    suppress_ragged_eofs: bool = True,
    server_hostname: Any = None,
    session: Any = None,
) -> Any:
    if isinstance(sock, (Socket, KernelSocket)):
        return wrap_socket(
            self, sock, server_hostname, server_side=server_side, do_handshake_on_connect=do_handshake_on_connect,
            suppress_ragged_eofs=suppress_ragged_eofs, session=session,
        )  # fmt: skip
    return _system_wrap(
        self, sock, server_side, do_handshake_on_connect, suppress_ragged_eofs, server_hostname, session
    )


_system_wrap = ssl.SSLContext.wrap_socket


async def _sendfile(self: Any, sock: Any, *args: Any) -> Any:
    """The kernel cannot put a file into a connection that is not its own; asyncio then reads and writes it."""
    if isinstance(sock, Socket):
        raise asyncio.SendfileNotAvailableError("the kernel does not see this connection")
    return await _system_sendfile(self, sock, *args)


_system_sendfile: Any = None
_active = 0


@contextmanager
def patched(stack: Stack) -> Iterator[None]:
    """For the whole process, all its threads included, until the block ends; then everything is as before.

    Sockets that exist already stay what they are. A program that connects to 127.0.0.1 is told that it cannot be reached:
    the stack's addresses are its own. RuntimeError if it is in force already.
    """
    global _active, _system_sendfile  # noqa: PLW0603 there is one ``socket`` module to a process
    if _active:
        raise RuntimeError("this process is patched already")
    _active += 1
    before = create._default
    create.set_default_stack(stack)
    loop_class: Any = None
    if sys.platform != "win32":
        from asyncio import unix_events

        loop_class = unix_events._UnixSelectorEventLoop
        _system_sendfile = loop_class._sock_sendfile_native
    std.socket = StreamOrSystemSocket  # type: ignore[misc]
    ssl.SSLContext.wrap_socket = _wrap  # type: ignore[method-assign]
    if loop_class is not None:
        loop_class._sock_sendfile_native = _sendfile
    try:
        yield
    finally:
        if loop_class is not None:
            loop_class._sock_sendfile_native = _system_sendfile
        ssl.SSLContext.wrap_socket = _system_wrap  # type: ignore[method-assign]
        std.socket = _SystemSocket  # type: ignore[misc]
        create.set_default_stack(before)
        _active -= 1
