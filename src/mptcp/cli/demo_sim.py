"""The demo without the kernel: two of our own stacks in a simulated network, in virtual time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence

from rich.console import Console

from mptcp.cli import figures
from mptcp.cli.demo_result import Arrivals, DemoResult, PathResult
from mptcp.cli.progress import REFRESH_PER_SECOND, TransferDisplay
from mptcp.core.multipath.connection import Connection
from mptcp.core.units import KIB, MBIT, MILLISECOND, SECOND
from mptcp.info import Endpoint, SubflowInfo
from mptcp.sim.applications import Acceptor, BulkSender, ConnectionApplication, pattern
from mptcp.sim.conditions import Conditions
from mptcp.sim.world import SimHost, World

PORT = 80
DELAY_US = 5 * MILLISECOND
QUEUE_SECONDS = 0.05
ALONE_SECONDS = 1.5
SETTLE_US = 300 * MILLISECOND
#: Virtual time after which a demo that does not end is given up.
GIVE_UP_US = 600 * SECOND
SEED = 8684
_READ_BYTES = 64 * KIB


class HashingReceiver(ConnectionApplication):
    """Reads all there is: its SHA-256, when it came, and a call for every arrival."""

    __slots__ = ("_buffer", "arrivals", "digest", "ended", "on_data", "total")

    def __init__(self, host: SimHost, connection: Connection) -> None:
        super().__init__(host, connection)
        self.arrivals = Arrivals()
        self.digest = hashlib.sha256()
        self.total = 0
        self.ended = False
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self.on_data: Callable[[int], None] = lambda total: None

    def on_ready(self, now: int) -> None:
        connection = self.connection
        while connection.readable_bytes:
            count = connection.read_into(self._buffer)
            self.digest.update(self._buffer[:count])
            self.total += count
            self.arrivals.add(self.total, now)
        self.on_data(self.total)
        if not self.ended and (connection.eof or connection.error is not None):
            self.ended = True
            connection.shutdown_write(now)


class Scene:
    """A world with one client and one server and a path per rate; the client fetches ``size`` octets."""

    def __init__(self, rates_mbit: Sequence[float], size: int) -> None:
        self.world = World(SEED)
        server, client = self.world.add_host("server"), self.world.add_host("client")
        self.paths = []
        for number, rate in enumerate(rates_mbit, 1):
            conditions = Conditions(
                rate_bps=int(rate * MBIT), delay_us=DELAY_US, queue_bytes=int(rate * MBIT / 8 * QUEUE_SECONDS)
            )
            near = client.add_interface(f"10.77.{number}.1")
            far = server.add_interface(f"10.77.{number}.2")
            self.paths.append(self.world.join(near, far, conditions))
        remote = Endpoint.parse("10.77.1.2", PORT)
        listener = server.listen(remote)
        server.attach(listener, Acceptor(server, listener, lambda host, connection: BulkSender(host, connection, size)))
        connection = client.connect(remote)
        self.receiver = HashingReceiver(client, connection)
        client.attach(connection, self.receiver)

    def run(self) -> None:
        self.world.run(GIVE_UP_US, while_=lambda: not self.receiver.ended)


def run(size_bytes: int, rates_mbit: Sequence[float], console: Console) -> DemoResult:
    """The whole demo. Everything but the display is in virtual time: it may run faster or slower than the real one."""
    console.print(f"simulating a transfer of {figures.octets(size_bytes)} over two paths, in virtual time …")
    paths = []
    for number, rate in enumerate(rates_mbit, 1):
        scene = Scene([rate], int(rate * MBIT / 8 * ALONE_SECONDS))
        scene.run()
        arrivals = scene.receiver.arrivals
        alone = arrivals.rate_bits(arrivals.first_us + SETTLE_US, arrivals.last_us)
        paths.append(PathResult(f"path {number}", rate * MBIT, alone))
        console.print(f"  path {number} alone: {figures.rate(alone)}", highlight=False)

    cut_at_us: list[int] = []

    def on_data(total: int) -> None:
        display.done = total
        if not cut_at_us and total >= size_bytes // 2:
            scene.paths[0].forward.set_up(False)
            scene.paths[0].backward.set_up(False)
            cut_at_us.append(scene.world.now)
            display.note = "path 1 is cut: every packet on it vanishes, nobody is told"
        take_snapshot()
        display.tick()

    def take_snapshot(at_once: bool = False) -> None:
        # The display's thread must not look into a connection that this one is changing: it gets copies.
        if at_once or time.monotonic() >= next_snapshot[0]:
            next_snapshot[0] = time.monotonic() + 1 / REFRESH_PER_SECOND
            snapshot[:] = [scene.receiver.connection.subflows()]

    next_snapshot = [0.0]
    snapshot: list[list[SubflowInfo]] = [[]]
    scene = Scene(rates_mbit, size_bytes)
    scene.receiver.on_data = on_data
    display = TransferDisplay("simulated file", console=console, clock_us=lambda: scene.world.now)
    display.total = size_bytes
    with display:
        display.watch(lambda: snapshot[0])
        scene.run()
        take_snapshot(at_once=True)
        display.unwatch()
    arrivals = scene.receiver.arrivals
    paths[0].was_cut = bool(cut_at_us)
    for number, path in enumerate(paths, 1):
        path.bytes_received = sum(
            track.info.bytes_received for track in display.log.tracks if track.info.local.host == f"10.77.{number}.1"
        )
    cut_us = cut_at_us[0] if cut_at_us else arrivals.last_us
    return DemoResult(
        peer="another of our stacks (simulated, virtual time)",
        size_bytes=scene.receiver.total,
        sha256=scene.receiver.digest.hexdigest(),
        expected_sha256=expected_sha256(size_bytes),
        seconds=(arrivals.last_us - arrivals.first_us) / 1e6,
        before_cut_bits=arrivals.rate_bits(arrivals.first_us + SETTLE_US, cut_us),
        after_cut_bits=arrivals.rate_bits(cut_us, arrivals.last_us),
        longest_stall_s=arrivals.longest_stall_us / 1e6,
        cut_after_s=(cut_us - arrivals.first_us) / 1e6,
        paths=paths,
    )


def expected_sha256(size: int) -> str:
    """Of what the server sends."""
    digest = hashlib.sha256()
    offset = 0
    while offset < size:
        block = pattern(offset, size - offset)
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()
