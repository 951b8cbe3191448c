"""What happens to a connection, as it happens: an iterator with a descriptor, and ancillary data of ``recvmsg``.

The same on every stack: a socket says when its lock is held, how to wait, and which connection's events these are.
"""

from __future__ import annotations

import errno
import socket as std
import weakref
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from mptcp.core.multipath.events import Event, EventKind
from mptcp.errors import PathError
from mptcp.sockets.notifier import Notifier
from mptcp.sockets.structures import EVENT_NUMBERS, pack_event

if TYPE_CHECKING:
    from mptcp.sockets.legacy import MultipathSettings

#: The option that subscribes to events as ancillary data (an int: the sum of ``1 << EVENT_NUMBERS[kind]``), and the
#: type of the messages; their level is IPPROTO_TCP.
MPTCP_EVENTS = 73

#: Connections of one socket whose last events wait to be read: each failed attempt to connect is one.
MAX_PAST_CONNECTIONS = 8

_AS_THE_SOCKET: Any = object()


class EventSource(Protocol):
    """A connection, as far as its events go."""

    @property
    def waiting_events(self) -> int: ...

    @property
    def missed_events(self) -> int: ...

    def peek_event(self) -> Event | None: ...

    def poll_event(self) -> Event | None: ...


class EventStream(Iterator[Event], AsyncIterator[Event]):
    """``for event in sock.events(): ...`` or ``async for``; ends with the connection, or when the socket is closed.

    Everything is there from the start of the connection on, also what happened before the stream was asked for. An
    event is given out once: to this stream, or to ``recvmsg``. At most ``MAX_EVENTS`` wait; what finds no room is
    dropped, and an event of kind MISSED says in its place how many those were. ``fileno()`` is readable while an event,
    or the end, is there.
    """

    __slots__ = ("__weakref__", "_connections", "_notifier", "_socket")

    def __init__(self, socket: EventsInterface, connection: EventSource | None) -> None:
        self._socket = socket
        self._connections = [connection] if connection is not None else []
        self._notifier: Notifier | None = None

    def fileno(self) -> int:
        """For select, poll, epoll and event loops; nothing else."""
        with self._socket.event_lock:
            if self._notifier is None:
                self._notifier = Notifier()
                self.show()
            return self._notifier.fileno()

    def close(self) -> None:
        """Gives the descriptor back; the stream can still be read."""
        if self._notifier is not None:
            self._notifier.close()
            self._notifier = None

    # --- reading -----------------------------------------------------------------------------------------------------
    def get(self, timeout: float | None = _AS_THE_SOCKET) -> Event | None:
        """The next event, waiting up to ``timeout`` seconds (None: for ever; not given: as the socket does). None at
        the end. TimeoutError; BlockingIOError where waiting is not allowed."""
        with self._socket.event_lock:
            if not self._is_ready():
                self._socket.wait_for(
                    self._is_ready, self._socket.gettimeout() if timeout is _AS_THE_SOCKET else timeout
                )
            return self._take()

    def poll(self) -> Event | None:
        """The next event if there is one, without waiting."""
        with self._socket.event_lock:
            return self._take()

    @property
    def is_over(self) -> bool:
        """Nothing waits, and nothing more will come."""
        with self._socket.event_lock:
            return self._is_over()

    @property
    def missed(self) -> int:
        """How many events found no room, so far."""
        with self._socket.event_lock:
            return sum(connection.missed_events for connection in self._connections)

    @property
    def waiting(self) -> int:
        """How many events could be read now."""
        with self._socket.event_lock:
            return sum(connection.waiting_events for connection in self._connections)

    def __iter__(self) -> EventStream:
        return self

    def __next__(self) -> Event:
        event = self.get()
        if event is None:
            raise StopIteration
        return event

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        while (event := self.poll()) is None:
            if self.is_over:
                raise StopAsyncIteration
            await self._socket.wait_in_loop(self._is_ready)
        return event

    # --- for the socket, with the lock ----------------------------------------------------------------------------------
    def attach(self, connection: EventSource) -> None:
        """The socket has a new connection."""
        if connection not in self._connections:
            self._connections = [*self._connections[-MAX_PAST_CONNECTIONS:], connection]

    def show(self) -> None:
        if self._notifier is not None:
            self._notifier.show(self._is_ready(), True)

    # --- inside ------------------------------------------------------------------------------------------------------
    def _is_ready(self) -> bool:
        return any(connection.waiting_events for connection in self._connections) or self._is_over()

    def _is_over(self) -> bool:
        if any(connection.waiting_events for connection in self._connections):
            return False
        if self._socket.is_shut:
            return True
        return bool(self._connections) and all(map(self._socket.is_ended, self._connections))

    def _take(self) -> Event | None:
        for connection in self._connections:
            event = connection.poll_event()
            if event is not None:
                self.show()
                return event
        return None


class EventsInterface(ABC):
    """The events of a socket, whatever stack it is of."""

    if not TYPE_CHECKING:
        __slots__ = ()  # those who are sockets have the attributes below among theirs

    _settings: MultipathSettings
    _stream: weakref.ref[EventStream] | None

    def events(self) -> EventStream:
        """What happens to this connection (draft-hesmans-mptcp-socket-03 §4, RFC 6897 REQ14). One stream a socket.

        OSError EINVAL for a socket that listens: its connections have events, each on its own socket.
        """
        with self.event_lock:
            self._check_open()
            if self._is_listening():
                raise PathError("a listening socket has no events: ask the sockets it accepts")
            stream = self._stream() if self._stream is not None else None
            if stream is None:
                stream = EventStream(self, self._event_source())
                self._stream = weakref.ref(stream)
            return stream

    def _ancillary(self, room: int) -> tuple[list[tuple[int, int, bytes]], int]:
        """The events subscribed to with MPTCP_EVENTS as messages for ``recvmsg``, and MSG_CTRUNC if more wait."""
        result: list[tuple[int, int, bytes]] = []
        with self.event_lock:
            source = self._event_source()
            wanted = self._settings.events
            while wanted and source is not None and (event := source.peek_event()) is not None:
                if wanted >> EVENT_NUMBERS[event.kind] & 1:
                    message = pack_event(event)
                    space = std.CMSG_SPACE(len(message))
                    if space > room:
                        return result, std.MSG_CTRUNC
                    room -= space
                    result.append((std.IPPROTO_TCP, MPTCP_EVENTS, message))
                source.poll_event()
            self._show_events()
        return result, 0

    def _show_events(self) -> None:
        """With the lock: brings the descriptor of the stream of events up to date, if there is one."""
        if self._stream is not None:
            stream = self._stream()
            if stream is None:
                self._stream = None
            else:
                source = self._event_source()
                if source is not None:
                    stream.attach(source)
                stream.show()

    # --- what a stack's socket says ----------------------------------------------------------------------------------
    if TYPE_CHECKING:

        def gettimeout(self) -> float | None: ...

        def _check_open(self) -> None:
            """OSError EBADF."""

    @property
    @abstractmethod
    def event_lock(self) -> Any:
        """Guards this socket's state; a thread that has it may take it again."""

    @property
    @abstractmethod
    def is_shut(self) -> bool:
        """With the lock: this socket is closed, or its stack."""

    @abstractmethod
    def is_ended(self, source: Any) -> bool:
        """With the lock: that connection of this socket will have no further events."""

    @abstractmethod
    def wait_for(self, ready: Callable[[], bool], timeout: float | None) -> None:
        """With the lock: until ``ready()``; BlockingIOError if ``timeout`` is 0, TimeoutError after it."""

    @abstractmethod
    async def wait_in_loop(self, ready: Callable[[], bool]) -> None:
        """In an event loop, of whatever kind: until ``ready()``, or the stack is closed."""

    @abstractmethod
    def _is_listening(self) -> bool: ...

    @abstractmethod
    def _event_source(self) -> EventSource | None:
        """With the lock: the connection there is now."""


def check_subscription(mask: int) -> int:
    """PathError EINVAL for a bit that no kind of event has."""
    known = sum(1 << number for number in EVENT_NUMBERS.values())
    if mask & ~known:
        raise PathError("MPTCP_EVENTS takes the sum of 1 << EVENT_NUMBERS[kind]", errno.EINVAL)
    return mask


__all__ = ["Event", "EventKind", "EventStream"]
