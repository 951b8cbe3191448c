"""One timer for all managed connections of a namespace."""

from __future__ import annotations

import threading
from typing import Final

from mptcp.core.units import MILLISECOND, NEVER, SECOND
from mptcp.forking import freed_in_child
from mptcp.kernel.managing import ManagedConnection
from mptcp.kernel.monitor import Monitor
from mptcp.kernel.steering import now_us

#: Turns are at least so far apart: one wake-up for many connections.
MIN_TICK_US: Final = 5 * MILLISECOND


class Managing:
    """The managed connections of one namespace: gives each its turns, one timer for all, in the monitor's thread.

    They do not hold the program's sockets: one whose socket is gone is over at its next turn.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._connections: set[ManagedConnection] = set()
        self._lock = freed_in_child(threading.Lock())
        self._tick_at = NEVER

    def __len__(self) -> int:
        return len(self._connections)

    def add(self, connection: ManagedConnection, token: int, fd: int = -1) -> None:
        """From now on it hears of the connection with that token, and has its turns. ``start`` is called here."""
        connection.on_sooner = self._sooner
        with self._lock:
            self._connections.add(connection)
        self._monitor.subscribe(token, connection, fd)
        connection.start()
        self._sooner()

    def remove(self, connection: ManagedConnection, token: int) -> None:
        """No further turns: the socket is about to be closed, or nobody manages it any more."""
        connection.is_over = True
        with self._lock:
            self._connections.discard(connection)
        self._monitor.unsubscribe(token, connection)

    def _sooner(self) -> None:
        with self._lock:
            soonest = min((connection.next_us for connection in self._connections), default=NEVER)
            if soonest >= self._tick_at or soonest >= NEVER:
                return
            delay = max(soonest - now_us(), 0)
            self._tick_at = now_us() + delay
        self._monitor.call_later(delay / SECOND, self._tick)

    def _tick(self) -> None:
        now = now_us()
        if now + MILLISECOND < self._tick_at:
            return  # an earlier one has taken its place
        with self._lock:
            self._tick_at = NEVER
            over = [connection for connection in self._connections if connection.is_over]
            self._connections.difference_update(over)
            due = [connection for connection in self._connections if connection.next_us <= now + MILLISECOND]
        for connection in due:
            connection.turn(now)
        with self._lock:
            soonest = min((connection.next_us for connection in self._connections), default=NEVER)
            if soonest >= NEVER:
                return
            delay = max(soonest - now_us(), MIN_TICK_US)
            self._tick_at = now_us() + delay
        self._monitor.call_later(delay / SECOND, self._tick)
