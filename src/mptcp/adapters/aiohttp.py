"""aiohttp over MPTCP: a connector for its client, a site for its server.

    async with aiohttp.ClientSession(connector=mptcp.adapters.aiohttp.Connector()) as session:
        print(await (await session.get("http://server.example/")).text())

Under ``mptcp.EventLoop`` neither is needed: aiohttp asks its loop.
"""

from __future__ import annotations

import socket as std
from typing import Any

import aiohttp
from aiohttp import web

from mptcp.sockets.aio import attach
from mptcp.sockets.create import create_server, socket


class Connector(aiohttp.TCPConnector):
    """``aiohttp.TCPConnector`` (the same arguments) with sockets of the stack in use when a connection is made."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(socket_factory=_make_socket, **arguments)


def _make_socket(info: Any) -> Any:
    attach()
    sock = socket(info[0], info[1])
    sock.setblocking(False)
    return sock


class Site(web.SockSite):
    """In the place of ``aiohttp.web.TCPSite``."""

    def __init__(self, runner: web.AppRunner, host: str = "", port: int = 8080, **arguments: Any) -> None:
        attach()
        family = std.AF_INET6 if ":" in host else std.AF_INET
        sock: Any = create_server((host, port), family=family)
        sock.setblocking(False)
        super().__init__(runner, sock, **arguments)
