"""Small programs for simulated hosts: send in bulk and check it, ask and answer, and record how that went."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mptcp.core.units import KIB
from mptcp.sim.world import Application, SimHost

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection
    from mptcp.core.multipath.listener import Listener

#: A prime, so that no shift by a number of segments or mappings goes unseen.
PATTERN_BYTES: Final = 1_000_003
_CHUNK_BYTES: Final = 64 * KIB
#: Progress is recorded at most that often; a stall shorter than this is not seen.
PROGRESS_INTERVAL_US: Final = 1_000


_ONCE: Final = hashlib.shake_128(b"the stream of the simulated applications").digest(PATTERN_BYTES)
_TWICE: Final = memoryview(_ONCE + _ONCE[:_CHUNK_BYTES])


def pattern(offset: int, length: int) -> memoryview:
    """Octets ``offset`` and following of an endless stream that both ends know; at most 64 KiB."""
    start = offset % PATTERN_BYTES
    return _TWICE[start : start + min(length, _CHUNK_BYTES)]


class Progress:
    """How many octets there were at what time."""

    __slots__ = ("first_us", "last_us", "longest_stall_us", "samples", "stall_end_us", "total")

    def __init__(self) -> None:
        self.total = 0
        self.first_us = -1
        self.last_us = -1
        self.longest_stall_us = 0
        self.stall_end_us = -1
        self.samples: list[tuple[int, int]] = []  # (time, octets in all)

    def add(self, octets: int, now: int) -> None:
        if self.first_us < 0:
            self.first_us = now
        elif now - self.last_us > self.longest_stall_us:
            self.longest_stall_us, self.stall_end_us = now - self.last_us, now
        self.last_us = now
        self.total += octets
        if not self.samples or now - self.samples[-1][0] >= PROGRESS_INTERVAL_US:
            self.samples.append((now, self.total))
        else:
            self.samples[-1] = (self.samples[-1][0], self.total)

    def goodput_bps(self, start_us: int = 0, end_us: int = -1) -> float:
        """Between two times (the second: until the last octet)."""
        end_us = self.last_us if end_us < 0 else end_us
        if end_us <= start_us:
            return 0.0
        return (self._at(end_us) - self._at(start_us)) * 8e6 / (end_us - start_us)

    def _at(self, time_us: int) -> int:
        before = 0
        for time, total in self.samples:
            if time > time_us:
                break
            before = total
        return before


class Failure(Exception):
    """What an application got was not what the other one sent."""


class ConnectionApplication(Application):
    """One connection's program."""

    __slots__ = ("connection", "host")

    def __init__(self, host: SimHost, connection: Connection) -> None:
        self.host = host
        self.connection = connection

    @abstractmethod
    def on_ready(self, now: int) -> None: ...


class BulkSender(ConnectionApplication):
    """Writes ``total`` octets of the pattern as fast as they are taken (negative: for ever), then ends its stream."""

    __slots__ = ("_offset", "_total", "ended", "progress")

    def __init__(self, host: SimHost, connection: Connection, total: int = -1) -> None:
        super().__init__(host, connection)
        self._total = total
        self._offset = 0
        self.ended = False
        self.progress = Progress()

    def on_ready(self, now: int) -> None:
        if self.ended:
            return
        while self._total < 0 or self._offset < self._total:
            left = _CHUNK_BYTES if self._total < 0 else self._total - self._offset
            taken = self.connection.write(pattern(self._offset, left), now)
            if not taken:
                return
            self._offset += taken
            self.progress.add(taken, now)
        self.ended = True
        self.connection.shutdown_write(now)

    def stop(self) -> None:
        """Nothing more is written; the stream ends."""
        self._total = self._offset
        self.on_ready(self.host.world.now)
        self.host.touch()


class BulkReceiver(ConnectionApplication):
    """Reads all there is and compares it with the pattern; after the end of the stream it ends its own, unless
    ``keep_open``."""

    __slots__ = ("_buffer", "_keep_open", "ended", "error_offset", "progress")

    def __init__(self, host: SimHost, connection: Connection, *, keep_open: bool = False) -> None:
        super().__init__(host, connection)
        self._keep_open = keep_open
        self._buffer = memoryview(bytearray(_CHUNK_BYTES))
        self.ended = False
        self.error_offset = -1  # where the first wrong octet was
        self.progress = Progress()

    def on_ready(self, now: int) -> None:
        connection = self.connection
        while connection.readable_bytes:
            count = connection.read_into(self._buffer)
            offset = self.progress.total
            if self.error_offset < 0 and self._buffer[:count] != pattern(offset, count):
                expected = pattern(offset, count)
                self.error_offset = offset + next(i for i in range(count) if self._buffer[i] != expected[i])
            self.progress.add(count, now)
        if connection.eof and not self.ended:
            self.ended = True
            if not self._keep_open:
                connection.shutdown_write(now)

    @property
    def is_exact(self) -> bool:
        return self.error_offset < 0


class Requester(ConnectionApplication):
    """Sends ``request_bytes``, waits for ``response_bytes``, ``count`` times; keeps how long each took."""

    __slots__ = ("_asked_us", "_count", "_got", "_request", "_request_left", "_response_bytes", "latencies_us")

    def __init__(
        self, host: SimHost, connection: Connection, request_bytes: int, response_bytes: int, count: int
    ) -> None:
        super().__init__(host, connection)
        # The request says how much is wanted, in its first four octets.
        self._request = response_bytes.to_bytes(4, "big") + bytes(pattern(4, max(0, request_bytes - 4)))
        self._response_bytes = response_bytes
        self._count = count
        self._got = 0
        self._asked_us = host.world.now
        self._request_left = memoryview(self._request)
        self.latencies_us: list[int] = []

    def on_ready(self, now: int) -> None:
        connection = self.connection
        while len(self.latencies_us) < self._count:
            while self._request_left:
                taken = connection.write(self._request_left, now)
                if not taken:
                    return
                self._request_left = self._request_left[taken:]
            octets = connection.read(min(_CHUNK_BYTES, self._response_bytes - self._got))
            if not octets:
                return
            if octets != pattern(self._got, len(octets)):
                raise Failure(f"response {len(self.latencies_us)} is wrong near octet {self._got}")
            self._got += len(octets)
            if self._got == self._response_bytes:
                self.latencies_us.append(now - self._asked_us)
                self._got, self._asked_us, self._request_left = 0, now, memoryview(self._request)
        if not connection.write_closed:
            connection.shutdown_write(now)

    @property
    def ended(self) -> bool:
        return len(self.latencies_us) == self._count


class Responder(ConnectionApplication):
    """Answers each request of ``request_bytes`` with as many octets as it asks for; ends when the other side does."""

    __slots__ = ("_left", "_request", "_request_bytes", "_sent", "ended")

    def __init__(self, host: SimHost, connection: Connection, request_bytes: int) -> None:
        super().__init__(host, connection)
        self._request_bytes = max(4, request_bytes)
        self._request = b""
        self._left = self._sent = 0
        self.ended = False

    def on_ready(self, now: int) -> None:
        connection = self.connection
        while not self.ended:
            while self._left:
                taken = connection.write(pattern(self._sent, self._left), now)
                if not taken:
                    return
                self._sent += taken
                self._left -= taken
            octets = connection.read(self._request_bytes - len(self._request))
            if not octets:
                if connection.eof:
                    self.ended = True
                    connection.shutdown_write(now)
                return
            self._request += octets
            if len(self._request) == self._request_bytes:
                self._left, self._sent, self._request = int.from_bytes(self._request[:4], "big"), 0, b""


class Acceptor(Application):
    """Gives every accepted connection the application that ``make`` returns for it."""

    __slots__ = ("_host", "_listener", "_make", "accepted")

    def __init__(
        self, host: SimHost, listener: Listener, make: Callable[[SimHost, Connection], ConnectionApplication]
    ) -> None:
        self._host = host
        self._listener = listener
        self._make = make
        self.accepted: list[ConnectionApplication] = []

    def on_ready(self, now: int) -> None:
        while (connection := self._listener.accept()) is not None:
            application = self._make(self._host, connection)
            self.accepted.append(application)
            self._host.attach(connection, application)
