"""httpx over MPTCP: transports for its clients, blocking and asyncio.

with httpx.Client(transport=mptcp.adapters.httpx.Transport()) as client:
    print(client.get("http://server.example/").text)
"""

from __future__ import annotations

from typing import Any

import httpx

from mptcp.adapters.httpcore import AsyncNetworkBackend, NetworkBackend


class Transport(httpx.HTTPTransport):
    """``httpx.HTTPTransport`` (the same arguments) over the stack in use when a connection is made."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        # httpx builds the pool by its own settings and offers no way to name its backend.
        pool: Any = self._pool
        pool._network_backend = NetworkBackend()


class AsyncTransport(httpx.AsyncHTTPTransport):
    """``httpx.AsyncHTTPTransport``, likewise; under asyncio only."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        pool: Any = self._pool
        pool._network_backend = AsyncNetworkBackend()
