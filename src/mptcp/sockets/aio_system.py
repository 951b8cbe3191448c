"""Sockets of the operating system in an event loop: its own transports and servers carry them.

What is added: ``get_extra_info("socket")`` is the socket with its whole interface (``subflows``, ``events``, ...), where
asyncio would show a part of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket as std
import ssl as tls
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from mptcp.errors import NotSupportedError
from mptcp.sockets.kernel_socket import KernelSocket

_Protocol = TypeVar("_Protocol", bound=asyncio.BaseProtocol)


async def create_connection(
    loop: asyncio.AbstractEventLoop,
    factory: Callable[[], _Protocol],
    sock: std.socket,
    ssl: tls.SSLContext | bool | None,
    server_hostname: str | None,
    ssl_handshake_timeout: float | None,
    ssl_shutdown_timeout: float | None,
) -> tuple[asyncio.Transport, _Protocol]:
    """``loop.create_connection(sock=...)`` of the loop itself."""
    transport, protocol = await _own(loop, "create_connection")(
        _revealing(factory), sock=sock, ssl=ssl or None, server_hostname=server_hostname,
        ssl_handshake_timeout=ssl_handshake_timeout, ssl_shutdown_timeout=ssl_shutdown_timeout,
    )  # fmt: skip
    reveal(transport)
    return transport, protocol


async def create_server(
    loop: asyncio.AbstractEventLoop,
    factory: Callable[[], asyncio.BaseProtocol],
    sockets: Sequence[std.socket],
    backlog: int,
    ssl: tls.SSLContext | None,
    ssl_handshake_timeout: float | None,
    ssl_shutdown_timeout: float | None,
    start_serving: bool,
) -> asyncio.AbstractServer:
    """One server of the loop for all of ``sockets``. NotSupportedError: a loop that is not asyncio's takes only one."""
    if len(sockets) > 1 and not isinstance(loop, asyncio.BaseEventLoop):
        raise NotSupportedError("a server of this loop has one socket: name one address, or make a server for each")
    server: Any = await _own(loop, "create_server")(
        _revealing(factory), sock=sockets[0], backlog=backlog, ssl=ssl, ssl_handshake_timeout=ssl_handshake_timeout,
        ssl_shutdown_timeout=ssl_shutdown_timeout, start_serving=False,
    )  # fmt: skip
    for sock in sockets[1:]:
        sock.setblocking(False)
        server._sockets.append(sock)
    if start_serving:
        await server.start_serving()
    return cast(asyncio.AbstractServer, server)


def note_connected(sock: std.socket) -> None:
    """A connect that did not block has succeeded."""
    if isinstance(sock, KernelSocket):
        sock.note_connected()


def reveal(transport: Any) -> None:
    """``get_extra_info("socket")`` of a transport of asyncio gives a socket of this package as it is."""
    over = getattr(transport, "_ssl_protocol", None)
    if over is not None:
        transport = over._transport
    extra = getattr(transport, "_extra", None)
    if isinstance(extra, dict):
        sock = getattr(extra.get("socket"), "_sock", None)
        if isinstance(sock, KernelSocket):
            extra["socket"] = sock


def _revealing(factory: Callable[[], _Protocol]) -> Callable[[], _Protocol]:
    """The protocol finds the socket as ``reveal`` shows it when it is told of its transport."""

    def make() -> _Protocol:
        protocol: Any = factory()
        told = protocol.connection_made

        def connection_made(transport: asyncio.BaseTransport) -> None:
            reveal(transport)
            del protocol.connection_made
            told(transport)

        with contextlib.suppress(AttributeError):  # one with slots finds what asyncio shows
            protocol.connection_made = connection_made
        return cast(_Protocol, protocol)

    return make


def _own(loop: asyncio.AbstractEventLoop, name: str) -> Callable[..., Any]:
    """The loop's own method, also if ``LoopMixin`` has put this package's before it."""
    if isinstance(loop, asyncio.BaseEventLoop):
        return cast("Callable[..., Any]", getattr(asyncio.BaseEventLoop, name).__get__(loop))
    return cast("Callable[..., Any]", getattr(loop, name))
