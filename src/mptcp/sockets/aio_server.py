"""A server in an event loop: accepts connections of one or more listening sockets and gives each a protocol."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mptcp.errors import MptcpError
from mptcp.runtime.aio import LoopWaiter
from mptcp.sockets.aio_transport import StreamTransport

if TYPE_CHECKING:
    from mptcp.sockets.aio_tls import TlsArguments
    from mptcp.sockets.socket import Socket

#: Connections accepted from one socket before others in the loop have their turn.
ACCEPT_BATCH = 128


class _Door(LoopWaiter):
    """Tells a server that somebody is at the door."""

    __slots__ = ("server", "sock")

    def __init__(self, server: Server, sock: Socket) -> None:
        super().__init__(sock._pump.loop_driver(server.get_loop()))
        self.server = server
        self.sock = sock

    def on_ready(self) -> None:
        self.server._accept(self)


class Server(asyncio.AbstractServer):
    """What ``create_server`` and ``start_server`` return: as asyncio's, with sockets of this package."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: Sequence[Socket],
        factory: Callable[[], asyncio.BaseProtocol],
        tls: TlsArguments | None,
        backlog: int,
    ) -> None:
        self._loop = loop
        self._sockets: list[Socket] | None = list(sockets)
        self._factory = factory
        self._tls = tls
        self._backlog = backlog
        self._doors: list[_Door] = []
        self._serving = False
        self._forever: asyncio.Future[None] | None = None
        self._transports: weakref.WeakSet[StreamTransport] = weakref.WeakSet()
        self._active = 0
        self._waiters: list[asyncio.Future[None]] | None = []

    def __repr__(self) -> str:
        return f"<mptcp Server sockets={self.sockets!r}>"

    @property
    def sockets(self) -> tuple[Socket, ...]:
        return tuple(self._sockets or ())

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_serving(self) -> bool:
        return self._serving

    async def start_serving(self) -> None:
        self._start()
        await asyncio.sleep(0)

    async def serve_forever(self) -> None:
        """Until it is cancelled, or the server closed."""
        if self._forever is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        if self._sockets is None:
            raise RuntimeError(f"server {self!r} is closed")
        self._start()
        self._forever = self._loop.create_future()
        try:
            await self._forever
        except asyncio.CancelledError:
            self.close()
            await self.wait_closed()
            raise
        finally:
            self._forever = None

    def close(self) -> None:
        """Accepts nothing any more; connections that were accepted live on."""
        sockets, self._sockets = self._sockets, None
        if sockets is None:
            return
        for door in self._doors:
            door.driver.remove(door.sock, door)
        self._doors.clear()
        for sock in sockets:
            sock.close()
        self._serving = False
        if self._forever is not None and not self._forever.done():
            self._forever.cancel()
        if self._active == 0:
            self._wake()

    async def wait_closed(self) -> None:
        """Until the server is closed and all its connections are over."""
        if self._waiters is None:
            return
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def close_clients(self) -> None:
        for transport in list(self._transports):
            transport.close()

    def abort_clients(self) -> None:
        for transport in list(self._transports):
            transport.abort()

    # --- inside -----------------------------------------------------------------------------------------------------------
    def _start(self) -> None:
        if self._serving or self._sockets is None:
            return
        self._serving = True
        for sock in self._sockets:
            sock.listen(self._backlog)
            door = _Door(self, sock)
            self._doors.append(door)
            with sock._pump.lock:
                door.driver.add(sock, door)
            door.driver.again(door)  # somebody may be waiting already

    def _accept(self, door: _Door) -> None:
        if not self._serving:
            return
        sock = door.sock
        accepted: list[Socket] = []
        with sock._pump.lock:
            if sock._pump.unusable:
                return
            while len(accepted) < ACCEPT_BATCH and (new := sock.accept_now()) is not None:
                accepted.append(new)
        for new in accepted:
            try:
                self._serve(new)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 one client's failure is not the server's
                new.close()
                if not isinstance(error, (OSError, MptcpError)):  # not: it has gone already
                    self._report(error)
        if len(accepted) == ACCEPT_BATCH:
            door.driver.again(door)

    def _serve(self, sock: Socket) -> None:
        sock.setblocking(False)
        protocol: asyncio.BaseProtocol = self._factory()
        if self._tls is not None:
            protocol = self._tls.wrap(self._loop, protocol, None)
        StreamTransport(self._loop, sock, protocol, server=self)

    def _report(self, error: BaseException) -> None:
        context: dict[str, Any] = {
            "message": "Error on transport creation for incoming connection", "exception": error,
        }  # fmt: skip
        self._loop.call_exception_handler(context)

    def _attach(self, transport: StreamTransport) -> None:
        self._active += 1
        self._transports.add(transport)

    def _detach(self, transport: StreamTransport) -> None:
        self._active -= 1
        self._transports.discard(transport)
        if self._active == 0 and self._sockets is None:
            self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)
