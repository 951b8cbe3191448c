"""The events of a socket of the kernel's stack: its connection's, by way of the namespace's monitor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket as std
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mptcp.core.multipath.events import Event, EventKind, EventQueue
from mptcp.sockets.address import would_block
from mptcp.sockets.events import EventsInterface

if TYPE_CHECKING:
    from mptcp.kernel.connection import KernelConnection
    from mptcp.sockets.advanced import AdvancedSettings
    from mptcp.sockets.kernel import KernelStack


class FailedAttempt:
    """What is told of a connect that has failed: its connection is over before it began."""

    __slots__ = ("_queue",)

    is_ended = True

    def __init__(self, reason: str) -> None:
        self._queue = EventQueue()
        self._queue.put(Event(EventKind.CLOSED, time.monotonic_ns() // 1000, reason=reason))

    @property
    def waiting_events(self) -> int:
        return len(self._queue)

    @property
    def missed_events(self) -> int:
        return self._queue.missed

    def peek_event(self) -> Event | None:
        return self._queue.peek()

    def poll_event(self) -> Event | None:
        return self._queue.poll()


class KernelEvents(EventsInterface):
    """Waiting for events, by threads and in event loops. Everything else of the socket goes past this."""

    __slots__ = ()

    # In the slots of the socket:
    _advanced: AdvancedSettings
    _connection: KernelConnection | None
    _failed: FailedAttempt | None  # the last connect that has failed
    _futures: list[asyncio.Future[None]]
    _listening: bool
    _news: threading.Condition
    _stack: KernelStack

    if TYPE_CHECKING:

        def fileno(self) -> int: ...

    @property
    def event_lock(self) -> Any:
        return self._news

    @property
    def is_shut(self) -> bool:
        return self.fileno() < 0

    def is_ended(self, source: KernelConnection | FailedAttempt) -> bool:
        return source.is_ended

    def wait_for(self, ready: Callable[[], bool], timeout: float | None) -> None:
        if timeout == 0:
            if not ready():
                raise would_block()
        elif not self._news.wait_for(ready, timeout):
            raise TimeoutError("timed out")

    async def wait_in_loop(self, ready: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with self._news:
                if ready():
                    return
                future = loop.create_future()
                self._futures.append(future)
            try:
                await future
            finally:
                with self._news, contextlib.suppress(ValueError):
                    self._futures.remove(future)

    def handle_news(self) -> None:
        """By whoever brings events, in any thread."""
        with self._news:
            self._news.notify_all()
            self._show_events()
            futures, self._futures = self._futures, []
            self._tidy()
        for future in futures:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                future.get_loop().call_soon_threadsafe(_finish, future)

    def _is_listening(self) -> bool:
        return self._listening

    def _event_source(self) -> KernelConnection | FailedAttempt | None:
        return self._find_connection() or self._failed

    def _note_failure(self, number: int) -> None:
        """A connect has failed with that errno."""
        with self._news:
            self._failed = FailedAttempt(os.strerror(number))
            self.handle_news()

    def _tidy(self) -> None:
        """With the lock: events may mean that something is needed no more."""

    @abstractmethod
    def _find_connection(self) -> KernelConnection | None:
        """With the lock: the connection, if this socket has one by now."""


def recvmsg_with_events(
    sock: Any, receive: Callable[..., Any], bufsize: int, ancbufsize: int, flags: int
) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
    """``recvmsg`` of a socket that has subscribed to events (MPTCP_EVENTS): as on the user-space stack."""
    if flags & std.MSG_ERRQUEUE:
        with sock.event_lock:
            sock._check_open()
            events, more = sock._ancillary(ancbufsize)
        if not events and not more:
            raise would_block()
        return b"", events, std.MSG_ERRQUEUE | more, None
    data, ancillary, came, address = receive(bufsize, ancbufsize, flags)
    room = ancbufsize - sum(std.CMSG_SPACE(len(message)) for _, _, message in ancillary)
    events, more = sock._ancillary(room) if room > 0 else ([], 0)
    return data, [*ancillary, *events], came | more, address


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
