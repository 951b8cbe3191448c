"""websockets over MPTCP: client and server, asyncio and blocking (``connect_sync``, ``serve_sync``).

async with await mptcp.adapters.websockets.connect("ws://server.example/") as websocket:
    await websocket.send("hello")
"""

from __future__ import annotations

import asyncio
import socket as std
import ssl
from collections.abc import Callable
from typing import Any

import websockets.asyncio.client
import websockets.asyncio.server
import websockets.sync.client
import websockets.sync.server
from websockets.uri import parse_uri

from mptcp.sockets import aio
from mptcp.sockets.create import create_connection, create_server
from mptcp.sockets.tls import adopt_context, create_default_context, wrap_socket


async def connect(uri: str, **arguments: Any) -> websockets.asyncio.client.ClientConnection:
    """``websockets.connect`` (the same arguments but ``sock`` and ``proxy``), to be awaited."""
    target = parse_uri(uri)
    sock = await aio.connected_socket(target.host, target.port)
    try:
        return await websockets.asyncio.client.connect(uri, sock=sock, **arguments)
    except BaseException:
        sock.close()
        raise


def serve(handler: Callable[..., Any], host: str = "", port: int = 80, **arguments: Any) -> Any:
    """``websockets.serve`` (the same arguments): to be awaited, or ``async with``. Within a running loop."""
    asyncio.get_running_loop()
    aio.attach()
    sock: Any = _listening(host, port)
    sock.setblocking(False)
    return websockets.asyncio.server.serve(handler, sock=sock, **arguments)


def connect_sync(
    uri: str, *, ssl: ssl.SSLContext | None = None, open_timeout: float | None = 10, **arguments: Any
) -> websockets.sync.client.ClientConnection:
    """``websockets.sync.client.connect``, likewise."""
    target = parse_uri(uri)
    if target.secure:
        arguments["ssl"] = adopt_context(ssl) if ssl is not None else create_default_context()
    sock: Any = create_connection((target.host, target.port), open_timeout)
    try:
        made: Any = websockets.sync.client.connect
        connection: websockets.sync.client.ClientConnection = made(
            uri, sock=sock, open_timeout=open_timeout, **arguments
        )
    except BaseException:
        sock.close()
        raise
    return connection


def serve_sync(
    handler: Callable[..., Any], host: str = "", port: int = 80, *, ssl: ssl.SSLContext | None = None, **arguments: Any
) -> websockets.sync.server.Server:
    """``websockets.sync.server.serve``, likewise."""
    listening = _listening(host, port)
    if ssl is not None:
        # websockets asks for an ``ssl.SSLSocket`` if it is to do this itself. The first read does the handshake, in the
        # thread of that client.
        listening = wrap_socket(ssl, listening, server_side=True, do_handshake_on_connect=False)
    return websockets.sync.server.serve(handler, sock=listening, **arguments)


def _listening(host: str, port: int) -> Any:
    return create_server((host, port), family=std.AF_INET6 if ":" in host else std.AF_INET)
