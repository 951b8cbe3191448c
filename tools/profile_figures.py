"""Writes the figures of docs/api-advanced.md: what each profile does, measured in the simulator (virtual time, no privilege).

``python tools/profile_figures.py`` prints the table, ``--write`` puts it into the page.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from mptcp.core.multipath.config import DEFAULT_CONFIG, ConnectionConfig  # noqa: E402
from mptcp.core.multipath.connection import Connection  # noqa: E402
from mptcp.core.units import KIB, MBIT, MILLISECOND, SECOND  # noqa: E402
from mptcp.sim.applications import BulkReceiver, BulkSender, ConnectionApplication, pattern  # noqa: E402
from mptcp.sim.conditions import Conditions  # noqa: E402
from mptcp.sim.world import SimHost  # noqa: E402
from mptcp.sockets.profiles import Expectation, profile_named, setup_named  # noqa: E402
from mptcp.testing.pair import Pair  # noqa: E402

PAGE = "docs/api-advanced.md"
BEGIN, END = "<!-- figures: tools/profile_figures.py -->", "<!-- end of figures -->"


def link(mbps: float, round_trip_ms: int, queue_kib: int = 64) -> Conditions:
    return Conditions(rate_bps=int(mbps * MBIT), delay_us=round_trip_ms * MILLISECOND // 2, queue_bytes=queue_kib * KIB)


def pair(
    name: str, *paths: Conditions, expected: Expectation | None = None, setup: str = "", ipv6: bool = False
) -> Pair:
    """Client and server with that profile, connected."""
    profile = profile_named(name)
    config: ConnectionConfig = profile.apply(
        DEFAULT_CONFIG, expected or Expectation(), setup_named(setup) if setup else None
    )
    made = Pair(paths=len(paths), conditions=paths, client_options=config, server_options=config, seed=7, ipv6=ipv6)
    made.connect()
    return made


class Messages(ConnectionApplication):
    """Writes a message every so often; when each was written, and where it ends in the stream."""

    __slots__ = ("_every_us", "_left", "_pending", "_size", "_written", "ends")

    def __init__(self, host: SimHost, connection: Connection, size: int, every_us: int, count: int) -> None:
        super().__init__(host, connection)
        self._size, self._every_us, self._left = size, every_us, count
        self._written = self._pending = 0
        self.ends: list[tuple[int, int]] = []
        self._tick()

    def _tick(self) -> None:
        now = self.host.world.now
        self._left -= 1
        self._pending += self._size
        self.ends.append((self._written + self._pending, now))
        self.on_ready(now)
        if self._left:
            self.host.world.at(now + self._every_us, self._tick)

    def on_ready(self, now: int) -> None:
        while self._pending:
            taken = self.connection.write(pattern(self._written, self._pending), now)
            if not taken:
                return
            self._written += taken
            self._pending -= taken


class Listening(ConnectionApplication):
    """Reads, and keeps when which octet of the stream was there."""

    __slots__ = ("arrivals", "is_exact", "total")

    def __init__(self, host: SimHost, connection: Connection) -> None:
        super().__init__(host, connection)
        self.total = 0
        self.is_exact = True
        self.arrivals: list[tuple[int, int]] = []

    def on_ready(self, now: int) -> None:
        while data := self.connection.read(64 * KIB):
            self.is_exact = self.is_exact and data == pattern(self.total, len(data))
            self.total += len(data)
            self.arrivals.append((self.total, now))


@cache
def message_delays_us(
    name: str, *, size: int = 20_000, every_us: int = 40 * MILLISECOND, count: int = 200, ipv6: bool = False
) -> list[int]:
    """From write to read, of messages over paths of 10 and 100 ms; sorted."""
    made = pair(name, link(10, 10), link(10, 100), ipv6=ipv6)
    made.run(for_us=SECOND)
    receiver = Listening(made.server_host, made.server)
    made.server_host.attach(made.server, receiver)
    sender = Messages(made.client_host, made.client, size, every_us, count)
    made.client_host.attach(made.client, sender)
    made.run(for_us=count * every_us + 5 * SECOND, while_=lambda: receiver.total < size * count)
    assert receiver.is_exact
    assert receiver.total == size * count
    delays, at = [], 0
    for end, written in sender.ends:
        while receiver.arrivals[at][0] < end:
            at += 1
        delays.append(receiver.arrivals[at][1] - written)
    return sorted(delays)


def percentile(values: list[int], share: float) -> int:
    return values[min(len(values) - 1, int(len(values) * share))]


@dataclass(slots=True)
class Run:
    """An upload without end for some seconds: octets per path, and the receiver's progress."""

    octets: list[int]
    receiver: BulkReceiver
    made: Pair

    def goodput_mbps(self, start_us: int, end_us: int) -> float:
        return self.receiver.progress.goodput_bps(start_us, end_us) / 1e6

    def bins_mbps(self, start_us: int, end_us: int, width_us: int) -> list[float]:
        return [self.goodput_mbps(t, t + width_us) for t in range(start_us, end_us, width_us)]


def upload(
    name: str, *paths: Conditions, until_us: int, events: Callable[[Pair], None] | None = None, setup: str = ""
) -> Run:
    made = pair(name, *paths, setup=setup)
    receiver = BulkReceiver(made.server_host, made.server, keep_open=True)
    made.server_host.attach(made.server, receiver)
    made.client_host.attach(made.client, BulkSender(made.client_host, made.client))
    if events is not None:
        events(made)
    made.run(for_us=until_us - made.now)
    assert receiver.is_exact
    return Run([path.forward.bytes_delivered for path in made.paths], receiver, made)


@cache
def stall_us(name: str) -> int:
    """The longest silence at the receiver when one of two equal paths goes dead for good."""

    def kill(made: Pair) -> None:
        made.paths[0].cut(3 * SECOND)

    return upload(name, link(10, 40), link(10, 40), until_us=8 * SECOND, events=kill).receiver.progress.longest_stall_us


@cache
def unsteadiness(name: str) -> float:
    """Standard deviation of the goodput by its mean, in half-seconds, while a second path comes and goes."""

    def flap(made: Pair) -> None:
        for second in range(2, 20, 4):
            made.paths[1].cut(second * SECOND)
            made.paths[1].restore((second + 2) * SECOND)

    run = upload(name, link(10, 40), link(10, 40), until_us=20 * SECOND, events=flap)
    bins = run.bins_mbps(2 * SECOND, 20 * SECOND, SECOND // 2)
    return statistics.pstdev(bins) / statistics.fmean(bins)


@cache
def offered(name: str, mbps: float) -> list[float]:
    """What each path carries, in Mbit/s, of a stream of that rate; the second path has the shorter delay."""
    made = pair(name, link(10, 40), link(10, 20))
    every_us = 20 * MILLISECOND
    size = int(mbps * 1e6 / 8 * every_us / SECOND)
    receiver = Listening(made.server_host, made.server)
    made.server_host.attach(made.server, receiver)
    sender = Messages(made.client_host, made.client, size, every_us, 10 * SECOND // every_us)
    made.client_host.attach(made.client, sender)
    made.run(for_us=2 * SECOND)
    before = [path.forward.bytes_delivered for path in made.paths]
    started = made.now
    made.run(for_us=7 * SECOND)
    assert receiver.is_exact
    return [
        (path.forward.bytes_delivered - b) * 8 / (made.now - started)
        for path, b in zip(made.paths, before, strict=True)
    ]


@cache
def takeover(name: str, setup: str = "") -> tuple[int, int]:
    """Octets that the second path had carried when the first one died, and the silence that followed."""
    seen: list[int] = []

    def kill(made: Pair) -> None:
        made.paths[0].cut(3 * SECOND)
        made.world.at(3 * SECOND - 1, lambda: seen.append(made.paths[1].forward.bytes_delivered))

    run = upload(name, link(10, 40), link(10, 40), until_us=8 * SECOND, events=kill, setup=setup)
    return seen[0], run.receiver.progress.longest_stall_us


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: a claim, and what was measured with the profile and with another one."""

    profile: str
    measured: str
    unit: str
    value: float
    other: str
    other_value: float

    def line(self) -> str:
        return (
            f"| {self.profile} | {self.measured} | **{_number(self.value)}** {self.unit} | "
            f"{self.other}: {_number(self.other_value)} {self.unit} |"
        )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def figures() -> list[Figure]:
    """All of them; the same every time."""
    latency, bulk = message_delays_us("latency"), message_delays_us("bulk")
    gauge = (2 * SECOND, 8 * SECOND)
    together = upload("bulk", link(10, 20), link(10, 40), until_us=gauge[1])
    alone = upload("hot-standby", link(10, 20), link(10, 40), until_us=gauge[1])
    idle, silence = takeover("hot-standby")
    busy, _ = takeover("bulk")
    _, opened_late = takeover("hot-standby", "when-failed")
    low, high = offered("overflow", 6), offered("overflow", 14)
    spread = offered("bulk", 6)
    ms = 1e3
    return [
        Figure(
            "bulk", "goodput over two paths of 10 Mbit/s", "Mbit/s", together.goodput_mbps(*gauge), "hot-standby",
            alone.goodput_mbps(*gauge),
        ),
        Figure(
            "latency", "99th percentile of the delay of 20 kB messages, paths of 10 and 100 ms", "ms",
            percentile(latency, 0.99) / ms, "bulk", percentile(bulk, 0.99) / ms,
        ),
        Figure(
            "latency", "median of the same", "ms", percentile(latency, 0.5) / ms, "bulk", percentile(bulk, 0.5) / ms,
        ),
        Figure(
            "reliable", "longest silence when one of two paths dies", "ms", stall_us("reliable") / ms, "bulk",
            stall_us("bulk") / ms,
        ),
        Figure(
            "steady", "standard deviation of the goodput by its mean, a second path comes and goes", "",
            unsteadiness("steady"), "bulk", unsteadiness("bulk"),
        ),
        Figure("hot-standby", "octets on the second path before the first one dies", "", idle, "bulk", busy),
        Figure("hot-standby", "silence until it has taken over", "ms", silence / ms, "second path opened only then", opened_late / ms),
        Figure("overflow", "second path, 6 Mbit/s offered to a first path of 10", "Mbit/s", low[1], "bulk", spread[1]),
        Figure("overflow", "second path, 14 Mbit/s offered", "Mbit/s", high[1], "6 Mbit/s offered", low[1]),
    ]  # fmt: skip


def table(lines: list[Figure]) -> str:
    head = "| profile | what was measured | figure | for comparison |\n|---|---|---|---|\n"
    return head + "\n".join(line.line() for line in lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the profiles in the simulator.")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE}")
    arguments = parser.parse_args(argv)
    text = table(figures())
    if not arguments.write:
        sys.stdout.write(text)
        return 0
    path = ROOT / PAGE
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
