"""uvicorn over MPTCP: an ASGI application served by the stack in use.

mptcp.adapters.uvicorn.run(app, host="", port=8000)
"""

from __future__ import annotations

import asyncio
import socket as std
from typing import Any

import uvicorn

from mptcp.sockets.aio import attach
from mptcp.sockets.create import create_server
from mptcp.sockets.loop import EventLoop


class Server(uvicorn.Server):
    """``uvicorn.Server`` whose ``serve`` listens on the stack in use. One process: no workers, no reload."""

    async def serve(self, sockets: Any = None) -> None:
        if sockets is None:
            host = self.config.host or ""
            family = std.AF_INET6 if ":" in host else std.AF_INET
            # Made here and not by the loop, so that it is one of the stack's under any loop.
            sockets = [create_server((host, self.config.port), family=family, backlog=self.config.backlog)]
        for sock in sockets:
            sock.setblocking(False)
        attach()
        await super().serve(sockets)


def run(app: Any, **config: Any) -> None:
    """As ``uvicorn.run`` (the same arguments), on an event loop of this package, until it is told to stop."""
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.run(Server(uvicorn.Config(app, **config)).serve())
