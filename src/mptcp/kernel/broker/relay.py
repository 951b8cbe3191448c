"""The kernel's events, each to the clients that have shown its connection, and to nobody else.

The kernel tells a member of its group of every connection of the namespace. What came about a connection in the last
moments is kept, so that who shows it then has missed nothing; what a client does not read is dropped, and counted; one that
does not read for long is let go.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from mptcp.kernel.broker.limits import LogLimit
from mptcp.kernel.broker.protocol import MAX_EVENT, emit_gap
from mptcp.kernel.pm_events import EventsLost, PmEventKind, PmEventSocket, event_token

#: Events of connections that nobody watches, kept for whoever will: so many, so long.
MAX_RECENT: Final = 4096
RECENT_S: Final = 10.0
#: What a client has not read holds so much memory of the kernel.
CHANNEL_BYTES: Final = 1 << 18
#: A client that has had no room for an event for so long is let go.
SLOW_S: Final = 30.0
#: How often those that lag are looked after; and when the kernel's events are asked for again after an error.
_LAG_S: Final = 0.1
_RETRY_S: Final = 1.0
#: After a loss, so that a flood of events does not have everything looked up again without end.
_LOSS_S: Final = 0.05

log = logging.getLogger("mptcp.broker")


class Channel:
    """Where the events of one client go: our end of a socket whose other end the client reads. Used under the relay's lock."""

    __slots__ = ("_lag_since", "_missed", "_socket", "closed", "lags", "name", "tokens")

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.name = name
        self.tokens: set[int] = set()
        self.closed = False
        #: Something is missing that the client has not been told of yet.
        self.lags = False
        self._socket = sock
        self._missed = 0
        self._lag_since = 0.0
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHANNEL_BYTES)

    def put(self, event: bytes | memoryview, now: float) -> None:
        """Hands one event on, or counts it as missed."""
        if not self.catch_up(now) or not self._send(event):
            self.miss(1, now)

    def miss(self, count: int, now: float) -> None:
        """So many events are missing here; 0: nobody knows how many."""
        if not self.lags:
            self.lags, self._lag_since = True, now
        self._missed += count

    def catch_up(self, now: float) -> bool:
        """Says what is missing if there is room for it; whether nothing is missing (any more)."""
        if self.lags and not self.closed:
            if self._send(emit_gap(self._missed)):
                self.lags, self._missed = False, 0
            elif now - self._lag_since > SLOW_S:
                log.warning("%s has not read its events for %.0f s: no more of them", self.name, SLOW_S)
                self.close()
        return not self.lags

    def _send(self, message: bytes | memoryview) -> bool:
        if self.closed:
            return False
        try:
            self._socket.send(message, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:  # it has closed its end
            self.close()
            return False
        return True

    def close(self) -> None:
        """The client reads the end of its events."""
        self.closed = True
        self._socket.close()


class Relay:
    """Reads the kernel's events in a thread of its own until ``close``. Any thread may call.

    ``open_source`` makes a member of the kernel's group; ``connections`` tells {token: inode} of those there are now, which
    is asked when events were lost, since ends of connections may be among them.
    """

    __slots__ = (
        "_channels", "_closing", "_connections", "_evicted_at", "_lock", "_open_source", "_overflows", "_recent", "_source",
        "_thread", "_wake_r", "_wake_w", "_watchers",
    )  # fmt: skip

    def __init__(self, open_source: Callable[[], PmEventSocket], connections: Callable[[], dict[int, int]]) -> None:
        self._open_source, self._connections = open_source, connections
        self._source: PmEventSocket | None = open_source()
        self._lock = threading.Lock()
        self._channels: list[Channel] = []
        #: token -> (channel, inode of the connection's socket)
        self._watchers: dict[int, list[tuple[Channel, int]]] = {}
        self._recent: deque[tuple[float, int, bytes]] = deque()
        self._evicted_at = time.monotonic()  # what came before this is missing, too
        self._closing = False
        self._overflows = LogLimit(1)
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="mptcp-broker-events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, and every client's events."""
        with self._lock:
            self._closing = True
            self._watchers.clear()
            for channel in self._channels:
                channel.close()
            self._channels.clear()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()
        for fd in (self._wake_r, self._wake_w):
            os.close(fd)
        if self._source is not None:
            self._source.close()

    def add(self, channel: Channel) -> None:
        """A client's way to its events; ``release`` takes it away."""
        with self._lock:
            if self._closing:
                channel.close()
            else:
                self._channels.append(channel)

    def watch(self, channel: Channel, token: int, inode: int) -> None:
        """Events of that connection go to ``channel`` from now on, and first those of the last moments."""
        now = time.monotonic()
        with self._lock:
            watchers = self._watchers.get(token, [])
            if channel.closed or any(known is channel for known, _ in watchers):
                return
            self._watchers[token] = [*watchers, (channel, inode)]
            channel.tokens.add(token)
            self._expire(now)
            if now - self._evicted_at < RECENT_S:
                channel.miss(0, now)
            events = [event for _, about, event in self._recent if about == token]
            # A token may have been another connection's before.
            first = max((i for i, event in enumerate(events) if event[0] == PmEventKind.CREATED), default=0)
            for event in events[first:]:
                channel.put(event, now)
            self._recent = deque(entry for entry in self._recent if entry[1] != token)
            if events and events[-1][0] == PmEventKind.CLOSED:
                self._end(token)
            if channel.lags:
                self._wake()

    def unwatch(self, channel: Channel, token: int) -> None:
        with self._lock:
            self._leave(channel, token)

    def release(self, channel: Channel) -> None:
        """The client has gone."""
        with self._lock:
            self._release(channel)

    # --- the thread --------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        while not self._closing:
            if self._source is None and not self._reopen():
                select.select([self._wake_r], [], [], _RETRY_S)
                continue
            assert self._source is not None
            poll = select.poll()
            poll.register(self._wake_r, select.POLLIN)
            poll.register(self._source.fileno(), select.POLLIN)
            poll.poll(_LAG_S * 1000 if self._lagging() else None)
            if self._closing:
                return
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_r, 64)
            try:
                events = self._source.read_messages()
            except EventsLost:
                self._lost()
                select.select([self._wake_r], [], [], _LOSS_S)
                continue
            except OSError as error:
                log.error("events of MPTCP can no longer be read: %s", error.strerror)
                self._source.close()
                self._source = None
                continue
            self._deliver(events)

    def _reopen(self) -> bool:
        try:
            self._source = self._open_source()
        except OSError:
            return False
        self._lost()
        return True

    def _lagging(self) -> bool:
        now = time.monotonic()
        with self._lock:
            for channel in [*self._channels]:
                channel.catch_up(now)
                if channel.closed:
                    self._release(channel)
            return any(channel.lags for channel in self._channels)

    def _deliver(self, events: list[memoryview]) -> None:
        now = time.monotonic()
        with self._lock:
            for event in events:
                token = event_token(event)
                if not token or len(event) > MAX_EVENT:
                    continue  # about a listener, say, which is nobody's here
                watchers = self._watchers.get(token)
                if watchers is None:
                    self._keep(now, token, bytes(event))
                    continue
                for channel, _ in watchers:
                    channel.put(event, now)
                if event[0] == PmEventKind.CLOSED:
                    self._end(token)

    def _lost(self) -> None:
        now = time.monotonic()
        if self._overflows.allows(now):
            log.warning(
                "events came faster than they could be read, and clients are told so%s", self._overflows.suppressed()
            )
        living: dict[int, int] | None = None
        with contextlib.suppress(OSError):
            living = self._connections()
        with self._lock:
            self._recent.clear()
            self._evicted_at = now
            for channel in self._channels:
                channel.miss(0, now)
                channel.catch_up(now)
            if living is None:
                return
            for token in [*self._watchers]:
                for channel, inode in [*self._watchers[token]]:
                    # The inode is 0 when the program has closed the socket, and the connection is not over yet.
                    if living.get(token) not in {inode, 0}:
                        self._leave(channel, token)

    # --- under the lock ----------------------------------------------------------------------------------------------
    def _keep(self, now: float, token: int, event: bytes) -> None:
        self._expire(now)
        if len(self._recent) >= MAX_RECENT:
            self._recent.popleft()
            self._evicted_at = now
        self._recent.append((now, token, event))

    def _expire(self, now: float) -> None:
        while self._recent and now - self._recent[0][0] > RECENT_S:
            self._recent.popleft()

    def _end(self, token: int) -> None:
        for channel, _ in self._watchers.pop(token, ()):
            channel.tokens.discard(token)

    def _leave(self, channel: Channel, token: int) -> None:
        channel.tokens.discard(token)
        left = [entry for entry in self._watchers.get(token, ()) if entry[0] is not channel]
        if left:
            self._watchers[token] = left
        else:
            self._watchers.pop(token, None)

    def _release(self, channel: Channel) -> None:
        for token in [*channel.tokens]:
            self._leave(channel, token)
        if channel in self._channels:
            self._channels.remove(channel)
        channel.close()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it is awake already
            os.write(self._wake_w, b"x")
