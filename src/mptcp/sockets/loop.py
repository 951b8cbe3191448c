"""An asyncio event loop whose connections are MPTCP: programs and libraries that ask their loop for connections and
servers (aiohttp, uvicorn, websockets, asyncio's own streams) need no change.

    asyncio.Runner(loop_factory=mptcp.EventLoop)
"""

from __future__ import annotations

import asyncio
import socket as std
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mptcp.runtime.aio import until
from mptcp.sockets import aio
from mptcp.sockets.address import SocketAddress
from mptcp.sockets.socket import Socket

if TYPE_CHECKING:
    from typing_extensions import Buffer

    class _Base(asyncio.BaseEventLoop):
        """What the mix-in stands before."""
else:
    _Base = object


class LoopMixin(_Base):
    """Goes before any event loop class. Stream connections and servers are sockets of the stack in use (``mptcp.use``, a
    default stack, else the kernel's); a real socket that is handed in, and everything else, stays the loop's own.
    """

    async def create_connection(self, protocol_factory: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        """``aio.create_connection``, or the loop's own."""
        if _is_ours(kwargs.get("sock")):
            return await aio.create_connection(protocol_factory, *args, **kwargs)
        return await super().create_connection(protocol_factory, *args, **kwargs)

    async def create_server(self, protocol_factory: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        """``aio.create_server``, or the loop's own."""
        if _is_ours(kwargs.get("sock")):
            return await aio.create_server(protocol_factory, *args, **kwargs)
        return await super().create_server(protocol_factory, *args, **kwargs)

    async def sock_connect(self, sock: Any, address: Any) -> None:
        if not isinstance(sock, Socket):
            return await super().sock_connect(sock, address)
        _check_nonblocking(sock)
        found = await aio.resolve(self, address[0], address[1], sock.family, 0, 0)
        return await aio.connect(sock, found[0][4])

    async def sock_accept(self, sock: Any) -> tuple[Any, SocketAddress]:
        if not isinstance(sock, Socket):
            return await super().sock_accept(sock)
        while True:
            with suppress(BlockingIOError):
                _check_nonblocking(sock)
                accepted, address = sock.accept()
                accepted.setblocking(False)
                return accepted, address
            await until(sock._pump, sock, sock._is_acceptable)

    async def sock_recv(self, sock: Any, nbytes: int) -> bytes:
        if not isinstance(sock, Socket):
            return await super().sock_recv(sock, nbytes)
        while True:
            with suppress(BlockingIOError):
                _check_nonblocking(sock)
                return sock.recv(nbytes)
            await until(sock._pump, sock, sock._is_readable)

    async def sock_recv_into(self, sock: Any, buf: Buffer) -> int:
        if not isinstance(sock, Socket):
            return await super().sock_recv_into(sock, buf)
        while True:
            with suppress(BlockingIOError):
                _check_nonblocking(sock)
                return sock.recv_into(buf)
            await until(sock._pump, sock, sock._is_readable)

    async def sock_sendall(self, sock: Any, data: Buffer) -> None:
        if not isinstance(sock, Socket):
            return await super().sock_sendall(sock, data)
        view = memoryview(data).cast("B")
        while view:
            with suppress(BlockingIOError):
                _check_nonblocking(sock)
                view = view[sock.send(view) :]
                continue
            await until(sock._pump, sock, sock._is_writable)
        return None


class EventLoop(LoopMixin, asyncio.SelectorEventLoop):
    """asyncio's event loop, with the stack in use for its connections and servers."""


def _is_ours(sock: object) -> bool:
    return sock is None or not isinstance(sock, std.socket)


def _check_nonblocking(sock: Socket) -> None:
    if sock.gettimeout() != 0:
        raise ValueError("the socket must be non-blocking")
