"""Passive opens: the queue of half-open connections and the queue of finished ones, both bounded (RFC 4987)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mptcp.core.counters import Counters
from mptcp.core.entropy import Entropy
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.connection import Connection
from mptcp.core.tcp.extension import Extension
from mptcp.core.tcp.states import State
from mptcp.core.wire.segment import ACK, RST, SYN, Segment
from mptcp.info import Endpoint

#: How many connections may be half open at one listener; the oldest makes room for a new one.
MAX_HALF_OPEN: Final = 1024
#: An accept queue is at least, and at most, so long, whatever ``backlog`` says.
MIN_BACKLOG, MAX_BACKLOG = 1, 65535

ExtensionFactory = Callable[[Segment], Extension | None]


class Listener:
    """One listening endpoint. It makes connections and counts them; packets are its owner's business.

    The owner calls ``handle_syn`` for a segment that belongs to no connection, keeps the connection that comes back
    (if any) in its own table, polls it like any other, and after each ``handle_segment`` or ``handle_timeout`` of a
    connection in ``half_open`` calls ``update`` for it.
    """

    __slots__ = (
        "accepted_total", "backlog", "config", "counters", "entropy", "half_open", "local", "max_half_open", "queue",
    )  # fmt: skip

    def __init__(
        self,
        config: TcpConfig,
        local: Endpoint,
        entropy: Entropy,
        counters: Counters,
        *,
        backlog: int = 128,
        max_half_open: int = MAX_HALF_OPEN,
    ) -> None:
        self.config = config
        self.local = local
        self.entropy = entropy
        self.counters = counters
        self.backlog = min(max(backlog, MIN_BACKLOG), MAX_BACKLOG)
        self.max_half_open = max_half_open
        #: by remote and local endpoint, oldest first
        self.half_open: dict[tuple[Endpoint, Endpoint], Connection] = {}
        self.queue: list[Connection] = []
        self.accepted_total = 0

    @property
    def is_full(self) -> bool:
        """No more can be taken until the application accepts."""
        return len(self.queue) >= self.backlog

    def handle_syn(
        self,
        segment: Segment,
        local: Endpoint,
        remote: Endpoint,
        now: int,
        *,
        mtu: int,
        gso_max_bytes: int = 0,
        extension: Extension | None = None,
        isn: int | None = None,
    ) -> Connection | None:
        """A segment for this listener from a ``remote`` without a connection: a new one, if it is a SYN.

        None: dropped, and counted. (An ACK without SYN deserves ``departure.reset_for``, which is the owner's to send.)
        """
        flags = segment.flags
        if flags & RST or not flags & SYN or flags & ACK:
            # RFC 9293 §3.10.7.2: "An incoming RST should be ignored"; "Any acknowledgment is bad if it arrives on a
            # connection still in the LISTEN state"
            self.counters.bump("listen_not_a_syn")
            return None
        if self.is_full:
            # the peer's SYN comes again; by then there may be room
            self.counters.bump("listen_overflow")
            return None
        if len(self.half_open) >= self.max_half_open:
            # RFC 4987 §3.4: "Once the entire backlog is exhausted, [...] overwrite the oldest half-open TCB entry"
            oldest = next(iter(self.half_open))
            self.half_open.pop(oldest).end(None, now)
            self.counters.bump("half_open_recycled")  # the oldest half-open connection made room
        connection = Connection(
            self.config,
            local,
            remote,
            self.entropy,
            self.counters,
            mtu=mtu,
            gso_max_bytes=gso_max_bytes,
            extension=extension,
            isn=isn,
        )
        connection.accept_syn(segment, now)
        if connection.state is State.SYN_RECEIVED:
            self.half_open[remote, local] = connection
        return connection

    def may_complete(self, connection: Connection) -> bool:
        """Whether the ACK that would finish this handshake is to be processed now; if not, drop it: it comes again."""
        if self.is_full and (connection.remote, connection.local) in self.half_open:
            self.counters.bump("accept_queue_overflow")  # a handshake could not end: the application has not accepted
            return False
        return True

    def update(self, connection: Connection) -> bool:
        """Something happened to a half-open connection; True if it is ready to be accepted now."""
        if connection.state is State.SYN_RECEIVED:
            return False
        if self.half_open.pop((connection.remote, connection.local), None) is None:
            return False
        if connection.state is State.CLOSED:
            return False
        self.queue.append(connection)
        return True

    def accept(self) -> Connection | None:
        """The oldest finished connection, None if there is none. One that was reset meanwhile is still handed out."""
        if not self.queue:
            return None
        self.accepted_total += 1
        return self.queue.pop(0)

    def close(self, now: int) -> list[Connection]:
        """No more listening: what nobody has accepted is reset (poll those that come back once more)."""
        result = [*self.half_open.values(), *self.queue]
        self.half_open.clear()
        self.queue.clear()
        for connection in result:
            connection.abort(now)
        return result
