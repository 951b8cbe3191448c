"""TCP connections without a network: two that talk to each other in virtual time, and one that talks to a script."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from mptcp.core.counters import Counters
from mptcp.core.entropy import Entropy
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.connection import Connection
from mptcp.core.tcp.extension import Extension
from mptcp.core.units import MILLISECOND, NEVER, SECOND
from mptcp.core.wire.segment import ACK, RST, SYN, Options, Segment
from mptcp.core.wire.sequence import MASK32
from mptcp.info import Endpoint

CLIENT = Endpoint(b"\x0a\x00\x00\x01", 40000)
SERVER = Endpoint(b"\x0a\x00\x00\x02", 80)
#: Just below the wrap of 32 bits, so that every test crosses it.
CLIENT_ISN, SERVER_ISN = 0xFFFFFFF0, 0xFFFFFFE0
START_US = 10 * SECOND

#: What the wire does to a segment: the delays (microseconds) after which copies of it arrive; none: it is lost.
Wire = Callable[[Segment, random.Random], list[int]]


def steady_wire(delay_us: int = 5 * MILLISECOND) -> Wire:
    """Every segment arrives once, in order."""
    return lambda segment, chance: [delay_us]


def hostile_wire(loss: float, reorder: float, duplicate: float, delay_us: int = 5 * MILLISECOND) -> Wire:
    """Loses, delays and doubles segments with these probabilities."""

    def carry(segment: Segment, chance: random.Random) -> list[int]:
        copies = []
        for _ in range(1 + (chance.random() < duplicate)):
            if chance.random() >= loss:
                extra = chance.randrange(4 * delay_us) if chance.random() < reorder else 0
                copies.append(delay_us + extra)
        return copies

    return carry


class TcpPair:
    """``client`` and ``server``, and the wire between them. ``run_until`` moves virtual time from event to event."""

    def __init__(
        self,
        config: TcpConfig | None = None,
        server_config: TcpConfig | None = None,
        *,
        wire: Wire | None = None,
        seed: int = 1,
        mtu: int = 1500,
        gso_max_bytes: int = 0,
        client_extension: Extension | None = None,
        server_extension: Extension | None = None,
    ) -> None:
        config = config or TcpConfig()
        self.now = START_US
        self.wire = wire or steady_wire()
        self.chance = random.Random(seed)
        self.client_counters, self.server_counters = Counters(), Counters()
        self.client = Connection(
            config, CLIENT, SERVER, Entropy(seed), self.client_counters,
            mtu=mtu, gso_max_bytes=gso_max_bytes, extension=client_extension, isn=CLIENT_ISN,
        )  # fmt: skip
        self.server = Connection(
            server_config or config, SERVER, CLIENT, Entropy(seed + 1), self.server_counters,
            mtu=mtu, gso_max_bytes=gso_max_bytes, extension=server_extension, isn=SERVER_ISN,
        )  # fmt: skip
        self.server_listens = True
        #: every segment that was sent: (time, from the client, segment)
        self.trace: list[tuple[int, bool, Segment]] = []
        self._in_flight: list[tuple[int, int, bool, Segment]] = []
        self._count = 0

    def connect(self) -> TcpPair:
        """Opens the client and runs until both sides are established."""
        self.client.open(self.now)
        self.run_until(lambda: self.client.is_established and self.server.is_established)
        return self

    def flush(self) -> None:
        """Puts on the wire what both sides want to send now."""
        for from_client, connection in ((True, self.client), (False, self.server)):
            while (segment := connection.poll_segment(self.now)) is not None:
                self.trace.append((self.now, from_client, segment))
                for delay in self.wire(segment, self.chance):
                    self._count += 1
                    heapq.heappush(self._in_flight, (self.now + delay, self._count, from_client, segment))

    def step(self) -> bool:
        """On to the next arrival or deadline; False if there is none."""
        self.flush()
        deadline = min(self.client.poll_deadline(), self.server.poll_deadline())
        arrival = self._in_flight[0][0] if self._in_flight else NEVER
        if min(deadline, arrival) == NEVER:
            return False
        self.now = max(self.now, min(deadline, arrival))
        while self._in_flight and self._in_flight[0][0] <= self.now:
            _, _, from_client, segment = heapq.heappop(self._in_flight)
            self.arrive(self.server if from_client else self.client, segment)
        for connection in (self.client, self.server):
            if connection.poll_deadline() <= self.now:
                connection.handle_timeout(self.now)
        self.flush()
        return True

    def arrive(self, connection: Connection, segment: Segment) -> None:
        if connection is self.server and self.server_listens and segment.flags & (SYN | ACK | RST) == SYN:
            self.server_listens = False
            connection.accept_syn(segment, self.now)
        else:
            connection.handle_segment(segment, self.now)

    def run_until(self, condition: Callable[[], bool], limit_us: int = 3600 * SECOND) -> None:
        """AssertionError if nothing is left to happen, or the time is up, before ``condition``."""
        end = self.now + limit_us
        self.flush()
        while not condition():
            if not self.step():
                raise AssertionError(f"nothing more happens: {self.client.state}, {self.server.state}")
            if self.now > end:
                raise AssertionError(f"took too long: {self.client.state}, {self.server.state}")

    def run_for(self, duration_us: int) -> None:
        end = self.now + duration_us
        self.flush()
        while True:
            arrival = self._in_flight[0][0] if self._in_flight else NEVER
            if min(self.client.poll_deadline(), self.server.poll_deadline(), arrival) > end:
                break
            self.step()
        self.now = end

    def transfer(self, source: Connection, sink: Connection, data: bytes, read_size: int = 1 << 20) -> bytes:
        """Writes ``data`` at one side and reads it at the other; what was read."""
        view, sent, received = memoryview(data), 0, bytearray()
        self.flush()
        while len(received) < len(data):
            if sent < len(data):
                sent += source.write(view[sent:])
                self.flush()
            if sink.readable_bytes:
                received += sink.read(read_size)
                sink.window_update(self.now)
                self.flush()
                continue
            if not self.step():
                raise AssertionError(f"stuck after {len(received)} octets: {source.state}, {sink.state}")
        return bytes(received)


class ScriptedPeer:
    """One connection, and a script that plays its peer segment by segment.

    Numbers are relative: ``seq`` 0 is the peer's SYN, ``ack`` 0 the connection's; 1 is the first octet of data.
    """

    def __init__(
        self,
        config: TcpConfig | None = None,
        *,
        mtu: int = 1500,
        gso_max_bytes: int = 0,
        extension: Extension | None = None,
        timestamps: bool = False,
        sack: bool = True,
        window: int = 65535,
        window_scale: int | None = None,
        mss: int | None = 1460,
    ) -> None:
        self.counters = Counters()
        self.now = START_US
        self.timestamps = timestamps
        self.sack = sack
        self.window = window
        self.window_scale = window_scale
        self.mss = mss
        self.timestamp_value = 1000
        self.tcp = Connection(
            config or TcpConfig(timestamps=timestamps), CLIENT, SERVER, Entropy(7), self.counters,
            mtu=mtu, gso_max_bytes=gso_max_bytes, extension=extension, isn=CLIENT_ISN,
        )  # fmt: skip

    def syn_options(self) -> Options:
        return Options(
            mss=self.mss,
            window_scale=self.window_scale,
            sack_permitted=self.sack,
            timestamp_value=self.timestamp_value if self.timestamps else None,
        )

    def segment(
        self,
        flags: int = ACK,
        seq: int = 1,
        ack: int = 1,
        data: bytes = b"",
        window: int | None = None,
        options: Options | None = None,
        ecn: int = 0,
        urgent_pointer: int = 0,
        mss: int = 0,
    ) -> Segment:
        if options is None:
            options = Options(timestamp_value=self.timestamp_value) if self.timestamps else Options()
        return Segment(
            (SERVER_ISN + seq) & MASK32,
            (CLIENT_ISN + ack) & MASK32 if flags & ACK else 0,
            flags,
            self.window if window is None else window,
            options,
            (memoryview(data),) if data else (),
            len(data),
            ecn,
            urgent_pointer,
            mss,
        )

    def gives(
        self,
        flags: int = ACK,
        seq: int = 1,
        ack: int = 1,
        data: bytes = b"",
        window: int | None = None,
        options: Options | None = None,
        ecn: int = 0,
        urgent_pointer: int = 0,
        mss: int = 0,
    ) -> list[Segment]:
        """A segment arrives; what the connection answers at once."""
        self.tcp.handle_segment(
            self.segment(flags, seq, ack, data, window, options, ecn, urgent_pointer, mss), self.now
        )
        return self.sent()

    def sent(self) -> list[Segment]:
        """What the connection sends now."""
        result = []
        while (segment := self.tcp.poll_segment(self.now)) is not None:
            result.append(segment)
            assert len(result) < 1000, "it never stops sending"
        return result

    def wait(self, duration_us: int) -> list[Segment]:
        """Time passes, timers fire; what was sent meanwhile."""
        end = self.now + duration_us
        result = self.sent()
        while self.tcp.poll_deadline() <= end:
            self.now = max(self.now, self.tcp.poll_deadline())
            self.tcp.handle_timeout(self.now)
            result += self.sent()
        self.now = end
        return result

    def relative(self, segment: Segment) -> tuple[int, int]:
        """(seq, ack) of a segment that was sent, as the script counts."""
        return (segment.seq - CLIENT_ISN) & MASK32, (segment.ack - SERVER_ISN) & MASK32

    def establish(self) -> ScriptedPeer:
        """Active open, answered: ESTABLISHED, nothing waiting to be sent."""
        self.tcp.open(self.now)
        assert [s.flags & (SYN | ACK) for s in self.sent()] == [SYN]
        self.now += 10 * MILLISECOND
        self.gives(SYN | ACK, seq=0, ack=1, options=self.syn_options())
        assert self.tcp.is_established
        return self

    def accept(self) -> ScriptedPeer:
        """Passive open by this peer's SYN and ACK."""
        self.tcp.accept_syn(self.segment(SYN, seq=0, options=self.syn_options()), self.now)
        assert [s.flags & (SYN | ACK) for s in self.sent()] == [SYN | ACK]
        self.now += 10 * MILLISECOND
        self.gives(ACK, seq=1, ack=1)
        assert self.tcp.is_established
        return self
