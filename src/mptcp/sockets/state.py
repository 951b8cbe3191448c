"""What all parts of a socket share: its connection or listener, its settings, how it waits and how it fails."""

from __future__ import annotations

import errno
import socket as std
import weakref
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.units import NEVER
from mptcp.errors import to_errno
from mptcp.runtime.clock import deadline_after
from mptcp.runtime.waiting import Source
from mptcp.sockets.address import os_error, would_block
from mptcp.sockets.legacy import DEFAULT_SETTINGS, MultipathSettings
from mptcp.sockets.notifier import Notifier
from mptcp.sockets.options import DEFAULT_SOCKET_OPTIONS, SocketOptions

if TYPE_CHECKING:
    from mptcp.core.multipath.config import ConnectionConfig
    from mptcp.core.multipath.connection import Connection
    from mptcp.core.multipath.listener import Listener
    from mptcp.info import Endpoint
    from mptcp.runtime.pump import Pump
    from mptcp.sockets.events import EventStream
    from mptcp.sockets.user import UserStack

CONNECTING = ConnectionState.CONNECTING
CLOSED = ConnectionState.CLOSED


class SocketState(Source):
    """Every attribute is guarded by the pump's lock."""

    __slots__ = (
        "__weakref__", "_accepted", "_bound", "_close_wanted", "_closed", "_config", "_connecting", "_connection", "_deferred",
        "_error_taken", "_family", "_io_refs", "_listeners", "_notifier", "_options", "_proto", "_pump", "_read_shut",
        "_settings", "_stack", "_stream", "_timeout", "_write_starved",
    )  # fmt: skip

    def __init__(self, stack: UserStack, family: int, proto: int, config: ConnectionConfig) -> None:
        super().__init__()
        self._stack = stack
        self._pump: Pump = stack.pump
        self._family = family
        self._proto = proto
        self._config = config
        self._options: SocketOptions = DEFAULT_SOCKET_OPTIONS
        self._settings: MultipathSettings = DEFAULT_SETTINGS
        self._stream: weakref.ref[EventStream] | None = None  # of events, if somebody reads them
        self._timeout: float | None = std.getdefaulttimeout()
        self._connection: Connection | None = None
        self._listeners: list[Listener] | None = None
        self._accepted: Connection | None = None  # taken off a listener, not yet returned by ``accept``
        self._deferred: list[tuple[Connection, int]] | None = None  # (kept back from ``accept``, until when)
        self._bound: Endpoint | None = None
        self._notifier: Notifier | None = None
        self._connecting = False  # ``connect`` has begun, and nobody has been told how it ended
        self._error_taken = False  # the connection's error has been raised: from now on it is simply over
        self._read_shut = False
        self._write_starved = False  # a write was cut short: not writable until a good part of the buffer is free
        self._closed = False
        self._io_refs = 0
        self._close_wanted = False  # ``close`` was called while files made by ``makefile`` are open

    # --- conditions ------------------------------------------------------------------------------------------------
    def _is_over(self, connection: Connection) -> bool:
        return connection.state is CLOSED

    def _is_readable(self) -> bool:
        """A read would not block."""
        connection = self._connection
        if connection is None:
            return self._closed or self._is_acceptable()
        if connection.readable_bytes >= self._options.receive_low_water:
            return True
        return (
            connection.eof or connection.state is CLOSED or self._read_shut or self._closed or
            connection.error is not None
        )  # fmt: skip

    def _is_writable(self) -> bool:
        """A write would not block: there is room worth a wake-up, or it would fail at once."""
        connection = self._connection
        if connection is None:
            return self._listeners is None
        if connection.state is CLOSED or connection.error is not None or self._closed:
            return True
        if connection.state is CONNECTING:
            return False
        if connection.write_closed:
            return True
        room = connection.writable_bytes
        if self._write_starved:
            # As Linux does: to be woken for every acknowledged segment would cost more than the segment.
            if room * 3 < connection.config.tcp.send_buffer_bytes:
                return False
            self._write_starved = False
        return room > 0

    def _is_acceptable(self) -> bool:
        """``accept`` would not block."""
        if self._accepted is None and self._listeners is not None:
            if self._options.defer_accept_us or self._deferred:
                self._accepted = self._accept_deferred(self._listeners)
            else:
                for listener in self._listeners:
                    self._accepted = listener.accept()
                    if self._accepted is not None:
                        break
        return self._accepted is not None or self._listeners is None or self._closed

    def _accept_deferred(self, listeners: list[Listener]) -> Connection | None:
        """TCP_DEFER_ACCEPT: connections are kept back until they have data, or for the time that was set."""
        now = self._pump.clock()
        held = self._deferred
        if held is None:
            held = self._deferred = []
        for listener in listeners:
            # Those kept back count as waiting: the listener keeps the others, and refuses more by its own limit.
            while len(held) < listener.backlog and (connection := listener.accept()) is not None:
                connection.owner = weakref.ref(self)
                held.append((connection, now + self._options.defer_accept_us))
        for index, (connection, deadline) in enumerate(held):
            if connection.readable_bytes or connection.eof or connection.state is CLOSED or deadline <= now:
                del held[index]
                return connection
        if held:
            self._pump.alarm(self, held[0][1])
        return None

    def _is_connected(self) -> bool:
        """``connect`` has ended, one way or the other."""
        connection = self._connection
        return connection is None or connection.state is not CONNECTING or self._closed

    # --- news --------------------------------------------------------------------------------------------------------
    def handle_ready(self) -> None:
        self.wake_ready()
        self._show()
        if self._stream is not None:
            self._show_events()

    def _show(self) -> None:
        """Brings the descriptor up to date."""
        notifier = self._notifier
        if notifier is not None:
            if self._listeners is None and self._connection is None:
                # Linux: an unconnected TCP socket polls as hung up, that is readable and writable.
                notifier.show(readable=True, writable=True)
            else:
                notifier.show(self._is_readable(), self._is_writable())

    @abstractmethod
    def _show_events(self) -> None:
        """The same for the descriptor of the stream of events, if there is one."""

    def _changed(self) -> None:
        """This socket was changed from above: others that wait for it look again."""
        self.handle_ready()
        self._pump.rouse()

    # --- failing and waiting -----------------------------------------------------------------------------------------
    def _check_open(self) -> None:
        if self._closed:
            raise os_error(errno.EBADF)
        if self._pump.unusable:
            self._pump.check()

    def _take_error(self) -> Exception | None:
        """The error that ended the connection, the first time it is asked for."""
        connection = self._connection
        if connection is None or connection.error is None or self._error_taken:
            return None
        self._error_taken = True
        return connection.error

    def _raise_error(self) -> None:
        """Raises the connection's error as the standard library would, once."""
        error = self._take_error()
        if error is not None:
            raise os_error(to_errno(error), error)

    def _await(self, ready: Callable[[], bool], flags: int = 0, limit_us: int = NEVER, deadline: int = -1) -> None:
        """Until ``ready()``; BlockingIOError if the socket does not block, TimeoutError after its timeout.

        ``limit_us``: SO_RCVTIMEO or SO_SNDTIMEO. ``deadline``: of a call that waits several times.
        """
        timeout = self._timeout
        pump = self._pump
        if timeout == 0 or flags & std.MSG_DONTWAIT:
            pump.poll()
            if not ready():
                raise would_block()
            return
        now = pump.clock()
        if deadline < 0:
            deadline = deadline_after(timeout, now)
        limit = now + limit_us if limit_us < NEVER else NEVER
        if not pump.wait(self, ready, min(deadline, limit)):
            raise would_block() if limit < deadline else TimeoutError("timed out")
        if self._closed:
            raise os_error(errno.EBADF)

    # --- timeouts ----------------------------------------------------------------------------------------------------
    def settimeout(self, value: float | None) -> None:
        """Seconds; None: wait for ever; 0: do not wait."""
        if value is not None:
            value = float(value)
            if value < 0 or value != value:
                raise ValueError("Timeout value out of range")
        self._timeout = value

    def gettimeout(self) -> float | None:
        return self._timeout

    @property
    def timeout(self) -> float | None:
        return self._timeout

    def setblocking(self, flag: bool) -> None:
        self._timeout = None if flag else 0.0

    def getblocking(self) -> bool:
        return self._timeout != 0

    # --- descriptor --------------------------------------------------------------------------------------------------
    def fileno(self) -> int:
        """A descriptor for select, poll and epoll, nothing else; -1 once closed. Made when first asked for."""
        if self._closed:
            return -1
        if self._notifier is None:
            with self._pump.lock:
                self._check_open()
                if self._notifier is None:
                    self._notifier = Notifier()
                    self._show()
        return self._notifier.fileno()
