"""Two ``core.tcp`` connections joined by a wire in virtual time: no host, no octets, only segments."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from mptcp.core.counters import Counters
from mptcp.core.entropy import Entropy
from mptcp.core.tcp.config import DEFAULT_TCP_CONFIG, TcpConfig
from mptcp.core.tcp.connection import Connection
from mptcp.core.tcp.extension import Extension
from mptcp.core.units import MILLISECOND, NEVER, SECOND
from mptcp.core.wire.segment import ACK, CWR, FIN, PSH, SYN, Segment
from mptcp.info import Endpoint
from mptcp.sim.clock import VirtualClock

#: Initial sequence numbers: just below the wrap, so that every test crosses it.
CLIENT_ISN, SERVER_ISN = 0xFFFFFF00, 0xFFFFF800
#: Segments of one side at one instant: two sides that answer each other without end stop here.
MAX_SEGMENTS_PER_INSTANT = 100_000


class WireSegment(NamedTuple):
    """One segment that entered the wire."""

    time_us: int
    from_client: bool
    segment: Segment
    dropped: bool


def cut(segment: Segment) -> list[Segment]:
    """A super-segment in pieces of ``mss`` octets, as a network card cuts it; payload as one buffer each."""
    if not segment.length:
        return [segment]
    payload = memoryview(segment.payload)
    size = segment.mss if segment.mss and segment.length > segment.mss else segment.length
    pieces = []
    for start in range(0, segment.length, size):
        part = payload[start : start + size]
        flags = segment.flags
        if start + size < segment.length:
            flags &= ~(FIN | PSH)
        if start:
            flags &= ~CWR
        pieces.append(
            Segment(
                (segment.seq + start) & 0xFFFFFFFF, segment.ack, flags, segment.window, segment.options, (part,),
                len(part), segment.ecn, segment.urgent_pointer,
            )
        )  # fmt: skip
    return pieces


class TcpPair:
    """A client and a server connection, and the wire between them.

    ``delay_us`` one way; ``loss``, ``duplicate``, ``reorder`` are probabilities; ``drop(segment, from_client)`` picks
    segments to lose. What entered the wire is in ``log``.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        config: TcpConfig = DEFAULT_TCP_CONFIG,
        server_config: TcpConfig | None = None,
        delay_us: int = 5 * MILLISECOND,
        loss: float = 0.0,
        duplicate: float = 0.0,
        reorder: float = 0.0,
        reorder_us: int = 2 * MILLISECOND,
        mtu: int = 1500,
        gso_max_bytes: int = 0,
        client_extension: Extension | None = None,
        server_extension: Extension | None = None,
        drop: Callable[[Segment, bool], bool] | None = None,
    ) -> None:
        entropy = Entropy(seed)
        self.clock = VirtualClock()
        self.counters = Counters()
        self.client_endpoint = Endpoint.parse("10.0.0.1", 50_000)
        self.server_endpoint = Endpoint.parse("10.0.0.2", 80)
        self.delay_us = delay_us
        self.loss = loss
        self.duplicate = duplicate
        self.reorder = reorder
        self.reorder_us = reorder_us
        self.drop = drop
        self.log: list[WireSegment] = []
        self._random = Random(entropy.child("wire").octets(32))
        self.client = Connection(
            config, self.client_endpoint, self.server_endpoint, entropy.child("client"), self.counters,
            mtu=mtu, gso_max_bytes=gso_max_bytes, extension=client_extension, isn=CLIENT_ISN,
        )  # fmt: skip
        self.server = Connection(
            server_config or config, self.server_endpoint, self.client_endpoint, entropy.child("server"), self.counters,
            mtu=mtu, gso_max_bytes=gso_max_bytes, extension=server_extension, isn=SERVER_ISN,
        )  # fmt: skip
        self._server_has_syn = False
        self._listening = True

    @property
    def now(self) -> int:
        return self.clock.now

    def connect(self, timeout_us: int = 30 * SECOND) -> None:
        """Three-way handshake; AssertionError if it does not come about."""
        self.client.open(self.now)
        self.run(while_=lambda: not (self.client.is_established and self.server.is_established), limit_us=timeout_us)
        assert self.client.is_established, self.client.state
        assert self.server.is_established, self.server.state

    def open_both(self) -> None:
        """Simultaneous open: both send a SYN now."""
        self._listening = False
        self._server_has_syn = True
        self.client.open(self.now)
        self.server.open(self.now)

    def run(self, until: int = NEVER, while_: Callable[[], bool] | None = None, limit_us: int = 600 * SECOND) -> int:
        """Until that time, or as long as ``while_()`` holds, or until nothing happens any more; never longer than
        ``limit_us``. The time it is then."""
        clock = self.clock
        end = min(until, clock.now + limit_us)
        self._poll()
        while while_ is None or while_():
            client_deadline, server_deadline = self.client.poll_deadline(), self.server.poll_deadline()
            time = min(clock.next_time, client_deadline, server_deadline)
            if time > end:
                if end < NEVER and until < NEVER:
                    clock.now = max(clock.now, end)
                break
            if clock.next_time <= time:
                clock.run_instant()
            else:
                clock.now = max(clock.now, time)
            now = clock.now
            if client_deadline <= now and self.client.poll_deadline() <= now:
                self.client.handle_timeout(now)
            if server_deadline <= now and self.server.poll_deadline() <= now:
                self.server.handle_timeout(now)
            self._poll()
        return clock.now

    def transfer(self, octets: bytes, *, from_client: bool = True, limit_us: int = 600 * SECOND) -> bytes:
        """Writes all of it on one side, and returns what the other side has read when that is as much, or when time
        is up."""
        sender, receiver = (self.client, self.server) if from_client else (self.server, self.client)
        view = memoryview(octets)
        got = bytearray()

        def unfinished() -> bool:
            nonlocal view
            while view:
                taken = sender.write(view)
                if not taken:
                    break
                view = view[taken:]
            while receiver.readable_bytes:
                got.extend(receiver.read(receiver.readable_bytes))
            self._poll()
            return len(got) < len(octets) and sender.error is None and receiver.error is None

        self.run(while_=unfinished, limit_us=limit_us)
        return bytes(got)

    def close(self, limit_us: int = 600 * SECOND) -> None:
        """Both sides close; runs until both may be forgotten."""
        self.client.close(self.now)
        self.server.close(self.now)
        self.run(while_=lambda: not (self.client.is_closed and self.server.is_closed), limit_us=limit_us)

    def segments(self, *, from_client: bool) -> list[Segment]:
        """What that side has sent, lost or not."""
        return [entry.segment for entry in self.log if entry.from_client is from_client]

    def _poll(self) -> None:
        now = self.clock.now
        for connection, from_client in ((self.client, True), (self.server, False)):
            if not from_client and not self._server_has_syn:
                continue
            for _ in range(MAX_SEGMENTS_PER_INSTANT):
                segment = connection.poll_segment(now)
                if segment is None:
                    break
                for piece in cut(segment):
                    self._send(piece, from_client)

    def _send(self, segment: Segment, from_client: bool) -> None:
        random = self._random.random
        dropped = self.loss > 0 and random() < self.loss
        if self.drop is not None and self.drop(segment, from_client):
            dropped = True
        self.log.append(WireSegment(self.clock.now, from_client, segment, dropped))
        if dropped:
            return
        delay = self.delay_us
        if self.reorder and random() < self.reorder:
            delay += self.reorder_us
        self.clock.after(delay, lambda: self._arrive(segment, from_client))
        if self.duplicate and random() < self.duplicate:
            self.clock.after(delay + 1, lambda: self._arrive(segment, from_client))

    def _arrive(self, segment: Segment, from_client: bool) -> None:
        now = self.clock.now
        if not from_client:
            self.client.handle_segment(segment, now)
        elif self._server_has_syn:
            self.server.handle_segment(segment, now)
        elif self._listening and segment.flags & (SYN | ACK) == SYN:
            self._server_has_syn = True
            self.server.accept_syn(segment, now)
