"""The events of a socket of the user-space stack."""

from __future__ import annotations

import socket as std
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mptcp.core.units import NEVER
from mptcp.runtime.aio import until
from mptcp.runtime.clock import deadline_after
from mptcp.sockets.address import would_block
from mptcp.sockets.events import EventsInterface
from mptcp.sockets.state import CLOSED
from mptcp.sockets.transfer import Transfer

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection


class EventsApi(EventsInterface, Transfer):
    """Events come from the connection itself, while somebody drives the pump."""

    __slots__ = ()

    @property
    def event_lock(self) -> Any:
        return self._pump.lock

    @property
    def is_shut(self) -> bool:
        return self._closed or self._pump.unusable

    def is_ended(self, source: Connection) -> bool:
        return source.state is CLOSED

    def wait_for(self, ready: Callable[[], bool], timeout: float | None) -> None:
        pump = self._pump
        if timeout == 0:
            pump.poll()
            if not ready():
                raise would_block()
        elif not pump.wait(self, ready, deadline_after(timeout, pump.clock()) if timeout is not None else NEVER):
            raise TimeoutError("timed out")

    async def wait_in_loop(self, ready: Callable[[], bool]) -> None:
        try:
            await until(self._pump, self, ready)
        except OSError:
            if not self._pump.unusable:
                raise

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        """(data, ancillary data, flags, None).

        The ancillary data are the events subscribed to with MPTCP_EVENTS, oldest first, as many as ``ancbufsize`` has
        room for; MSG_CTRUNC says that more wait. With MSG_ERRQUEUE only events are read: EAGAIN if there are none.
        """
        if flags & std.MSG_ERRQUEUE:
            with self._pump.lock:
                self._check_open()
                self._pump.poll()
                events, more = self._ancillary(ancbufsize)
                if not events and not more:
                    raise would_block()
                return b"", events, std.MSG_ERRQUEUE | more, None
        data = self.recv(bufsize, flags)
        events, more = self._ancillary(ancbufsize) if ancbufsize > 0 else ([], 0)
        return data, events, more, None

    def _is_listening(self) -> bool:
        return self._listeners is not None

    def _event_source(self) -> Connection | None:
        return self._connection
