"""asyncio's stream reader, for connections of this package: octets stay in the connection until they are asked for.

asyncio's own reader is handed every octet as it comes, copies it into a buffer and again out of it. Here ``read`` takes
what there is from the connection itself, and what nobody reads is the receive window's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mptcp.sockets.aio_transport import StreamTransport

#: What ``start_server`` calls for every client.
ClientConnected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]


class StreamReader(asyncio.StreamReader):
    """As asyncio's in all it does. ``source`` is the transport to take from; None: data is fed (after ``start_tls``)."""

    source: StreamTransport | None = None

    async def read(self, n: int = -1) -> bytes:
        if n <= 0 or self.source is None:
            return await super().read(n)
        state: Any = self  # asyncio keeps its state in names of its own
        while not state._buffer:
            if state._exception is not None:
                raise state._exception
            if data := self._take(n):
                return data
            if state._eof:
                return b""
            await state._wait_to_be_woken()
        return await super().read(n)

    def readable(self) -> None:
        """By the transport: there is something to take."""
        state: Any = self
        state._wakeup_waiter()

    def absorb(self) -> None:
        """By the transport: what there is, as far as the limit goes, is to be kept here, for the connection ends."""
        state: Any = self
        state._buffer.extend(self._take(2 * state._limit))

    def _take(self, limit: int) -> bytes:
        return self.source.take(limit) if self.source is not None else b""

    async def _wait_for_data(self, func_name: str) -> None:
        """What ``readline``, ``readexactly`` and the others call when their buffer has not enough."""
        state: Any = self
        if data := self._take(2 * state._limit):
            state._buffer.extend(data)
            return
        if state._eof:
            return
        await self._wait_to_be_woken(func_name)
        self.absorb()

    async def _wait_to_be_woken(self, func_name: str = "read") -> None:
        above: Any = super()
        await above._wait_for_data(func_name)


class StreamProtocol(asyncio.StreamReaderProtocol):
    """asyncio's, with the reader above."""

    def __init__(
        self, reader: StreamReader, loop: asyncio.AbstractEventLoop, client_connected: ClientConnected | None = None
    ) -> None:
        super().__init__(reader, client_connected, loop=loop)
        # Not the protocol's own reference, which asyncio makes weak for a server's streams.
        self.taker = reader
