"""A listening endpoint: half-open connections, bounded, and established ones that wait to be accepted."""

from __future__ import annotations

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.connection import Connection
from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.units import NEVER
from mptcp.info import Endpoint

#: Half-open connections of one listener (RFC 4987 §3.2 calls it the backlog of the SYN queue), or its backlog, if larger.
MAX_HALF_OPEN = 512


class Listener:
    """Connections come out of ``accept`` in the order in which they were established."""

    __slots__ = (
        "backlog", "config", "cookie_at", "cookie_before", "cookies", "half_open", "is_closed", "local", "overflows", "owner",
        "ready",
    )  # fmt: skip

    def __init__(self, local: Endpoint, backlog: int, config: ConnectionConfig) -> None:
        self.local = local
        self.backlog = max(1, backlog)
        self.config = config
        self.half_open: dict[Connection, None] = {}  # oldest first
        self.ready: list[Connection] = []
        self.overflows = 0  # SYNs refused because the application does not accept
        self.cookies = 0  # SYNs answered with a cookie, because there were too many half-open connections
        self.cookie_at = -NEVER  # when the last of them was made
        self.cookie_before = -NEVER  # and the last one of an earlier period of the cookies
        self.is_closed = False
        self.owner: object = None  # for the layer above

    @property
    def is_full(self) -> bool:
        return len(self.ready) >= self.backlog

    @property
    def is_crowded(self) -> bool:
        """No further half-open connection is kept: SYNs are answered with cookies (RFC 4987 §3.6)."""
        return len(self.half_open) >= max(MAX_HALF_OPEN, self.backlog)

    def promote(self, connection: Connection) -> bool:
        """After ``connection`` has moved on: True if it may be accepted now."""
        if connection not in self.half_open:
            return False
        if connection.state is ConnectionState.CONNECTING:
            return False
        del self.half_open[connection]
        if (
            connection.state is ConnectionState.CLOSED
            and connection.error is not None
            and not connection.readable_bytes
        ):
            connection.close(connection.environment.now)
            return False
        self.ready.append(connection)
        return True

    def accept(self) -> Connection | None:
        """The next established connection, None if there is none."""
        return self.ready.pop(0) if self.ready else None

    def close(self, now: int) -> None:
        """Connections nobody has accepted are reset."""
        self.is_closed = True
        for connection in [*self.half_open, *self.ready]:
            connection.abort(now)
        self.half_open.clear()
        self.ready.clear()
